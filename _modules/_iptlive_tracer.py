"""Which rules a packet met: the kernel's own trace, of both backends, told apart by packet.

A chain of our own in a table of nf_tables, first of all, marks each packet to be traced; the legacy programs' tables
heed that mark as well. So no rule has to be put among those that are tried.
"""

import errno
import re
import socket
import struct
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple

import _iptlive_rtnetlink as rtnetlink
from _iptlive_packets import Packet, parse
from _iptlive_replica import widen
from _iptlive_rtnetlink import attribute, attributes

TABLE = "iptlive-trace"
NATIVE = "native"
_NFTABLES, _ULOG = 10 << 8, 4 << 8
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE, _GET_RULE, _TRACE = 0, 3, 6, 7, 17
_BATCH_BEGIN, _BATCH_END = 16, 17
_INET = 1
_FAMILIES = {"ipv4": 2, "ipv6": 10}
_FAMILY_WORDS = {1: "inet", 2: "ip", 5: "netdev", 7: "bridge", 10: "ip6"}
_NAMES = {2: "ipv4", 10: "ipv6"}
_NEW_TRACE_GROUP = 9
_NFT_TRACE_KEY = 12
_FIRST = -(1 << 31)  # the priority before all others
_HOOKS = {"arriving": 0, "sending": 3}
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_LEGACY_TEXT = re.compile(r"TRACE: (\S+?):(.+):(rule|return|policy):(\d+) ?$")
_TYPES = {1: "policy", 2: "return", 3: "rule"}
_VERDICTS = {0: "drop", 1: "accept", 2: "stolen", 3: "queue", -1: "continue", -2: "break", -3: "jump", -4: "goto", -5: "return"}  # fmt: skip  # noqa: E501
_OWN_TABLES = ("filter", "nat", "mangle", "raw", "security")


class Event(NamedTuple):
    """A packet at a rule whose matches it met, or at a chain's end."""

    backend: str  # nft, legacy or native
    table: str
    chain: str
    kind: str  # rule, return or policy
    number: int  # of the rule; a native one has none
    verdict: str  # nft alone tells
    packet: Optional[Packet]  # as it was then, without its data


class Tracer:
    """Events since it was asked last; for both families, and whichever backend the rules are of."""

    def __init__(self, legacy_families: Iterable[str]):
        with_trace = rtnetlink.Netlink(rtnetlink.NETFILTER)
        try:
            _mark_all(with_trace)
        finally:
            with_trace.close()
        self._asking = rtnetlink.Netlink(rtnetlink.NETFILTER)
        self._nft = _receiver()
        self._nft.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NEW_TRACE_GROUP)
        self._legacy = _log_receiver(legacy_families)
        self._numbers: Dict[Tuple[int, str, str], Dict[int, int]] = {}

    def refresh(self) -> None:
        """Rules have changed: which number a handle has must be asked again."""
        self._numbers.clear()

    def events(self) -> List[Event]:
        found = [event for event in map(_legacy_event, _drained(self._legacy, _ULOG)) if event]
        last: Dict[bytes, Optional[Packet]] = {}
        for family, data in _drained(self._nft, _NFTABLES | _TRACE):
            event = self._nft_event(family, data, last)
            if event:
                found.append(event)
        return found

    def forget(self) -> None:
        for receiver in (self._nft, self._legacy):
            for _ in _datagrams(receiver):
                pass

    def _nft_event(self, family: int, data: bytes, last: Dict[bytes, Optional[Packet]]) -> Optional[Event]:
        found = attributes(data)
        if 8 in found:
            # The head comes at the first rule of each chain that hooks; an identifier may be used again.
            last[found[6]] = parse(found[8] + found.get(9, b""))
        table, chain = rtnetlink.text(found[1]), rtnetlink.text(found[2])
        if table == TABLE:
            return None
        kind = _TYPES.get(_big(found[4]), "")
        if kind == "rule" and 3 not in found:
            return None  # beyond the last one; the chain's end is told of as well
        handle = int.from_bytes(found.get(3, b""), "big")
        verdict = attributes(found.get(5, b"")).get(1)
        word = _VERDICTS.get(struct.unpack("!i", verdict)[0], "") if verdict else ""
        if kind == "policy" and 16 in found:
            word = _VERDICTS.get(_big(found[16]), "")
        own = family in _NAMES and table in _OWN_TABLES
        backend, name = ("nft", table) if own else (NATIVE, f"{_FAMILY_WORDS.get(family, family)} {table}")
        number = self._number(family, table, chain, handle) if kind == "rule" else 0
        return Event(backend, name, chain, kind, number, word, last.get(found.get(6, b"")))

    def _number(self, family: int, table: str, chain: str, handle: int) -> int:
        key = family, table, chain
        if handle not in self._numbers.get(key, {}):
            body = struct.pack("=BBH", family, 0, 0) + attribute(1, table) + attribute(2, chain)
            dumped = self._asking.dump(_NFTABLES | _GET_RULE, body)
            handles = (int.from_bytes(attributes(data[4:])[3], "big") for data in dumped)
            self._numbers[key] = {one: number for number, one in enumerate(handles, 1)}
        return self._numbers[key].get(handle, 0)


