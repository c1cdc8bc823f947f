"""From an expectation to the packets that try it: every cell that it covers, or one for each rule that meets it."""

import itertools
from typing import Iterable, List, NamedTuple, Optional, Sequence, Tuple

import _iptlive_spans as spans
from _iptlive_cells import EPHEMERAL, Axes, Cell, Cuts, Ground, Point, cuts
from _iptlive_expect import Expectation, Place, Service
from _iptlive_family import FAMILIES
from _iptlive_shapes import Box, Met, Ruleset
from _iptlive_spans import Span

MOST_CELLS = 2000  # of one expectation; where there are more each rule that meets it has a witness
MORE_WITNESSES = 5  # times as many witnesses as cells, since each rule is to have one
MOST_IN_ALL = 100_000
LEAST_CELLS = 50


class Trial(NamedTuple):
    """One expectation in one family; without a cell ``missing`` says why."""

    expectation: Expectation
    family: str
    cells: Tuple[Cell, ...] = ()
    note: str = ""
    missing: str = ""


def trials(expectation: Expectation, family: str, ruleset: Ruleset, ground: Ground, most: int = MOST_CELLS) -> Trial:
    """The packets that try the expectation in one family."""
    cells: List[Cell] = []
    note = missing = ""
    for service in expectation.services:
        if family not in service.families:
            continue
        maker = _Maker(expectation, service, ruleset, ground)
        found, met = maker.axes()
        missing = missing or maker.missing
        total = sum(axes.count() for axes in found)
        if total <= most:
            cells += [cell for axes in found for cell in axes.cells()]
        else:
            chosen = itertools.chain.from_iterable(axes.witnesses(met.forth + met.back, 1) for axes in found)
            some = list(dict.fromkeys(itertools.islice(chosen, MORE_WITNESSES * most)))
            cells += some
            note = f"tried with {len(some)} packets, for the rules cut it into {total} cells"
    return Trial(
        expectation, family, tuple(cells), note, "" if cells else missing or "no packet of it can be made here"
    )


def covers(one: Expectation, cell: Cell) -> bool:
    """Whether the expectation is about all packets of a cell, which somebody else sends."""
    if one.is_outgoing() or one.state != cell.state or not any(_covers(service, cell) for service in one.services):
        return False
    if one.inside not in (None, cell.interface()) or not _is_place(one, cell):
        return False
    if one.sources is not None and spans.without([cell.source.span], _spans(one.sources, cell)):
        return False
    return not spans.meet([cell.source.span], _spans(one.excepted, cell))


def _covers(service: Service, cell: Cell) -> bool:
    if service.protocol != cell.protocol or cell.family not in service.families or service.icmp != cell.icmp:
        return False
    return cell.port is None or (service.ports[0] <= cell.port[0] and cell.port[1] <= service.ports[1])


def _is_place(one: Expectation, cell: Cell) -> bool:
    if one.to is not None:
        return one.to.family == cell.family and not spans.without([cell.destination.span], [one.to.span])
    return cell.way == ("forward" if one.anywhere else "in")


def _spans(places: Iterable[Place], cell: Cell) -> List[Span]:
    return [place.span for place in places if place.family == cell.family]


