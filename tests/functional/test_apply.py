"""What an update does to the real kernel, beside the manual's examples."""

import sys

import pytest

from lab.host import SaltError

IPV4_ONLY = {"families": ["ipv4"]}
PATH = "/etc/iptables/rules.v4"
# The kernel does not let the nat table drop.
POLICIES = {"raw": "DROP", "mangle": "DROP", "nat": "ACCEPT", "filter": "DROP", "security": "DROP"}


def test_first_update_of_tables_that_nobody_has_used(new_host):
    """iptables-nft-save prints built-in chains of a table that does not exist yet."""
    host = new_host
    sections = [
        f"*{table}\n:OUTPUT {policy} [0:0]\n:MINE - [0:0]\n-A OUTPUT -o lo -j MINE\n-A MINE -j RETURN\nCOMMIT\n"
        for table, policy in POLICIES.items()
    ]
    host.write(PATH, "".join(sections))
    done = host.call("iptlive.apply", policy="enforce", **IPV4_ONLY).value
    assert {key: [step["action"] for step in steps] for key, steps in done["changes"].items()} == {
        **{f"IPv4/{table}/MINE": ["create_chain", "insert"] for table in POLICIES},
        **{f"IPv4/{table}/OUTPUT": ["insert", "policy"] for table in POLICIES},
        "IPv4/nat/OUTPUT": ["insert"],
    }
    saved = host.save("ipv4")
    for section in sections:
        assert [line for line in section.splitlines() if line not in saved.splitlines()] == []
    assert host.call("iptlive.plan", policy="enforce", **IPV4_ONLY).value["status"] == "in_sync"


def test_policy_of_a_chain_in_use(host):
    host.restore("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n")
    host.write(PATH, "*filter\n:INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n")
    told = host.call("iptlive.plan", **IPV4_ONLY).value
    assert (told["status"], told["warnings"]) == (
        "in_sync",
        ["IPv4/filter/INPUT: the kernel's policy is ACCEPT, the stored one DROP"],
    )
    refused = host.call("iptlive.apply", policy="refuse", **IPV4_ONLY)
    assert (refused.retcode, refused.value["refusals"]["IPv4/filter/INPUT"][0]["reason"]) == (1, "policy")
    assert ":INPUT ACCEPT" in host.save()
    done = host.call("iptlive.apply", policy="enforce", **IPV4_ONLY).value
    assert done["changes"] == {
        "IPv4/filter/INPUT": [{"action": "policy", "position": None, "rule": "DROP", "line": 2, "was": "ACCEPT"}]
    }
    assert ":INPUT DROP" in host.save()


def test_policy_that_the_table_does_not_take(host):
    host.write(PATH, "*nat\n:PREROUTING DROP [0:0]\n-A PREROUTING -i lo -j ACCEPT\nCOMMIT\n")
    for fun in ("iptlive.plan", "iptlive.apply"):
        answer = host.call(fun, policy="enforce", **IPV4_ONLY).value
        (refusal,) = answer["refusals"]["IPv4/nat/PREROUTING"]
        assert (answer["changes"], refusal["reason"]) == ({}, "policy")
        assert "'policy: report'" in refusal["hint"]
    assert host.call("iptlive.apply", **IPV4_ONLY).value["applied"]


def test_chain_named_like_a_target_that_this_host_does_not_have(host):
    host.write(PATH, "*filter\n:MIRROR - [0:0]\n-A INPUT -j MIRROR\n-A MIRROR -i lo -j ACCEPT\nCOMMIT\n")
    assert host.call("iptlive.apply", **IPV4_ONLY).value["applied"]


COUNTED = """\
*filter
-A INPUT -p udp -m udp --dport 1001 -j ACCEPT
-A INPUT -p udp -m udp --dport 1002 -j ACCEPT
-A INPUT -p udp -m udp --dport 1003 -j ACCEPT
-A INPUT -j DROP
COMMIT
"""
SEND = """
import socket, sys
with socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM) as sender:
    for port in [1001] * 5 + [1002] * 6 + [1003] * 7 + [1004] * 8:
        sender.sendto(b"x", (sys.argv[1], port))
"""


@pytest.mark.parametrize(("family", "address"), [("ipv4", "127.0.0.1"), ("ipv6", "::1")])
def test_counters_of_rules_that_stay(host, family, address):
    """Stored and foreign ones alike: a rule that is not announced is not written again."""
    host.restore(COUNTED, family)
    host.run([sys.executable, "-I", "-S", "-c", SEND, address])
    before = rules_with_counters(host, family)
    assert [rule.split(":")[0] for rule in before][:3] == ["[5", "[6", "[7"]
    host.write(
        f"/etc/iptables/rules.{family[2:]}",
        "*filter\n-A INPUT -p udp --dport 1001 -j ACCEPT\n#DELETE# -A INPUT -p udp --dport 1002 -j ACCEPT\n"
        "-A INPUT -p udp --dport 1000 -j ACCEPT\n-A INPUT -j DROP\nCOMMIT\n",
    )
    done = host.call("iptlive.apply", families=[family], placement="after").value
    assert [step["action"] for step in done["changes"][f"IP{family[2:]}/filter/INPUT"]] == ["delete", "insert"]
    new = "[0:0] -A INPUT -p udp -m udp --dport 1000 -j ACCEPT"
    assert rules_with_counters(host, family) == [before[0], new, before[2], before[3]]


