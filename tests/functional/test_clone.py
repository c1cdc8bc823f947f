"""The clone of a host: what it says of packets, before and after an update's edits. Cases in clone_cases.yaml."""

from pathlib import Path

import pytest
import yaml

from lab.host import BACKENDS, Host
from lab.truth import Cloner

CASES = yaml.safe_load((Path(__file__).parent / "clone_cases.yaml").read_text())
COMMANDS = """
ip link add eth0 type veth peer name peer0
ip link add eth1 type veth peer name peer1
ip link add down0 type veth peer name peer2
ip link set eth0 up
ip link set eth1 up
ip link set peer0 up
ip link set peer1 up
ip address add 198.51.100.10/24 dev eth0
ip address add 2001:db8:1::10/64 dev eth0 nodad
ip address add 10.20.0.1/16 dev eth1
ip route add default via 198.51.100.1
ip -6 route add 2001:db8:9::/48 via 2001:db8:1::1
ip route add unreachable 203.0.115.0/24
ip link add docker0 type bridge
ip address add 172.17.0.1/16 dev docker0
ip link set docker0 up
ip tuntap add wg0 mode tun
ip address add 10.99.0.1/24 dev wg0
ip link set wg0 up
ip route add default via 10.20.0.253 table 100
ip rule add fwmark 0x64 lookup 100 pref 100
ip rule add from 10.20.9.0/24 lookup 100 pref 200
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.eth0.rp_filter=1
ipset create blocked hash:ip
ipset add blocked 192.0.2.7
ipset create seen hash:ip
"""
SELF = "198.51.100.10"


@pytest.fixture(scope="module", params=BACKENDS)
def cloner(request):
    with Host(request.param) as host:
        for command in COMMANDS.strip().split("\n"):
            host.run(command.split())
        yield Cloner(host)


def loaded(lines):
    """Rules of a case as input for iptables-restore."""
    tables = {"filter": [":INPUT DROP [0:0]", ":FORWARD DROP [0:0]", ":OUTPUT ACCEPT [0:0]"]}
    for name in ("nat", "mangle", "raw"):
        tables[name] = []
    table = "filter"
    for line in lines:
        if line.startswith("*"):
            table = line[1:]
        else:
            tables[table].append(line)
    # A policy is set by a line of its own, whatever it was before.
    return "".join("\n".join([f"*{name}", *rules, "COMMIT", ""]) for name, rules in tables.items())


def packet(family, probe):
    given = {"from": None, "to": SELF, "protocol": "tcp", "port": 0, "icmp": None, "in": None, "user": [0, 0],
             "state": "new", "whole": True, "source_port": 0, **probe}  # fmt: skip
    keys = ("from", "to", "protocol", "port", "icmp", "in", "user", "state", "whole", "source_port")
    return [family, *(given[key] for key in keys)]


def described(answer, wanted):
    """Of an answer what the case speaks of, in the words of the case."""
    rule = answer["rule"]
    words = {
        **answer,
        "rule": rule and rule[1:4],
        "text": rule and rule[4],
        "hangs": [[*one[1:4], one[5]] for one in answer["hangs"]],
        "path": [one[2:] for one in answer["path"]],
    }
    return {key: words[key] for key in wanted}


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_case(cloner, case):
    family = case.get("family", "ipv4")
    cloner.host.restore(loaded(case["rules"]), family)
    edits = "\n".join(["*filter", *case.get("edits", []), "COMMIT", ""]) if "edits" in case else ""
    times = case["probe"].get("times", 1)
    probes = [packet(family, case["probe"])] * times
    before = cloner.host.save(family)
    answer = cloner.prove(probes, {family: edits}, stand_ins=["tun9"])
    assert cloner.host.save(family) == before
    for when in ("was", "says"):
        wanted = case.get(when, {})
        found = [described(one, wanted) for one in answer["was" if when == "was" else "after"]]
        assert found == [wanted] * times
    assert answer["packets"] >= times or case["says"]["verdict"] == "undecided"
