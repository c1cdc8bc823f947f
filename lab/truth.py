"""
Is the clone true?  Random rules on a throw-away host; real clients connect from another with real sockets and real
time; what the clone says of the same packets must be the same.

    python3 -m lab.truth --comparisons 10000 --backend nft

Three hosts: client - host - server.  The client asks the host (INPUT) and the server through it (FORWARD), the host
asks the server itself (OUTPUT), in both families, over tcp, udp and ping, before and after an update.  Prints a line
per thousand comparisons and the figures; exits with 1, and what differed, if anything did.
"""

import argparse
import itertools
import json
import random
import subprocess
import sys
import time
from collections import Counter
from typing import NamedTuple

from lab.host import BACKENDS, REPO, Host, wire

PORTS = (22, 80, 443, 5432, 8000)
HOST = {"ipv4": ("192.0.2.1", "198.51.100.1"), "ipv6": ("2001:db8:1::1", "2001:db8:2::1")}
SERVER = {"ipv4": "198.51.100.9", "ipv6": "2001:db8:2::9"}
CLIENTS = {
    "ipv4": ["192.0.2.10", "192.0.2.20", "192.0.2.130", "10.1.5.7"],
    "ipv6": ["2001:db8:1::10", "2001:db8:1::20", "2001:db8:1:0:8000::30", "2001:db8:f::7"],
}
NETS = {
    "ipv4": ["192.0.2.0/24", "192.0.2.0/25", "192.0.2.128/25", "10.0.0.0/8", "10.1.5.7", "192.0.2.10", "198.51.100.9"],
    "ipv6": [
        "2001:db8:1::/64", "2001:db8:1::/65", "2001:db8:1:0:8000::/65", "2001:db8:f::/48", "2001:db8:f::7",
        "2001:db8:1::10", "2001:db8:2::9",
    ],
}  # fmt: skip
PING = {"ipv4": "icmp", "ipv6": "ipv6-icmp"}
REJECTS = {
    "ipv4": ["", " --reject-with icmp-host-prohibited", " --reject-with icmp-admin-prohibited"],
    "ipv6": ["", " --reject-with icmp6-adm-prohibited", " --reject-with icmp6-addr-unreachable"],
}
STATES = ["NEW", "ESTABLISHED", "RELATED,ESTABLISHED", "INVALID", "NEW,ESTABLISHED"]
SECONDS = 0.35  # without an answer for so long: dropped
PATIENCE = 1.6  # where the clone says otherwise: a busy machine may have been slow
DISCOVERY = "-p ipv6-icmp -m icmp6 --icmpv6-type {} -j {}"


class Probe(NamedTuple):
    family: str
    protocol: str
    source: str
    destination: str
    port: int
    own: bool  # sent by the host itself


class Case(NamedTuple):
    """Rules, the edits of an update as iptables-restore lines, and what is tried before and after."""

    rules: dict  # by family
    edits: dict
    probes: list
    settings: dict


class Difference(NamedTuple):
    case: Case
    when: str
    probe: Probe
    real: str
    clone: dict


# --- random rules -----------------------------------------------------------------------------------------------------


def draw(chance, probes=40):
    """A case; ``chance`` is a ``random.Random``, or one that hypothesis steers."""
    families = ("ipv4", "ipv6")
    # One of IPv6 at a time: a client asks for the host once, by one of its addresses, and by that alone it is known.
    clients = {"ipv4": CLIENTS["ipv4"], "ipv6": [chance.choice(CLIENTS["ipv6"])]}
    return Case(
        {family: ruleset(chance, family) for family in families},
        {family: update(chance, family) for family in families},
        [probe(chance, clients) for _ in range(probes)],
        {"net.ipv4.conf.all.rp_filter": chance.choice([0, 1])},
    )


def probe(chance, clients):
    family = chance.choice(["ipv4", "ipv6"])
    protocol = chance.choice(["tcp", "tcp", "udp", "ping"])
    if chance.random() < 0.25:
        return Probe(family, protocol, HOST[family][1], SERVER[family], chance.choice(PORTS), True)
    destination = chance.choice([HOST[family][0], HOST[family][0], SERVER[family]])
    return Probe(family, protocol, chance.choice(clients[family]), destination, chance.choice(PORTS), False)


