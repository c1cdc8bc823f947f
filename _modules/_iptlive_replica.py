"""A copy of the host's network in a namespace of its own, whose cables all end in files of ours.

Each interface is a TUN or TAP device. A packet that is written into its file runs through the whole stack of the kernel
before ``write`` returns: what has not come out anywhere by then was dropped. So nothing is waited for, and nothing is
guessed. That holds only while the kernel does not hand packets to another processor, which ``calibrate`` makes sure of.
"""

import contextlib
import errno
import fcntl
import os
import socket
import struct
from typing import Dict, List, Sequence, Tuple

import _iptlive_network as network
import _iptlive_rtnetlink as rtnetlink
from _iptlive_network import Link, Network
from _iptlive_packets import ETHERTYPES, broadcast, loopback_datagram
from _iptlive_rtnetlink import Request, attribute, attributes, number

_TUN_DEVICE = "/dev/net/tun"
_TUNSETIFF, _TUNSETPERSIST, _TUNSETIFINDEX = 0x400454CA, 0x400454CB, 0x400454DA
_IFF_TUN, _IFF_TAP, _IFF_NO_PI = 1, 2, 0x1000
_UP, _NOARP = 1, 0x80
_NEXT_HOP_FLAGS = 4  # of a route's flags only "on link" is asked for, the others are told
_LOCAL_TABLE, _BY_KERNEL = 255, 2
_NODAD, _NOPREFIXROUTE, _TENTATIVE, _DADFAILED = 0x02, 0x200, 0x40, 0x08
_PERMANENT = 0x80
_CALIBRATION = 64
PEER = b"\x02\0\0\0\0\xfe"  # the hardware address of the other end of every cable
_OWN = b"\x02\0\0\0\0\x01"  # that of an interface that has none
RECEIVE_BUFFER_FORCE = 33
_RECEIVE_BUFFER = 8

# Errors must not be limited: a rejected packet would look like a dropped one. Neighbours are not to be discovered.
_OURS = {
    "ipv4/icmp_ratemask": "0",
    "ipv4/tcp_syncookies": "0",
    "ipv6/icmp/ratemask": "128",  # that of requests: no error is limited
    "ipv6/conf/default/accept_dad": "0",
    "ipv6/conf/default/accept_ra": "0",
    "ipv6/conf/default/addr_gen_mode": "1",
    "ipv6/conf/default/router_solicitations": "0",
}
_NO_STEERING = {"core/rps_default_mask": "0"}


class CloneError(Exception):
    """No clone in which anything could be proved; the text is a sentence without a full stop."""


