"""One table's update until it is through: planned, sent, verified, and tried again when rivals were quicker.

Goals
-----
1. What is committed is what was planned, and nothing else: never a foreign rule moved, lost or overtaken.
2. Others write to the same chains without asking, at any moment; that costs a new plan, not a failure.
3. We may be killed, stopped or starved between any two instructions; the next run must know what is in the kernel.
4. A text may not go through the kernel unchanged, and a native rule may read like one of ours.
5. What cannot be verified is rolled back, and what was rolled back has left no edit of ours in the kernel.

Goals 1 and 2 pull against each other: to be sure takes a look at the chains, and while we look others write. Goals 2
and 3 do too: what is written down before each step takes time in which the plan goes stale.

How each is met
---------------
1. The program that commits lists the chains inside its own transaction; ``gate`` compares them with the plan, and ends
   it with nothing written where they differ. After the commit the chains are read again.
2. ``decide`` is called with the chains as the transaction found them, so a change by others is met by planning again
   until ``deadline``. A rule that came in between ours at the moment of the commit has ours undone and tried again.
3. ``record`` has the step before it is sent, and again the moment the program has said that it committed, before
   anything is read. An exit status of 0 is never doubted. Only of a step whose program failed, or whose sender died, is
   it looked for evidence, chain by chain: one edit of ours is proof. The program inherits the lock of the run.
4. What is not as planned after the commit is an error, and the caller rolls back; misprinted rules are looked for in
   the very snapshot that is planned with, and count as nobody's.
5. ``undo`` is a transaction like any other; ``rollback`` repeats it until it finds nothing left to do.
"""

import logging
import time
from typing import Callable, Dict, Iterable, Optional, Tuple

import _iptlive_gate as gate
import _iptlive_journal as journal
import _iptlive_kernel as kernel
import _iptlive_programs as programs
from _iptlive_align import align
from _iptlive_blindspots import with_misprints, without_misprints
from _iptlive_family import label
from _iptlive_journal import Step
from _iptlive_model import Chain, ChainPlan, HostError, Table, chain_key, is_builtin
from _iptlive_printable import printable
from _iptlive_rules import print_list, targets
from _iptlive_survey import RefusedError
from _iptlive_undo import LIKELY, YES, carried_out, plan_inverse, planned

log = logging.getLogger(__name__)

LEAST_WAIT = 1  # seconds; iptables-legacy-restore takes no fraction
MOST_FAILURES = 3

Record = Callable[[Optional[Step]], None]


def ignore(step: Optional[Step]) -> None:
    """A record for those who keep none."""


