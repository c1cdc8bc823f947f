"""Half the truth: rules that iptables does not show, or shows as something else."""

import random
import sys

import pytest
from _iptlive_expressions import Plain, same
from _iptlive_netlink import from_json, rule
from _iptlive_rules import parse_save
from rule_list import rules

from lab.host import REPO, SaltError

PATHS = {"ipv4": "/etc/iptables/rules.v4", "ipv6": "/etc/iptables/rules.v6"}
STORED = "*filter\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n"
IPV4 = {"families": ["ipv4"]}


def nft(host, *commands):
    host.run(["nft", "-f", "-"], input="\n".join(commands) + "\n")


@pytest.mark.parametrize("family", PATHS)
@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_rules_of_the_other_backend(hosts, backend, family):
    host = hosts(backend)
    other = {"nft": "legacy", "legacy": "nft"}[backend]
    host.restore(STORED, family)
    host.write(PATHS[family], STORED)
    options = {"families": [family]}
    assert host.call("iptlive.plan", **options).value["warnings"] == []
    host.restore("*filter\nCOMMIT\n*mangle\nCOMMIT\n", family, other)
    assert host.call("iptlive.plan", **options).value["warnings"] == []
    host.restore(
        "*filter\n:FORWARD DROP [0:0]\n-A INPUT -i eth0\nCOMMIT\n*mangle\n-A INPUT -i eth0\nCOMMIT\n", family, other
    )
    made = host.call("iptlive.plan", **options).value
    assert made["status"] == "in_sync"
    (warning,) = made["warnings"]
    assert f"the {other} backend holds rules or policies too (filter: 2, mangle: 1)" in warning


def test_reading_creates_no_table(hosts):
    host = hosts("legacy")
    host.write(PATHS["ipv4"], STORED + "*nat\n-A POSTROUTING -o eth0 -j MASQUERADE\nCOMMIT\n")
    assert host.call("iptlive.plan", **IPV4).value["status"] == "changes"
    assert host.run(["cat", "/proc/net/ip_tables_names"], check=False).stdout == ""
    assert host.run(["nft", "list", "ruleset"]).stdout == ""


def test_native_tables(host):
    host.restore(STORED)
    host.write(PATHS["ipv4"], STORED)
    nft(
        host,
        "add table inet idle",
        "add chain inet idle in { type filter hook input priority 0; policy accept; }",
        "add table inet unhooked",
        "add chain inet unhooked in",
        "add rule inet unhooked in counter drop",
        "add table ip6 six",
        "add chain ip6 six in { type filter hook input priority 0; }",
        "add rule ip6 six in counter drop",
        "add table inet fw",
        "add chain inet fw in { type filter hook input priority 0; }",
        "add chain inet fw out { type filter hook output priority 0; }",
        "add rule inet fw in counter accept",
        "add table ip closed",
        "add chain ip closed every { type filter hook forward priority 5; policy drop; }",
        "add table ip docker-bridges",
        "add chain ip docker-bridges filter-FORWARD { type filter hook forward priority 0; }",
        "add rule ip docker-bridges filter-FORWARD counter accept",
    )
    made = host.call("iptlive.plan", **IPV4).value
    assert made["status"] == "in_sync"
    assert [warning.split("'")[1] for warning in made["warnings"]] == ["inet fw", "ip closed", "ip docker-bridges"]
    assert "'ip docker-bridges' (of Docker with the firewall-backend nftables) sees" in made["warnings"][2]
    assert "sees the same packets (input, output) and decides over them too" in made["warnings"][0]


@pytest.fixture
def nft_host(hosts):
    return hosts("nft")


def test_incompatible_table(nft_host):
    """iptables-nft-save prints such a table as empty, with exit status 0."""
    nft_host.restore(STORED)
    nft_host.write(PATHS["ipv4"], STORED.replace("lo", "eth0"))
    nft(nft_host, "add rule ip filter INPUT ct state established reject")
    before = nft_host.run(["nft", "list", "ruleset"]).stdout
    with pytest.raises(SaltError, match="nothing was planned on half the truth"):
        nft_host.call("iptlive.apply", **IPV4)
    assert nft_host.run(["nft", "list", "ruleset"]).stdout == before