class Replica:
    """The network; made by a process that is in a new network namespace and stays there."""

    def __init__(self, host: Network, stand_ins: Sequence[str]):
        self.notes: List[str] = []
        self.links: Dict[str, Link] = {}
        self.addresses: Dict[str, List[Tuple[str, str]]] = {}  # of each interface: their families, and themselves
        self._files: Dict[str, int] = {}
        _set(_NO_STEERING)
        _set(_OURS)
        self._netlink = rtnetlink.Netlink()
        self._add_links(host.links, stand_ins)
        self._start()
        self.calibrate()
        self._add_addresses(host)
        self._set_changed(host.settings)
        self._add_rules(host)
        self._add_routes(host)

    # --- packets -------------------------------------------------------------------------------------------------

    def inject(self, interface: str, packet: bytes) -> int:
        """As if it came in by this interface; 0, or the number of the error."""
        if self.links[interface].ethernet:
            kind = ETHERTYPES[packet[0] >> 4]
            packet = self.hardware_address(interface) + PEER + kind + packet
        try:
            os.write(self._files[interface], packet)
        except OSError as err:
            return err.errno or errno.EIO
        return 0

    def sent(self) -> List[Tuple[str, bytes]]:
        """All packets that left the host since this was asked last, with the interface of each."""
        return [(name, packet) for name in self._files for packet in self._sent_by(name)]

    def hardware_address(self, interface: str) -> bytes:
        mac = self.links[interface].mac
        return mac if len(mac) == 6 else _OWN

    def route(self, family: str, to: str, source: str = "", interface: str = "", mark: int = 0) -> rtnetlink.Route:
        index = self.links[interface].index if interface else 0
        return rtnetlink.route(self._netlink, family, to, source, index, mark)

    def name(self, index: int) -> str:
        return next((link.name for link in self.links.values() if link.index == index), "")

    def set_conntrack(self, host: Network) -> None:
        """The settings of connection tracking, which are there only once a rule has had it loaded."""
        self._set_changed(host.conntrack)

    def _sent_by(self, name: str) -> List[bytes]:
        packets = []
        with contextlib.suppress(BlockingIOError, OSError):
            while True:
                packets.append(os.read(self._files[name], 1 << 17))
        if not self.links[name].ethernet:
            return packets
        return [frame[14:] for frame in packets if frame[12:14] in ETHERTYPES.values()]

    # --- interfaces ----------------------------------------------------------------------------------------------

    def _add_links(self, links: Sequence[Link], stand_ins: Sequence[str]) -> None:
        kinds = {link.index: link.kind for link in links}
        for link in links:
            if link.loopback:
                self.links[link.name] = link
            elif link.kind == "vrf" or kinds.get(link.master) == "vrf":
                self.notes.append(f"the interface {link.name}, which belongs to a VRF")
            elif not link.master:
                self._add_link(link)
        taken = {link.name for link in links}
        free = max(kinds, default=1) + 1
        for index, name in enumerate(sorted(set(stand_ins) - taken), free):
            self._add_link(Link(index, name, "", False, False, True, b"", 1500, 0, 0))
            self.notes.append(f"a stand-in without address for the interface {name}, which this host does not have")

    def _add_link(self, link: Link) -> None:
        try:
            device = os.open(_TUN_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as err:
            raise CloneError(f"{_TUN_DEVICE} cannot be opened: {err.strerror}") from err
        kind = _IFF_TAP if link.ethernet else _IFF_TUN
        try:
            # With the host's own numbers routes can be sent to the kernel just as it told them.
            fcntl.ioctl(device, _TUNSETIFINDEX, struct.pack("=I", link.index))
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", os.fsencode(link.name), kind | _IFF_NO_PI))
            # It goes with its namespace, all at once: to be taken away when its file is closed takes much longer.
            fcntl.ioctl(device, _TUNSETPERSIST, 1)
        except OSError as err:
            raise CloneError(f"no copy of the interface {link.name} can be made: {err.strerror}") from err
        self._files[link.name] = device
        self.links[link.name] = link

    def _start(self) -> None:
        requests = [_link_request(link) for link in self.links.values()]
        for link, error in zip(self.links.values(), self._netlink.order_all(requests)):
            if error:
                raise CloneError(f"the copy of the interface {link.name} cannot be set up: {os.strerror(error)}")

    # --- calibration ---------------------------------------------------------------------------------------------

    def calibrate(self) -> None:
        """Without any rule every packet must have arrived when ``write`` returns; otherwise nothing can be proved."""
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as receiver:
            receiver.setblocking(False)
            widen(receiver)
            for name, link in self.links.items():
                if link.up:
                    self._calibrate(name, receiver)

    def _calibrate(self, name: str, receiver: socket.socket) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sender:
            arrived = 0
            for count in range(_CALIBRATION):
                if self.links[name].loopback:
                    sender.sendto(loopback_datagram(count), ("127.0.0.1", 0))
                else:
                    self.inject(name, broadcast(count))
                arrived += len(drain(receiver))  # one that comes later was on its way somewhere else
                if arrived <= count:
                    break
        if arrived != _CALIBRATION:
            raise CloneError(
                f"packet {arrived + 1} of {_CALIBRATION} into an empty clone of the interface {name} did not arrive at "
                "once: the kernel hands packets to another processor, so that it cannot be told what was dropped"
            )

    # --- addresses, settings, routes -----------------------------------------------------------------------------

    def _add_addresses(self, host: Network) -> None:
        known = {link.index: link for link in self.links.values()}
        wanted = []
        for data in host.addresses:
            one = network.address(data)
            loopback = one.index in known and known[one.index].loopback and one.address in ("127.0.0.1", "::1")
            if one.index in known and not loopback:
                wanted.append((one, data))
                self.addresses.setdefault(known[one.index].name, []).append((one.family, one.address))
        errors = self._netlink.order_all([_address_request(data) for _, data in wanted])
        for (one, _), error in zip(wanted, errors):
            if error and known[one.index].up:
                self.notes.append(f"the address {one.address}: {os.strerror(error)}")

    def _set_changed(self, wanted: Dict[str, str]) -> None:
        for name, value in wanted.items():
            parts = name.split("/")
            if parts[1:2] == ["conf"] and parts[2] not in ("all", "default", *self.links):
                continue
            if network.setting(name) not in (None, value) and not _write(name, value):
                self.notes.append(f"the setting net/{name}={value}")

    def _add_rules(self, host: Network) -> None:
        for family in set(rtnetlink.FAMILIES.values()):
            self._replace_rules(family, [rule for rule in host.rules if rule[0] == family])

    def _replace_rules(self, family: int, rules: Sequence[bytes]) -> None:
        """Those that each namespace has are there; one that the host has not goes."""
        if not rules:
            return
        mine = self._netlink.dump(rtnetlink.GET_RULE, struct.pack("=8BI", family, 0, 0, 0, 0, 0, 0, 0, 0))
        kept = {(network.priority(rule), rule[4]) for rule in rules if network.is_builtin_rule(rule)}
        requests = [
            Request(rtnetlink.NEW_RULE, rtnetlink.CREATE | rtnetlink.EXCLUSIVE, rule[:12] + _rule_attributes(rule))
            for rule in rules
            if not network.is_builtin_rule(rule)
        ]
        requests += [
            Request(rtnetlink.DELETE_RULE, 0, rule)
            for rule in mine
            if rule[0] == family and (network.priority(rule), rule[4]) not in kept
        ]
        for error in self._netlink.order_all(requests):
            if error:
                self.notes.append(f"a rule of policy routing: {os.strerror(error)}")

    def _add_routes(self, host: Network) -> None:
        wanted = [data for data in host.routes if self._is_wanted(data)]
        # One with a gateway needs the one that leads to the gateway.
        wanted.sort(key=lambda data: bool(attributes(data[12:]).keys() & {5, 9, 18}))
        errors = self._netlink.order_all([_route_request(data) for data in wanted])
        for data, error in zip(wanted, errors):
            if error not in (0, errno.EEXIST):
                to = attributes(data[12:]).get(1, b"")
                name = socket.inet_ntop(data[0], to) if to else "default"
                self.notes.append(f"the route to {name}/{data[1]}: {os.strerror(error)}")

    def _is_wanted(self, data: bytes) -> bool:
        """Not those that the kernel makes of its own accord for addresses and interfaces."""
        family, table, origin, kind = data[0], data[4], data[5], data[7]
        found = attributes(data[12:])
        if struct.unpack_from("=I", data, 8)[0] & 0x200 or (table == _LOCAL_TABLE and origin == _BY_KERNEL):
            return False
        if family == socket.AF_INET6 and origin == _BY_KERNEL and (kind != 1 or found.get(1, b"")[:1] == b"\xff"):
            return False
        return 4 not in found or number(found[4]) in {link.index for link in self.links.values()}


def _link_request(link: Link) -> Request:
    flags = (_UP if link.up or link.loopback else 0) | (0 if link.loopback else _NOARP)
    body = struct.pack("=BBHiII", 0, 0, 0, link.index, flags, _UP | _NOARP if not link.loopback else _UP)
    if not link.loopback:
        body += attribute(4, link.mtu)
        if link.ethernet:
            body += attribute(1, link.mac if len(link.mac) == 6 else _OWN)
    if link.group:
        body += attribute(27, link.group)
    return Request(rtnetlink.NEW_LINK, 0, body)


def _address_request(data: bytes) -> Request:
    family, prefix, flags, scope, index = struct.unpack_from("=BBBBI", data)
    found = attributes(data[8:])
    flags = number(found[8]) if 8 in found else flags
    flags = flags & ~(_TENTATIVE | _DADFAILED | _PERMANENT) | _NODAD | _NOPREFIXROUTE
    body = struct.pack("=BBBBI", family, prefix, 0, scope, index)
    body += b"".join(attribute(kind, found[kind]) for kind in (1, 2, 4) if kind in found) + attribute(8, flags)
    return Request(rtnetlink.NEW_ADDRESS, rtnetlink.CREATE | rtnetlink.REPLACE, body)


def _rule_attributes(rule: bytes) -> bytes:
    found = attributes(rule[12:])
    unset = [kind for kind in (13, 14) if found.get(kind) == b"\xff\xff\xff\xff"]
    return rtnetlink.without(found, unset)


def _route_request(data: bytes) -> Request:
    head = list(struct.unpack_from("=8BI", data))
    head[8] &= _NEXT_HOP_FLAGS
    found = attributes(data[12:])
    if 9 in found:
        found[9] = _next_hops(found[9])
    # What the kernel only tells: the age, the nexthop object (its hops are told too), the preference of IPv6.
    body = struct.pack("=8BI", *head) + rtnetlink.without(found, (12, 20, 30))
    return Request(rtnetlink.NEW_ROUTE, rtnetlink.CREATE | rtnetlink.APPEND, body)


def _next_hops(data: bytes) -> bytes:
    out, at = b"", 0
    while at + 8 <= len(data):
        length, flags, weight, index = struct.unpack_from("=HBBi", data, at)
        rest = data[at + 8 : at + length]
        out += struct.pack("=HBBi", length, flags & _NEXT_HOP_FLAGS, weight, index) + rest + b"\0" * (-length % 4)
        at += (length + 3) & ~3
    return out


def _set(settings: Dict[str, str]) -> None:
    for name, value in settings.items():
        _write(name, value)  # an older kernel does not have all of them


def _write(name: str, value: str) -> bool:
    try:
        with open("/proc/sys/net/" + name, "w", encoding="ascii") as target:
            target.write(value)
    except OSError:
        return False
    return True


def widen(receiver: socket.socket) -> None:
    """A buffer that holds all that one probe, or a calibration, can bring."""
    try:
        receiver.setsockopt(socket.SOL_SOCKET, RECEIVE_BUFFER_FORCE, 8 << 20)
    except OSError:
        receiver.setsockopt(socket.SOL_SOCKET, _RECEIVE_BUFFER, 8 << 20)


def drain(receiver: socket.socket) -> List[Tuple[bytes, tuple]]:
    """All that has arrived, with where it is from."""
    got = []
    with contextlib.suppress(BlockingIOError):
        while True:
            got.append(receiver.recvfrom(1 << 17))
    return got
