"""Every rule of ``rules.v4`` and ``rules.v6``: stored, applied, found again, marked, gone."""

from pathlib import Path

import pytest
from _iptlive_rules import parse_save

from lab.host import Host

HERE = Path(__file__).parent
PATHS = {"ipv4": "/etc/iptables/rules.v4", "ipv6": "/etc/iptables/rules.v6"}
TEXTS = {family: (HERE / Path(path).name).read_text(encoding="utf-8") for family, path in PATHS.items()}
# Several spellings of one rule are the point of the list.
# The sets of the rules are made by hand here: nothing restores them at boot.
OPTIONS = {"duplicates": "allow", "policy": "enforce", "boot": "ignore"}


def make_sets(host):
    host.run(["ipset", "create", "lan", "hash:ip", "timeout", "0"])
    host.run(["ipset", "create", "lan6", "hash:ip", "family", "inet6"])


@pytest.fixture(scope="module")
def booted():
    """What the plain iptables-restore makes of the files on an empty host, by backend, family and table."""
    made = {}
    for backend in ("nft", "legacy"):
        with Host(backend) as twin:
            make_sets(twin)
            for family, text in TEXTS.items():
                twin.restore(text, family)
                made[backend, family] = parse_save(twin.save(family))
    return made


def kernel(host, family):
    return parse_save(host.save(family))


def assert_in_sync(host):
    answer = host.call("iptlive.plan", **OPTIONS).value
    assert (answer["status"], answer["changes"], answer["warnings"]) == ("in_sync", {}, [])


def test_every_rule_from_an_empty_host_and_back(host, booted):
    make_sets(host)
    for family, path in PATHS.items():
        host.write(path, TEXTS[family])
    assert host.call("iptlive.apply", **OPTIONS).value["applied"]
    for family in PATHS:
        assert kernel(host, family) == booted[host.backend, family]
    assert_in_sync(host)

    for family, path in PATHS.items():
        lines = TEXTS[family].splitlines(keepends=True)
        host.write(path, "".join("#DELETE# " + line if line[0] in "-[" else line for line in lines))
    assert host.call("iptlive.apply", **OPTIONS).value["applied"]
    for family in PATHS:
        for table, chains in kernel(host, family).items():
            assert {chain: state.policy for chain, state in chains.items()} == {
                chain: state.policy for chain, state in booted[host.backend, family][table].items()
            }
            assert [chain for chain, state in chains.items() if state.rules] == []
    assert_in_sync(host)


def test_every_rule_that_is_missing_is_put_back(host, booted):
    """Two of three rules are gone; each comes back in the kernel's own spelling, to its place among the others."""
    make_sets(host)
    for family, path in PATHS.items():
        host.write(path, TEXTS[family])
        host.restore(saved(booted[host.backend, family], keep=lambda number: number % 3 == 0), family)
    assert host.call("iptlive.apply", **OPTIONS).value["applied"]
    for family in PATHS:
        assert kernel(host, family) == booted[host.backend, family]
    assert_in_sync(host)


def saved(tables, keep):
    lines = []
    for name, table in tables.items():
        lines.append("*" + name)
        lines += [f":{chain} {state.policy or '-'} [0:0]" for chain, state in table.items()]
        for chain, state in table.items():
            lines += [f"-A {chain} {rule}".rstrip(" ") for number, rule in enumerate(state.rules) if keep(number)]
        lines.append("COMMIT")
    return "\n".join(lines + [""])


def test_comment_that_is_no_utf8(host):
    """Old files hold Latin-1; what leaves the module must be fit for JSON all the same."""
    rule = b'-A INPUT -p tcp --dport 22 -m comment --comment "caf\xe9 \xff" -j ACCEPT\n'
    host.write(PATHS["ipv4"], b"*filter\n" + rule + b"COMMIT\n")
    done = host.call("iptlive.apply", families=["ipv4"]).value
    assert [step["rule"] for step in done["changes"]["IPv4/filter/INPUT"]] == [
        r'-p tcp -m tcp --dport 22 -m comment --comment "caf\xe9 \xff" -j ACCEPT'
    ]
    assert host.state(families=["ipv4"]).value["comment"] == "The kernel is in sync with /etc/iptables/rules.v4."
    host.write(PATHS["ipv4"], b"*filter\n#DELETE#" + rule + b"COMMIT\n")
    assert host.state(families=["ipv4"]).value["changes"].keys() == {"IPv4/filter/INPUT"}
    assert "-A INPUT" not in host.save()


def test_rule_that_jumps_to_a_chain_which_only_the_kernel_has(host):
    host.restore("*filter\n:DOCKER-USER - [0:0]\n:OTHER - [0:0]\n-A OTHER -j RETURN\nCOMMIT\n")
    host.write(PATHS["ipv4"], "*filter\n-A FORWARD -j DOCKER-USER\n-A FORWARD -p tcp -g OTHER\nCOMMIT\n")
    done = host.call("iptlive.apply", families=["ipv4"]).value
    assert [step["rule"] for step in done["changes"]["IPv4/filter/FORWARD"]] == ["-j DOCKER-USER", "-p tcp -g OTHER"]
    assert host.call("iptlive.plan", families=["ipv4"]).value["status"] == "in_sync"
