"""Both ends of every cable of the clone, and what the clone itself receives."""

import ctypes
import os
import select
import socket
import struct
from typing import Dict, List, NamedTuple, Tuple

import _iptlive_rtnetlink as rtnetlink
from _iptlive_packets import ICMP, ICMPV6, TCP, UDP, Packet, pack, parse, parse_payload
from _iptlive_replica import Replica, drain, widen

ADDRESS_FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
_ICMP = {"ipv4": ICMP, "ipv6": ICMPV6}
_RECEIVE_PACKET_INFO, _PACKET_INFO = 49, 50  # of IPv6
_PACKET_INFO_4 = 8
_HEADER_INCLUDED = 36
_LINGER_AT_ONCE = struct.pack("ii", 1, 0)
_BACKLOG = 4096
_libc = ctypes.CDLL(None, use_errno=True)


class Arrival(NamedTuple):
    """A packet that got somewhere: ``interface`` is the one that it left by, or "" where this host received it."""

    interface: str
    packet: Packet


class Wire:
    """Packets into the clone, and all that comes of them."""

    def __init__(self, replica: Replica, families):
        self.replica = replica
        self.injected = 0
        self._raw: Dict[Tuple[str, int], socket.socket] = {}
        self._listeners: Dict[Tuple[str, int, int], socket.socket] = {}
        self._senders: Dict[Tuple[str, Tuple[int, int]], socket.socket] = {}
        self._groups = set()
        self._netfilter = rtnetlink.Netlink(rtnetlink.NETFILTER)
        for family in families:
            for protocol in (TCP, UDP, _ICMP[family]):
                self.listen_raw(family, protocol)

    def listen_raw(self, family: str, protocol: int) -> None:
        """From now on packets of this protocol that the host receives are seen."""
        if (family, protocol) in self._raw:
            return
        receiver = socket.socket(ADDRESS_FAMILIES[family], socket.SOCK_RAW, protocol)
        receiver.setblocking(False)
        widen(receiver)
        if family == "ipv6":
            receiver.setsockopt(socket.IPPROTO_IPV6, _RECEIVE_PACKET_INFO, 1)
        self._raw[family, protocol] = receiver

    def inject(self, interface: str, packet: bytes) -> int:
        self.injected += 1
        return self.replica.inject(interface, packet)

    def send_raw(self, family: str, packet: bytes, destination: str, user: Tuple[int, int]) -> int:
        """As this host's own, of this user; 0, or the number of the error."""
        if (family, user) not in self._senders:
            sender = owned_socket(family, socket.SOCK_RAW, user, socket.IPPROTO_RAW)
            if family == "ipv6":
                sender.setsockopt(socket.IPPROTO_IPV6, _HEADER_INCLUDED, 1)
            self._senders[family, user] = sender
        try:
            self._senders[family, user].sendto(packet, (destination, 0))
        except OSError as err:
            return err.errno
        return 0

    def forget_connection(self, probe) -> None:
        """A probe that does not differ from an earlier one by its source port must not go on with its connection."""
        source = probe.source or self.replica.route(probe.family, probe.destination).source
        if source:
            ports = probe.source_port, probe.port
            rtnetlink.forget_connection(self._netfilter, probe.family, source, probe.destination, probe.protocol, ports)

    def arrivals(self) -> List[Arrival]:
        """What was received, then what was sent out, since this was asked last."""
        received = [Arrival("", packet) for key in self._raw for packet in self._received(*key)]
        sent = ((name, parse(raw)) for name, raw in self.replica.sent())
        return received + [Arrival(name, packet) for name, packet in sent if packet is not None]

    def _received(self, family: str, protocol: int) -> List[Packet]:
        receiver = self._raw[family, protocol]
        if family == "ipv4":
            parsed = (parse(data) for data, _ in drain(receiver))
            return [packet for packet in parsed if packet is not None]
        found = []
        while True:
            try:
                data, extras, _, sender = receiver.recvmsg(1 << 17, 256)
            except BlockingIOError:
                return found
            packet = parse_payload(family, pack(sender[0].split("%")[0]), protocol, data)
            for _, kind, value in extras:
                if kind == _PACKET_INFO:
                    packet = packet._replace(destination=value[:16])
            found.append(packet)

    def forget(self) -> None:
        """All that arrived so far."""
        for receiver in self._raw.values():
            drain(receiver)
        self.replica.sent()

    # --- sockets -------------------------------------------------------------------------------------------------

    def listener(self, family: str, protocol: int, port: int) -> socket.socket:
        """One that serves this port on all addresses."""
        key = family, protocol, port
        if key not in self._listeners:
            kind = socket.SOCK_STREAM if protocol == TCP else socket.SOCK_DGRAM
            server = _opened(family, kind)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == "ipv6":
                server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                server.setsockopt(socket.IPPROTO_IPV6, _RECEIVE_PACKET_INFO, 1)
            else:
                server.setsockopt(socket.IPPROTO_IP, _PACKET_INFO_4, 1)
            server.bind(("", port))
            if protocol == TCP:
                server.listen(_BACKLOG)
            self._listeners[key] = server
        return self._listeners[key]

    def serves(self, family: str, protocol: int, port: int) -> bool:
        return (family, protocol, port) in self._listeners

    def join(self, family: str, interface: str, group: bytes) -> None:
        """Receive what is sent to this multicast group."""
        key = family, interface, group
        if key in self._groups:
            return
        index = self.replica.links[interface].index
        receiver = self._raw[family, UDP]
        if family == "ipv4":
            receiver.setsockopt(
                socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack("=4s4si", group, bytes(4), index)
            )
        else:
            receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, group + struct.pack("=I", index))
        self._groups.add(key)


def owned_socket(family: str, kind: int, user: Tuple[int, int], protocol: int = 0) -> socket.socket:
    """A socket that belongs to this user and group, as ``-m owner`` sees it; this process stays what it is."""
    _libc.setfsgid(user[1])
    _libc.setfsuid(user[0])
    try:
        return _opened(family, kind, protocol)
    finally:
        _libc.setfsuid(os.geteuid())
        _libc.setfsgid(os.getegid())


def _opened(family: str, kind: int, protocol: int = 0) -> socket.socket:
    opened = socket.socket(ADDRESS_FAMILIES[family], kind, protocol)
    opened.setblocking(False)
    if kind == socket.SOCK_STREAM:
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a few bytes are sent at once
    return opened


def drop(connection: socket.socket) -> None:
    """End it at once: nothing of it may be sent again later."""
    if connection.type == socket.SOCK_STREAM:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_AT_ONCE)
    connection.close()


def is_connected(connection: socket.socket) -> bool:
    waiting = select.poll()
    waiting.register(connection, select.POLLOUT)
    ready = waiting.poll(0)
    return bool(ready) and not ready[0][1] & (select.POLLERR | select.POLLHUP)


def answer_datagrams(server: socket.socket, data: bytes) -> bool:
    """Answer all that came, each from the address that it was sent to; False where the host refuses to send."""
    sent = True
    while True:
        try:
            _, extras, _, sender = server.recvmsg(1 << 16, 256)
        except BlockingIOError:
            return sent
        from_there = [(level, kind, _source(kind, value)) for level, kind, value in extras]
        try:
            server.sendmsg([data], from_there, 0, sender)
        except OSError:
            sent = False


def _source(kind: int, info: bytes) -> bytes:
    """Of the packet information that came with a datagram, what asks for that address as the answer's source."""
    if kind == _PACKET_INFO_4:
        return struct.pack("=I", 0) + info[4:8] + bytes(4)
    return info[:16] + bytes(4)
