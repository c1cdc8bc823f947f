"""What an update means: the packets that it treats otherwise, in words.

Only a packet that an edited rule matches can change. The region of each is cut into cells, one packet of each is tried
before and after, and the cells whose verdict changed are put together again.
"""

import itertools
from typing import Any, Container, Dict, FrozenSet, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import _iptlive_spans as spans
from _iptlive_cells import Axes, Cell, Ground
from _iptlive_model import Edit
from _iptlive_regions import Surveyor, edited
from _iptlive_shapes import Met, Ruleset
from _iptlive_spans import PORTS, Span

MOST_CELLS = 5000
MOST_OPEN = 8  # open connections that one edit is tried with: each costs what dozens of new ones do
WITNESSES = 4  # for each rule, where there are more cells than that
MOST_NAMED = 5  # networks that one sentence names
_WIDE = 8  # what holds a net of so few bits is anywhere

_DONE = {"accept": "accepted", "drop": "dropped", "reject": "rejected"}


class Scope(NamedTuple):
    """The cells of a family's edits; ``chains`` tells for each the chain of the edit that it was made for."""

    family: str
    chains: Mapping[Cell, Tuple[str, str]]
    inserted: Mapping[Tuple[str, str, Edit], Tuple[Cell, ...]]
    complete: bool = True


class Change(NamedTuple):
    """A set of packets whose verdict changes; ``sources`` and ``to`` are as they are told."""

    family: str
    change: str  # opens, closes, changes
    way: str
    service: str
    state: str
    sources: str
    to: str
    was: str
    becomes: str
    complete: bool
    cells: Tuple[Cell, ...]

    def lets_in(self) -> bool:
        """Whether somebody else can reach what they could not; an answer to what was asked for is no such thing."""
        return self.change == "opens" and self.way != "out" and self.state == "new"


def scope(plans, ruleset: Ruleset, ground: Ground, most: int = MOST_CELLS) -> Scope:
    """``plans`` are those of one family, by table and chain."""
    surveyor = Surveyor(ruleset, ground)
    parts = [
        (table, chain, edit, axes, met)
        for table, chain, edit in edited(plans)
        for axes, met in surveyor.axes(table, chain, None if edit.action == "policy" else edit.rule)
    ]
    begun = [axes._replace(states=("new",)) for *_, axes, _met in parts if "new" in axes.states]
    whole = sum(axes.count() for axes in begun) <= most
    share = most // max(1, len(parts))
    chains: Dict[Cell, Tuple[str, str]] = {}
    inserted: Dict[Tuple[str, str, Edit], Tuple[Cell, ...]] = {}
    complete = True
    for table, chain, edit, axes, met in parts:
        new = axes._replace(states=("new",))
        if "new" not in axes.states:
            cells: Tuple[Cell, ...] = ()
        elif whole or new.count() <= share:
            cells = tuple(new.cells())
        else:
            complete = False
            cells = tuple(dict.fromkeys(itertools.islice(new.witnesses(met.forth, WITNESSES), most)))
        cells += _open_connections(edit, axes, met)
        for cell in cells:
            chains.setdefault(cell, (table, chain))
        if edit.action == "insert":
            key = (table, chain, edit)
            inserted[key] = inserted.get(key, ()) + cells
    return Scope(ground.family, chains, inserted, complete)


def _open_connections(edit: Edit, axes: Axes, met: Met) -> Tuple[Cell, ...]:
    """Some packets in the middle of a connection. What lets new ones in cuts no open ones off."""
    lets_in = edit.action == "insert" and f"{edit.rule} ".endswith("-j ACCEPT ") and "new" in axes.states
    if "established" not in axes.states or lets_in:
        return ()
    middle = axes._replace(states=("established",))
    return tuple(dict.fromkeys(itertools.islice(middle.witnesses(met.forth, 1), MOST_OPEN)))


def verdict(answer: Any) -> str:
    """What becomes of a packet; one that is sent on to another place than it was meant for says so."""
    return f"accept to {answer.arrives}" if answer.verdict == "accept" and _translated(answer) else answer.verdict


def _translated(answer: Any) -> bool:
    return bool(answer.arrives and answer.out)


def changes(found: Scope, before: Mapping[Cell, Any], after: Mapping[Cell, Any]) -> List[Change]:
    """``before`` and ``after`` are the prover's answers by cell."""
    groups: Dict[Tuple, Dict[Optional[Span], List[Cell]]] = {}
    alike: Dict[Tuple, List[Cell]] = {}
    for cell in found.chains:
        was, now = verdict(before[cell]), verdict(after[cell])
        kind = (cell.way, cell.protocol, cell.state)
        if was == now or "undecided" in (was, now):
            alike.setdefault(kind + (cell.port,), []).append(cell)
            continue
        groups.setdefault(kind + (was, now), {}).setdefault(cell.port, []).append(cell)
    told = []
    for (way, protocol, state, was, now), by_port in groups.items():
        for ports, cells in _together(by_port):
            kept = [cell for port in ports for cell in alike.get((way, protocol, state, port), ())]
            told.append(_change(found, (way, protocol, state, was, now), ports, cells, kept))
    # Whoever may begin a connection may go on with it: only what differs for the open ones needs a word of its own.
    begun = {(one.change, cell) for one in told if one.state == "new" for cell in one.cells}
    told = _merged(one for one in told if one.state == "new" or not _is_begun(one, begun))
    return sorted(told, key=lambda one: (one.family, one.change != "opens", one.change, one.service, one.sources))


