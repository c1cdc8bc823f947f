"""Which packets a rule can be about: what it names itself, and what the jumps to it let through."""

from collections import defaultdict
from typing import Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import _iptlive_spans as spans
from _iptlive_cells import Axes, Cuts, Ground, Point, cuts
from _iptlive_model import is_builtin
from _iptlive_shapes import Box, Met, Ruleset, Shape, fits
from _iptlive_spans import PORTS, Span

MOST_WAYS = 200  # to one rule
PROTOCOLS = ("tcp", "udp", "icmp")
WITH_PORTS = ("tcp", "udp")

_WAYS = {
    "INPUT": ("in",),
    "FORWARD": ("forward",),
    "OUTPUT": ("out",),
    "PREROUTING": ("in", "forward"),
    "POSTROUTING": ("forward", "out"),
}


class Region(NamedTuple):
    """What a packet must be to come to a rule and match it, as far as shapes tell."""

    sources: Tuple[Span, ...]
    destinations: Tuple[Span, ...]
    ports: Tuple[Span, ...] = (PORTS,)
    sports: Tuple[Span, ...] = (PORTS,)
    protocols: Optional[Tuple[str, ...]] = None  # None: any
    barred: Tuple[str, ...] = ()  # protocols that it is not
    inside: Tuple[Tuple[str, bool], ...] = ()  # patterns, and whether they are inverted
    outside: Tuple[Tuple[str, bool], ...] = ()
    states: Optional[Tuple[str, ...]] = None

    def within(self, one: Shape) -> Optional["Region"]:
        """The part of it that the rule may match; None where there is none."""
        narrow = self._replace(
            sources=_narrowed(self.sources, one, "sources"),
            destinations=_narrowed(self.destinations, one, "destinations"),
            ports=_narrowed(self.ports, one, "ports"),
            sports=_narrowed(self.sports, one, "sports"),
            inside=self.inside + (((one.inside, "inside" in one.inverted),) if one.inside else ()),
            outside=self.outside + (((one.outside, "outside" in one.inverted),) if one.outside else ()),
        )._of_protocol(one)._in_state(one)  # fmt: skip
        empty = not (narrow.sources and narrow.destinations and narrow.ports and narrow.sports)
        return None if empty or narrow.protocols == () or narrow.states == () else narrow

    def _of_protocol(self, one: Shape) -> "Region":
        if not one.protocol:
            return self
        if "protocol" in one.inverted:
            return self._replace(barred=self.barred + (one.protocol,))
        known = self.protocols in (None, (one.protocol,)) and one.protocol not in self.barred
        return self._replace(protocols=(one.protocol,) if known else ())

    def _in_state(self, one: Shape) -> "Region":
        """Untracked and invalid packets are tried as new ones are: what else they are the rules do not tell apart."""
        if not one.states or "states" in one.inverted:
            return self
        kinds = tuple(
            kind
            for kind, names in (("new", {"NEW", "UNTRACKED", "INVALID"}), ("established", {"ESTABLISHED"}))
            if names & one.states and (self.states is None or kind in self.states)
        )
        return self._replace(states=kinds)


def _narrowed(now: Tuple[Span, ...], one: Shape, field: str) -> Tuple[Span, ...]:
    named = getattr(one, field)
    if not named:
        return now
    return tuple(spans.without(now, named) if field in one.inverted else spans.common(now, named))


class Callers:
    """Which rules jump to a chain."""

    def __init__(self, ruleset: Ruleset):
        self._jumps: Dict[Tuple[str, str], List[Tuple[str, Shape]]] = defaultdict(list)
        for (table, chain), shapes in ruleset.chains.items():
            for one in dict.fromkeys(shapes):
                if (table, one.target) in ruleset.chains:
                    self._jumps[table, one.target].append((chain, one))

    def ways(self, family: str, table: str, chain: str, last: Shape) -> Iterator[Tuple[str, Region]]:
        """Each way from a built-in chain to the rule, and what is left of all packets by then."""
        whole = spans.everything(family)
        start = Region((whole,), (whole,)).within(last)
        todo = [(chain, start, (chain,))] if start else []
        found = 0
        while todo and found < MOST_WAYS:
            chain, region, been = todo.pop()
            if is_builtin(table, chain):
                found += 1
                yield chain, region
            for caller, one in self._jumps.get((table, chain), ()):
                narrow = region.within(one) if caller not in been else None
                if narrow:
                    todo.append((caller, narrow, been + (caller,)))


