"""The host's network as it is: interfaces, addresses, routes, policy routing, and the settings that matter to packets.

Read from the kernel, in the network namespace in which the caller is. Nothing is written.
"""

import contextlib
import socket
import struct
from typing import Dict, Iterable, List, NamedTuple, Optional, Tuple

from _iptlive_rtnetlink import (
    FAMILY_NAMES,
    GET_ADDRESS,
    GET_LINK,
    GET_ROUTE,
    GET_RULE,
    ROUTE_TYPES,
    Netlink,
    attributes,
    number,
    text,
)

_ETHERNET, _LOOPBACK = 1, 772  # kinds of hardware
_UP = 1
_XFRM, _GET_POLICY = 6, 0x15
_CLONED_ROUTE = 0x200
_GLOBAL = (
    "ipv4/ip_forward",  # before those of each interface: it sets them all
    "ipv4/fib_multipath_hash_policy",
    "ipv4/fwmark_reflect",
    "ipv4/icmp_echo_ignore_all",
    "ipv4/icmp_echo_ignore_broadcasts",
    "ipv4/ip_nonlocal_bind",
    "ipv4/tcp_fwmark_accept",
    "ipv6/fwmark_reflect",
    "ipv6/icmp/echo_ignore_all",
)
_CONNTRACK = (
    "netfilter/nf_conntrack_checksum",
    "netfilter/nf_conntrack_helper",
    "netfilter/nf_conntrack_tcp_be_liberal",
    "netfilter/nf_conntrack_tcp_loose",
)
_OF_INTERFACE = {
    "ipv4": (
        "accept_local",
        "accept_source_route",
        "bc_forwarding",
        "forwarding",
        "route_localnet",
        "rp_filter",
        "src_valid_mark",
    ),
    "ipv6": ("accept_source_route", "disable_ipv6", "forwarding"),
}


class Link(NamedTuple):
    """An interface."""

    index: int
    name: str
    kind: str  # bridge, veth, tun ...; "" for real hardware
    ethernet: bool
    loopback: bool
    up: bool
    mac: bytes
    mtu: int
    group: int
    master: int  # the index of the bridge or bond that it is part of; 0 for none
    xdp: bool = False  # a program sees its packets before everybody else


class Network(NamedTuple):
    """All but the links is kept as the kernel sends it, to be sent back to it in the clone."""

    links: Tuple[Link, ...]
    addresses: Tuple[bytes, ...]
    routes: Tuple[bytes, ...]
    rules: Tuple[bytes, ...]
    settings: Dict[str, str]  # below /proc/sys/net
    conntrack: Dict[str, str]  # the same; there only once connection tracking is loaded


def read() -> Network:
    """Raises OSError."""
    with contextlib.closing(Netlink()) as netlink:
        links = tuple(_link(data) for data in netlink.dump(GET_LINK, struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0)))
        addresses = tuple(netlink.dump(GET_ADDRESS, struct.pack("=BBBBI", 0, 0, 0, 0, 0)))
        routes: List[bytes] = []
        rules: List[bytes] = []
        for family in FAMILY_NAMES:
            with contextlib.suppress(OSError):  # a kernel without IPv6
                wanted = struct.pack("=8BI", family, 0, 0, 0, 0, 0, 0, 0, 0)
                routes += netlink.dump(GET_ROUTE, wanted)
                rules += netlink.dump(GET_RULE, wanted)
    settings = _settings([link.name for link in links])
    return Network(links, addresses, tuple(routes), tuple(rules), settings, _existing(_CONNTRACK))


def _link(data: bytes) -> Link:
    _, _, hardware, index, flags, _ = struct.unpack_from("=BBHiII", data)
    found = attributes(data[16:])
    info = attributes(found.get(18, b""))
    return Link(
        index, text(found[3]), text(info.get(1, b"")), hardware == _ETHERNET, hardware == _LOOPBACK, bool(flags & _UP),
        found.get(1, b""), number(found[4]), number(found[27]) if 27 in found else 0,
        number(found[10]) if 10 in found else 0, attributes(found.get(43, b"")).get(2, b"\0") != b"\0",
    )  # fmt: skip


