"""Netlink by hand, as far as a clone of the host's network needs it: requests, acknowledgements, dumps, attributes.

The program ``ip`` need not be installed, and one that prints for people need not be read.
"""

import os
import socket
import struct
from typing import Dict, Iterable, Iterator, List, NamedTuple, Sequence, Tuple

ROUTE, NETFILTER = 0, 12

NEW_LINK, GET_LINK, SET_LINK = 16, 18, 19
NEW_ADDRESS, GET_ADDRESS = 20, 22
NEW_ROUTE, GET_ROUTE = 24, 26
NEW_RULE, DELETE_RULE, GET_RULE = 32, 33, 34
CREATE, EXCLUSIVE, REPLACE, APPEND = 0x400, 0x200, 0x100, 0x800

_REQUEST, _ACKNOWLEDGE, _DUMP, _INTERRUPTED = 1, 4, 0x300, 0x10
_ERROR, _DONE = 2, 3
_HEAD = struct.Struct("=IHHII")  # length, kind, flags, sequence number, port
_TRIES = 5
_AT_ONCE = 100  # requests in one datagram: their acknowledgements must fit into the socket's buffer

_NESTED = 0x8000

FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
FAMILY_NAMES = {number: name for name, number in FAMILIES.items()}


class Request(NamedTuple):
    kind: int
    flags: int
    body: bytes


def attribute(kind: int, data) -> bytes:
    """One attribute; text ends with a zero byte, a number has four bytes in the machine's order."""
    if isinstance(data, str):
        data = os.fsencode(data) + b"\0"
    elif isinstance(data, int):
        data = struct.pack("=I", data)
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def attributes(data: bytes) -> Dict[int, bytes]:
    found, at = {}, 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def number(data: bytes) -> int:
    return struct.unpack("=I", data)[0]


def text(data: bytes) -> str:
    return os.fsdecode(data.rstrip(b"\0"))


class Netlink:
    """A socket of one protocol, in the network namespace in which it was opened."""

    def __init__(self, protocol: int = ROUTE):
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self.socket.settimeout(10)
        self.socket.bind((0, 0))
        self._sequence = 0

    def close(self) -> None:
        self.socket.close()

    def dump(self, kind: int, body: bytes) -> List[bytes]:
        """All there is, asked for again when it changed meanwhile."""
        for _ in range(_TRIES):
            self._send(kind, _DUMP, body)
            found, whole = [], True
            for _, data, flags in self._answers():
                whole = whole and not flags & _INTERRUPTED
                found.append(data)
            if whole:
                break
        return found

    def ask(self, kind: int, body: bytes) -> bytes:
        """The answer to one question. Raises OSError."""
        self._send(kind, 0, body)
        return next((data for _, data, _ in self._received()), b"")

    def order(self, request: Request) -> None:
        """Raises OSError."""
        error = self.order_all([request])[0]
        if error:
            raise OSError(error, os.strerror(error))

    def order_all(self, requests: Sequence[Request]) -> List[int]:
        """Carried out in this order; for each 0, or the number of its error."""
        errors: List[int] = []
        for start in range(0, len(requests), _AT_ONCE):
            errors += self._some(requests[start : start + _AT_ONCE])
        return errors

    def _some(self, requests: Sequence[Request]) -> List[int]:
        first = self._sequence + 1
        self.socket.send(b"".join(self._packed(one.kind, _ACKNOWLEDGE | one.flags, one.body) for one in requests))
        errors = [0] * len(requests)
        left = len(requests)
        while left:
            for kind, _, sequence, data in _messages(self.socket.recv(1 << 18)):
                if kind == _ERROR:
                    errors[sequence - first] = -struct.unpack_from("=i", data)[0]
                    left -= 1
        return errors

    def _packed(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        head = _HEAD.pack(_HEAD.size + len(body), kind, _REQUEST | flags, self._sequence, 0)
        return head + body + b"\0" * (-len(body) % 4)

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self.socket.send(self._packed(kind, flags, body))

    def _answers(self) -> Iterator[Tuple[int, bytes, int]]:
        while True:
            for kind, data, flags in self._received():
                if kind == _DONE:
                    return
                yield kind, data, flags

    def _received(self) -> Iterator[Tuple[int, bytes, int]]:
        for kind, flags, _, data in _messages(self.socket.recv(1 << 18)):
            if kind == _ERROR:
                error = -struct.unpack_from("=i", data)[0]
                raise OSError(error, os.strerror(error))
            yield kind, data, flags


def _messages(data: bytes) -> Iterator[Tuple[int, int, int, bytes]]:
    at = 0
    while at + _HEAD.size <= len(data):
        length, kind, flags, sequence, _ = _HEAD.unpack_from(data, at)
        yield kind, flags, sequence, data[at + _HEAD.size : at + length]
        at += (length + 3) & ~3


class Route(NamedTuple):
    """Which way the kernel sends a packet."""

    index: int  # of the interface; 0 for none
    source: str  # the address that it takes of its own accord; "" for none
    type: str
    gateway: str = ""


ROUTE_TYPES = {
    1: "unicast",
    2: "local",
    3: "broadcast",
    4: "anycast",
    5: "multicast",
    6: "blackhole",
    7: "unreachable",
    8: "prohibit",
}
_REFUSALS = {101: "none", 113: "unreachable", 13: "prohibit", 22: "blackhole"}


def route(netlink: Netlink, family: str, to: str, source: str = "", index: int = 0, mark: int = 0) -> Route:
    """The kernel's own answer."""
    number_of = FAMILIES[family]
    packed = socket.inet_pton(number_of, to)
    asked = attribute(1, packed)
    if source:
        asked += attribute(2, socket.inet_pton(number_of, source))
    if index:
        asked += attribute(3, index)
    if mark:
        asked += attribute(16, mark)
    try:
        data = netlink.ask(GET_ROUTE, struct.pack("=8BI", number_of, 8 * len(packed), 0, 0, 0, 0, 0, 0, 0) + asked)
    except OSError as err:
        return Route(0, "", _REFUSALS.get(err.errno, "none"))
    found = attributes(data[12:])
    chosen, gateway = (socket.inet_ntop(number_of, found[kind]) if kind in found else "" for kind in (7, 5))
    return Route(number(found[4]) if 4 in found else 0, chosen, ROUTE_TYPES.get(data[7], "none"), gateway)


def without(data: Dict[int, bytes], kinds: Iterable[int]) -> bytes:
    """The attributes once more, but for these."""
    left_out = set(kinds)
    return b"".join(attribute(kind, value) for kind, value in data.items() if kind not in left_out)


_CONNTRACK_DELETE = 1 << 8 | 2


def forget_connection(
    netlink: Netlink, family: str, source: str, to: str, protocol: int, ports: Tuple[int, int]
) -> None:
    """Have the kernel forget one that was tracked, if any; ``netlink`` is of netfilter."""
    number_of = FAMILIES[family]
    kinds = (1, 2) if family == "ipv4" else (3, 4)
    pairs = zip(kinds, (socket.inet_pton(number_of, one) for one in (source, to)))
    addresses = b"".join(attribute(kind, packed) for kind, packed in pairs)
    told = attribute(1, bytes([protocol]))
    if any(ports):
        told += b"".join(attribute(kind, struct.pack("!H", port)) for kind, port in zip((2, 3), ports))
    tuples = attribute(1 | _NESTED, addresses) + attribute(2 | _NESTED, told)
    body = struct.pack("=BBH", number_of, 0, 0) + attribute(1 | _NESTED, tuples)
    netlink.order_all([Request(_CONNTRACK_DELETE, 0, body)])  # an error says that there is none
