"""Two chains to a plan: the smallest set of deletes and inserts that makes every stored rule stand in stored order.

The kernel's other rules are foreign. They are never touched, and a rule is put only where its neighbours (anchors)
prove that it belongs; where foreign rules stand in between, the chain is refused unless ``placement`` decides.
"""

import re
from collections import Counter, defaultdict
from typing import Container, Dict, List, Optional, Sequence, Tuple

from _iptlive_align import align
from _iptlive_model import Chain, ChainPlan, Choices, Edit, Line, Refusal, StoredState

_VERDICT = re.compile(r"-j (?:ACCEPT|DROP|RETURN|QUEUE|REJECT( --reject-with \S+)?)\Z")


def plan_chain(name: str, stored: StoredState, kernel: Optional[Chain], choices: Choices) -> ChainPlan:
    """Plan the chain ``name`` (like ``IPv4/filter/INPUT``); ``kernel`` is None where the kernel lacks it."""
    refusals = list(stored.refusals) + _contradictions(name, stored)
    if choices.duplicates == "refuse":
        refusals += _duplicates(name, stored)
    if refusals:
        return ChainPlan(refusals=tuple(refusals))
    chain = kernel or Chain(None)
    policy, refusals, warnings = _policy(name, stored, chain, choices)
    edits, rules = [], chain.rules
    if stored.deletes or tuple([line.rule for line in stored.rules]) != chain.rules:
        edits, rules, unplaced = _plan_rules(name, stored, chain, choices)
        refusals = unplaced + refusals
    if refusals:
        return ChainPlan(refusals=tuple(refusals), warnings=tuple(warnings))
    created = [Edit("create_chain", line=stored.line)] if kernel is None else []
    after = Chain(policy[0].rule if policy else chain.policy, rules)
    return ChainPlan(tuple(created + edits + policy), (), tuple(warnings), after)


def _plan_rules(name: str, stored: StoredState, chain: Chain, choices: Choices):
    """The deletes and the placed inserts, the rules after them, and what is refused."""
    lines = stored.rules
    deleted = {line.rule: line.line for line in stored.deletes}
    gone = [Edit("delete", at + 1, rule, deleted[rule]) for at, rule in enumerate(chain.rules) if rule in deleted]
    # From here on an index is one of the chain without the rules that the stored file deletes.
    origin = [at for at, rule in enumerate(chain.rules) if rule not in deleted]
    rules = [chain.rules[at] for at in origin]
    matched = align([line.rule for line in lines], rules)
    strays = _strays(lines, matched, rules)
    if strays and not choices.reorder:
        placer = Placer(name, lines, matched, rules, choices.placement, settled=strays)
        return [], (), [_refuse_order(name, [lines[index] for index in strays]), *placer.refusals]
    gone += [Edit("delete", origin[at] + 1, rules[at], lines[index].line, True) for index, at in strays.items()]
    left, matched = _without(set(strays.values()), matched, rules)
    placer = Placer(name, lines, matched, left, choices.placement, moved=strays)
    return numbered(gone) + placer.edits, placer.result, placer.refusals


def _without(gone: Container[int], matched: Sequence[Optional[int]], rules: Sequence[str]):
    """The rules that stay, and the matching renumbered for them."""
    left = [at for at in range(len(rules)) if at not in gone]
    renumbered = {at: index for index, at in enumerate(left)}
    return [rules[at] for at in left], [None if at is None else renumbered[at] for at in matched]


def _contradictions(name: str, stored: StoredState) -> List[Refusal]:
    wanted = {line.rule: line.line for line in stored.rules} if stored.deletes else {}
    return [
        Refusal(
            "contradiction",
            f"{name}: line {wanted[gone.rule]} stores the rule that line {gone.line} deletes",
            "remove one of the two lines",
            (gone.rule,),
            (wanted[gone.rule], gone.line),
        )
        for gone in stored.deletes
        if gone.rule in wanted
    ]


def _duplicates(name: str, stored: StoredState) -> List[Refusal]:
    if len({line.rule for line in stored.rules}) == len(stored.rules):
        return []
    lines: Dict[str, List[int]] = defaultdict(list)
    for rule, line in stored.rules:
        lines[rule].append(line)
    return [
        Refusal(
            "duplicate",
            f"{name}: {_same_rule(numbers)}",
            f"remove all but one of them, or set 'duplicates: allow' for {name}",
            (rule,),
            tuple(numbers),
        )
        for rule, numbers in lines.items()
        if len(numbers) > 1
    ]


