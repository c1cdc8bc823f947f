"""The cases of clone_cases.yaml, the host that they are about, and how they are put to the clone."""

import shutil
from pathlib import Path

import yaml

from lab.host import REPO

CASES = yaml.safe_load((Path(__file__).parent / "clone_cases.yaml").read_text())
_COMMANDS = """
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


def prepare(host):
    for command in _COMMANDS.strip().split("\n"):
        host.run(command.split())


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


def case(name):
    return next(one for one in CASES if one["case"] == name)


def put(cloner, one):
    """What the clone answers in this case."""
    family = one.get("family", "ipv4")
    cloner.host.restore(loaded(one["rules"]), family)
    edits = "\n".join(["*filter", *one["edits"], "COMMIT", ""]) if "edits" in one else ""
    probes = [packet(family, one["probe"])] * one["probe"].get("times", 1)
    return cloner.prove(probes, {family: edits}, stand_ins=["tun9"])


def says(answer, one, when="says"):
    """For each packet, what the case speaks of, in its words; or why there is no answer."""
    key = "was" if when == "was" else "after"
    return [described(each, one[when]) for each in answer[key]] if key in answer else answer


def mutated(tmp_path, room, old, new):
    """The modules with a fault in one of them."""
    shutil.copytree(REPO / "_modules", tmp_path / "modules", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "modules" / f"_iptlive_{room}.py"
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} is not once in {path.name}"
    path.write_text(text.replace(old, new))
    return tmp_path / "modules"