class Surveyor:
    """Turns rules into what they are tried with."""

    def __init__(self, ruleset: Ruleset, ground: Ground):
        self._ruleset = ruleset
        self._ground = ground
        self._callers = Callers(ruleset)
        self._family = ground.family

    def axes(self, table: str, chain: str, rule: Optional[str]) -> List[Tuple[Axes, Met]]:
        """For one rule of a chain, or for all of the chain (its policy)."""
        last = Shape() if rule is None else self._ruleset.shape(rule)
        found: Dict[Tuple, Tuple[Axes, Met]] = {}
        for hook, region in self._callers.ways(self._family, table, chain, last):
            for way in _WAYS[hook]:
                for axes, met in self._one_way(way, region):
                    found[_key(axes)] = (axes, met)
            if hook in ("INPUT", "FORWARD", "POSTROUTING"):
                for axes, met in self._translated(region):
                    found[_key(axes)] = (axes, met)
        return list(found.values())

    def _one_way(self, way: str, region: Region) -> Iterator[Tuple[Axes, Met]]:
        for protocol in self._protocols(region):
            box = Box(self._family, protocol, region.sources, region.destinations, region.ports, region.sports)
            met = self._ruleset.meeting(box)
            cut = cuts(self._ruleset, met)
            starts = [None] if way == "out" else self._starts(region, cut)
            ends = self._ends(way, region, cut)
            if starts and ends:
                yield self._axes(way, protocol, region, starts, ends, cut), met

    def _protocols(self, region: Region) -> Iterable[str]:
        if region.protocols is not None:
            return region.protocols
        named = {one.protocol for shapes in self._ruleset.chains.values() for one in shapes if one.protocol}
        return [one for one in dict.fromkeys(PROTOCOLS + tuple(sorted(named))) if one not in region.barred]

    def _translated(self, region: Region) -> Iterator[Tuple[Axes, Met]]:
        """What comes in for other destinations, and has these only once a rule has translated them."""
        whole = (spans.everything(self._family),)
        box = Box(self._family, (region.protocols or ("",))[0], region.sources, whole)
        for one in dict.fromkeys(self._ruleset.translations(box)):
            addresses = one.to_addresses or self._own()
            ports = one.to_ports or one.ports or (PORTS,)
            if spans.meet(addresses, region.destinations) and spans.meet(ports, region.ports):
                before = region._replace(destinations=self._own(), ports=(PORTS,), outside=()).within(one)
                if before:
                    yield from self._one_way("in", before)

    def _own(self) -> Tuple[Span, ...]:
        return tuple((value, value) for value in sorted(self._ground.own))

    def _starts(self, region: Region, cut: Cuts) -> List[Optional[Point]]:
        found = self._ground.peers(region.sources, cut.sources)
        return [point for point in found if point.interface and _named(region.inside, point.interface)]

    def _ends(self, way: str, region: Region, cut: Cuts) -> List[Point]:
        if way == "in":
            own = [
                point for point in self._ground.ends(cut.destinations) if spans.holds(region.destinations, point.value)
            ]
            exact = {low for low, high in region.destinations if low == high}
            return [point._replace(interface=None) if point.value in exact else point for point in own]
        found = self._ground.peers(region.destinations, cut.destinations)
        return [point for point in found if point.interface and _named(region.outside, point.interface)]

    def _axes(self, way: str, protocol: str, region: Region, starts, ends, cut: Cuts) -> Axes:
        ports: Sequence[Optional[Span]] = (None,)
        sports: Sequence[Optional[Span]] = (None,)
        states: Tuple[str, ...] = ("new",)
        if protocol in WITH_PORTS:
            ports = spans.cut(region.ports, spans.edges(cut.ports))
            sports = spans.cut([_usable(wanted) for wanted in region.sports], spans.edges(cut.sports))
            states = region.states or ("new", "established")
        return Axes(self._family, way, protocol, starts, ends, ports, sports, None, states)


def _key(axes: Axes) -> Tuple:
    return tuple(tuple(value) if isinstance(value, list) else value for value in axes)


def _usable(wanted: Span) -> Span:
    return max(1, wanted[0]), max(1, wanted[1])


def _named(patterns: Iterable[Tuple[str, bool]], interface: str) -> bool:
    return all(fits(pattern, interface) != inverted for pattern, inverted in patterns)


def edited(plans: Mapping[str, Mapping[str, object]]) -> Iterator[Tuple[str, str, object]]:
    """Table, chain and edit of what may change a verdict."""
    for table, chains in plans.items():
        for chain, plan in chains.items():
            for edit in plan.edits:
                if edit.action in ("insert", "delete", "policy"):
                    yield table, chain, edit