def _merged(told: Iterable[Change]) -> List[Change]:
    """Services of several protocols that fare alike, in one."""
    alike: Dict[Tuple, Change] = {}
    for one in told:
        key = one._replace(service="", cells=())
        known = alike.setdefault(key, one)
        if known is not one:
            alike[key] = one._replace(service=f"{known.service}, {one.service}", cells=known.cells + one.cells)
    return list(alike.values())


def _is_begun(one: Change, begun: Container[Tuple[str, Cell]]) -> bool:
    return all((one.change, cell._replace(state="new")) in begun for cell in one.cells)


def _together(by_port: Mapping[Optional[Span], List[Cell]]) -> List[Tuple[List[Optional[Span]], List[Cell]]]:
    """Ports that the same packets change of, in one."""
    alike: Dict[FrozenSet, Tuple[List[Optional[Span]], List[Cell]]] = {}
    for port, cells in by_port.items():
        ends = frozenset((cell.source and cell.source.span, cell.destination.span, cell.sport) for cell in cells)
        ports, together = alike.setdefault(ends, ([], []))
        ports.append(port)
        together += cells
    return list(alike.values())


def _change(found: Scope, kind: Tuple, ports: Sequence[Optional[Span]], cells: List[Cell], kept: List[Cell]) -> Change:
    way, protocol, state, was, now = kind
    return Change(
        found.family,
        _verb(was, now),
        way,
        _service(protocol, ports, cells),
        state,
        _sources(found.family, way, cells, kept),
        _destinations(found.family, way, cells, kept),
        was,
        now,
        found.complete and state == "new",
        tuple(cells),
    )


def _verb(was: str, now: str) -> str:
    opened, open_now = was.startswith("accept"), now.startswith("accept")
    return "changes" if opened == open_now else "opens" if open_now else "closes"


def _service(protocol: str, ports: Iterable[Optional[Span]], cells: Sequence[Cell]) -> str:
    named = spans.merged(port for port in ports if port is not None)
    if not named:
        return "ping" if protocol == "icmp" else protocol
    named[0] = (max(1, named[0][0]), named[0][1])
    text = f"{spans.ports_text(named)}/{protocol}" if named != [(1, PORTS[1])] else f"all/{protocol}"
    sports = spans.merged(cell.sport for cell in cells if cell.sport is not None)
    everywhere = any(cell.is_usual() for cell in cells)
    return f"{text} from port {spans.ports_text(sports)}" if sports and not everywhere else text


def _sources(family: str, way: str, cells: Sequence[Cell], kept: Sequence[Cell]) -> str:
    if way == "out":
        return "self"
    return _named(family, [cell.source.span for cell in cells], [cell.source.span for cell in kept])


def _destinations(family: str, way: str, cells: Sequence[Cell], kept: Sequence[Cell]) -> str:
    here = {cell.destination.value for cell in cells}
    if way != "in":
        return _named(family, [cell.destination.span for cell in cells], [cell.destination.span for cell in kept])
    if here.issuperset(cell.destination.value for cell in kept):
        return "self"
    return ", ".join(spans.show(family, value) for value in sorted(here)[:MOST_NAMED])


def _named(family: str, changed: Sequence[Span], kept: Sequence[Span]) -> str:
    """Anywhere with its exceptions, or the networks themselves."""
    wide = 1 << (spans.BITS[family] - _WIDE)
    if any(high - low + 1 >= wide for low, high in changed):
        others = spans.without(kept, changed)
        return "any except " + _list(family, others) if others else "any"
    return _list(family, spans.merged(changed))


def _list(family: str, found: Sequence[Span]) -> str:
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    return ", ".join(spans.named(family, one) for one in found[:MOST_NAMED]) + more


def told(change: Change) -> Dict[str, Any]:
    """As results hold it."""
    found = {
        "change": change.change,
        "service": change.service,
        "from": change.sources,
        "to": change.to,
        "was": change.was,
        "becomes": change.becomes,
        "complete": change.complete,
    }
    if change.state != "new":
        found["state"] = change.state
    return dict(found, words=sentence(found))


def sentence(entry: Mapping[str, Any]) -> str:
    """One of the results in words."""
    start = entry["from"].replace("any", "anywhere", 1) if entry["from"].startswith("any") else entry["from"]
    to = "this host" if entry["to"] == "self" else entry["to"].replace("any", "anywhere", 1)
    what = entry["service"]
    if entry.get("state") == "established":
        what += " of established connections"
    words = f"{entry['change']} {what}"
    words += f" from this host to {to}" if entry["from"] == "self" else f" to {to} from {start}"
    if entry["change"] == "changes":
        words += f": {_becomes(entry['becomes'])} instead of {_becomes(entry['was'])}"
    elif " to " in entry["becomes"]:
        words += f", which arrives at {entry['becomes'].partition(' to ')[2]}"
    return words if entry["complete"] else words + " (at least)"


def _becomes(outcome: str) -> str:
    done, _, place = outcome.partition(" to ")
    return f"sent to {place}" if place else _DONE[done]


def idle(found: Scope, before: Mapping[Cell, Any], after: Mapping[Cell, Any]) -> List[Tuple[str, str, Edit]]:
    """Inserted filter rules that end a packet's way, in whose region nothing changes: candidates for a second look."""
    return [
        (table, chain, edit)
        for (table, chain, edit), cells in found.inserted.items()
        if table == "filter" and not edit.moved and cells and _ends(edit.rule)
        and all(verdict(before[cell]) == verdict(after[cell]) for cell in cells)
    ]  # fmt: skip


def _ends(rule: str) -> bool:
    return any(f" -j {target}" in f" {rule} " for target in ("ACCEPT ", "DROP ", "REJECT "))