def of(events: Iterable[Event], is_wanted: Callable[[Packet], bool]) -> List[Event]:
    """Those of one packet."""
    return [event for event in events if event.packet is not None and is_wanted(event.packet)]


def _legacy_event(message: Tuple[int, bytes]) -> Optional[Event]:
    found = attributes(message[1])
    told = _LEGACY_TEXT.match(rtnetlink.text(found.get(10, b"")))
    if not told:
        return None
    table, chain, kind, number = told.groups()
    return Event("legacy", table, chain, kind, int(number), "", parse(found.get(9, b"")))


def _big(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _drained(receiver: socket.socket, wanted: int) -> Iterable[Tuple[int, bytes]]:
    for data in _datagrams(receiver):
        at = 0
        while at + 20 <= len(data):
            length, kind = struct.unpack_from("=IH", data, at)
            if kind == wanted:
                yield data[at + 16], data[at + 20 : at + length]
            at += (max(length, 20) + 3) & ~3


def _datagrams(receiver: socket.socket) -> Iterable[bytes]:
    while True:
        try:
            yield receiver.recv(1 << 17)
        except BlockingIOError:
            return
        except OSError as err:
            if err.errno != errno.ENOBUFS:
                raise


def _receiver() -> socket.socket:
    receiver = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, rtnetlink.NETFILTER)
    widen(receiver)
    receiver.bind((0, 0))
    receiver.setblocking(False)
    return receiver


def _log_receiver(families: Iterable[str]) -> socket.socket:
    """Legacy tables trace to the log of netfilter, group 0, whole packets, each at once."""
    receiver = _receiver()
    receiver.setblocking(True)
    orders = []
    for family in families:
        orders += [(_FAMILIES[family], attribute(1, b"\x04")), (_FAMILIES[family], attribute(1, b"\x03"))]
    copy_packets = attribute(2, struct.pack("!IBB", 0, 2, 0))
    if orders:
        orders += [(0, attribute(1, b"\x01")), (0, copy_packets), (0, attribute(5, struct.pack("!I", 1)))]
    for family, body in orders:
        message = struct.pack("=BBH", family, 0, 0) + body
        receiver.send(struct.pack("=IHHII", 16 + len(message), _ULOG | 1, 5, 1, 0) + message)
        error = -struct.unpack_from("=i", receiver.recv(1 << 16), 16)[0]
        if error:
            raise OSError(error, "the log of netfilter cannot be read")
    receiver.setblocking(False)
    return receiver


def _mark_all(netlink: rtnetlink.Netlink) -> None:
    """A table of our own, by hand: the program ``nft`` need not be installed."""
    orders = [(_NEW_TABLE, attribute(1, TABLE))]
    for chain, hook in _HOOKS.items():
        hooked = attribute(1, struct.pack("!I", hook)) + attribute(2, struct.pack("!i", _FIRST))
        chained = attribute(1, TABLE) + attribute(3, chain) + _nested(4, hooked) + attribute(7, "filter")
        orders.append((_NEW_CHAIN, chained))
        orders.append((_NEW_RULE, attribute(1, TABLE) + attribute(2, chain) + _nested(4, _trace_expressions())))
    batch = b"".join(_message(_NFTABLES | kind, 0x405, _INET, 0, body) for kind, body in orders)
    begin, end = (_message(kind, 1, 0, _NFTABLES, b"") for kind in (_BATCH_BEGIN, _BATCH_END))
    netlink.socket.send(begin + batch + end)
    for _ in orders:
        error = -struct.unpack_from("=i", netlink.socket.recv(1 << 16), 16)[0]
        if error:
            raise OSError(error, "packets cannot be traced")


def _message(kind: int, flags: int, family: int, resource: int, body: bytes) -> bytes:
    # The resource is a number of two bytes, the high one first: the subsystem's stands in the low one.
    head = struct.pack("=BBBB", family, 0, 0, resource >> 8)
    packed = struct.pack("=IHHII", 20 + len(body), kind, flags, 1, 0) + head + body
    return packed + b"\0" * (-len(packed) % 4)


def _trace_expressions() -> bytes:
    one = _nested(2, attribute(1, b"\x01"))
    load = attribute(1, "immediate") + _nested(2, attribute(1, struct.pack("!I", 1)) + one)
    store = attribute(2, struct.pack("!I", _NFT_TRACE_KEY)) + attribute(3, struct.pack("!I", 1))
    return _nested(1, load) + _nested(1, attribute(1, "meta") + _nested(2, store))


def _nested(kind: int, body: bytes) -> bytes:
    return attribute(kind | 0x8000, body)
