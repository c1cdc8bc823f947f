"""The space of packets, cut where rules, routes and sets cut it: each cell has one verdict, so one packet tries it."""

import itertools
from bisect import bisect_left, bisect_right
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import _iptlive_spans as spans
from _iptlive_shapes import Met, Ruleset, Shape
from _iptlive_spans import PORTS, Span

MOST_ADDRESSES = 16  # of one interface that are each tried; of more only those that rules tell apart
EPHEMERAL: Span = (32768, 60999)  # the ports that clients are given
# What no packet from elsewhere comes from, and none is routed to.
_SPECIAL = {
    "ipv4": tuple(map(spans.span, ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3"))),
    "ipv6": tuple(map(spans.span, ("::/8", "fe80::/10", "ff00::/8"))),
}


class Hop(NamedTuple):
    """The kernel's way to an address: the interface, the address it would send from, the type of the route."""

    interface: Optional[str]
    source: Optional[str]
    kind: str = "unicast"


class Point(NamedTuple):
    """An address that is tried for all of its span, and the interface it is behind (None: any)."""

    value: int
    span: Span
    interface: Optional[str] = None


class Cell(NamedTuple):
    """Packets that no rule tells apart. ``way``: ``in``, ``forward``, or ``out`` for those of this host's own."""

    family: str
    way: str
    protocol: str
    source: Optional[Point]
    destination: Point
    port: Optional[Span] = None
    sport: Optional[Span] = None
    icmp: Optional[int] = None
    state: str = "new"

    def interface(self) -> Optional[str]:
        return None if self.source is None else self.source.interface

    def is_usual(self) -> bool:
        """Whether any port that a client is given stands for all its source ports."""
        return self.sport is None or (self.sport[0] <= EPHEMERAL[0] and EPHEMERAL[1] <= self.sport[1])

    def witness(self) -> str:
        """The packet as messages show it."""
        port = "" if self.port is None else f":{self.port[0]}"
        end = _bracketed(self.family, self.destination.value, bool(port)) + port
        if self.source is None:
            return f"this host > {end} {self.protocol}"
        sport = "" if self.is_usual() else f":{_tried(self.sport)}"
        start = _bracketed(self.family, self.source.value, bool(sport)) + sport
        return f"{start} > {end} {self.protocol} in {self.source.interface}"

    def packet(self, whole: bool) -> Dict[str, Any]:
        """What the prover is to send: the first packet, or a whole conversation."""
        return {
            "family": self.family,
            "source": None if self.source is None else spans.show(self.family, self.source.value),
            "destination": spans.show(self.family, self.destination.value),
            "protocol": self.protocol,
            "port": 0 if self.port is None else max(1, self.port[0]),
            "source_port": 0 if self.is_usual() else _tried(self.sport),
            "icmp": None if self.icmp is None else (self.icmp, 0),
            "interface": self.interface(),
            "state": self.state,
            "whole": whole and self.icmp is None,
        }


def _tried(sport: Span) -> int:
    """A source port of the span; one that clients are given, if there is one."""
    return max(sport[0], min(EPHEMERAL[0], sport[1]), 1)


def _bracketed(family: str, value: int, port: bool) -> str:
    text = spans.show(family, value)
    return f"[{text}]" if port and family == "ipv6" else text


# (family, address, from, in) each; interface, preferred source and type of the route to it.
Routes = Callable[[List[Tuple[str, str, Optional[str], Optional[str]]]], Sequence[Sequence[Any]]]


class Ground:
    """What a family's packets find on the host: addresses, and the way to others as the kernel knows it."""

    def __init__(self, family: str, facts: Mapping[str, Any], routes: Routes):
        self.family = family
        self._ask = routes
        self._hops: Dict[int, Hop] = {}
        self.addresses: Dict[str, List[int]] = {}
        self.own = set()
        for link in facts["links"]:
            self._add(link)
        nets = [spans.span(route[1]) for route in facts["routes"] if route[0] == family]
        self._edges = spans.edges(nets + list(_SPECIAL[family]))

    def _add(self, link: Mapping[str, Any]) -> None:
        found = [spans.number(address) for family, address, _ in link["addresses"] if family == self.family]
        self.own.update(found)
        usual = [value for value in found if not spans.holds(_SPECIAL[self.family], value)]
        if usual and not link["loopback"]:
            self.addresses[link["name"]] = usual

    def hops(self, values: Iterable[int]) -> List[Hop]:
        values = list(values)
        unknown = list(dict.fromkeys(value for value in values if value not in self._hops))
        if unknown:
            questions = [(self.family, spans.show(self.family, value), None, None) for value in unknown]
            for value, found in zip(unknown, self._ask(questions)):
                self._hops[value] = Hop(*found)
        return [self._hops[value] for value in values]

    def peers(self, wanted: Sequence[Span], cuts: Iterable[Span]) -> List[Point]:
        """Addresses elsewhere, one for each piece that the cuts and the routes make of the wanted ones.

        Each is behind the interface that the host sends to it by; None where there is no way to it.
        """
        edges = sorted(set(self._edges).union(spans.edges(cuts)))
        pieces = spans.cut(spans.without(wanted, _SPECIAL[self.family]), edges)
        chosen = [(value, piece) for piece in pieces for value in [self._typical(piece)] if value is not None]
        hops = self.hops(value for value, _ in chosen)
        return [
            Point(value, piece, hop.interface if hop.kind == "unicast" else None)
            for (value, piece), hop in zip(chosen, hops)
            if hop.kind != "local"
        ]

    def _typical(self, piece: Span) -> Optional[int]:
        """Not the network's own address, nor a router's usual one, where there is another."""
        low, high = piece
        return next((value for value in (low + 9, low + 1, low) if value <= high and value not in self.own), None)

    def ends(self, cuts: Iterable[Span]) -> List[Point]:
        """This host's addresses, each at its interface; of many only those that the cuts tell apart."""
        edges = spans.edges(cuts)
        found = []
        for interface, values in self.addresses.items():
            pieces = values if len(values) <= MOST_ADDRESSES else _told_apart(values, edges)
            found += [Point(value, (value, value), interface) for value in pieces]
        return found


def _told_apart(values: Iterable[int], edges: Sequence[int]) -> List[int]:
    return list({bisect_right(edges, value): value for value in values}.values())


class Cuts(NamedTuple):
    """Where the rules that a box's packets may meet cut the space."""

    sources: Tuple[Span, ...]
    destinations: Tuple[Span, ...]
    ports: Tuple[Span, ...]
    sports: Tuple[Span, ...]


def cuts(ruleset: Ruleset, met: Met) -> Cuts:
    """What the way back names is turned round: an answer's destination is the source of the request."""
    forth, back = _named(ruleset, met.forth), _named(ruleset, met.back)
    return Cuts(
        tuple(forth.sources + back.destinations),
        tuple(forth.destinations + back.sources),
        tuple(forth.ports + back.sports),
        tuple(forth.sports + back.ports),
    )


def _named(ruleset: Ruleset, shapes: Iterable[Shape]) -> Cuts:
    different = set(shapes)
    members = [
        part for one in different for name, _ in one.sets for member in ruleset.members.get(name, ()) for part in member
    ]
    addresses = tuple({part for part in members if part and part[1] > PORTS[1]})
    ports = tuple({part for part in members if part and part[1] <= PORTS[1]})
    return Cuts(
        tuple({part for one in different for part in one.sources}) + addresses,
        tuple({part for one in different for part in one.destinations}) + addresses,
        tuple({part for one in different for part in one.ports + one.either_ports}) + ports,
        tuple({part for one in different for part in one.sports + one.either_ports}) + ports,
    )


class Axes(NamedTuple):
    """What a box is tried with in each direction of the space."""

    family: str
    way: str
    protocol: str
    sources: Sequence[Optional[Point]]
    destinations: Sequence[Point]
    ports: Sequence[Optional[Span]] = (None,)
    sports: Sequence[Optional[Span]] = (None,)
    icmp: Optional[int] = None
    states: Sequence[str] = ("new",)

    def pairs(self) -> Iterator[Tuple[Optional[Point], Point]]:
        for source, destination in itertools.product(self.sources, self.destinations):
            if fit(self.way, source, destination):
                yield source, destination

    def count(self) -> int:
        """At most so many cells."""
        behind: Dict[Optional[str], int] = {}
        for point in self.destinations:
            behind[point.interface] = behind.get(point.interface, 0) + 1
        total = 0
        for source in self.sources:
            if source is None or self.way == "forward":
                total += len(self.destinations)
            else:
                total += behind.get(source.interface, 0) + behind.get(None, 0)
        return total * len(self.ports) * len(self.sports) * len(self.states)

    def cells(self) -> Iterator[Cell]:
        for (source, destination), port, sport, state in itertools.product(
            self.pairs(), self.ports, self.sports, self.states
        ):
            yield self.cell(source, destination, port, sport, state)

    def cell(self, source, destination, port, sport, state) -> Cell:
        return Cell(self.family, self.way, self.protocol, source, destination, port, sport, self.icmp, state)

    def witnesses(self, shapes: Iterable[Shape], each: int) -> Iterator[Cell]:
        """Some cells for each rule, in which it may decide; and some in which no rule with an address does."""
        sources, destinations = _Line(self.sources), _Line(self.destinations)
        for one in itertools.chain([Shape()], dict.fromkeys(shapes)):
            yield from itertools.islice(self._within(one, sources, destinations, each), each)

    def _within(self, one: Shape, sources: "_Line", destinations: "_Line", each: int) -> Iterator[Cell]:
        ports = _some(self.ports, one.ports, each)
        sports = _some(self.sports, one.sports, each)
        starts = sources.some(() if "sources" in one.inverted else one.sources, each)
        ends = destinations.some(() if "destinations" in one.inverted else one.destinations, each)
        for (source, destination), port, sport, state in itertools.product(
            itertools.product(starts, ends), ports, sports, self.states
        ):
            if fit(self.way, source, destination):
                yield self.cell(source, destination, port, sport, state)


def fit(way: str, source: Optional[Point], destination: Point) -> bool:
    """Whether a packet may go from the one to the other that way: nothing is forwarded to where it came from."""
    if source is None or destination.interface is None:
        return True
    return (source.interface == destination.interface) == (way == "in")


class _Line:
    """Points in order, to find those within a span."""

    def __init__(self, points: Sequence[Optional[Point]]):
        self._points = sorted(points, key=lambda point: (-1,) if point is None else (point.value,))
        self._values = [-1 if point is None else point.value for point in self._points]
        self._widest = sorted(self._points, key=lambda point: 0 if point is None else point.span[0] - point.span[1])

    def some(self, wanted: Sequence[Span], each: int) -> List[Optional[Point]]:
        """Of those in the spans, the first ones of each interface; the widest where nothing is named or met."""
        found: List[Optional[Point]] = []
        for low, high in wanted:
            found += self._points[bisect_left(self._values, low) : bisect_right(self._values, high)][:each]
        if found:
            return found
        kept: Dict[Optional[str], List[Optional[Point]]] = {}
        for point in self._widest:
            near = kept.setdefault(point and point.interface, [])
            if len(near) < max(1, each // 2):
                near.append(point)
        return [point for near in kept.values() for point in near]


def _some(pieces: Sequence[Optional[Span]], wanted: Sequence[Span], each: int) -> List[Optional[Span]]:
    inside = [piece for piece in pieces if piece is None or not wanted or spans.meet([piece], wanted)]
    return (inside or list(pieces))[:each]
