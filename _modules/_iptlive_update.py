"""One host's update: read, canonicalise, plan, commit table by table, verify, or take it back."""

import logging
import time
from typing import Dict, List, NamedTuple, Optional, Tuple

import _iptlive_canon as canon
import _iptlive_files as files
import _iptlive_kernel as kernel
import _iptlive_scratch as scratch_text
from _iptlive_inverse import plan_inverse
from _iptlive_model import COMMIT_ORDER, FAMILIES, Chain, HostError, Table, chain_key, is_builtin
from _iptlive_options import Options
from _iptlive_plan import ChainPlan, StoredState, plan_chain
from _iptlive_rules import print_list

log = logging.getLogger(__name__)

LEAST_WAIT = 1  # seconds; iptables-legacy-restore takes no fraction
MOST_FAILURES = 3


class FamilyView(NamedTuple):
    """One family as it was read: the stored file in the kernel's spelling, and its plans by table and chain."""

    tools: kernel.Tools
    path: str
    states: Dict[str, Dict[str, StoredState]]
    plans: Dict[str, Dict[str, ChainPlan]]
    warnings: Tuple[str, ...]


class Survey(NamedTuple):
    """What stands on the host against what is stored there."""

    options: Options
    families: Tuple[FamilyView, ...]

    def plans(self):
        """Every chain's plan with its key, in the order of the files."""
        for view in self.families:
            for table, plans in view.plans.items():
                for chain, plan in plans.items():
                    yield chain_key(view.tools.family, table, chain), plan

    def refused(self) -> bool:
        return any(plan.refusals for _, plan in self.plans())


class Committed(NamedTuple):
    """One table's transaction: the chains it changed, as they were before, and the plans it carried out."""

    tools: kernel.Tools
    table: str
    before: Table
    plans: Dict[str, ChainPlan]


class RefusedError(Exception):
    """A chain that was fit for its update when it was planned no longer is."""

    def __init__(self, key: str, plan: ChainPlan):
        super().__init__(key)
        self.key = key
        self.plan = plan


def survey(options: Options) -> Survey:
    """Read both sides and plan; nothing is written and no lock taken. Raises HostError."""
    kernel.check_rights()
    stored = [files.read(family, options.files[family]) for family in options.families]
    tools = [kernel.find_tools(family, options.backend) for family in options.families]
    for family in options.families:
        kernel.check_family(family)
    with canon.Scratch() as scratch:
        views = [_view(options, scratch, *pair) for pair in zip(tools, stored)]
    return Survey(options, tuple(views))


def _view(options: Options, scratch: canon.Scratch, tools: kernel.Tools, stored) -> FamilyView:
    log.debug("%s: stored file %s, backend %s %s", FAMILIES[tools.family], stored.path, tools.backend, tools.version)
    live = kernel.read_tables(tools, stored.tables)
    load, printed = canon.canonical(scratch, tools, stored, live)
    states = scratch_text.states(load, stored, printed)
    plans = {
        table: {
            chain: _plan(options, tools.family, table, chain, state, live.get(table, {}))
            for chain, state in chains.items()
        }
        for table, chains in states.items()
    }
    return FamilyView(tools, stored.path, states, plans, stored.warnings)


def _plan(options: Options, family: str, table: str, chain: str, state: StoredState, live: Table) -> ChainPlan:
    key = chain_key(family, table, chain)
    plan = plan_chain(key, state, _live_chain(table, chain, live), options.choices(family, table, chain))
    _log_plan(key, state, plan)
    return plan


def _live_chain(table: str, chain: str, live: Table) -> Optional[Chain]:
    if chain not in live and is_builtin(table, chain):
        return Chain("ACCEPT")  # what the kernel does while nobody has asked for the table
    return live.get(chain)


def _log_plan(key: str, state: StoredState, plan: ChainPlan) -> None:
    for refusal in plan.refusals:
        log.error("%s (%s)", refusal.message, refusal.hint)
    for warning in plan.warnings:
        log.warning("%s", warning)
    if plan.edits:
        log.info("For chain %s, all deletes are performed first", key)
    for edit in plan.edits:
        log.info("For chain %s, %s at position %s: '%s'", key, edit.action, edit.position, edit.rule)
    if not plan.edits and not plan.refusals:
        log.debug("For chain %s, all %d stored rules matched, no further checks needed", key, len(state.rules))


def commit(found: Survey) -> List[Committed]:
    """Carry out the plans, table by table in an order that is safe for traffic; all are taken back when one fails.

    Raises HostError, or RefusedError where a chain has changed in a way that leaves no safe place any more.
    """
    deadline = time.monotonic() + found.options.wait
    done: List[Committed] = []
    try:
        for view in found.families:
            for table in sorted(view.plans, key=COMMIT_ORDER.index):
                if any(plan.edits for plan in view.plans[table].values()):
                    _commit_table(found.options, view, table, deadline, done)
    except (HostError, RefusedError) as err:
        _take_back(done, found.options.wait, err)
        raise
    return done