def _same_rule(numbers: Sequence[int]) -> str:
    if len(set(numbers)) == 1:
        return f"line {numbers[0]} stores the same rule {len(numbers)} times"
    return "lines {} store the same rule".format(" and ".join(map(str, numbers)))


def _policy(name: str, stored: StoredState, chain: Chain, choices: Choices):
    if stored.policy is None or chain.policy is None or stored.policy == chain.policy:
        return [], [], []
    message = f"{name}: the kernel's policy is {chain.policy}, the stored one {stored.policy}"
    if choices.policy == "enforce" and stored.policy == "DROP" and name.split("/")[1] == "nat":
        hint = f"write ACCEPT in line {stored.line}, or set 'policy: report' for {name}"
        message += ", which iptables does not accept in this table"
        return [], [Refusal("policy", message, hint, lines=(stored.line,))], []
    if choices.policy == "enforce":
        return [Edit("policy", rule=stored.policy, line=stored.line, was=chain.policy)], [], []
    if choices.policy == "refuse":
        hint = f"correct line {stored.line}, or set 'policy: report' or 'policy: enforce' for {name}"
        return [], [Refusal("policy", message, hint, lines=(stored.line,) if stored.line else ())], []
    return [], [], [message]


def _strays(lines: Sequence[Line], matched: Sequence[Optional[int]], rules: Sequence[str]) -> Dict[int, int]:
    """Unmatched stored rules that do stand in the kernel, in another order: their index to the kernel's."""
    used = {at for at in matched if at is not None}
    free: Dict[str, List[int]] = defaultdict(list)
    for at in range(len(rules) - 1, -1, -1):
        if at not in used:
            free[rules[at]].append(at)
    return {
        index: free[line.rule].pop()
        for index, line in enumerate(lines)
        if matched[index] is None and free.get(line.rule)
    }


def _refuse_order(name: str, lines: Sequence[Line]) -> Refusal:
    return Refusal(
        "out_of_order",
        "{}: {} in the kernel, but in another order than in the stored file".format(name, _named(lines, "is", "are")),
        f"put the lines in the kernel's order, or set 'reorder: true' for {name} to move the rules",
        tuple(line.rule for line in lines),
        tuple(line.line for line in lines),
    )