def rule(chance, family, chain):
    words = []
    if chance.random() < 0.5:
        words.append(("! " if chance.random() < 0.15 else "") + "-s " + chance.choice(NETS[family]))
    if chance.random() < 0.12 and family == "ipv4":
        words.append("-m set --match-set visitors src")
    if chance.random() < 0.2 and chain in ("INPUT", "FORWARD"):
        words.append("-i " + chance.choice(["eth0", "eth1", "eth+"]))
    if chance.random() < 0.08:
        words.append("-m mark --mark 0x5")
    protocol = chance.choice(["tcp", "udp", "tcp", None, None, PING[family]])
    if protocol:
        words.append("-p " + protocol)
    if protocol in ("tcp", "udp") and chance.random() < 0.75:
        two = ",".join(map(str, chance.sample(PORTS, 2)))
        words.append(
            chance.choice([f"--dport {chance.choice(PORTS)}", f"-m multiport --dports {two}", "--dport 1024:9500"])
        )
    if chance.random() < 0.25:
        words.append("-m conntrack --ctstate " + chance.choice(STATES))
    words.append("-j " + target(chance, family, chain, protocol))
    return " ".join(words)


def target(chance, family, chain, protocol):
    kinds = ["ACCEPT", "ACCEPT", "DROP", "REJECT" + chance.choice(REJECTS[family]), "RETURN"]
    if protocol == "tcp":
        kinds.append("REJECT --reject-with tcp-reset")
    kinds += {"A": ["B"], "B": []}.get(chain, ["A", "B"])
    return chance.choice(kinds)


def ruleset(chance, family):
    return filters(chance, family) + translations(chance, family) + marks(chance, family)


def filters(chance, family):
    policies = {chain: chance.choice(["ACCEPT", "DROP"]) for chain in ("INPUT", "FORWARD")}
    policies["OUTPUT"] = chance.choice(["ACCEPT", "ACCEPT", "DROP"])
    lines = [f":{chain} {policy} [0:0]" for chain, policy in policies.items()] + [":A - [0:0]", ":B - [0:0]"]
    # Neighbours are found or not: with half of it, what was learnt by chance counts, and that no clone can know.
    discovery = "ACCEPT" if chance.random() < 0.9 else "DROP"
    for chain in policies:
        if family == "ipv6" and chain != "FORWARD":
            lines += [f"-A {chain} {DISCOVERY.format(kind, discovery)}" for kind in (135, 136)]
        if chance.random() < 0.6:
            lines.append(f"-A {chain} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
        lines += [f"-A {chain} {rule(chance, family, chain)}" for _ in range(chance.randint(0, 6))]
    for chain in "AB":
        lines += [f"-A {chain} {rule(chance, family, chain)}" for _ in range(chance.randint(0, 4))]
    return table("filter", lines)


def translations(chance, family):
    lines = []
    mine, server = HOST[family][0], SERVER[family]
    to_server, to_self = (f"[{one}]" if family == "ipv6" else one for one in (server, mine))
    if chance.random() < 0.35:
        lines.append(f"-A PREROUTING -p tcp -m tcp --dport {chance.choice(PORTS)} -j REDIRECT --to-ports 3128")
    if chance.random() < 0.35:
        kind = chance.choice(["tcp", "udp"])
        lines.append(
            f"-A PREROUTING -d {mine} -p {kind} --dport {chance.choice(PORTS)} -j DNAT "
            f"--to-destination {to_server}:{chance.choice(PORTS)}"
        )
    if chance.random() < 0.2:
        lines.append(f"-A PREROUTING -p tcp --dport {chance.choice(PORTS)} -j DNAT --to-destination {to_self}:443")
    if chance.random() < 0.4:
        lines.append(
            f"-A POSTROUTING -o eth1 -j {chance.choice(['MASQUERADE', f'SNAT --to-source {HOST[family][1]}'])}"
        )
    if chance.random() < 0.25:
        lines.append(
            f"-A OUTPUT -d {server} -p tcp --dport {chance.choice(PORTS)} -j DNAT "
            f"--to-destination {to_server}:{chance.choice(PORTS)}"
        )
    return table("nat", lines) if lines else ""


def marks(chance, family):
    lines = []
    if chance.random() < 0.25:
        lines.append(f"-A PREROUTING -s {chance.choice(NETS[family])} -j MARK --set-mark 0x5")
    text = table("mangle", lines) if lines else ""
    if chance.random() < 0.15:
        text += table("raw", [f"-A PREROUTING -p udp --dport {chance.choice(PORTS)} -j CT --notrack"])
    return text


def update(chance, family):
    chains = [chance.choice(["INPUT", "FORWARD", "OUTPUT", "A", "B"]) for _ in range(chance.randint(1, 4))]
    return table("filter", [f"-I {chain} 1 {rule(chance, family, chain)}" for chain in chains])


def table(name, lines):
    return "\n".join([f"*{name}", *lines, "COMMIT", ""])


# --- both sides -------------------------------------------------------------------------------------------------------


class Lines:
    """A program in a host that answers JSON lines."""

    def __init__(self, host, argv):
        self._process = host.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, request):
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a program of the truth lab died")
        return json.loads(line)

    def close(self):
        self._process.communicate()


