"""Packets: written with their checksums, and taken apart. Pure."""

import socket
import struct
from typing import NamedTuple, Optional, Tuple

OWN_PORTS = range(40000, 60000)  # that packets are sent from: not those by which clusters publish services
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
ETHERTYPES = {4: b"\x08\0", 6: b"\x86\xdd"}
SOLICITATION, ADVERTISEMENT = 135, 136
_CHECKSUM_AT = {TCP: 16, UDP: 6, ICMP: 2, ICMPV6: 2}
_ICMP_ERRORS = (3, 11, 12)
_MSS_1460 = b"\x02\x04\x05\xb4"

PROTOCOLS = {
    "tcp": TCP, "udp": UDP, "gre": 47, "esp": 50, "ah": 51, "sctp": 132, "dccp": 33, "udplite": 136, "igmp": 2,
    "ipip": 4, "ipencap": 4, "ipv6": 41, "ospf": 89, "vrrp": 112, "pim": 103, "l2tp": 115,
}  # fmt: skip
_UNREACHABLE = {
    0: "icmp-net-unreachable", 1: "icmp-host-unreachable", 2: "icmp-proto-unreachable", 3: "icmp-port-unreachable",
    9: "icmp-net-prohibited", 10: "icmp-host-prohibited", 13: "icmp-admin-prohibited",
}  # fmt: skip
_UNREACHABLE_6 = {
    0: "icmp6-no-route", 1: "icmp6-adm-prohibited", 3: "icmp6-addr-unreachable", 4: "icmp6-port-unreachable",
    5: "icmp6-policy-fail", 6: "icmp6-reject-route",
}  # fmt: skip


class Packet(NamedTuple):
    """A packet taken apart; ports, flags and numbers only where its protocol has them."""

    family: str
    source: bytes
    destination: bytes
    protocol: int
    raw: bytes
    source_port: int = 0
    port: int = 0
    flags: int = 0
    sequence: int = 0
    icmp: Optional[Tuple[int, int]] = None
    ident: int = 0  # of an ICMP echo
    inner: Optional["Packet"] = None  # of an ICMP error: the packet that it complains of


def protocol_number(name: str, family: str) -> int:
    if name == "icmp":
        return ICMP if family == "ipv4" else ICMPV6
    return PROTOCOLS[name] if name in PROTOCOLS else int(name)


def pack(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def show(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET6 if len(address) == 16 else socket.AF_INET, address)


def is_multicast(address: bytes) -> bool:
    return address[0] == 0xFF if len(address) == 16 else 224 <= address[0] < 240


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def build(source: bytes, destination: bytes, protocol: int, payload: bytes, ident: int = 0, ttl: int = 64) -> bytes:
    """An IP packet; the checksum of the payload is filled in where the protocol has one."""
    payload = summed(source, destination, protocol, payload)
    if len(source) == 16:
        return struct.pack("!IHBB", 6 << 28, len(payload), protocol, ttl) + source + destination + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), ident & 0xFFFF, 0, ttl, protocol, 0)
    head += source + destination
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def summed(source: bytes, destination: bytes, protocol: int, payload: bytes) -> bytes:
    """The payload with its checksum, where its protocol has one."""
    at = _CHECKSUM_AT.get(protocol)
    if at is None:
        return payload
    payload = payload[:at] + b"\0\0" + payload[at + 2 :]
    pseudo = b""
    if protocol != ICMP:
        pseudo = source + destination
        layout = "!BBH" if len(source) == 4 else "!II"
        numbers = (0, protocol, len(payload)) if len(source) == 4 else (len(payload), protocol)
        pseudo += struct.pack(layout, *numbers)
    total = checksum(pseudo + payload) or 0xFFFF
    return payload[:at] + struct.pack("!H", total) + payload[at + 2 :]


def tcp(
    source_port: int, port: int, sequence: int, flags: int = SYN, acknowledged: int = 0, data: bytes = b""
) -> bytes:
    options = _MSS_1460 if flags & SYN else b""
    offset = (5 + len(options) // 4) << 4
    head = struct.pack("!HHIIBBHHH", source_port, port, sequence, acknowledged, offset, flags, 64240, 0, 0)
    return head + options + data


def udp(source_port: int, port: int, data: bytes) -> bytes:
    return struct.pack("!HHHH", source_port, port, 8 + len(data), 0) + data


def icmp(kind: int, code: int, ident: int, sequence: int, data: bytes) -> bytes:
    return struct.pack("!BBHHH", kind, code, 0, ident & 0xFFFF, sequence) + data


def solicitation(target: bytes, mac: bytes) -> bytes:
    return struct.pack("!BBHI", SOLICITATION, 0, 0, 0) + target + b"\x01\x01" + mac


def advertisement(target: bytes, mac: bytes) -> bytes:
    return struct.pack("!BBHI", ADVERTISEMENT, 0, 0, 0x60000000) + target + b"\x02\x01" + mac


def broadcast(count: int) -> bytes:
    """A datagram that every host takes that has any interface, whatever its addresses and settings."""
    return build(bytes(4), b"\xff" * 4, UDP, udp(68, 67, struct.pack("!I", count)), count + 1)


def loopback_datagram(count: int) -> bytes:
    return build(b"\x7f\0\0\1", b"\x7f\0\0\1", UDP, udp(68, 67, struct.pack("!I", count)), count + 1)


def parse(raw: bytes) -> Optional[Packet]:
    """None for what is no IP packet."""
    version = raw[0] >> 4 if raw else 0
    if version == 4 and len(raw) >= 20:
        start = (raw[0] & 15) * 4
        return _with_payload(Packet("ipv4", raw[12:16], raw[16:20], raw[9], raw), raw[start:])
    if version == 6 and len(raw) >= 40:
        return _with_payload(Packet("ipv6", raw[8:24], raw[24:40], raw[6], raw), raw[40:])
    return None


def parse_payload(family: str, source: bytes, protocol: int, payload: bytes) -> Packet:
    """What a raw socket of IPv6 hands over: no header, and only where it is from."""
    return _with_payload(Packet(family, source, bytes(16), protocol, payload), payload)


def _with_payload(packet: Packet, payload: bytes) -> Packet:
    if packet.protocol in (TCP, UDP) and len(payload) >= 8:
        source_port, port = struct.unpack_from("!HH", payload)
        packet = packet._replace(source_port=source_port, port=port)
        if packet.protocol == TCP and len(payload) >= 14:
            packet = packet._replace(sequence=struct.unpack_from("!I", payload, 4)[0], flags=payload[13])
    elif packet.protocol in (ICMP, ICMPV6) and len(payload) >= 8:
        kind = payload[0], payload[1]
        packet = packet._replace(icmp=kind, ident=struct.unpack_from("!H", payload, 4)[0])
        if is_error(packet):
            packet = packet._replace(inner=parse(payload[8:]))
    return packet


def is_error(packet: Packet) -> bool:
    return is_error_kind(packet.protocol, packet.icmp)


def is_error_kind(protocol: int, kind: Optional[Tuple[int, int]]) -> bool:
    """Whether an ICMP message of this type and code complains of another packet."""
    if kind is None:
        return False
    return kind[0] in _ICMP_ERRORS if protocol == ICMP else protocol == ICMPV6 and kind[0] < 128


def error_name(packet: Packet) -> str:
    """Of an ICMP error, as REJECT calls it."""
    kind, code = packet.icmp
    names = {(ICMP, 3): _UNREACHABLE, (ICMPV6, 1): _UNREACHABLE_6}.get((packet.protocol, kind), {})
    return names.get(code, f"icmp {kind}/{code}")


def endpoint(address: str, port: int) -> str:
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