class Transaction:
    """The edits that ``decide`` finds for some chains of one table.

    ``record`` is called with a step before it is sent, with None when it was certainly not committed, and with the
    step again at once when it was. ``known`` are those of the chains that were there when somebody last looked.
    """

    def __init__(
        self,
        tools: programs.Tools,
        table: str,
        chains: Iterable[str],
        decide: gate.Decide,
        deadline: float,
        record: Record,
        known: Optional[Iterable[str]] = None,
    ):
        self._tools = tools
        self._table = table
        self._chains = tuple(chains)
        self._known = known
        self._decide = decide
        self._deadline = deadline
        self._record = record
        self._names: Tuple[str, ...] = ()
        self._name = f"{label(tools.family)}/{table}"

    def run(self) -> Optional[Step]:
        """What was committed and verified; None where there was nothing to do.

        Raises HostError, or RefusedError where a chain no longer has a safe place. What the record was told of may
        have been committed all the same.
        """
        tries = failures = 0
        while True:
            tries += 1
            try:
                return self._once()
            except gate.StaleError as err:
                log.info("%s changed while the update was being made; planning again", self._name)
                if time.monotonic() > self._deadline:
                    said = f" (at last: {programs.message(str(err))})" if str(err) else ""
                    raise HostError(
                        f"{self._name}: other programs changed the chains during each of {tries} attempts{said}; "
                        "nothing of this table was changed. Try again, or set a larger 'wait'"
                    ) from err
            except _ExitError as err:
                failures += 1
                if failures == MOST_FAILURES or err.done.status < 0 or programs.is_lock_refusal(err.done):
                    raise self._refusal(err.done) from err

    def _once(self) -> Optional[Step]:
        sent = self._sent()
        if sent is None:
            return None
        step = self._step(sent.before, sent.plans)
        if sent.plans and not sent.done.status:
            step = self._committed(step)  # before anything else: we may not live to look
            now = self._read()
        else:
            now = self._read()
            if not _was_committed(step, now):
                self._record(None)
                raise gate.StaleError(sent.done.err) if _others_wrote(step, now) else _ExitError(sent.done)
            step = self._committed(step)
            said = printable(sent.done.err.strip())
            log.warning("%s: the update was made, although the program said: %s", self._name, said)
        self._verify(step, now)
        log.info("Live update of %s completed", self._name)
        return step

    def _sent(self) -> Optional[gate.Attempt]:
        """What was sent; None where there is nothing to do. What raises an error here was not committed."""
        try:
            sent = gate.attempt(
                self._tools, self._table, self._listable(), self._announced, self._seconds_left(), journal.held
            )
        except (gate.StaleError, RefusedError, HostError):
            self._record(None)
            raise
        if sent is None:
            self._record(None)
        return sent

    def _committed(self, step: Step) -> Step:
        step = step._replace(state="committed")
        self._record(step)
        return step

    def _listable(self) -> Iterable[str]:
        """A legacy program fails over a chain that is not there: who wants to be sure reads the whole table first.

        The first time it is quicker to believe what was seen when the plan was made.
        """
        if self._tools.backend == "nft":
            return self._chains
        known, self._known = self._known, None
        return self._read() if known is None else set(known).intersection(self._chains)

    def _announced(self, live: Table) -> Dict[str, ChainPlan]:
        plans = self._decide(live)
        if plans:
            self._record(self._step(live, plans))
        return plans

    def _step(self, live: Table, plans: Dict[str, ChainPlan]) -> Step:
        before = {chain: live[chain] for chain in plans if chain in live}
        if not self._names and not all(is_builtin(self._table, chain) for chain in plans):
            self._names = tuple(kernel.chain_names(self._tools, self._table))
        return Step(self._tools.family, self._tools.backend, self._table, before, plans, chains=self._names)

    def _seconds_left(self) -> int:
        return max(LEAST_WAIT, int(self._deadline - time.monotonic()))

    def _read(self) -> Table:
        return kernel.read_chains(self._tools, {self._table: self._chains}).get(self._table, {})

    def _refusal(self, done: programs.Done) -> HostError:
        what = f"{self._name}: {self._tools.restore} exited with status {done.status}: {programs.message(done.err)}"
        holder = programs.lock_holder() if programs.is_lock_refusal(done) else ""
        return HostError(f"{what}{holder}. Nothing of this table was changed")

    def _verify(self, step: Step, now: Table) -> None:
        """Equal to the plan; or, where others have written since, nothing left to do and nothing slipped."""
        if all(now.get(chain) == planned(plan) for chain, plan in step.plans.items()):
            return
        if any(_slipped(plan, now.get(chain)) for chain, plan in step.plans.items()):
            log.info("%s: another program's rule came in at the very moment of ours; rolling ours back", self._name)
            undo(self._tools, step, "after", self._deadline)
            self._record(None)
            raise gate.StaleError
        if self._left_to_do(now):
            raise HostError(f"{self._name}: the chains are not as planned after the commit. {_both(step, now)}")

    def _left_to_do(self, now: Table) -> Dict[str, ChainPlan]:
        while True:
            try:
                return self._decide(now)
            except gate.StaleError:
                if time.monotonic() > self._deadline:
                    raise HostError(f"{self._name}: other programs keep changing the chains") from None
                now = self._read()


class _ExitError(Exception):
    """The program failed, and nothing of its transaction stands."""

    def __init__(self, done: programs.Done):
        super().__init__(done.err)
        self.done = done


