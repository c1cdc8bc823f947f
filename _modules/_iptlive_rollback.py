"""Committed steps rolled back wherever their chains are by now, again and again until nothing of them is left.

Others may have emptied, rewritten or renamed a chain since. Each chain is undone by its own inverse, whatever became
of the other ones: a step has no majority.
"""

import contextlib
import time
from typing import Dict, Iterable, List, Mapping, Optional, Tuple

import _iptlive_kernel as kernel
import _iptlive_programs as programs
import _iptlive_ways as ways
from _iptlive_gate import StaleError
from _iptlive_journal import Step
from _iptlive_model import Chain, ChainPlan, HostError, Table, chain_key, is_builtin
from _iptlive_survey import RefusedError
from _iptlive_transaction import inverse_plans, undo
from _iptlive_undo import NO, carried_out, is_renamed, renamed, renamed_plan

_LEARNT: Dict[Tuple[str, str], programs.Tools] = {}


def tools_of(step: Step) -> programs.Tools:
    """The programs of a step; where they cannot be looked at now, as they were found when they last could."""
    key = (step.family, step.backend)
    try:
        _LEARNT[key] = ways.find_tools(*key)
    except (HostError, OSError):
        if key not in _LEARNT:
            raise
    return _LEARNT[key]


def learn(steps: Iterable[Step]) -> None:
    """Look at the programs while all is well: what is known of them may be lost with the journal."""
    for step in steps:
        if (step.family, step.backend) not in _LEARNT:
            tools_of(step)


def standing(step: Step) -> Optional[Step]:
    """The step as something that was committed; None where nothing of it was.

    Of a step that was merely sent those chains are left out that show no sign of it.
    """
    if step.state == "rolled_back":
        return None
    if step.state == "sent":
        here, now = _located(tools_of(step), step, {})
        names = {
            name for name, plan in here.plans.items() if carried_out(here.before.get(name), plan, now.get(name)) != NO
        }
        step = here._replace(plans={name: plan for name, plan in here.plans.items() if name in names})
    return step._replace(state="committed") if step.plans else None


def inverse(step: Step, live: Mapping[str, Optional[Chain]], placement: str, deadline: float) -> Dict[str, ChainPlan]:
    """What rolls a step back, by chain; ``live`` holds what an earlier inverse has made of some of them."""
    return _inverse(step, live, placement, deadline, {})


def _inverse(step: Step, live, placement: str, deadline: float, names: Dict[str, str]) -> Dict[str, ChainPlan]:
    tools = tools_of(step)
    while True:
        here, now = _located(tools, step, names)
        after = {**now, **live}
        with contextlib.suppress(StaleError):
            return inverse_plans(tools, here, {chain: state for chain, state in after.items() if state}, placement)
        _check_time(deadline)


def roll_back(step: Step, placement: str, deadline: float) -> List[Step]:
    """Undo a committed step; what that took. Raises HostError, RefusedError."""
    tools = tools_of(step)
    undone: List[Step] = []
    names: Dict[str, str] = {}
    while True:
        plans = _inverse(step, {}, placement, deadline, names)
        refused = next((chain for chain, plan in plans.items() if plan.refusals), None)
        if refused is not None:
            raise RefusedError(chain_key(step.family, step.table, refused), plans[refused])
        if not any(plan.edits for plan in plans.values()):
            return undone
        if undone:
            _check_time(deadline)
        undone += filter(None, _undo(tools, _located(tools, step, names)[0], placement, deadline))


def _check_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise HostError("other programs changed the chains again and again")


def _undo(tools: programs.Tools, step: Step, placement: str, deadline: float) -> List[Optional[Step]]:
    """All chains in one transaction; where that fails each on its own, lest one of them holds up the others."""
    try:
        return [undo(tools, step, placement, deadline)]
    except HostError:
        return _undo_pieces(tools, step, placement, deadline)


def _undo_pieces(tools: programs.Tools, step: Step, placement: str, deadline: float) -> List[Optional[Step]]:
    """What cannot be put back, as where a rule's target has gone, must not keep what was inserted in the kernel."""
    undone: List[Optional[Step]] = []
    failures = []
    for chain, plan in step.plans.items():
        piece = step._replace(plans={chain: plan})
        try:
            undone.append(undo(tools, piece, placement, deadline))
        except HostError as err:
            failures.append(str(err))
            undone.append(undo(tools, piece, placement, deadline, put_back=False))
    if failures:
        raise HostError("; ".join(failures))
    return undone


def _located(tools: programs.Tools, step: Step, names: Dict[str, str]):
    """The step by the names that its chains have now, and these chains as they are.

    ``names`` remembers the new names, for a chain from which all of ours has gone tells no more whose it was.

    A chain of the user's may have been renamed, and another one may have its name by now. It is known by the rules
    that the step put into it, among the chains that were not there before.
    """
    now = kernel.read_chains(tools, {step.table: tuple(step.plans)}).get(step.table, {})
    if all(is_builtin(step.table, chain) for chain in step.plans):
        return step, now
    taken = {*step.chains, *step.plans}
    others = [name for name in kernel.chain_names(tools, step.table) if name not in taken] if step.chains else []
    fresh = kernel.read_chains(tools, {step.table: others}).get(step.table, {}) if others else {}
    for chain in [chain for chain, name in names.items() if name not in fresh]:
        del names[chain]
    for chain, plan in step.plans.items():
        for name, state in fresh.items():
            if not is_builtin(step.table, chain) and is_renamed(step.before.get(chain), plan, state, chain in now):
                names[chain] = name
    now = {**now, **{name: fresh[name] for name in names.values()}}
    return _renamed(step, names, now), now


def _renamed(step: Step, names: Dict[str, str], now: Table) -> Step:
    """Also by its old name, where a rule of the step is in a chain that has that by now."""
    plans: Dict[str, ChainPlan] = {}
    before: Dict[str, Chain] = {}
    for chain, plan in step.plans.items():
        former = step.before.get(chain)
        found = [names.get(chain, chain)]
        if chain in names and chain in now and is_renamed(former, plan, now[chain], replaced=True):
            found.append(chain)
        for name in found:
            plans[name], known = _as_in(now.get(name), plan, former, names)
            if known:
                before[name] = known
    return step._replace(plans=plans, before=before)


def _as_in(now: Optional[Chain], plan: ChainPlan, before: Optional[Chain], names: Dict[str, str]):
    """The plan, and the chain before it, with the new names in their jumps where the chain has them."""
    made = renamed_plan(plan, names)
    if made == plan or now is None or not set(now.rules).intersection(set(made.result.rules) - set(plan.result.rules)):
        return plan, before
    return made, before and renamed(before, names)
