"""What rules name: the addresses, ports, interfaces and states by which they cut the space of packets.

This is no model of verdicts, the kernel alone gives those. A shape is as wide as its rule or wider: it tells where two
packets may begin to be treated differently, so that one packet can be tried for all that no rule tells apart.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from typing import Any, Dict, FrozenSet, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

import _iptlive_spans as spans
from _iptlive_model import BUILTIN, Table
from _iptlive_rules import words
from _iptlive_spans import PORTS, Span

_NUMBERS = {"1": "icmp", "2": "igmp", "6": "tcp", "17": "udp", "47": "gre", "50": "esp", "51": "ah", "58": "icmp",
            "89": "ospf", "112": "vrrp", "ipv6-icmp": "icmp", "icmpv6": "icmp", "all": ""}  # fmt: skip
MOST_MEMBERS = 5000  # of a set that cut the space: beyond it they are only tried as in and out


class Shape(NamedTuple):
    """What one rule names; an empty field is anything. ``inverted`` holds the fields that say what it is not."""

    sources: Tuple[Span, ...] = ()
    destinations: Tuple[Span, ...] = ()
    inside: str = ""
    outside: str = ""
    protocol: str = ""
    ports: Tuple[Span, ...] = ()
    sports: Tuple[Span, ...] = ()
    either_ports: Tuple[Span, ...] = ()  # of the source or of the destination
    states: FrozenSet[str] = frozenset()
    sets: Tuple[Tuple[str, Tuple[str, ...]], ...] = ()  # names, and which part of a packet is looked up
    inverted: FrozenSet[str] = frozenset()
    to_addresses: Tuple[Span, ...] = ()  # what it may translate destinations to
    to_ports: Tuple[Span, ...] = ()
    target: str = ""

    def names_sources(self) -> bool:
        """Whether the rule is about some peers only."""
        return bool(self.sources) or any("src" in sides for _, sides in self.sets)


class Box(NamedTuple):
    """A set of packets, by their headers as they come in."""

    family: str
    protocol: str
    sources: Tuple[Span, ...]
    destinations: Tuple[Span, ...]
    ports: Tuple[Span, ...] = (PORTS,)
    sports: Tuple[Span, ...] = (PORTS,)
    inside: str = ""

    def reversed(self) -> "Box":
        """The answers."""
        return Box(self.family, self.protocol, self.destinations, self.sources, self.sports, self.ports)


# --- one rule ---


def shape(text: str) -> Shape:
    """The shape of a rule in the kernel's spelling, without its chain."""
    given = [word.value for word in words(text)] if '"' in text else text.split(" ")
    found: Dict[str, object] = {}
    inverted: Set[str] = set()
    negated = False
    for at, word in enumerate(given):
        if word in _READERS:
            field, value = _read(word, given[at + 1 : at + 3])
            if field:
                found[field] = value if field not in _SEVERAL else found.get(field, ()) + value
                inverted.update([field] if negated else [])
        negated = word == "!"
    return Shape(inverted=frozenset(inverted), **found)


def _read(word: str, values: Sequence[str]):
    try:
        return _READERS[word](values)
    except (ValueError, IndexError):
        return "", ()  # not what the kernel writes there: a comment that looks like an option, for one


_SEVERAL = ("sources", "destinations", "ports", "sports", "either_ports", "sets", "to_addresses", "to_ports")


def _addresses(field: str):
    def read(values: Sequence[str]) -> Tuple[str, Tuple[Span, ...]]:
        return field, tuple(spans.span(value) for value in values[0].split(","))

    return read


def _address_range(field: str):
    def read(values: Sequence[str]) -> Tuple[str, Tuple[Span, ...]]:
        return field, (_range(values[0]),)

    return read


def _range(text: str) -> Span:
    first, _, last = text.partition("-")
    return spans.number(first), spans.number(last or first)


def _ports(field: str):
    def read(values: Sequence[str]) -> Tuple[str, Tuple[Span, ...]]:
        return field, tuple(port_span(value) for value in values[0].split(","))

    return read


def port_span(text: str) -> Span:
    """``80``, ``6000:6100``, ``6000-``: names of services are not the kernel's spelling."""
    low, separator, high = text.replace("-", ":").partition(":")
    return int(low or 0), int(high or PORTS[1]) if separator else int(low or 0)


def _protocol(values: Sequence[str]) -> Tuple[str, str]:
    return "protocol", _NUMBERS.get(values[0], values[0])


def _states(values: Sequence[str]) -> Tuple[str, FrozenSet[str]]:
    return "states", frozenset(values[0].split(","))


