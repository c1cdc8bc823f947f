"""What nf_tables holds, asked of the kernel itself: tables, the hooks of their chains, and rules as their expressions.

iptables-nft shows only what it knows how to print, and the program ``nft`` need not be installed. Run as a program,
this file prints the rules of a chain as JSON: that is how a throw-away namespace is asked.
"""

import contextlib
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
_KIND = 0x3FFF  # without the flags of an attribute's kind
_HANDLE = 12  # the length of an attribute that holds one
_QUESTIONS = 32  # at a time: their answers must find room in the socket
_BUFFER = 1 << 16  # the kernel sends no more at once
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


def all_chains(family: int, table: str) -> List[str]:
    """The names of all chains of a table."""
    found = [(kind, attributes(data)) for kind, data in _dump(_GET_CHAIN, family, _attribute(_CHAIN_TABLE, table))]
    return [
        _text(chain[_CHAIN_NAME]) for kind, chain in found if kind == family and _text(chain[_CHAIN_TABLE]) == table
    ]


def existing_chains(family: int, wanted: Mapping[str, Sequence[str]]) -> Dict[str, List[str]]:
    """Of the wanted chains of each table those that exist: one question per chain, many of them at a time.

    The iptables programs can only list chains, with all of their rules, or fail at the first one that is missing.
    """
    with _asking() as netlink:
        return {table: list(_existing(netlink, family, table, chains)) for table, chains in wanted.items()}


def _existing(netlink: socket.socket, family: int, table: str, chains: Sequence[str]) -> Iterator[str]:
    inside = _attribute(_CHAIN_TABLE, table)
    for start in range(0, len(chains), _QUESTIONS):
        asked = chains[start : start + _QUESTIONS]
        questions = [_message(_GET_CHAIN, _REQUEST, family, inside + _attribute(_CHAIN_NAME, name)) for name in asked]
        netlink.send(b"".join(questions))
        yield from (name for name, exists in [(name, _is_there(netlink.recv(_BUFFER))) for name in asked] if exists)


def without_hook(family: int, wanted: Mapping[str, Sequence[str]]) -> List[Tuple[str, str]]:
    """Of the wanted chains those that are there and that no packet reaches by itself: table and name."""
    found = []
    with _asking() as netlink:
        for table, chains in wanted.items():
            for chain in chains:
                asked = _attribute(_CHAIN_TABLE, table) + _attribute(_CHAIN_NAME, chain)
                netlink.send(_message(_GET_CHAIN, _REQUEST, family, asked))
                answer = netlink.recv(_BUFFER)
                if _is_there(answer) and _CHAIN_HOOK not in attributes(answer[20:]):
                    found.append((table, chain))
    return found


def _is_there(answer: bytes) -> bool:
    if _kind(answer) != _ERROR:
        return True
    error = -struct.unpack_from("=i", answer, 16)[0]
    if error != errno.ENOENT:
        raise OSError(error, os.strerror(error))
    return False


def generation() -> Optional[int]:
    """How many times this network namespace's nft ruleset was changed; None where the kernel has no nft."""
    try:
        with _open() as netlink:
            netlink.send(_message(_GET_GENERATION, _REQUEST, 0, b""))
            answer = netlink.recv(4096)
    except OSError:
        return None
    found = attributes(answer[20:]) if _kind(answer) != _ERROR else {}
    return _number(found[_GENERATION_ID]) if _GENERATION_ID in found else None


def tables() -> List[Tuple[int, str]]:
    """The family and the name of each."""
    return [(family, _text(attributes(data)[_TABLE_NAME])) for family, data in _dump(_GET_TABLE, 0, b"")]


def expressions(family: int, wanted: Mapping[str, Sequence[str]]) -> Iterator[Tuple[str, str, List[bytes]]]:
    """The rules of the wanted chains of each table, as the kernel sends them: each table and chain with its own."""
    with _asking() as netlink:
        for table, chains in wanted.items():
            for chain in chains:
                asked = _attribute(_RULE_TABLE, table) + _attribute(_RULE_CHAIN, chain)
                answers = _until_quiet(netlink, _GET_RULE, family, asked)
                yield table, chain, [_expressions(data, asked) for _, data in answers]


def _expressions(data: bytes, asked: bytes) -> bytes:
    """A rule's attributes begin with those that were asked for, its handle, and mostly that of the one before."""
    at = len(asked)
    if data.startswith(asked):
        length, kind = _HEAD.unpack_from(data, at + _HANDLE)
        if kind & _KIND != _RULE_EXPRESSIONS:
            at += _HANDLE
            length, kind = _HEAD.unpack_from(data, at + _HANDLE)
        if kind & _KIND == _RULE_EXPRESSIONS:
            return data[at + _HANDLE + 4 : at + _HANDLE + length]
    return _first(data, _RULE_EXPRESSIONS)


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
        yield kind & _KIND, at + 4, at + length
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
    with _asking() as netlink:
        return _until_quiet(netlink, what, family, wanted)


def _until_quiet(netlink: socket.socket, what: int, family: int, wanted: bytes) -> List[Tuple[int, bytes]]:
    """Asked again while the ruleset changes under our eyes."""
    for _ in range(_TRIES):
        netlink.send(_message(what, _REQUEST | _DUMP, family, wanted))
        answers, interrupted = _answers(netlink)
        if not interrupted:
            return answers
    raise NoAnswerError("other programs keep changing the rules")


@contextlib.contextmanager
def _asking() -> Iterator[socket.socket]:
    try:
        with _open() as netlink:
            yield netlink
    except OSError as err:
        raise NoAnswerError(str(err)) from err


def _open() -> socket.socket:
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    netlink.settimeout(_ANSWER_SECONDS)
    return netlink


def _kind(answer: bytes) -> int:
    return struct.unpack_from("=IH", answer)[1]


def _message(what: int, flags: int, family: int, wanted: bytes) -> bytes:
    length = 20 + len(wanted)
    return struct.pack("=IHHIIBBH", length, _NFTABLES << 8 | what, flags, 1, 0, family, 0, 0) + wanted


def _answers(netlink: socket.socket) -> Tuple[List[Tuple[int, bytes]], bool]:
    """All of one dump, and whether the ruleset changed meanwhile."""
    found, interrupted = [], False
    unpack = struct.Struct("=IHH").unpack_from
    while True:
        data = netlink.recv(_BUFFER)
        at, end = 0, len(data)
        while at < end:
            length, kind, flags = unpack(data, at)
            interrupted = interrupted or bool(flags & _INTERRUPTED)
            if kind == _DONE:
                return found, interrupted
            if kind == _ERROR:
                error = -struct.unpack_from("=i", data, at + 16)[0]
                raise OSError(error, os.strerror(error))
            found.append((data[at + 16], data[at + 20 : at + length]))
            at += (length + 3) & ~3


def from_json(text: str) -> List[bytes]:
    """What this file prints when it is run as a program."""
    return [bytes.fromhex(data) for data in json.loads(text)]


if __name__ == "__main__":
    for _, _, found in expressions(int(sys.argv[1]), {sys.argv[2]: [sys.argv[3]]}):
        print(json.dumps([data.hex() for data in found]))
