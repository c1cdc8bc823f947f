"""A host without a kernel, for the pure rooms of the proof: its facts and routes, and what its rules do to a packet."""

import ipaddress
from typing import NamedTuple, Optional

from _iptlive_model import Chain

FACTS = {
    "links": [
        {"name": "lo", "loopback": True, "addresses": [["ipv4", "127.0.0.1", 8], ["ipv6", "::1", 128]]},
        {"name": "eth0", "loopback": False,
         "addresses": [["ipv4", "198.51.100.10", 24], ["ipv6", "2001:db8::10", 64], ["ipv6", "fe80::10", 64]]},
        {"name": "eth1", "loopback": False, "addresses": [["ipv4", "10.0.0.1", 24], ["ipv4", "10.0.0.2", 24]]},
        {"name": "docker0", "loopback": False, "addresses": [["ipv4", "172.17.0.1", 16]]},
    ],
    "routes": [
        ["ipv4", "0.0.0.0/0", "eth0", 254, "unicast"],
        ["ipv4", "198.51.100.0/24", "eth0", 254, "unicast"],
        ["ipv4", "10.0.0.0/24", "eth1", 254, "unicast"],
        ["ipv4", "172.17.0.0/16", "docker0", 254, "unicast"],
        ["ipv4", "192.168.9.0/24", None, 254, "blackhole"],
        ["ipv6", "::/0", "eth0", 254, "unicast"],
        ["ipv6", "2001:db8::/64", "eth0", 254, "unicast"],
    ],
    "policies": 0,
    "sets": {},
}  # fmt: skip


def routes(questions):
    """What the kernel would answer."""
    return [_route(family, ipaddress.ip_address(to)) for family, to, _, _ in questions]


def _route(family, address):
    own = {ipaddress.ip_address(text) for link in FACTS["links"] for _, text, _ in link["addresses"]}
    if address in own:
        return "lo", str(address), "local"
    nets = [(ipaddress.ip_network(net), interface, kind) for version, net, interface, _, kind in FACTS["routes"]
            if version == family and address in ipaddress.ip_network(net)]  # fmt: skip
    if not nets:
        return None, None, "none"
    _, interface, kind = max(nets, key=lambda found: found[0].prefixlen)
    return interface, None, kind


class Packet(NamedTuple):
    """The headers that the test's rules look at."""

    source: int
    destination: int
    protocol: str
    port: int = 0
    sport: int = 40000
    interface: Optional[str] = "eth0"


class Rule(NamedTuple):
    """A rule of the simple kind, that prints itself and tells whether it matches."""

    source: str = ""
    not_source: bool = False
    destination: str = ""
    protocol: str = ""
    port: str = ""
    sport: str = ""
    inside: str = ""
    set_name: str = ""
    target: str = "ACCEPT"

    def text(self):
        parts = ["! " * self.not_source + f"-s {self.source}"] if self.source else []
        parts += [f"-d {self.destination}"] if self.destination else []
        parts += [f"-i {self.inside}"] if self.inside else []
        parts += [f"-p {self.protocol}"] if self.protocol else []
        parts += [f"-m {self.protocol} --sport {self.sport}"] if self.sport else []
        parts += [f"-m {self.protocol} --dport {self.port}"] if self.port else []
        parts += [f"-m set --match-set {self.set_name} src"] if self.set_name else []
        return " ".join(parts + [f"-j {self.target}"])

    def matches(self, packet, sets):
        inside = [
            ipaddress.ip_address(packet.source) in ipaddress.ip_network(one) for one in sets.get(self.set_name, ())
        ]
        return all((
            not self.source or _within(packet.source, self.source) != self.not_source,
            not self.destination or _within(packet.destination, self.destination),
            not self.protocol or packet.protocol == self.protocol,
            not self.port or _between(packet.port, self.port),
            not self.sport or _between(packet.sport, self.sport),
            not self.inside or packet.interface == self.inside,
            not self.set_name or any(inside),
        ))  # fmt: skip


def _within(value, net):
    return ipaddress.ip_address(value) in ipaddress.ip_network(net)


def _between(port, text):
    low, _, high = text.partition(":")
    return int(low) <= port <= int(high or low)


def verdict(rules, chain, packet, sets):
    """ACCEPT, DROP, or None where the chain lets it go on."""
    for rule in rules.get(chain, ()):
        if rule.matches(packet, sets):
            if rule.target not in rules:
                return rule.target
            found = verdict(rules, rule.target, packet, sets)
            if found:
                return found
    return None


def table(rules):
    return {"filter": {chain: Chain("DROP" if chain == "INPUT" else None, tuple(rule.text() for rule in content))
                       for chain, content in rules.items()}}  # fmt: skip
