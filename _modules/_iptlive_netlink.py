"""What nf_tables holds, asked of the kernel itself: tables, the hooks of their chains, and rules as their expressions.

iptables-nft shows only what it knows how to print, and the program ``nft`` need not be installed. Run as a program,
this file prints the rules of a chain as JSON: that is how a throw-away namespace is asked.
"""

import errno
import json
import os
import socket
import struct
import sys
from typing import Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

INET = 1
_NETLINK_NETFILTER = 12
_NFTABLES = 10
_GET_TABLE, _GET_CHAIN, _GET_RULE, _GET_GENERATION = 1, 4, 7, 16
_TABLE_NAME = 1
_REQUEST, _DUMP, _INTERRUPTED = 0x1, 0x300, 0x10
_ERROR, _DONE = 2, 3
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_USE = 1, 3, 4, 5, 6
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4
_GENERATION_ID = 1
_DROP = 0
_TRIES = 5
_ANSWER_SECONDS = 10


_HEAD = struct.Struct("=HH")  # of an attribute: its length and its kind


class Base(NamedTuple):
    """A chain that hooks packets."""

    family: int
    table: str
    name: str
    hook: int
    rules: int
    drops: bool


Rule = Tuple[Tuple[str, bytes], ...]  # the names of its expressions, with their data


class NoAnswerError(Exception):
    """The kernel has no nf_tables, or does not let us ask."""


def base_chains() -> List[Base]:
    """Of all families."""
    found = []
    for family, data in _dump(_GET_CHAIN, 0, b""):
        chain = attributes(data)
        if _CHAIN_HOOK in chain:
            hook = _number(attributes(chain[_CHAIN_HOOK])[1])
            drops = _CHAIN_POLICY in chain and _number(chain[_CHAIN_POLICY]) == _DROP
            names = _text(chain[_CHAIN_TABLE]), _text(chain[_CHAIN_NAME])
            # No rule jumps to such a chain, so its uses are its rules: there may be many, and they need not be read.
            found.append(Base(family, *names, hook, _number(chain[_CHAIN_USE]), drops))
    return found


def existing_chains(family: int, wanted: Mapping[str, Sequence[str]]) -> Dict[str, List[str]]:
    """Of the wanted chains of each table those that exist: one question per chain, however many there are.

    The iptables programs can only list chains, with all of their rules, or fail at the first one that is missing.
    """
    try:
        with _open() as netlink:
            return {
                table: [chain for chain in chains if _exists(netlink, family, table, chain)]
                for table, chains in wanted.items()
            }
    except OSError as err:
        raise NoAnswerError(str(err)) from err


def _exists(netlink: socket.socket, family: int, table: str, chain: str) -> bool:
    _ask(netlink, _GET_CHAIN, _REQUEST, family, _attribute(_CHAIN_TABLE, table) + _attribute(_CHAIN_NAME, chain))
    data = netlink.recv(1 << 16)
    if _kind(data) != _ERROR:
        return True
    error = -struct.unpack_from("=i", data, 16)[0]
    if error != errno.ENOENT:
        raise OSError(error, os.strerror(error))
    return False


def generation() -> Optional[int]:
    """How many times this network namespace's nft ruleset was changed; None where the kernel has no nft."""
    try:
        with _open() as netlink:
            _ask(netlink, _GET_GENERATION, _REQUEST, 0, b"")
            answer = netlink.recv(4096)
    except OSError:
        return None
    found = attributes(answer[20:]) if _kind(answer) != _ERROR else {}
    return _number(found[_GENERATION_ID]) if _GENERATION_ID in found else None


def tables() -> List[Tuple[int, str]]:
    """The family and the name of each."""
    return [(family, _text(attributes(data)[_TABLE_NAME])) for family, data in _dump(_GET_TABLE, 0, b"")]


def expressions(family: int, table: str, chain: str) -> List[bytes]:
    """The rules of a chain, as the kernel sends them."""
    wanted = _attribute(_RULE_TABLE, table) + _attribute(_RULE_CHAIN, chain)
    return [_first(data, _RULE_EXPRESSIONS) for _, data in _dump(_GET_RULE, family, wanted)]


def rule(data: bytes) -> Rule:
    """The expressions of a rule, with their data."""
    elements = [attributes(element) for _, element in _parts(data)]
    return tuple((_text(element[1]), element.get(2, b"")) for element in elements)


def attributes(data: bytes) -> Dict[int, bytes]:
    return dict(_parts(data))


def _parts(data: bytes) -> Iterator[Tuple[int, bytes]]:
    return ((kind, data[start:end]) for kind, start, end in places(data, 0, len(data)))


def places(data: bytes, at: int, end: int) -> Iterator[Tuple[int, int, int]]:
    """The kind of each attribute, and where its value starts and ends."""
    while at + 4 <= end:
        length, kind = _HEAD.unpack_from(data, at)
        if length < 4:
            raise ValueError(f"no netlink attributes: {data[:64]!r}")
        yield kind & 0x3FFF, at + 4, at + length
        at += (length + 3) & ~3


def _first(data: bytes, wanted: int) -> bytes:
    return next((data[start:end] for kind, start, end in places(data, 0, len(data)) if kind == wanted), b"")


def _attribute(kind: int, text: str) -> bytes:
    value = text.encode("utf-8", "surrogateescape") + b"\0"
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", "surrogateescape")


def _dump(what: int, family: int, wanted: bytes) -> List[Tuple[int, bytes]]:
    """Asked again while the ruleset changes under our eyes."""
    for _ in range(_TRIES):
        try:
            with _open() as netlink:
                _ask(netlink, what, _REQUEST | _DUMP, family, wanted)
                return list(_answers(netlink))
        except InterruptedError:
            continue
        except OSError as err:
            raise NoAnswerError(str(err)) from err
    raise NoAnswerError("other programs keep changing the rules")


def _open() -> socket.socket:
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    netlink.settimeout(_ANSWER_SECONDS)
    return netlink


def _kind(answer: bytes) -> int:
    return struct.unpack_from("=IH", answer)[1]


def _ask(netlink: socket.socket, what: int, flags: int, family: int, wanted: bytes) -> None:
    body = struct.pack("=BBH", family, 0, 0) + wanted
    netlink.send(struct.pack("=IHHII", 16 + len(body), _NFTABLES << 8 | what, flags, 1, 0) + body)


def _answers(netlink: socket.socket) -> Iterator[Tuple[int, bytes]]:
    while True:
        data = netlink.recv(1 << 20)
        at = 0
        while at < len(data):
            length, kind, flags = struct.unpack_from("=IHH", data, at)
            if flags & _INTERRUPTED:
                raise InterruptedError
            if kind == _DONE:
                return
            if kind == _ERROR:
                error = -struct.unpack_from("=i", data, at + 16)[0]
                raise OSError(error, os.strerror(error))
            yield data[at + 16], data[at + 20 : at + length]
            at += (length + 3) & ~3


def from_json(text: str) -> List[bytes]:
    """What this file prints when it is run as a program."""
    return [bytes.fromhex(data) for data in json.loads(text)]


if __name__ == "__main__":
    print(json.dumps([data.hex() for data in expressions(int(sys.argv[1]), sys.argv[2], sys.argv[3])]))
