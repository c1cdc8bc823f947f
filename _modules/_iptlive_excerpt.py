"""Pieces of a changed chain for people: each from the anchor above a group of changes to the one below. Pure."""

from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence

from _iptlive_model import ChainPlan, StoredState, chain_key
from _iptlive_owners import Owners, add
from _iptlive_plan import lines_of
from _iptlive_printable import printable

MOST_LINES = 100  # of neighbours in one result: a job's return must stay small on ten thousand hosts
LONGEST_RUN = 4  # foreign rules in a row that are shown one by one
NEAREST = 2  # of a longer run, how many beside a change are shown


class Changed(NamedTuple):
    """A chain that an update changes."""

    family: str
    table: str
    chain: str
    state: StoredState
    plan: ChainPlan


class _Item(NamedTuple):
    """One line of the picture: a rule that stays, comes or goes."""

    position: int
    rule: str
    line: Optional[int]
    action: str = ""


def around(changed: Iterable[Changed], owners: Owners) -> Dict[str, List[List[Dict[str, Any]]]]:
    """For each changed chain pieces of the chain as it becomes, each from anchor to anchor around the changes."""
    pictures: Dict[str, List[List[Dict[str, Any]]]] = {}
    room = MOST_LINES
    for part in changed:
        if room <= 0:
            break
        items = _items(part)
        hunks = [_lines(part, items, hunk, owners) for hunk in _hunks(items, room)]
        room -= sum(map(len, hunks))
        if hunks:
            pictures[chain_key(part.family, part.table, part.chain)] = hunks
    return pictures


def _items(part: Changed) -> List[_Item]:
    """The whole chain, with what goes beside what comes."""
    result = part.plan.result.rules if part.plan.result else ()
    lines = lines_of(part.state, result)
    gone = [edit for edit in part.plan.edits if edit.action == "delete"]
    # Deletes are done from the top down, so each earlier one has moved a rule up by one.
    leaving = {edit.position - 1 + done: edit for done, edit in enumerate(gone)}
    coming = {edit.position for edit in part.plan.edits if edit.action == "insert"}
    items: List[_Item] = []
    at = 0
    for position, rule in enumerate(result, 1):
        at = _leave(items, leaving, at)
        if position in coming:
            items.append(_Item(position, rule, lines[position - 1], "insert"))
        else:
            items.append(_Item(position, rule, lines[position - 1]))
            at += 1
    _leave(items, leaving, at)
    return items


def _leave(items: List[_Item], leaving, at: int) -> int:
    while at in leaving:
        edit = leaving[at]
        items.append(_Item(edit.position, edit.rule, edit.line, "delete"))
        at += 1
    return at


def _hunks(items: Sequence[_Item], room: int) -> Iterable[range]:
    """From the anchor above to the anchor below each group of changes, as far as there is room."""
    anchors = [at for at, item in enumerate(items) if item.line is not None and not item.action]
    bounds = [-1] + anchors + [len(items)]
    open_from = None
    for above, below in zip(bounds, bounds[1:]):
        changes = any(items[at].action for at in range(above + 1, below))
        if changes and open_from is None:
            open_from = max(above, 0)
        if open_from is not None and not changes:
            yield range(open_from, above + 1)
            room -= above + 1 - open_from
            open_from = None
            if room <= 0:
                return
    if open_from is not None:
        yield range(open_from, min(len(items), open_from + room))


def _lines(part: Changed, items: Sequence[_Item], hunk: range, owners: Owners) -> List[Dict[str, Any]]:
    shown: List[Dict[str, Any]] = []
    run: List[int] = []
    for at in list(hunk) + [hunk.stop]:
        item = items[at] if at < hunk.stop else None
        if item and item.line is None:
            run.append(at)
            continue
        shown += _run(part, items, run, owners)
        run = []
        if item:
            entry = {"position": item.position, "rule": printable(item.rule), "line": item.line}
            shown.append(dict(entry, action=item.action) if item.action else entry)
    return shown


def _run(part: Changed, items: Sequence[_Item], run: Sequence[int], owners: Owners) -> List[Dict[str, Any]]:
    """Foreign rules in a row; of a long one only those beside a change, and a count of the others."""
    named = [(items[at], owners.of_rule(part.table, part.chain, items[at].rule)) for at in run]
    head = tail = len(run)
    if len(run) > LONGEST_RUN:
        head = NEAREST if run[0] > 0 and items[run[0] - 1].action else 0
        tail = NEAREST if run[-1] + 1 < len(items) and items[run[-1] + 1].action else 0
    lines = [{"position": item.position, "rule": printable(item.rule), "owner": owner} for item, owner in named]
    if len(run) <= LONGEST_RUN:
        return lines
    left_out: Dict[str, int] = {}
    add(left_out, (owner for _, owner in named[head : len(run) - tail]))
    return lines[:head] + [{"foreign": left_out}] + lines[len(run) - tail :]
