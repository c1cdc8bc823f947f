"""Stored and foreign side by side: which kernel rules no stored line accounts for, whose, what is around a change."""

from collections import Counter, defaultdict
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import _iptlive_kernel as kernel
from _iptlive_align import align
from _iptlive_graph import View
from _iptlive_journal import Step
from _iptlive_model import BUILTIN, HostError, chain_key, is_builtin, plain
from _iptlive_owners import UNKNOWN, Owners, add
from _iptlive_plan import ChainPlan, StoredState
from _iptlive_stored import ranges
from _iptlive_survey import FamilyView, Survey, no_collections

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


def foreign(found: Survey, owners: Owners) -> Dict[str, List[Dict[str, Any]]]:
    """The kernel's rules that no stored line accounts for, by chain; all tables are read."""
    listed: Dict[str, List[Dict[str, Any]]] = {}
    for view in found.families:
        for table, content in kernel.read_tables(view.tools, BUILTIN).items():
            for chain, state in content.items():
                stored = view.states.get(table, {}).get(chain, StoredState(()))
                rules = [
                    {"position": at + 1, "rule": plain(rule), "owner": owners.of_rule(table, chain, rule)}
                    for at, (rule, line) in enumerate(zip(state.rules, lines_of(stored, state.rules)))
                    if line is None
                ]
                if rules:
                    listed[chain_key(view.tools.family, table, chain)] = rules
    return listed


def views(found: Survey) -> Iterable[View]:
    """What a picture is drawn from: every table that holds something or is stored; all tables are read."""
    for view in found.families:
        content = kernel.read_tables(view.tools, BUILTIN)
        for table in BUILTIN:
            plans, chains = view.plans.get(table, {}), content.get(table, {})
            if plans or any(state.rules for state in chains.values()):
                yield View(
                    view.tools.family,
                    table,
                    chains,
                    {
                        chain: lines_of(state, chains[chain].rules)
                        for chain, state in view.states.get(table, {}).items()
                        if chain in chains
                    },
                    {chain: len(plan.edits) for chain, plan in plans.items()},
                    {chain for chain, plan in plans.items() if plan.refusals},
                    [chain for chain in plans if chain not in chains and not is_builtin(table, chain)],
                )


def svg(text: str) -> str:
    """A Graphviz graph as a picture."""
    done = kernel.run(["dot", "-Tsvg"], text)
    if done.status:
        raise HostError(f"dot: {kernel.message(done.err)}")
    return done.out


def lines_of(state: StoredState, rules: Sequence[str]) -> List[Optional[int]]:
    """For each kernel rule the stored line that accounts for it; None for the foreign ones."""
    deleted = {line.rule: line.line for line in state.deletes}
    found = [deleted.get(rule) for rule in rules]
    kept = [at for at, rule in enumerate(rules) if rule not in deleted]
    left: Dict[str, List[int]] = defaultdict(list)
    for line, at in zip(state.rules, align([line.rule for line in state.rules], [rules[at] for at in kept])):
        if at is None:
            left[line.rule].append(line.line)
        else:
            found[kept[at]] = line.line
    for at in kept:  # what stands there in another order is the stored file's all the same
        if found[at] is None and left.get(rules[at]):
            found[at] = left[rules[at]].pop(0)
    return found


def counts(found: Survey, owners: Owners) -> Dict[str, Dict[str, int]]:
    """How many foreign rules of whom stand in each chain that the stored files name."""
    listed = {}
    for view in found.families:
        for table, states in view.states.items():
            for chain, state in states.items():
                number = _count(owners, table, chain, state, _rules(view, table, chain))
                if number:
                    listed[chain_key(view.tools.family, table, chain)] = number
    return listed


def _rules(view: FamilyView, table: str, chain: str) -> Tuple[str, ...]:
    live = view.live.get(table, {}).get(chain)
    return live.rules if live else ()


