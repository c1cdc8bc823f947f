"""A carried-out plan to the plan that rolls it back, anchored in the chain as it is now.

Not a return to an old dump: what others have written since then stays. Rules that the plan inserted are deleted, rules
that it deleted come back between the neighbours they had, as far as those still stand there. Where no former rule is
left at all, ``placement`` decides for the update's own rules as the place or, where they have gone too, for the end of
the chain: there the former rules overrule nobody, and what they let in is let in again.
"""

import re
from collections import Counter
from typing import Container, Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple

from _iptlive_align import align
from _iptlive_model import Chain, ChainPlan, Edit, Line, Refusal, is_builtin
from _iptlive_plan import Placer, numbered

# Whether a plan that may have been carried out was. All that it deletes has gone, and that is all it does: likely, for
# nobody else need have deleted just that. Some of it has gone: maybe.
NO, MAYBE, LIKELY, YES = "no", "maybe", "likely", "yes"
_JUMP = re.compile(r"(.*(?:^| )-[jg] )(\S+)", re.DOTALL)


class _Trace(NamedTuple):
    """One rule after the plan, and its index before it (None: inserted by the plan)."""

    rule: str
    before: Optional[int]


def plan_inverse(
    name: str,
    before: Optional[Chain],
    plan: ChainPlan,
    now: Optional[Chain],
    placement: str = "refuse",
    put_back: bool = True,
) -> ChainPlan:
    """``before`` is the chain that ``plan`` was made for (None: it created it), ``now`` the chain as it is.

    Without ``put_back`` what was deleted stays so.
    """
    if now is None or now == before:
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
    kept = {rule.before for rule in after} if put_back else range(len(old))
    lines, matched = _former(old, kept, still, left)
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


def planned(plan: ChainPlan) -> Optional[Chain]:
    """The chain as the plan leaves it."""
    return None if plan.removes_chain() else plan.result


def carried_out(before: Optional[Chain], plan: ChainPlan, now: Optional[Chain]) -> str:
    """Whether a plan was carried out in a chain, by what is in it ``now``: one edit is enough, others write too.

    A rule of ours there is proof. That a rule is missing which was to be deleted is none: somebody else may have
    deleted it, as whoever flushes a chain does with all of them.
    """
    if now == before:
        return NO
    if now == planned(plan):
        return YES
    if now is None:
        return NO
    old = before.rules if before else ()
    after = _trace(old, plan.edits)
    place = align([trace.rule for trace in after], now.rules)
    if _made_chain_or_policy(plan, now) or _inserted(after, place, now):
        return YES
    kept = [at for trace, at in zip(after, place) if trace.before is not None]
    deleted = Counter(old) - Counter(trace.rule for trace in after)
    missing = deleted - Counter(now.rules)
    if not missing or (kept and all(at is None for at in kept)):
        return NO
    return LIKELY if missing == deleted and all(edit.action == "delete" for edit in plan.edits) else MAYBE


def _made_chain_or_policy(plan: ChainPlan, now: Chain) -> bool:
    return any(
        edit.action == "create_chain" or (edit.action == "policy" and edit.rule == now.policy) for edit in plan.edits
    )


def _inserted(after: Iterable[_Trace], place: Iterable[Optional[int]], now: Chain) -> bool:
    """Whether a rule of ours is there, and not only a copy of it that was there before."""
    kept = Counter(trace.rule for trace in after if trace.before is not None)
    there = Counter(now.rules)
    return any(
        trace.before is None and at is not None and there[trace.rule] > kept[trace.rule]
        for trace, at in zip(after, place)
    )


def is_renamed(before: Optional[Chain], plan: ChainPlan, now: Chain, replaced: bool) -> bool:
    """Whether a chain of another name is the one that the plan was carried out in; ``replaced``: its name has another.

    Where nothing was inserted that could be found again, it is that when all that was left there is in it.
    """
    after = _trace(before.rules if before else (), plan.edits)
    place = align([trace.rule for trace in after], now.rules)
    return _inserted(after, place, now) or (not replaced and bool(place) and None not in place)


def renamed(chain: Chain, names: Mapping[str, str]) -> Chain:
    """The chain with its jumps to the chains that have another name now."""
    return chain._replace(rules=tuple(_renamed(rule, names) for rule in chain.rules))


def renamed_plan(plan: ChainPlan, names: Mapping[str, str]) -> ChainPlan:
    edits = tuple(edit._replace(rule=_renamed(edit.rule, names)) for edit in plan.edits)
    return plan._replace(edits=edits, result=plan.result and renamed(plan.result, names))


def _renamed(rule: str, names: Mapping[str, str]) -> str:
    jump = _JUMP.fullmatch(rule)
    return jump.group(1) + names[jump.group(2)] if jump and jump.group(2) in names else rule


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
