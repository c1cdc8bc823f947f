"""The manual's two examples (its chapters 3.2 and 3.3), on both backends, for both families."""

HEAD = """\
#
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
"""
RULES = """\
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p {icmp} -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -p udp -m state --state NEW -m udp --dport 53 -j ACCEPT
-A INPUT -p udp -m state --state NEW -m udp --dport 123 -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 80 -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 443 -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 8000 -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 8080 -j ACCEPT
-A INPUT -j REJECT --reject-with {prohibited}
-A FORWARD -j REJECT --reject-with {prohibited}
"""
FOOT = "COMMIT\n"
NEW_PORTS = ("--dport 53 ", "--dport 123 ", "--dport 8000 ")
SPELLING = {
    "ipv4": {"icmp": "icmp", "prohibited": "icmp-host-prohibited"},
    "ipv6": {"icmp": "ipv6-icmp", "prohibited": "icmp6-adm-prohibited"},
}
PATHS = {"ipv4": "/etc/iptables/rules.v4", "ipv6": "/etc/iptables/rules.v6"}
KEYS = {"ipv4": "IPv4/filter/INPUT", "ipv6": "IPv6/filter/INPUT"}
# What Docker has added in the manual's listing; nothing of it is in the stored file.
DOCKER = """\
*filter
:DOCKER - [0:0]
:DOCKER-ISOLATION - [0:0]
-I FORWARD -i docker0 -o docker0 -j ACCEPT
-I FORWARD -i docker0 ! -o docker0 -j ACCEPT
-I FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-I FORWARD -o docker0 -j DOCKER
-I FORWARD -j DOCKER-ISOLATION
-A DOCKER-ISOLATION -j RETURN
COMMIT
"""
ADDED = [
    {"action": "insert", "position": 4, "rule": "-p udp -m state --state NEW -m udp --dport 53 -j ACCEPT", "line": 9},
    {"action": "insert", "position": 5, "rule": "-p udp -m state --state NEW -m udp --dport 123 -j ACCEPT", "line": 10},
    {
        "action": "insert",
        "position": 9,
        "rule": "-p tcp -m state --state NEW -m tcp --dport 8000 -j ACCEPT",
        "line": 14,
    },
]
DELETED = [dict(step, action="delete", position=position) for step, position in zip(ADDED, (4, 4, 7))]


def is_new(line):
    return any(port in line for port in NEW_PORTS)


def before(family):
    """The file and the kernel the example starts from."""
    rules = RULES.format(**SPELLING[family]).splitlines(keepends=True)
    return HEAD + "".join(line for line in rules if not is_new(line)) + FOOT


def with_additions(family):
    return HEAD + RULES.format(**SPELLING[family]) + FOOT


def with_deletions(family):
    rules = RULES.format(**SPELLING[family]).splitlines(keepends=True)
    return HEAD + "".join("#DELETE# " + line if is_new(line) else line for line in rules) + FOOT


def prepare(host):
    for family in PATHS:
        host.restore(before(family), family)
        command = "iptables" if family == "ipv4" else "ip6tables"
        host.run([f"{command}-{host.backend}-restore", "--noflush"], input=DOCKER)


def store(host, text):
    for family, path in PATHS.items():
        host.write(path, text(family))


def rules_of(host, family):
    return [line for line in host.save(family).splitlines() if line.startswith("-A")]


def test_examples_through_the_execution_module(host):
    prepare(host)
    at_first = {family: rules_of(host, family) for family in PATHS}
    store(host, with_additions)
    assert host.call("iptlive.plan").value["changes"] == dict.fromkeys(KEYS.values(), ADDED)
    done = host.call("iptlive.apply").value
    assert (done["applied"], done["changes"]) == (True, dict.fromkeys(KEYS.values(), ADDED))
    for family in PATHS:
        kept = [rule for rule in rules_of(host, family) if not is_new(rule)]
        assert kept == at_first[family]
        assert [rule for rule in rules_of(host, family) if is_new(rule)] == [
            "-A INPUT " + step["rule"] for step in ADDED
        ]
    again = host.call("iptlive.apply").value
    assert (again["status"], again["applied"], again["changes"]) == ("in_sync", False, {})

    store(host, with_deletions)
    assert host.call("iptlive.plan").value["changes"] == dict.fromkeys(KEYS.values(), DELETED)
    host.call("iptlive.apply")
    assert {family: rules_of(host, family) for family in PATHS} == at_first
    assert host.call("iptlive.apply").value["status"] == "in_sync"


def test_examples_through_the_state(host):
    prepare(host)
    at_first = {family: rules_of(host, family) for family in PATHS}
    store(host, with_additions)
    steps = ["{action} {position}: {rule} (line {line})".format(**step) for step in ADDED]

    planned = host.state(test=True).value
    assert (planned["result"], planned["changes"]) == (None, dict.fromkeys(KEYS.values(), steps))
    assert {family: rules_of(host, family) for family in PATHS} == at_first
    done = host.state().value
    assert (done["result"], done["changes"]) == (True, planned["changes"])
    again = host.state().value
    assert (again["result"], again["changes"]) == (True, {})

    store(host, with_deletions)
    steps = ["{action} {position}: {rule} (line {line})".format(**step) for step in DELETED]
    assert host.state().value["changes"] == dict.fromkeys(KEYS.values(), steps)
    assert {family: rules_of(host, family) for family in PATHS} == at_first
    assert host.state(test=True).value["result"] is True


def test_examples_through_salt_call(new_host):
    """The very program and the very state tree that an administrator uses, with the rules of a Docker host."""
    host = new_host
    prepare(host)
    at_first = host.save("ipv4")
    store(host, with_additions)
    host.salt_call("saltutil.sync_all", check=True)

    def state_apply(*args):
        done = host.salt_call("state.apply", "iptlive", *args)
        (ret,) = done.value.values()
        return done.retcode, ret["result"], ret["changes"]

    added = ["{action} {position}: {rule} (line {line})".format(**step) for step in ADDED]
    deleted = ["{action} {position}: {rule} (line {line})".format(**step) for step in DELETED]
    assert state_apply("test=True") == (0, None, dict.fromkeys(KEYS.values(), added))
    assert host.save("ipv4") == at_first
    assert state_apply() == (0, True, dict.fromkeys(KEYS.values(), added))
    assert state_apply() == (0, True, {})
    store(host, with_deletions)
    assert state_apply() == (0, True, dict.fromkeys(KEYS.values(), deleted))
    assert host.save("ipv4") == at_first