def _set(values: Sequence[str]) -> Tuple[str, Tuple]:
    return "sets", ((values[0], tuple(values[1].split(",")) if len(values) > 1 else ()),)


def _text(field: str):
    return lambda values: (field, values[0] if values else "")


def _destination(values: Sequence[str]) -> Tuple[str, Tuple[Span, ...]]:
    """``172.17.0.2:80``, ``[2001:db8::1]:80``, ``10.0.0.1-10.0.0.9``; the port is read by ``translated_ports``."""
    address = _without_port(values[0])
    return ("to_addresses", (_range(address),)) if address else ("", ())


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text if text.count(":") > 1 else text.partition(":")[0]


def _network(values: Sequence[str]) -> Tuple[str, Tuple[Span, ...]]:
    """NETMAP's ``--to``."""
    try:
        return "to_addresses", (spans.span(values[0]),)
    except ValueError:
        return "", ()


_READERS = {
    "-s": _addresses("sources"),
    "-d": _addresses("destinations"),
    "--src-range": _address_range("sources"),
    "--dst-range": _address_range("destinations"),
    "-i": _text("inside"),
    "-o": _text("outside"),
    "-p": _protocol,
    "--dport": _ports("ports"),
    "--dports": _ports("ports"),
    "--sport": _ports("sports"),
    "--sports": _ports("sports"),
    "--ports": _ports("either_ports"),
    "--ctstate": _states,
    "--state": _states,
    "--match-set": _set,
    "--to-destination": _destination,
    "--to-ports": _ports("to_ports"),
    "--to": _network,
    "-j": _text("target"),
    "-g": _text("target"),
}


def _translated_port(text: str) -> Tuple[Span, ...]:
    """The port of ``--to-destination``."""
    at = text.find(" --to-destination ")
    if at < 0:
        return ()
    value = text[at + len(" --to-destination ") :].split(" ")[0]
    port = value.partition("]:" if value.startswith("[") else ":")[2] if _without_port(value) != value else ""
    return (port_span(port.partition("/")[0]),) if port else ()


def meets(one: Shape, box: Box) -> bool:
    """Whether the rule may match a packet of the box; true where that is not known."""
    return (
        _protocol_meets(one, box)
        and _meets(one, "sources", one.sources, box.sources)
        and _meets(one, "destinations", one.destinations, box.destinations)
        and _meets(one, "ports", one.ports, box.ports)
        and _meets(one, "sports", one.sports, box.sports)
        and (not one.inside or not box.inside or "inside" in one.inverted or fits(one.inside, box.inside))
    )


def _protocol_meets(one: Shape, box: Box) -> bool:
    if not one.protocol or not box.protocol:
        return True
    return (one.protocol == box.protocol) != ("protocol" in one.inverted)


def _meets(one: Shape, field: str, named: Tuple[Span, ...], wanted: Sequence[Span]) -> bool:
    return not named or field in one.inverted or spans.meet(named, wanted)


def fits(pattern: str, interface: str) -> bool:
    """``eth+`` is any interface whose name begins so."""
    return interface.startswith(pattern[:-1]) if pattern.endswith("+") else interface == pattern


# --- sets ---


def set_members(sets: Mapping[str, Mapping[str, Any]]) -> Dict[str, List[Tuple[Optional[Span], ...]]]:
    """Per set its members, each as the spans of its parts (None: a part that is neither address nor port)."""
    kinds = {name: tuple(content["type"].partition(":")[2].split(",")) for name, content in sets.items()}
    found = {
        name: [tuple(map(_part, kinds[name], member.split(","))) for member in content["members"][:MOST_MEMBERS]]
        for name, content in sets.items()
        if kinds[name] != ("set",)
    }
    for name in set(sets).difference(found):
        others = [member.split(" ")[0] for member in sets[name]["members"]]
        found[name] = [member for other in others for member in found.get(other, ())][:MOST_MEMBERS]
    return found


def _part(kind: str, member: str) -> Optional[Span]:
    text = member.split(" ")[0]  # without its timeout, counters and comment
    try:
        if kind in ("ip", "net"):
            return _range(text) if "-" in text else spans.span(text)
        if kind == "port":
            return port_span(text.rpartition(":")[2])
    except ValueError:
        pass
    return None


# --- many rules ---


