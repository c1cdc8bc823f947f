"""Stored and foreign side by side: which kernel rules no stored line accounts for, whose, what is around a change."""

from collections import Counter, defaultdict
from typing import Any, Dict, Iterable, List, Sequence, Tuple

import _iptlive_kernel as kernel
from _iptlive_excerpt import Changed, around
from _iptlive_journal import Step
from _iptlive_model import BUILTIN, StoredState, chain_key
from _iptlive_owners import UNKNOWN, Owners, add
from _iptlive_plan import lines_of
from _iptlive_printable import printable
from _iptlive_stored import ranges
from _iptlive_survey import FamilyView, Survey, no_collections


def foreign(found: Survey, owners: Owners) -> Dict[str, List[Dict[str, Any]]]:
    """The kernel's rules that no stored line accounts for, by chain; all tables are read."""
    listed: Dict[str, List[Dict[str, Any]]] = {}
    for view in found.families:
        for table, content in kernel.read_tables(view.tools, BUILTIN).items():
            for chain, state in content.items():
                stored = view.states.get(table, {}).get(chain, StoredState(()))
                rules = [
                    {"position": at + 1, "rule": printable(rule), "owner": owners.of_rule(table, chain, rule)}
                    for at, (rule, line) in enumerate(zip(state.rules, lines_of(stored, state.rules)))
                    if line is None
                ]
                if rules:
                    listed[chain_key(view.tools.family, table, chain)] = rules
    return listed


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
        answer["warnings"] += [printable(warning) for warning in warnings(found, owners)]
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