def budget(number: int) -> int:
    """How many cells each of so many expectations may have."""
    return max(LEAST_CELLS, min(MOST_CELLS, MOST_IN_ALL // max(1, number)))


def families(expectation: Expectation, managed: Iterable[str], grounds) -> Tuple[str, ...]:
    """Those in which it is tried. One that the host has no address of is left out, where it is not the only one."""
    meant = [family for family in FAMILIES if family in managed and family in expectation.families()]
    return tuple(family for family in meant if grounds[family].addresses) or tuple(meant)


class _Maker:
    """The axes of one service of an expectation."""

    def __init__(self, expectation: Expectation, service: Service, ruleset: Ruleset, ground: Ground):
        self._one = expectation
        self._service = service
        self._ruleset = ruleset
        self._ground = ground
        self.missing = ""

    def axes(self) -> Tuple[List[Axes], Met]:
        family, to = self._ground.family, self._one.to
        local = to is not None and to.span[0] == to.span[1] and to.span[0] in self._ground.own
        if self._one.is_outgoing() and not local:
            return self._outgoing()
        sources = self._sources()
        if local:
            return self._inbound(sources, [Point(to.span[0], to.span)])
        if to is None and not self._one.anywhere:
            return self._inbound(sources, None)
        wanted = [to.span] if to else [spans.everything(family)]
        met, cut = self._met(sources, wanted)
        starts = self._starts(sources, cut.sources)
        ends = self._reachable(self._ground.peers(wanted, cut.destinations))
        return [self._axes("forward", starts, ends, cut)], met

    def _met(self, sources: Sequence[Span], destinations: Sequence[Span]) -> Tuple[Met, Cuts]:
        one, service = self._one, self._service
        accept = one.verb == "accept"
        box = Box(
            self._ground.family,
            service.protocol,
            tuple(sources),
            tuple(destinations),
            (service.ports,),
            (EPHEMERAL if accept else spans.PORTS,),
            one.inside or "",
        )
        met = self._ruleset.meeting(box, answers=accept)
        return met, cuts(self._ruleset, met)

    def _sources(self) -> List[Span]:
        family = self._ground.family
        if self._one.sources is None:
            named = [spans.everything(family)]
        else:
            named = [place.span for place in self._one.sources if place.family == family]
        return spans.without(named, [place.span for place in self._one.excepted if place.family == family])

    def _outgoing(self) -> Tuple[List[Axes], Met]:
        family, to = self._ground.family, self._one.to
        wanted = [to.span] if to else [spans.everything(family)]
        met, cut = self._met([(value, value) for value in sorted(self._ground.own)], wanted)
        ends = self._reachable(self._ground.peers(wanted, cut.destinations))
        return [self._axes("out", [None], ends, cut)], met

    def _inbound(self, sources: List[Span], ends: Optional[List[Point]]) -> Tuple[List[Axes], Met]:
        own = [(value, value) for value in sorted(self._ground.own)]
        met, cut = self._met(sources, own if ends is None else [end.span for end in ends])
        starts = self._starts(sources, cut.sources)
        if ends is None:
            ends = self._own_ends(cut)
        return [self._axes("in", starts, ends, cut)], met

    def _own_ends(self, cut: Cuts) -> List[Point]:
        """The address of the interface that it comes in by; of any, where that one has none."""
        ends = self._ground.ends(cut.destinations)
        inside = self._one.inside
        if inside is None or any(end.interface == inside for end in ends):
            return ends
        return [end._replace(interface=None) for end in ends]

    def _starts(self, sources: List[Span], named: Iterable[Span]) -> List[Point]:
        """Where it comes from; with ``in`` but no ``from`` what the host has behind that interface, if it has."""
        points = self._ground.peers(sources, named)
        inside = self._one.inside
        if inside is None:
            return self._reachable(self._elsewhere(points))
        behind = [point for point in points if point.interface == inside]
        return (behind if self._one.sources is None else []) or [point._replace(interface=inside) for point in points]

    def _elsewhere(self, points: List[Point]) -> List[Point]:
        """Anywhere is not where it arrives: what a port is published for has no need of it."""
        arrives = self._one.arrives
        if arrives is None or self._one.sources is not None:
            return points
        ((target, *_),) = self._ground.hops([spans.number(arrives.address)])
        return [point for point in points if point.interface != target]

    def _reachable(self, points: Iterable[Point]) -> List[Point]:
        found, lost = [], []
        for point in points:
            (lost if point.interface is None else found).append(point)
        if lost and not found:
            self.missing = f"this host has no route to {spans.named(self._ground.family, lost[0].span)}"
        return found

    def _axes(self, way: str, sources, destinations, cut: Cuts) -> Axes:
        one, service = self._one, self._service
        ports: Sequence[Optional[Span]] = (None,)
        sports: Sequence[Optional[Span]] = (None,)
        if service.protocol in ("tcp", "udp"):
            ports = spans.cut([service.ports], spans.edges(cut.ports))
            sports = spans.cut([EPHEMERAL if one.verb == "accept" else (1, spans.PORTS[1])], spans.edges(cut.sports))
        family = self._ground.family
        return Axes(
            family, way, service.protocol, sources, destinations, ports, sports, service.icmp, (self._one.state,)
        )