@pytest.mark.parametrize("chain", ["INPUT { type filter hook input priority 10; }", "INPUT"])
def test_chains_that_iptables_does_not_make(nft_host, chain):
    """It lists them as if they were empty, or none of its own, and fails on them: a plan tells, not the update."""
    nft(nft_host, "add table ip filter", f"add chain ip filter {chain}")
    nft_host.write(PATHS["ipv4"], STORED)
    before = nft_host.run(["nft", "list", "ruleset"]).stdout
    for function in ("iptlive.plan", "iptlive.apply"):
        with pytest.raises(SaltError, match="a chain that iptables does not make .*'nft list chain ip filter INPUT'"):
            nft_host.call(function, **IPV4)
    assert nft_host.run(["nft", "list", "ruleset"]).stdout == before


def test_misprinted_rules(nft_host):
    nft_host.restore(STORED)
    nft(
        nft_host,
        "add rule ip filter INPUT tcp dport { 80, 443 } counter accept",
        "add rule ip filter INPUT ip saddr 10.0.0.1-10.0.0.9 drop",
        "add rule ip filter INPUT tcp dport 22 accept",
    )
    printed = parse_save(nft_host.save())["filter"]["INPUT"].rules
    assert printed == (
        "-i lo -j ACCEPT",
        "-p tcp -j ACCEPT",
        "-s 10.0.0.9/32 -j DROP",
        "-p tcp -m tcp --dport 22 -j ACCEPT",
    )
    nft_host.write(PATHS["ipv4"], STORED)
    made = nft_host.call("iptlive.plan", **IPV4).value
    assert made["status"] == "in_sync"
    assert made["warnings"] == [
        f"IPv4/filter/INPUT: the rule at position {position} was not written by iptables and does something else than "
        f"it is printed as: '{printed[position - 1]}'"
        for position in (2, 3)
    ]
    for line in ("-A INPUT -p tcp -j ACCEPT", "#DELETE# -A INPUT -p tcp -j ACCEPT"):
        nft_host.write(PATHS["ipv4"], STORED.replace("COMMIT", line + "\nCOMMIT"))
        done = nft_host.call("iptlive.apply", **IPV4)
        (refusal,) = done.value["refusals"]["IPv4/filter/INPUT"]
        assert (done.retcode, refusal["reason"], refusal["lines"]) == (1, "native_rule", [3])
        assert "position 2 was not written by iptables and does something else than line 3" in refusal["message"]
        assert parse_save(nft_host.save())["filter"]["INPUT"].rules == printed


@pytest.mark.parametrize("family", PATHS)
def test_what_iptables_writes_is_never_suspected(nft_host, family):
    nft_host.run(["ipset", "create", "blocked", "hash:ip,port"])
    nft_host.run(["ipset", "create", "blocked6", "hash:ip", "family", "inet6"])
    unfit = ("nfacct", "rateest ")
    for table in ("filter", "nat", "mangle", "raw"):
        lines = [
            f"-A {chain} {' '.join(rest)}" for kind, where, chain, *rest in rules() if (kind, where) == (family, table)
        ]
        chosen = [line for line in lines if not any(word in line for word in unfit)]
        text = "\n".join([f"*{table}", ":MINE - [0:0]", ":THEIRS - [0:0]", *chosen, "COMMIT", ""])
        nft_host.restore(text, family)
        nft_host.write(PATHS[family], text)
        made = nft_host.call("iptlive.plan", families=[family], duplicates="allow").value
        assert (made["status"], [text for text in made["warnings"] if "position" in text]) == ("in_sync", [])


PARTS = [
    "ip saddr 10.0.0.5", "ip saddr 10.0.0.0/8", "ip saddr != 10.1.0.0/16", "ip daddr 10.0.0.1-10.0.0.9",
    "ip daddr & 255.0.255.0 == 10.0.1.0", "ip saddr { 10.0.0.1, 10.0.0.7 }", "ip protocol tcp", "ip protocol != udp",
    "meta l4proto { tcp, udp }", "ip ttl 5", "ip ttl < 5", "ip dscp 5", "ip length 100", "ip frag-off & 0x1fff != 0",
    "ip version 4", "iifname lo", "iifname \"eth*\"", "iifname != lo", "iifname { lo, eth0 }", "iif lo", "oifname eth0",
    "tcp dport 22", "tcp dport != 22", "tcp dport 1-9", "tcp sport { 1, 2 }", "tcp dport > 1000", "udp dport 53",
    "th dport 53", "tcp flags syn", "tcp flags & (syn|ack) == syn", "tcp flags == syn", "tcp flags & syn == syn|ack",
    "meta mark 5", "meta mark & 0xf == 5", "meta mark != 7", "limit rate 3/second", "limit rate over 3/minute",
    "limit rate 1001/second", "limit rate 10 kbytes/second", "icmp type echo-request", "pkttype host", "meta length 5",
    "counter",
]  # fmt: skip
ENDS = [
    "accept",
    "drop",
    "return",
    "continue",
    "",
    "counter",
    "meta mark set 5",
    "jump AWAY",
    "goto AWAY",
    "queue num 1",
]


