"""A probe, the packets of it, and how they are recognised wherever they come out. Pure but for what a session holds."""

import errno
import os
import socket
import struct
from typing import Callable, NamedTuple, Optional, Sequence, Tuple

import _iptlive_packets as packets
from _iptlive_packets import ACK, ICMP, ICMPV6, PSH, RST, SYN, TCP, UDP, Packet
from _iptlive_wire import Arrival

REQUEST, ANSWER, FOLLOW_UP, NEIGHBOUR = "request", "answer", "follow-up", "neighbour"
ECHO = {ICMP: (8, 0), ICMPV6: (128, 0)}
ECHO_REPLY = {ICMP: (0, 0), ICMPV6: (129, 0)}
WITH_PORTS = (TCP, UDP)
MARK = b"iptlive"
_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH)

IsIts = Callable[[Packet], bool]


class Probe(NamedTuple):
    """What is tried; ``interface`` is "" for a packet of this host's own."""

    family: str
    source: str  # "": what the routes choose
    destination: str
    protocol: int
    port: int
    icmp: Optional[Tuple[int, int]]  # None: an echo request
    interface: str
    user: Tuple[int, int]
    established: bool
    whole: bool
    source_port: int


class Outcome(NamedTuple):
    verdict: str
    leg: str = ""
    detail: str = ""
    why: str = ""
    arrival: Optional[Arrival] = None


class Session(NamedTuple):
    """A conversation that goes on. Its ends are sockets where they are in the clone, and ours where they are not."""

    probe: Probe
    request: Packet
    arrival: Arrival
    client: Optional[socket.socket]
    server: Optional[socket.socket]
    client_next: int  # the sequence numbers that come next
    server_next: int


# --- packets of a probe ----------------------------------------------------------------------------------------------


def mark(number: int) -> bytes:
    return MARK + struct.pack("!I", number)


def first_payload(probe: Probe, source_port: int, number: int) -> bytes:
    """Of the first packet."""
    if probe.protocol == TCP:
        return packets.tcp(source_port, probe.port, number)
    if probe.protocol == UDP:
        return packets.udp(source_port, probe.port, mark(number))
    if probe.protocol in ECHO:
        kind = probe.icmp or ECHO[probe.protocol]
        return packets.icmp(*kind, number, 1, mark(number))
    return mark(number) + bytes(16)


def further_payload(session: Session, number: int) -> bytes:
    """Of a packet in the middle, from the client."""
    request, data = session.request, mark(number)
    if request.protocol == TCP:
        numbers = session.client_next, PSH | ACK, session.server_next
        return packets.tcp(request.source_port, request.port, *numbers, data)
    if request.protocol == UDP:
        return packets.udp(request.source_port, request.port, data)
    if request.icmp:
        return packets.icmp(*request.icmp, request.ident, 1, data)
    return data + bytes(16)


def answering_payload(session: Session, number: int) -> bytes:
    """Of one from the server, whose own addresses and ports are those that the request came with."""
    came, data = session.arrival.packet, mark(number)
    if came.protocol == TCP:
        numbers = session.server_next, PSH | ACK, session.client_next
        return packets.tcp(came.port, came.source_port, *numbers, data)
    if came.protocol == UDP:
        return packets.udp(came.port, came.source_port, data)
    return packets.icmp(*ECHO_REPLY[came.protocol], came.ident, 1, data)


# --- which packet is it ----------------------------------------------------------------------------------------------


def carries(protocol: int, number: int) -> IsIts:
    """The very packet that was sent, whatever its addresses and ports have become."""
    if protocol == TCP:
        return lambda packet: packet.protocol == TCP and packet.sequence == number and not packet.flags & RST
    return holds_data(protocol, number)


def is_on_its_way(sent: Packet) -> IsIts:
    """On its way: the source port and the kind stay what they are."""
    return lambda packet: (
        packet.protocol == sent.protocol
        and packet.icmp == sent.icmp
        and (packet.source_port, packet.ident) == (sent.source_port, sent.ident)
        and (bool(sent.source_port or sent.icmp) or packet.source == sent.source)
    )


def is_from_port(protocol: int, source_port: int) -> IsIts:
    return lambda packet: packet.protocol == protocol and packet.source_port == source_port


def answers_to(request: Packet) -> IsIts:
    """In answer to it."""
    reply = ECHO_REPLY.get(request.protocol)
    if reply:
        return lambda packet: packet.icmp == reply and packet.ident == request.ident
    return lambda packet: packet.protocol == request.protocol and packet.port == request.source_port


def is_first(packet: Packet) -> bool:
    return packet.protocol == TCP and packet.flags & (SYN | ACK) == SYN


def is_bare_acknowledgement(packet: Packet) -> bool:
    return packet.protocol == TCP and packet.flags & (SYN | ACK | RST) == ACK


def is_second(packet: Packet) -> bool:
    return packet.protocol == TCP and packet.flags & (SYN | ACK) == SYN | ACK


def holds_data(protocol: int, number: int) -> IsIts:
    """A packet in the middle, whatever its addresses and ports have become."""
    data = mark(number)
    return lambda packet: packet.protocol == protocol and packet.inner is None and data in packet.raw


def is_answer(arrival: Arrival, request: Packet, is_answer: IsIts) -> bool:
    """One that whoever asked takes for an answer: from the address that was asked."""
    packet = arrival.packet
    there = (packet.source, packet.destination) == (request.destination, request.source)
    return bool(arrival.interface) and there and is_answer(packet)


# --- what became of it -----------------------------------------------------------------------------------------------


def became(arrivals: Sequence[Arrival], is_same: IsIts, refusal: Callable[[Packet], str]) -> Outcome:
    for arrival in arrivals:
        if is_same(arrival.packet):
            return Outcome("accept", arrival=arrival)
    for arrival in arrivals:
        detail = refusal(arrival.packet)
        if detail:
            return Outcome("reject", REQUEST, detail)
    return Outcome("drop", REQUEST)


def refuses(protocol: int, source_port: int) -> Callable[[Packet], str]:
    """How a packet from this port was rejected by this answer; "" where it is none."""

    def refusal(packet: Packet) -> str:
        if packet.protocol == TCP == protocol and packet.flags & RST and packet.port == source_port:
            return "tcp-reset"
        inner = packet.inner
        if inner and inner.protocol == protocol and source_port in (0, inner.source_port):
            return packets.error_name(packet)
        return ""

    return refusal


def refused(arrivals: Sequence[Arrival], refusal: Callable[[Packet], str], leg: str, arrival: Arrival) -> Outcome:
    """A later leg that failed; ``arrival`` is where the request got."""
    details = [detail for detail in (refusal(one.packet) for one in arrivals) if detail]
    return Outcome("reject" if details else "drop", leg, details[0] if details else "", "", arrival)


def cannot_send(probe: Probe, error: int) -> Outcome:
    if error == errno.ECONNREFUSED:
        return Outcome("reject", REQUEST, "tcp-reset")
    why = f"a packet to {probe.destination} cannot be sent: {os.strerror(error)}"
    if error in _NO_WAY:
        why = f"no route to {probe.destination}"
    elif error == errno.EADDRNOTAVAIL:
        why = f"{probe.source} is no address of this host"
    return Outcome("undecided", REQUEST, "", why)