class Placer:
    """Finds the place of each unmatched rule: ``edits``, ``result`` and ``refusals`` are what comes out.

    ``matched`` gives for each line its index in ``rules``; a line in ``settled`` is neither matched nor to be placed.
    """

    def __init__(self, name: str, lines: Sequence[Line], matched: Sequence[Optional[int]], rules: Sequence[str],
                 placement: str, settled: Container[int] = (), moved: Container[int] = ()):  # fmt: skip
        self._name = name
        self._lines = lines
        self._matched = matched
        self._rules = list(rules)
        self._placement = placement
        self.refusals: List[Refusal] = []
        slots = self._slots(settled)
        self.edits = self._inserts(slots, moved)
        self.result = tuple(self._rules_after(slots))

    def _slots(self, settled) -> List[Tuple[int, List[int]]]:
        """Where each group of unmatched rules goes: a kernel index to insert before, and the stored indexes."""
        slots = []
        for group in self._groups(settled):
            place = self._place(group)
            if place is None:
                self.refusals.append(self._refuse_place(group))
            else:
                slots.append((place, group))
        return slots

    def _groups(self, settled) -> List[List[int]]:
        groups: List[List[int]] = []
        current: List[int] = []
        for index in range(len(self._lines)):
            if self._matched[index] is not None:
                groups.append(current)
                current = []
            elif index not in settled:
                current.append(index)
        return [group for group in groups + [current] if group]

    def _anchors(self, group: List[int]) -> Tuple[Optional[int], Optional[int]]:
        """The stored indexes of the matched rules above and below the group."""
        above = next((i for i in range(group[0] - 1, -1, -1) if self._matched[i] is not None), None)
        below = next((i for i in range(group[-1] + 1, len(self._lines)) if self._matched[i] is not None), None)
        return above, below

    def _place(self, group: List[int]) -> Optional[int]:
        above, below = self._anchors(group)
        behind = 0 if above is None else self._matched[above] + 1
        front = len(self._rules) if below is None else self._matched[below]
        if behind == front:
            return behind
        if above is None and below is None:
            return None
        placement = self._placement
        if placement == "after":
            return front if above is None else behind
        if placement == "before":
            return behind if below is None else front
        return None

    def _refuse_place(self, group: List[int]) -> Refusal:
        above, below = self._anchors(group)
        lines = [self._lines[index] for index in group]
        rules = tuple(line.rule for line in lines)
        numbers = tuple(line.line for line in lines)
        if above is None and below is None:
            message = "{}: {} no place: none of the chain's stored rules is in the kernel, which holds {}".format(
                self._name, _named(lines, "has", "have"), _count(len(self._rules), "foreign rule")
            )
            behind = f"last kernel rule, '{self._as_line(-1)}', above line {numbers[0]} to have them put behind it"
            front = f"first kernel rule, '{self._as_line(0)}', below line {numbers[-1]} to have them put in front of it"
            fixes = [front] if _ends(self._rules[-1]) else [behind, front]
            hint = f"add the chain's {', or its '.join(fixes)}; you may remove that line again once this is applied"
            return Refusal("no_anchor", message, hint, rules, numbers, foreign=tuple(self._rules))
        start = 0 if above is None else self._matched[above] + 1
        end = len(self._rules) if below is None else self._matched[below]
        foreign = tuple(self._rules[start:end])
        message = "{}: {} no safe place: {} {}".format(
            self._name, _named(lines, "has", "have"), _count(len(foreign), "foreign rule"), self._between(above, below)
        )
        hint = self._place_hint(above, below)
        anchors = (None if i is None else self._lines[i].rule for i in (above, below))
        return Refusal("foreign_between", message, hint, rules, numbers, *anchors, foreign=foreign)

    def _as_line(self, at: int) -> str:
        return f"-A {self._name.split('/', 2)[-1]} {self._rules[at]}".rstrip()

    def _between(self, above: Optional[int], below: Optional[int]) -> str:
        if above is None:
            return f"at the top of the chain, above line {self._lines[below].line}"
        if below is None:
            return f"at the end of the chain, below line {self._lines[above].line}"
        return f"between line {self._lines[above].line} and line {self._lines[below].line}"

    def _place_hint(self, above: Optional[int], below: Optional[int]) -> str:
        start = 0 if above is None else self._matched[above]
        end = len(self._rules) if below is None else self._matched[below]
        fixes = []
        if above is not None and not _ends(self._rules[start]):
            fixes.append(f"'placement: after' (right behind line {self._lines[above].line})")
        if below is not None and not any(map(_ends, self._rules[start:end])):
            fixes.append(f"'placement: before' (in front of line {self._lines[below].line})")
        if not fixes:
            return "move the lines above the rule that takes every packet before them, or store the foreign rules too"
        return f"set {' or '.join(fixes)} for {self._name}, or store the foreign rules that belong there too"

    def _inserts(self, slots, moved) -> List[Edit]:
        edits = []
        for place, group in slots:
            for index in group:
                rule, line = self._lines[index]
                edits.append(Edit("insert", place + len(edits) + 1, rule, line, index in moved))
        return edits

    def _rules_after(self, slots) -> List[str]:
        result: List[str] = []
        done = 0
        for place, group in slots:
            result += self._rules[done:place] + [self._lines[index].rule for index in group]
            done = place
        return result + self._rules[done:]


def _ends(rule: str) -> bool:
    """Whether no packet gets past the rule: what is put behind it decides nothing."""
    return _VERDICT.match(rule) is not None


def numbered(deletes: List[Edit]) -> List[Edit]:
    """Deletes from the top down, each position being the one at that moment."""
    ordered = sorted(deletes, key=lambda edit: edit.position)
    return [edit._replace(position=edit.position - done) for done, edit in enumerate(ordered)]


def _named(lines: Sequence[Line], one: str, many: str) -> str:
    numbers = sorted(Counter(line.line for line in lines))
    if len(numbers) == 1:
        return f"the rule of line {numbers[0]} {one}"
    shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
    return f"the rules of lines {shown} {many}"


def _count(number: int, what: str) -> str:
    return "{} {}{}".format(number, what, "" if number == 1 else "s")


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