def rules_with_counters(host, family):
    return [line for line in host.save(family, counters=True).splitlines() if "-A" in line]


NASTY = ["a\n-A INPUT -j ACCEPT\n-P INPUT DROP\nCOMMIT", "q\"uo\\te's", "esc\x1b[1m\x07\r", "\udce9\udcff", "# *filter"]


def test_foreign_comments_that_look_like_something_else(host):
    """A listing holds such comments raw, over several lines; they are neighbours, and must not be taken for rules."""
    host.restore("*filter\n-A INPUT -i lo -j ACCEPT\n-A INPUT -j DROP\nCOMMIT\n")
    for comment in NASTY:
        host.run(["iptables", "-I", "INPUT", "2", "-m", "comment", "--comment", comment, "-j", "RETURN"])
    before = host.save()
    stored = "*filter\n-A INPUT -i lo -j ACCEPT\n{}-A INPUT -p tcp --dport 22 -j ACCEPT\n-A INPUT -j DROP\nCOMMIT\n"
    host.write(PATH, stored.format(""))
    done = host.call("iptlive.apply", placement="before", **IPV4_ONLY).value
    step = {"action": "insert", "position": 7, "rule": "-p tcp -m tcp --dport 22 -j ACCEPT", "line": 3}
    assert done["changes"] == {"IPv4/filter/INPUT": [step]}
    new = "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n"
    assert host.save() == before.replace("-A INPUT -j DROP\n", new + "-A INPUT -j DROP\n")
    host.write(PATH, stored.format("#DELETE#"))
    assert host.call("iptlive.apply", **IPV4_ONLY).value["applied"]
    assert host.save() == before


@pytest.mark.parametrize("kept_host", ["nft"], indirect=True)
def test_what_only_nft_can_read(host):
    """iptables-nft-save prints such a table as empty, with exit status 0: nothing is planned on that."""
    host.restore("*filter\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n")
    host.write(PATH, "*filter\n-A INPUT -i lo -j ACCEPT\n-A INPUT -j DROP\nCOMMIT\n")
    host.run(["nft", "add rule ip filter INPUT ct state established accept"])
    before = host.run(["nft", "list", "ruleset"]).stdout
    for fun in ("iptlive.plan", "iptlive.apply"):
        with pytest.raises(
            SaltError, match="iptables cannot read the table 'filter'.*'nft list chain ip filter INPUT'"
        ):
            host.call(fun, **IPV4_ONLY)
    assert host.run(["nft", "list", "ruleset"]).stdout == before
    # In a chain or a table that the stored file does not name it is nobody's business.
    host.run(["nft", "flush ruleset"])
    host.restore("*filter\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n")
    native = "{ chain native { ct state established accept; }; }"
    host.run(["nft", f"add table ip filter {native}; add table inet fw {native}"])
    assert host.call("iptlive.apply", **IPV4_ONLY).value["applied"]
    assert host.run(["nft", "list", "ruleset"]).stdout.count("ct state established accept") == 2


TAKES_AWAY = """\
#!/bin/sh
# The real program; but no sooner is our rule in the live kernel than somebody deletes it.
/usr/sbin/iptables-{backend}-restore "$@"
status=$?
[ -n "$XTABLES_LOCKFILE" ] || /usr/sbin/iptables-{backend} -D INPUT -p tcp --dport 22 -j ACCEPT 2>/dev/null
exit $status
"""


def test_result_that_is_not_as_planned(host):
    """The kernel is read again after a commit; what is not as announced is no success."""
    host.restore("*filter\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n")
    before = host.save()
    host.write(PATH, "*filter\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp --dport 22 -j ACCEPT\nCOMMIT\n")
    host.write("/run/takes-away", TAKES_AWAY.format(backend=host.backend), mode="0755")
    host.run(["ln", "-sfn", "/run/takes-away", "/etc/alternatives/iptables-restore"])
    try:
        with pytest.raises(SaltError, match="the chains are not as planned after the commit") as error:
            host.call("iptlive.apply", **IPV4_ONLY)
    finally:
        program = f"/usr/sbin/iptables-{host.backend}-restore"
        host.run(["ln", "-sfn", program, "/etc/alternatives/iptables-restore"])
    planned, _, found = error.value.message.partition("Found:")
    rule = "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT"
    assert rule in planned and rule not in found and "-A INPUT -i lo -j ACCEPT" in found
    assert host.save() == before