def _count(owners: Owners, table: str, chain: str, state: StoredState, rules: Sequence[str]) -> Dict[str, int]:
    deleted = {line.rule for line in state.deletes}
    more = Counter(rules) - Counter([line.rule for line in state.rules])
    foreign = [rule for rule in more.elements() if rule not in deleted]
    number: Dict[str, int] = {}
    add(number, owners.of_rules(table, chain, foreign))
    return number


def warnings(found: Survey, owners: Owners) -> List[str]:
    """A sentence per stored file and known owner whose rules the file holds."""
    sentences = []
    for view in found.families:
        lines: Dict[str, List[int]] = defaultdict(list)
        for table, states in view.states.items():
            for chain, state in states.items():
                whose = owners.of_rules(table, chain, [line.rule for line in state.rules])
                for line, owner in zip(state.rules, whose):
                    if owner != UNKNOWN:
                        lines[owner].append(line.line)
        sentences += [
            f"{view.path}: the file holds {len(lines[owner])} of {owner}'s rules "
            f"(line {ranges(sorted(set(lines[owner])))}). {owner} writes them itself, and the stored ones would be "
            "put back after it has removed them; iptlive.export writes a file without them"
            for owner in sorted(lines)
        ]
    return sentences


def annotate(answer: Dict[str, Any], found: Survey, owners: Owners, steps: Iterable[Step] = ()) -> Dict[str, Any]:
    """Add to a plan's result whose rules stand beside the stored ones or in their way, and what is around the changes.

    ``steps`` are those of an update that was carried out; without them the plans count.
    """
    for key, refusals in answer["refusals"].items():
        for refusal in refusals:
            if "foreign" in refusal:
                _, table, chain = key.split("/")
                refusal["owners"] = [owners.of_rule(table, chain, rule) for rule in refusal["foreign"]]
    with no_collections():
        changed = _carried_out(found, steps) if steps else _changed(found)
        pictures = around(changed, owners) if answer["changes"] else {}
        answer["warnings"] += [plain(warning) for warning in warnings(found, owners)]
        return dict(answer, foreign=counts(found, owners), neighbours=pictures)


def _changed(found: Survey) -> Iterable[Changed]:
    for view in found.families:
        for table, plans in view.plans.items():
            for chain, plan in plans.items():
                if plan.edits:
                    yield Changed(view.tools.family, table, chain, view.states[table][chain], plan)


def _carried_out(found: Survey, steps: Iterable[Step]) -> Iterable[Changed]:
    states = {view.tools.family: view.states for view in found.families}
    for step in steps:
        for chain, plan in step.plans.items():
            # The steps of an interrupted update may be about what the stored files no longer name.
            state = states[step.family].get(step.table, {}).get(chain, StoredState(()))
            yield Changed(step.family, step.table, chain, state, plan)


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
            entry = {"position": item.position, "rule": plain(item.rule), "line": item.line}
            shown.append(dict(entry, action=item.action) if item.action else entry)
    return shown


def _run(part: Changed, items: Sequence[_Item], run: Sequence[int], owners: Owners) -> List[Dict[str, Any]]:
    """Foreign rules in a row; of a long one only those beside a change, and a count of the others."""
    named = [(items[at], owners.of_rule(part.table, part.chain, items[at].rule)) for at in run]
    head = tail = len(run)
    if len(run) > LONGEST_RUN:
        head = NEAREST if run[0] > 0 and items[run[0] - 1].action else 0
        tail = NEAREST if run[-1] + 1 < len(items) and items[run[-1] + 1].action else 0
    lines = [{"position": item.position, "rule": plain(item.rule), "owner": owner} for item, owner in named]
    if len(run) <= LONGEST_RUN:
        return lines
    left_out: Dict[str, int] = {}
    add(left_out, (owner for _, owner in named[head : len(run) - tail]))
    return lines[:head] + [{"foreign": left_out}] + lines[len(run) - tail :]
