"""A carried-out plan to the plan that rolls it back, anchored in the chain as it is now.

Not a return to an old dump: what others have written since then stays. Rules that the plan inserted are deleted, rules
that it deleted come back between the neighbours they had, as far as those still stand there. Where no former rule is
left at all, ``placement`` decides for the update's own rules as the place or, where they have gone too, for the end of
the chain: there the former rules overrule nobody, and what they let in is let in again.
"""

from typing import Container, Dict, Iterable, List, NamedTuple, Optional, Tuple

from _iptlive_align import align
from _iptlive_model import Chain, ChainPlan, Edit, Line, Refusal, is_builtin
from _iptlive_plan import Placer, numbered


class _Trace(NamedTuple):
    """One rule after the plan, and its index before it (None: inserted by the plan)."""

    rule: str
    before: Optional[int]


def plan_inverse(
    name: str, before: Optional[Chain], plan: ChainPlan, now: Optional[Chain], placement: str = "refuse"
) -> ChainPlan:
    """``before`` is the chain that ``plan`` was made for (None: it created it), ``now`` the chain as it is."""
    if now is None:
        return ChainPlan()
    if before is None and is_builtin(*name.split("/", 2)[1:]):
        # The nft kernel makes them when they are needed first. They stay: one with a policy could not be removed.
        before = Chain("ACCEPT")
    old = before.rules if before else ()
    # Somebody may have rolled it back already: then a rule that the plan moved is where it was, not where it went.
    after = _trace(old, () if now.rules == old else plan.edits)
    place = align([rule.rule for rule in after], now.rules)
    ours = {at for rule, at in zip(after, place) if at is not None and rule.before is None}
    gone = [Edit("delete", at + 1, now.rules[at]) for at in sorted(ours)]
    left = [at for at in range(len(now.rules)) if at not in ours]
    renumbered = {at: index for index, at in enumerate(left)}
    still = {rule.before: renumbered[at] for rule, at in zip(after, place) if at in renumbered}
    left = [now.rules[at] for at in left]
    lines, matched = _former(old, {rule.before for rule in after}, still, left)
    placer = Placer(name, lines, matched, left, placement)
    back, rules, warnings = [edit._replace(line=None) for edit in placer.edits], placer.result, []
    if placer.refusals and placement == "refuse":
        return ChainPlan(refusals=tuple(_refuse(name, refusal) for refusal in placer.refusals))
    if placer.refusals:
        # Only a chain in which no former rule stands can be refused then.
        at = min(ours, default=len(left))
        back = [Edit("insert", at + count, line.rule) for count, line in enumerate(lines, 1)]
        rules = (*left[:at], *(line.rule for line in lines), *left[at:])
        warnings = [_told(name, lines, bool(ours))]
    edits = numbered(gone) + back + _policy_back(plan, now)
    result = Chain(edits[-1].rule if edits and edits[-1].action == "policy" else now.policy, rules)
    if before is None and not result.rules:
        edits.append(Edit("delete_chain"))
    return ChainPlan(tuple(edits), (), tuple(warnings), result)


def _deleted(name: str, rules: Iterable[str]) -> str:
    return "{}: the update deleted {}".format(name, "; ".join(f"'{rule}'" for rule in rules))


def _refuse(name: str, refusal: Refusal) -> Refusal:
    """In the words of who rolls back: nobody has a stored file before him."""
    message = _deleted(name, refusal.rules) + ", and cannot put it back: "
    if refusal.reason == "no_anchor":
        message += "no rule that stood there before is left to tell its place"
        hint = "'placement=after' puts it where the update's own rules stand or, where none does, behind all others"
    else:
        message += f"other rules ({len(refusal.foreign)}) stand between its former neighbours now"
        hint = (
            "'placement=after' puts it right behind the neighbour above, 'placement=before' in front of the one below"
        )
    return refusal._replace(message=message, hint=hint, lines=())


def _told(name: str, lines: Iterable[Line], replaced: bool) -> str:
    where = "where the update's own rules stood" if replaced else "behind all others"
    return f"{_deleted(name, (line.rule for line in lines))}; no former neighbour is left, so it goes {where}"


def _trace(old: Tuple[str, ...], edits: Tuple[Edit, ...]) -> List[_Trace]:
    rules = [_Trace(rule, index) for index, rule in enumerate(old)]
    for edit in edits:
        if edit.action == "delete":
            del rules[edit.position - 1]
        elif edit.action == "insert":
            rules.insert(edit.position - 1, _Trace(edit.rule, None))
    return rules


def _former(old: Tuple[str, ...], kept: Container[int], still: Dict[int, int], left: List[str]):
    """The former rules that should stand: those that do, and those that the plan deleted and that are not back yet.

    A former rule that others have deleted since is theirs to delete: it does not come back. ``still`` tells where the
    former rules stand that the plan has left in place; a copy of a deleted one counts only between the same two.
    """
    place = dict(still)
    fixed = [(-1, -1)] + sorted(still.items()) + [(len(old), len(left))]
    for (above, start), (below, end) in zip(fixed, fixed[1:]):
        run = [index for index in range(above + 1, below) if index not in kept]
        back = align([old[index] for index in run], left[start + 1 : end]) if run else []
        place.update({index: start + 1 + at for index, at in zip(run, back) if at is not None})
    wanted = [index for index in range(len(old)) if index in place or index not in kept]
    return [Line(old[index], index + 1) for index in wanted], [place.get(index) for index in wanted]


def _policy_back(plan: ChainPlan, now: Chain) -> List[Edit]:
    return [
        Edit("policy", rule=edit.was, was=edit.rule)
        for edit in plan.edits
        if edit.action == "policy" and now.policy == edit.rule
    ]