def _settings(links: Iterable[str]) -> Dict[str, str]:
    names = ["all", "default", *links]
    # A dot in an interface's name is no separator here: these are paths.
    of_interface = [
        f"{family}/conf/{name}/{key}" for name in names for family, keys in _OF_INTERFACE.items() for key in keys
    ]
    return _existing([*_GLOBAL, *of_interface])


def _existing(names: Iterable[str]) -> Dict[str, str]:
    values = ((name, setting(name)) for name in names)
    return {name: value for name, value in values if value is not None}


def setting(name: str) -> Optional[str]:
    """A setting below /proc/sys/net; None where this kernel does not have it."""
    try:
        with open("/proc/sys/net/" + name, encoding="ascii") as source:
            return source.read().strip()
    except OSError:
        return None


def unseen(network: Network) -> List[str]:
    """What else may decide over packets, and is in no clone."""
    found = [f"the program that XDP runs on the interface {link.name}" for link in network.links if link.xdp]
    with contextlib.suppress(OSError), contextlib.closing(Netlink(_XFRM)) as netlink:
        if netlink.dump(_GET_POLICY, bytes(64)):
            found.append("the policies of IPsec (xfrm)")
    return found


class Address(NamedTuple):
    family: str
    address: str
    prefix: int
    index: int


def address(data: bytes) -> Address:
    family, prefix, _, _, index = struct.unpack_from("=BBBBI", data)
    found = attributes(data[8:])
    # Of a point-to-point link the local address is the second; the first is the peer's.
    return Address(FAMILY_NAMES[family], socket.inet_ntop(family, found.get(2) or found[1]), prefix, index)


def facts(network: Network) -> dict:
    """What a person, or a planner of probes, wants to know of it."""
    names = {link.index: link.name for link in network.links}
    addresses: Dict[int, List[list]] = {}
    for one in map(address, network.addresses):
        addresses.setdefault(one.index, []).append([one.family, one.address, one.prefix])
    return {
        "links": [
            {
                "name": link.name,
                "kind": link.kind,
                "up": link.up,
                "ethernet": link.ethernet,
                "loopback": link.loopback,
                "master": names.get(link.master),
                "addresses": addresses.get(link.index, []),
            }
            for link in network.links
        ],
        "routes": [_route(data, names) for data in network.routes if not _flags(data) & _CLONED_ROUTE],
        "gateways": _gateways(network.routes),
        "policies": len(network.rules) - sum(map(is_builtin_rule, network.rules)),
    }


def _flags(data: bytes) -> int:
    return struct.unpack_from("=I", data, 8)[0]


def _route(data: bytes, names: Dict[int, str]) -> list:
    family, bits = data[0], data[1]
    found = attributes(data[12:])
    to = socket.inet_ntop(family, found.get(1, bytes(4 if family == socket.AF_INET else 16)))
    table = number(found[15]) if 15 in found else data[4]
    interface = names.get(number(found[4])) if 4 in found else None
    return [FAMILY_NAMES[family], f"{to}/{bits}", interface, table, ROUTE_TYPES.get(data[7], "none")]


def priority(rule: bytes) -> int:
    found = attributes(rule[12:])
    return number(found[6]) if 6 in found else 0


def _gateways(routes: Iterable[bytes]) -> List[list]:
    found = [(data[0], attributes(data[12:]).get(5)) for data in routes]
    told = {(FAMILY_NAMES[family], socket.inet_ntop(family, packed)) for family, packed in found if packed}
    return sorted(map(list, told))


def is_builtin_rule(rule: bytes) -> bool:
    """One that each namespace has: the lookup of the tables local, main and default."""
    found = attributes(rule[12:])
    plain = rule[1] == rule[2] == 0 and not found.keys() & {3, 10, 16, 17, 20, 22, 23, 24}
    return plain and (priority(rule), rule[4]) in ((0, 255), (32766, 254), (32767, 253))