def _commit_table(options: Options, view: FamilyView, table: str, deadline: float, done: List[Committed]) -> None:
    family = view.tools.family

    def decide(live: Table) -> Dict[str, ChainPlan]:
        plans = {}
        for chain, state in view.states[table].items():
            plan = _plan(options, family, table, chain, state, live)
            if plan.refusals and not options.partial:
                raise RefusedError(chain_key(family, table, chain), plan)
            if plan.edits:
                plans[chain] = plan
        return plans

    _Transaction(view.tools, table, tuple(view.states[table]), decide, deadline).run(done)


def _take_back(done: List[Committed], wait: int, why: Exception) -> None:
    """Undo committed transactions by their inverse, the last one first."""
    for committed in reversed(done):
        name = f"{FAMILIES[committed.tools.family]}/{committed.table}"
        log.warning("Taking back the update of %s, because: %s", name, why)
        try:
            _inverse(committed, time.monotonic() + max(wait, LEAST_WAIT)).run([])
        except (HostError, RefusedError) as err:
            raise HostError(f"{why}. And what was done in {name} could not be taken back: {err}") from err


def _inverse(committed: Committed, deadline: float) -> "_Transaction":
    def decide(live: Table) -> Dict[str, ChainPlan]:
        plans = {}
        for chain, plan in committed.plans.items():
            key = chain_key(committed.tools.family, committed.table, chain)
            inverse = plan_inverse(key, committed.before.get(chain), plan, live.get(chain))
            if inverse.refusals:
                raise RefusedError(key, inverse)
            if inverse.edits:
                plans[chain] = inverse
        return plans

    return _Transaction(committed.tools, committed.table, tuple(committed.plans), decide, deadline)


class _Transaction(NamedTuple):
    """One table's edits, planned again and sent again until they are through, or the time is up."""

    tools: kernel.Tools
    table: str
    chains: Tuple[str, ...]
    decide: kernel.Decide
    deadline: float

    def run(self, done: List[Committed]) -> None:
        """Add to ``done`` what was committed, even where an error is raised."""
        failures = 0
        while self._once(done, failures) is None:
            failures += 1
            if time.monotonic() > self.deadline:
                raise HostError(
                    f"{self._name()}: other programs changed the chains during each of {failures} attempts; nothing "
                    "of this table was "
                    "changed. Try again, or set a larger 'wait'"
                )
            log.info("%s changed while the update was being made; planning again", self._name())

    def _name(self) -> str:
        return f"{FAMILIES[self.tools.family]}/{self.table}"

    def _read(self) -> Table:
        live = kernel.read_tables(self.tools, [self.table]).get(self.table, {})
        return {chain: live[chain] for chain in self.chains if chain in live}

    def _once(self, done: List[Committed], failures: int) -> Optional[bool]:
        """True when the table is as it should be, None when it must be tried again."""
        wait = max(LEAST_WAIT, int(self.deadline - time.monotonic()))
        try:
            sent = kernel.attempt(self.tools, self.table, self._read(), self.decide, wait)
        except kernel.StaleError:
            return None
        if sent is None:
            return True
        committed = Committed(self.tools, self.table, sent.before, sent.plans)
        now = self._read()
        if sent.done.status and not _carried_out(committed, now):
            return self._failed(sent, now, failures)
        done.append(committed)
        self._verify(committed, now)
        log.info("Live update of %s completed", self._name())
        return True

    def _failed(self, sent: kernel.Attempt, now: Table, failures: int) -> None:
        """An error exit that changed nothing: with rivals at work worth another try, else the program's last word."""
        if failures >= MOST_FAILURES or now == {chain: sent.before[chain] for chain in now}:
            raise HostError(
                f"{self._name()}: {self.tools.restore} exited with status {sent.done.status}: "
                f"{kernel.message(sent.done.err)}. Nothing of this table was changed"
            )

    def _verify(self, committed: Committed, now: Table) -> None:
        if _carried_out(committed, now):
            return
        left = self.decide(now)
        if left:
            raise HostError(f"{self._name()}: the chains are not as planned after the commit. {_both(committed, now)}")


def _carried_out(committed: Committed, now: Table) -> bool:
    return bool(committed.plans) and all(
        now.get(chain) == (None if plan.removes_chain() else plan.result) for chain, plan in committed.plans.items()
    )


def _both(committed: Committed, now: Table) -> str:
    parts = []
    for chain, plan in committed.plans.items():
        if now.get(chain) != plan.result:
            found = "no chain" if chain not in now else print_list(chain, now[chain]).strip()
            parts.append(f"Planned:\n{print_list(chain, plan.result).strip()}\nFound:\n{found}")
    return "\n".join(parts)