class _Index:
    """The rules of one chain, by the port, source or destination that they name."""

    def __init__(self, shapes: Iterable[Shape]):
        self._by_port: Dict[int, List[Shape]] = defaultdict(list)
        self._by_source, self._by_destination = _Overlaps(), _Overlaps()
        self._others: List[Shape] = []
        for one in shapes:
            self._sort_in(one)
        self._ports = sorted(self._by_port)

    def _sort_in(self, one: Shape) -> None:
        if one.ports and "ports" not in one.inverted and all(low == high for low, high in one.ports):
            for low, _ in one.ports:
                self._by_port[low].append(one)
        elif len(one.sources) == 1 and "sources" not in one.inverted:
            self._by_source.add(one.sources[0], one)
        elif len(one.destinations) == 1 and "destinations" not in one.inverted:
            self._by_destination.add(one.destinations[0], one)
        else:
            self._others.append(one)

    def meeting(self, box: Box) -> List[Shape]:
        near = list(self._others)
        for low, high in box.ports:
            for port in self._ports[bisect_left(self._ports, low) : bisect_right(self._ports, high)]:
                near += self._by_port[port]
        near += self._by_source.overlapping(box.sources)
        near += self._by_destination.overlapping(box.destinations)
        return [one for one in near if meets(one, box)]


class _Overlaps:
    """Spans of a few sizes (networks): which of them meet another."""

    def __init__(self):
        self._by_size: Dict[int, List[Tuple[int, int]]] = defaultdict(list)
        self._shapes: List[Shape] = []
        self._sorted = True

    def add(self, one: Span, what: Shape) -> None:
        self._by_size[one[1] - one[0]].append((one[0], len(self._shapes)))
        self._shapes.append(what)
        self._sorted = False

    def overlapping(self, wanted: Sequence[Span]) -> Iterator[Shape]:
        if not self._sorted:
            for starts in self._by_size.values():
                starts.sort()
            self._sorted = True
        for low, high in wanted:
            for size, starts in self._by_size.items():
                first, last = bisect_left(starts, (low - size, -1)), bisect_right(starts, (high, len(self._shapes)))
                for _, at in starts[first:last]:
                    yield self._shapes[at]


class Met(NamedTuple):
    """The rules that packets of a box may match, and those that the answers to them may."""

    forth: List[Shape]
    back: List[Shape]


class Ruleset:
    """The rules of one family before and after an update together, and the members of the sets that they name."""

    def __init__(
        self, before: Mapping[str, Table], after: Mapping[str, Table], sets: Optional[Mapping[str, Any]] = None
    ):
        self.members = set_members(sets or {})
        self._texts: Dict[str, Shape] = {}
        self.chains: Dict[Tuple[str, str], List[Shape]] = {}
        for tables in (before, after):
            for table, chains in tables.items():
                for chain, state in chains.items():
                    known = self.chains.setdefault((table, chain), [])
                    seen = set(map(id, known))
                    known += [one for one in map(self.shape, state.rules) if id(one) not in seen]
        self._indexes: Dict[Tuple[str, str], _Index] = {}
        self._met: Dict[Tuple[Box, bool], Met] = {}

    def shape(self, text: str) -> Shape:
        """One object for the rules that read alike."""
        found = self._texts.get(text)
        if found is None:
            found = shape(text)
            extra = _translated_port(text)
            found = self._texts[text] = found._replace(to_ports=found.to_ports + extra) if extra else found
        return found

    def meeting(self, box: Box, answers: bool = False) -> Met:
        """The rules that a packet of the box may match on its way; with ``answers`` also those of the way back."""
        if (box, answers) not in self._met:
            wide = self._translated(box)
            back = self._reached(BUILTIN, wide.reversed()) if answers else []
            self._met[box, answers] = Met(self._reached(BUILTIN, wide), back)
        return self._met[box, answers]

    def translations(self, box: Box) -> List[Shape]:
        return [one for one in self._reached(("nat",), box) if one.to_addresses or one.to_ports]

    def _translated(self, box: Box) -> Box:
        """With the destinations that its packets may come to have."""
        found = self.translations(box)
        addresses = tuple(span for one in found for span in one.to_addresses)
        ports = tuple(span for one in found for span in one.to_ports)
        if not addresses and not ports:
            return box
        return box._replace(destinations=box.destinations + addresses, ports=box.ports + ports)

    def _reached(self, tables: Iterable[str], box: Box) -> List[Shape]:
        found: List[Shape] = []
        for table in tables:
            todo = [chain for chain in BUILTIN[table] if (table, chain) in self.chains]
            seen = set(todo)
            while todo:
                met = self._index(table, todo.pop()).meeting(box)
                found += met
                for one in met:
                    if one.target not in seen and (table, one.target) in self.chains:
                        seen.add(one.target)
                        todo.append(one.target)
        return found

    def _index(self, table: str, chain: str) -> _Index:
        if (table, chain) not in self._indexes:
            self._indexes[table, chain] = _Index(self.chains[table, chain])
        return self._indexes[table, chain]