# What a careless reader would take for plain.
AWKWARD = [
    "ip saddr 10.0.0.1 ip saddr 10.0.0.2 counter drop", "ip saddr & 255.255.0.0 == 10.0.1.1 counter drop",
    "ip saddr & 255.255.0.0 != 10.0.0.0 counter drop", "tcp flags == syn counter drop", "tcp flags != syn counter drop",
    "tcp flags & syn == syn|ack counter", "tcp dport 22 tcp dport 23 counter accept", "counter counter drop",
    "tcp dport & 0xff == 22 counter accept", "iifname lo iifname eth0 counter accept", "counter ip saddr 10.0.0.1 drop",
    "limit rate 3/second tcp dport 22 counter accept", "limit rate 3/second ip saddr 10.0.0.1 counter accept",
    "limit rate 3/second limit rate 5/minute counter", "limit rate 1001/second counter", "meta l4proto 6 counter drop",
    "ip protocol 6 meta l4proto 17 counter", "th dport 53 counter", "meta l4proto 132 th dport 53 counter accept",
    "meta l4proto != 6 th dport 53 counter", "iifname \"eth*\" counter", "ip saddr != 10.0.0.0/8 counter",
    "tcp sport 5-9 tcp dport != 7-8 counter", "tcp dport 22-22 counter", "ip saddr 10.0.0.0-10.255.255.255 counter",
]  # fmt: skip
# Rules that make the whole table unreadable for iptables are another matter: they go again at once.
ADD = """
nft add chain ip filter RANDOM
while read -r rule; do
    nft add rule ip filter RANDOM "$rule" 2> /dev/null || continue
    iptables -S RANDOM > /dev/null 2>&1 && continue
    handle=$(nft -a list chain ip filter RANDOM | sed -n 's/.*# handle \\([0-9]*\\)$/\\1/p' | tail -n 1)
    nft delete rule ip filter RANDOM handle "$handle"
done
"""


def listed(host, chain):
    program = [sys.executable, "-I", REPO / "_modules" / "_iptlive_netlink.py", "2", "filter", chain]
    return from_json(host.run(program).stdout)


def random_rules(count):
    choose = random.Random(count)
    for _ in range(count):
        parts = [choose.choice(PARTS) for _ in range(choose.randint(0, 2))]
        yield " ".join(parts + ["counter"] * choose.randint(0, 1) + [choose.choice(ENDS)])


def test_plain_rules_are_what_they_are_printed_as(nft_host):
    """Whatever passes for plain comes out the same when iptables writes what it printed."""
    nft_host.restore("*filter\n:AWAY - [0:0]\n:RANDOM - [0:0]\n:WRITTEN - [0:0]\nCOMMIT\n")
    nft_host.run(["sh", "-c", ADD], input="\n".join([*AWKWARD, *random_rules(150)]) + "\n", timeout=300)
    rules = listed(nft_host, "RANDOM")
    texts = nft_host.run(["iptables", "-S", "RANDOM"]).stdout.splitlines()[1:]
    judge = Plain("ipv4", "1.8.9")
    plain = [(data, text) for data, text in zip(rules, texts) if judge.holds(data)]
    assert len(rules) == len(texts) and 20 < len(plain) < len(rules) - 20
    lines = "\n".join(text.replace("-A RANDOM", "-A WRITTEN") for _, text in plain)
    nft_host.run(["iptables-restore", "--noflush"], input=f"*filter\n{lines}\nCOMMIT\n")
    written = listed(nft_host, "WRITTEN")
    differ = [text for (data, text), other in zip(plain, written) if not same(rule(data), rule(other))]
    assert not differ, "\n".join(differ)