class Cloner:
    """Opens clones of a host, in a process that stays there until this is closed."""

    def __init__(self, host, modules=REPO / "_modules", prefix=()):
        self.host = host
        self._program = Lines(host, [*prefix, sys.executable, "-I", REPO / "lab" / "cloner.py", modules])

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._program.close()

    def prove(self, probes, edits=None, **options):
        """What ``lab.cloner`` answers."""
        return self._program.ask({"edits": edits or {}, "probes": probes, **options})


class Truth:
    """The three hosts, and what is compared on them."""

    def __init__(self, backend, modules=REPO / "_modules"):
        self.backend = backend
        self.host, self.client, self.server = Host(backend), Host(backend), Host(backend)
        self.tally = Counter()
        self._ports = itertools.cycle(range(20000, 60000))
        self._modules = modules

    def __enter__(self):
        wire(self.host, self.client, "eth0", addresses=("192.0.2.1/24", None))
        wire(self.host, self.server, "eth1", addresses=("198.51.100.1/24", "198.51.100.9/24"))
        self._addresses()
        programs = [sys.executable, "-I", REPO / "lab" / "knocker.py"]
        self._knockers = {one: Lines(one, programs) for one in (self.host, self.client, self.server)}
        for one in (self.host, self.server):
            self._knockers[one].ask({"do": "serve", "ports": [*PORTS, 3128]})
        self._cloner = Cloner(self.host, self._modules)
        return self

    def _addresses(self):
        for host, interface, addresses in (
            (self.host, "eth0", ["2001:db8:1::1/64"]),
            (self.host, "eth1", ["2001:db8:2::1/64"]),
            (self.server, "eth1", ["2001:db8:2::9/64"]),
            (self.client, "eth0", ["192.0.2.10/24", "192.0.2.20/24", "192.0.2.130/24", "10.1.5.7/32"]),
            (self.client, "eth0", [f"{one}/64" for one in CLIENTS["ipv6"][:3]]),
            # Not on the cable: for it the client is a router, which asks for its neighbours by its own address.
            (self.client, "lo", [f"{CLIENTS['ipv6'][3]}/128"]),
        ):
            for address in addresses:
                nodad = ["nodad"] if ":" in address else []
                host.run(["ip", "address", "add", address, "dev", interface, *nodad])
        for host, way in (
            (self.host, "10.0.0.0/8 via 192.0.2.10"),
            (self.host, "2001:db8:f::/48 via 2001:db8:1::10"),
            (self.client, "default via 192.0.2.1"),
            (self.client, "default via 2001:db8:1::1"),
            (self.server, "default via 198.51.100.1"),
            (self.server, "default via 2001:db8:2::1"),
        ):
            host.run(["ip", "route", "add", *way.split()])
        for host in (self.host, self.client, self.server):
            host.run(["sysctl", "-qw", "net.ipv4.icmp_ratemask=0", "net.ipv6.icmp.ratemask=128",
                      "net.ipv4.icmp_msgs_per_sec=100000", "net.ipv4.icmp_msgs_burst=100000"])  # fmt: skip
        self.host.run(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"])
        self.host.run(["ipset", "create", "visitors", "hash:net"])
        self.host.run(["ipset", "add", "visitors", "192.0.2.128/25"])

    def __exit__(self, *exc_info):
        for host in (self.host, self.client, self.server):
            host.close()

    def compare(self, case):
        """What the clone says otherwise than real sockets: a list of ``Difference``."""
        self.host.run(["sysctl", "-qw", *[f"{name}={value}" for name, value in case.settings.items()]])
        for family, text in case.rules.items():
            empty = "".join(table(name, []) for name in ("filter", "nat", "mangle", "raw"))
            self._load(family, empty, [])
            self._load(family, text, [])
        clone = self._cloner.prove([self._asked(one) for one in case.probes], case.edits)
        if "error" in clone:
            raise RuntimeError(clone["error"])
        found = self._differences(case, "before", clone["was"])
        for family, text in case.edits.items():
            self._load(family, text, ["--noflush"])
        return found + self._differences(case, "after", clone["after"])

    def _load(self, family, text, options):
        program = {"ipv4": "iptables", "ipv6": "ip6tables"}[family]
        self.host.run([f"{program}-{self.backend}-restore", *options], input=text)

    def _asked(self, one):
        protocol = "icmp" if one.protocol == "ping" else one.protocol
        port = 0 if one.protocol == "ping" else one.port
        return [one.family, one.source, one.destination, protocol, port, None, None if one.own else "eth0"]

    def _differences(self, case, when, answers):
        self._forget()
        real = self._real(case.probes, SECONDS)
        doubtful = [at for at, answer in enumerate(answers) if seen(answer) != real[at]]
        if doubtful:
            again = self._real([case.probes[at] for at in doubtful], PATIENCE)
            real.update(zip(doubtful, again.values()))
        self.tally.update(real.values())
        return [
            Difference(case, when, case.probes[at], real[at], answers[at])
            for at in doubtful
            if seen(answers[at]) != real[at]
        ]

    def _forget(self):
        """No neighbour and no connection is known from before."""
        for host in (self.host, self.client, self.server):
            host.run(["ip", "neighbour", "flush", "all"])

    def _real(self, probes, seconds):
        verdicts = {}
        for own, host in ((False, self.client), (True, self.host)):
            members = [at for at, one in enumerate(probes) if one.own == own]
            asked = [
                [probes[at].protocol, probes[at].source, next(self._ports), probes[at].destination, probes[at].port]
                for at in members
            ]
            if asked:
                answers = self._knockers[host].ask({"do": "try", "seconds": seconds, "probes": asked})
                verdicts.update(zip(members, answers))
        return dict(sorted(verdicts.items()))


def seen(answer):
    """What whoever asks sees: that his answer was rejected on its way back he is not told."""
    if answer["verdict"] == "reject" and answer["leg"] == "answer":
        return "drop"
    return answer["verdict"]


def show(difference):
    case = difference.case
    family = difference.probe.family
    return (
        f"{difference.when}: {difference.probe}\n  real: {difference.real}, clone: {difference.clone}\n"
        f"  settings: {case.settings}\n{case.rules[family]}\nedits:\n{case.edits[family]}"
    )


def run(backend, comparisons, seed=1, progress=None, modules=REPO / "_modules"):
    """So many comparisons; the figures, and what differed."""
    chance, found, started = random.Random(seed), [], time.monotonic()
    with Truth(backend, modules) as truth:
        while sum(truth.tally.values()) < comparisons:
            found += truth.compare(draw(chance))
            if progress:
                progress(truth.tally, found)
    figures = {"backend": backend, "comparisons": sum(truth.tally.values()), **truth.tally}
    return {**figures, "different": len(found), "seconds": round(time.monotonic() - started)}, found


def main():
    parser = argparse.ArgumentParser(description=__doc__.strip().split("\n\n")[0])
    parser.add_argument("--comparisons", type=int, default=10000)
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="default: both")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--modules", default=REPO / "_modules", help="of another version, to be held against this lab")
    given = parser.parse_args()
    told = Counter()

    def progress(tally, found):
        done = sum(tally.values())
        if done // 1000 > told["thousands"]:
            told["thousands"] = done // 1000
            print(f"{done:6} comparisons, {len(found)} different", flush=True)
        for difference in found[told["different"] :]:
            print(show(difference), flush=True)
        told["different"] = len(found)

    failed = False
    for backend in given.backend or BACKENDS:
        told.clear()
        figures, found = run(backend, given.comparisons, given.seed, progress, given.modules)
        print(json.dumps(figures), flush=True)
        failed = failed or bool(found)
    sys.exit(failed)


if __name__ == "__main__":
    main()