def undo(tools: programs.Tools, step: Step, placement: str, deadline: float, put_back: bool = True) -> Optional[Step]:
    """One transaction that undoes a committed step by its inverse, anchored in the chains as they are now."""

    def decide(live: Table) -> Dict[str, ChainPlan]:
        plans = inverse_plans(tools, step, live, placement, put_back)
        for chain, plan in plans.items():
            if plan.refusals:
                raise RefusedError(chain_key(step.family, step.table, chain), plan)
        return {chain: plan for chain, plan in plans.items() if plan.edits}

    return Transaction(tools, step.table, step.plans, decide, deadline, ignore).run()


def inverse_plans(
    tools: programs.Tools, step: Step, live: Table, placement: str, put_back: bool = True
) -> Dict[str, ChainPlan]:
    """What rolls the step back, by chain."""
    ours = without_misprints(tools, step.table, {chain: live[chain] for chain in step.plans if chain in live})
    plans = {
        chain: with_misprints(
            plan_inverse(
                chain_key(step.family, step.table, chain),
                step.before.get(chain),
                plan,
                ours.get(chain),
                placement,
                put_back,
            )
        )
        for chain, plan in step.plans.items()
    }
    if any(plan.removes_chain() for plan in plans.values()):
        return _keep_used(kernel.read_tables(tools, [step.table]).get(step.table, {}), plans)
    return plans


def _keep_used(table: Table, plans: Dict[str, ChainPlan]) -> Dict[str, ChainPlan]:
    """A chain that we created stays, empty, while others' rules jump to it: the kernel does not let it go."""
    after = [(plans[chain].result if chain in plans else None) or state for chain, state in table.items()]
    used = {target for state in after for rule in state.rules for target in targets(rule)}
    return {
        chain: plan._replace(
            edits=tuple(edit for edit in plan.edits if edit.action != "delete_chain" or chain not in used)
        )
        for chain, plan in plans.items()
    }


def _was_committed(step: Step, now: Table) -> bool:
    """Whether a program that said it failed has committed all the same, as nft's may while others write.

    One rule of ours is proof. It may also have failed because somebody else has deleted what it was to delete.
    """
    found = {carried_out(step.before.get(chain), plan, now.get(chain)) for chain, plan in step.plans.items()}
    return YES in found or found == {LIKELY}


def _others_wrote(step: Step, now: Table) -> bool:
    """Whether the chains are no longer what the step was made for: a rule that it names may have gone since."""
    return any(step.before.get(chain) != now.get(chain) for chain in step.plans)


def _slipped(plan: ChainPlan, now: Optional[Chain]) -> bool:
    """Whether somebody's rule came between rules put at an end of the chain, or between them and their anchor.

    A rule in the middle is bound to the rule that it stands before. One at the chain's top or end is bound to nothing:
    on the nft backend a rule that somebody else puts there between our listing and our batch comes in between.
    """
    if now is None or plan.result is None:
        return False
    rules = plan.result.rules
    added = {edit.position - 1 for edit in plan.edits if edit.action == "insert"}
    top, end = 0, len(rules) - 1
    while top in added:
        top += 1
    while end in added:
        end -= 1
    place = align(rules, now.rules)
    return _parted(place[: top + 1] if top else []) or _parted(place[max(end, 0) :] if end < len(rules) - 1 else [])


def _parted(places) -> bool:
    """Whether rules that all stand there are no longer neighbours."""
    return None not in places and any(below != above + 1 for above, below in zip(places, places[1:]))


def _both(step: Step, now: Table) -> str:
    parts = []
    for chain, plan in step.plans.items():
        wanted = planned(plan)
        if now.get(chain) != wanted:
            texts = [
                "no chain" if state is None else print_list(chain, state).strip() for state in (wanted, now.get(chain))
            ]
            parts.append("Planned:\n{}\nFound:\n{}".format(*texts))
    return "\n".join(parts)
