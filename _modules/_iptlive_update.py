"""One host's update from beginning to end: journalled, committed table by table, taken back when a later one fails.

Whoever changes something holds the lock. Before each transaction the journal says what is about to be sent, so that
after a kill at any point the next run can tell from the kernel what stands, and finish it or take it back.
"""

import logging
import time
from typing import List, NamedTuple, Optional, Tuple

import _iptlive_journal as journal
import _iptlive_kernel as kernel
from _iptlive_journal import Entry, Step
from _iptlive_model import COMMIT_ORDER, FAMILIES, HostError, InputError, chain_key
from _iptlive_options import Options
from _iptlive_plan import ChainPlan
from _iptlive_survey import RefusedError, Survey, decider, survey
from _iptlive_transaction import Transaction, ignore, inverse_plans, stands, take_back

log = logging.getLogger(__name__)

TAKE_BACK_SECONDS = 30  # for a quiet ruleset, whatever 'wait' says: a half update is worse than a late one


class Guard(NamedTuple):
    """Commit-confirmed: after so many seconds an update takes itself back unless confirmed (0: it stays)."""

    seconds: int = 0
    checks: Tuple[str, ...] = ()


class Applied(NamedTuple):
    """What came of an update: the plans it began with, what was committed, and who stood in the way."""

    found: Survey
    entry: Optional[Entry] = None
    refused: Optional[Tuple[str, ChainPlan]] = None
    notes: Tuple[str, ...] = ()


class TakenBack(NamedTuple):
    """What came of a rollback: the update, the plans that undo it, and whether they were carried out."""

    entry: Entry
    plans: Tuple[Tuple[str, ChainPlan], ...]
    done: bool


UNGUARDED = Guard()


def apply(options: Options, guard: Guard = UNGUARDED, arm=None) -> Applied:
    """Bring the host in line. ``arm`` starts the watchdog over an entry before anything is committed.

    Raises HostError; nothing of the update stands then, or the message says what does.
    """
    with journal.lock(options.wait):
        _refuse_while_pending()
        notes = _undo_what_must_be()
        found = survey(options)
        interrupted = [entry for entry in journal.unfinished() if entry.state == "open"]
        if found.refused() and not options.partial:
            return Applied(found, notes=tuple(notes + [_taken_back_note(entry) for entry in interrupted]))
        if not any(plan.edits for _, plan in found.plans()):
            return Applied(found, notes=tuple(notes + [_completed_note(entry) for entry in interrupted]))
        run = _Run(journal.new_entry(guard.seconds, guard.checks))
        notes += [run.adopt(entry) for entry in interrupted]
        return _carry_out(found, run, guard, arm, notes)


def _carry_out(found: Survey, run: "_Run", guard: Guard, arm, notes: List[str]) -> Applied:
    if guard.seconds:
        run.arm(found.options.wait, arm)
    try:
        _commit(found, run)
        run.close("pending" if guard.seconds else "done")
    except (HostError, RefusedError) as err:
        log.warning("Taking the update back, because: %s", err)
        _take_back(run, str(err))
        if isinstance(err, RefusedError):
            return Applied(found, refused=(err.key, err.plan), notes=tuple(notes))
        raise
    journal.prune()
    return Applied(found, run.entry, notes=tuple(notes))


def _commit(found: Survey, run: "_Run") -> None:
    deadline = time.monotonic() + found.options.wait
    for view in found.families:
        for table in sorted(view.plans, key=COMMIT_ORDER.index):
            if any(plan.edits for plan in view.plans[table].values()):
                decide = decider(found.options, view, table)
                if not Transaction(view.tools, table, view.states[table], decide, deadline, run.record).run():
                    run.forget_unsent()


class _Run:
    """The entry of the update being made; each change of it is on the disk before the next step."""

    def __init__(self, entry: Entry):
        self.entry = entry

    def record(self, step: Step) -> None:
        """A step is about to be sent (again), or was committed."""
        self.save(steps=self._sent_before() + (step,))

    def forget_unsent(self) -> None:
        """The table turned out to need nothing any more."""
        self.save(steps=self._sent_before())

    def _sent_before(self) -> Tuple[Step, ...]:
        steps = self.entry.steps
        return steps[:-1] if steps and steps[-1].state == "sent" else steps

    def adopt(self, entry: Entry) -> str:
        """Go on with an interrupted update: what stands of it belongs to this one from now on."""
        standing = _standing(entry)
        self.save(steps=self.entry.steps + standing)
        journal.save(entry._replace(state="continued", reason=f"interrupted; completed by {self.entry.id}"))
        return (
            f"the update {entry.id} was interrupted after committing {_names(standing) or 'nothing'}; "
            f"it is completed by this one"
        )

    def arm(self, wait: int, arm) -> None:
        """Start the watchdog before anything is committed: it takes over whatever happens to us."""
        self.save(deadline=journal.since_boot() + wait + TAKE_BACK_SECONDS + self.entry.seconds)
        arm(self.entry)

    def close(self, state: str, reason: str = "") -> None:
        deadline = journal.since_boot() + self.entry.seconds if state == "pending" else None
        self.save(state=state, reason=reason, deadline=deadline)

    def save(self, **changes) -> None:
        self.entry = self.entry._replace(**changes)
        journal.save(self.entry)


def _refuse_while_pending() -> None:
    for entry in journal.unfinished():
        left = entry.deadline - journal.since_boot() if entry.deadline is not None else 0
        if left > 0:
            raise HostError(
                f"the update {entry.id} waits for its confirmation, {int(left)} seconds are left. Confirm it "
                "(iptlive.confirm) or take it back (iptlive.rollback) first"
            )


def _undo_what_must_be() -> List[str]:
    """Finish what an earlier run was taking back, or its watchdog should have."""
    overdue = [entry for entry in journal.unfinished() if entry.state == "taking_back" or entry.deadline is not None]
    return [_taken_back_note(entry) for entry in overdue]


def _taken_back_note(entry: Entry) -> str:
    standing = _standing(entry)
    _take_back(_Run(entry), entry.reason or "it was interrupted")
    return f"the update {entry.id} was interrupted; {_names(standing) or 'nothing'} of it stood and was taken back"


def _completed_note(entry: Entry) -> str:
    """Everything the stored files want stands: the update came through, only its last word did not."""
    standing = _standing(entry)
    journal.save(entry._replace(state="done", steps=standing, reason="interrupted after its last commit"))
    return f"the update {entry.id} was interrupted after committing {_names(standing) or 'nothing'}; all is in sync"


def notices() -> List[str]:
    """What the journal has to say to somebody who only looks."""
    said = []
    for entry in journal.unfinished():
        left = entry.deadline - journal.since_boot() if entry.deadline is not None else 0
        if left > 0:
            said.append(f"the update {entry.id} waits for its confirmation, {int(left)} seconds are left")
        else:
            said.append(f"the update {entry.id} was interrupted; the next apply completes it or takes it back")
    return said


def _take_back(run: _Run, why: str) -> None:
    """Undo what stands of an update, the last step first; goes on past what resists, and says so in its error."""
    _write_down(run, state="taking_back", reason=why, steps=_standing(run.entry))
    failures = []
    for index, step in reversed(list(enumerate(run.entry.steps))):
        try:
            take_back(_tools(step), step, "after", time.monotonic() + TAKE_BACK_SECONDS, ignore)
        except (HostError, RefusedError) as err:
            failures.append(f"{_names([step])}: {err}")
        else:
            undone = step._replace(state="taken_back")
            _write_down(run, steps=run.entry.steps[:index] + (undone,) + run.entry.steps[index + 1 :])
    if failures:
        raise HostError(f"{why}. And what was done could not be taken back: {'; '.join(failures)}")
    _write_down(run, state="taken_back", deadline=None)


def _write_down(run: _Run, **changes) -> None:
    """Taking back must go on even when the disk is full: the next run looks at the kernel anyway."""
    try:
        run.save(**changes)
    except HostError as err:
        log.error("%s", err)


def _standing(entry: Entry) -> Tuple[Step, ...]:
    """The steps of an entry that are in the kernel."""
    steps = [step for step in entry.steps if step.state != "taken_back"]
    return tuple(step._replace(state="committed") for step in steps if stands(step, _live(step)))


def _live(step: Step):
    return kernel.read_chains(_tools(step), {step.table: tuple(step.plans)}).get(step.table, {})


def _tools(step: Step) -> kernel.Tools:
    return kernel.find_tools(step.family, step.backend)


def _names(steps) -> str:
    return ", ".join(f"{FAMILIES[step.family]}/{step.table}" for step in steps)


def rollback(identifier: Optional[str], wait: int, placement: str = "refuse", test: bool = False) -> TakenBack:
    """Take the last update, or the named one, back by inverse delta; all of it or, where one chain refuses, nothing."""
    with journal.lock(wait):
        entry = _chosen(identifier)
        plans = tuple(
            (chain_key(step.family, step.table, chain), plan)
            for step in reversed(_standing(entry))
            for chain, plan in inverse_plans(step, _live(step), placement).items()
        )
        if test or any(plan.refusals for _, plan in plans):
            return TakenBack(entry, plans, done=False)
        run = _Run(entry)
        _take_back(run, "rollback was asked for")
        return TakenBack(run.entry, plans, done=True)


def _chosen(identifier: Optional[str]) -> Entry:
    if identifier is not None:
        entry = journal.load(identifier)
        if entry is None:
            raise InputError(f"there is no update {identifier!r} in the journal")
        if entry.boot != journal.boot_id() or entry.state in ("taken_back", "continued"):
            raise InputError(f"the update {identifier} cannot be taken back: it is {_why_not(entry)}")
        return entry
    known = [entry for entry in journal.entries() if entry.boot == journal.boot_id()]
    done = [entry for entry in known if entry.steps and entry.state in ("done",) + journal.UNFINISHED]
    if not done:
        raise InputError("there is no update to take back since this host was booted")
    return done[-1]


def _why_not(entry: Entry) -> str:
    return "of an earlier boot" if entry.boot != journal.boot_id() else entry.state.replace("_", " ")


def confirm(identifier: Optional[str], wait: int) -> Entry:
    """The pending update stays."""
    with journal.lock(wait):
        waiting = [entry for entry in journal.unfinished() if entry.state == "pending"]
        chosen = [entry for entry in waiting if identifier in (None, entry.id)]
        if not chosen:
            raise HostError(_nothing_pending(identifier))
        run = _Run(chosen[-1])
        run.close("done", "confirmed")
        return run.entry


def expire(identifier: str, why: str, wait: int) -> None:
    """The deadline has passed: take the update back, unless it was settled while we waited for the lock."""
    with journal.lock(wait):
        entry = journal.load(identifier)
        if entry and entry.state in journal.UNFINISHED:
            _take_back(_Run(entry), why)


def outcome(identifier: str) -> Entry:
    """Wait until a guarded update is confirmed or taken back; raises HostError where nobody settles it."""
    while True:
        entry = journal.load(identifier)
        if entry is None:
            raise InputError(f"there is no update {identifier!r} in the journal")
        if entry.state not in journal.UNFINISHED:
            return entry
        if journal.since_boot() > (entry.deadline or 0) + 2 * TAKE_BACK_SECONDS:
            raise HostError(
                f"the update {identifier} was neither confirmed nor taken back in time: its watchdog is gone. "
                "Take it back with iptlive.rollback"
            )
        time.sleep(0.2)


def _nothing_pending(identifier: Optional[str]) -> str:
    known = [entry for entry in journal.entries() if identifier in (None, entry.id)]
    last = f"; the last one, {known[-1].id}, is {known[-1].state.replace('_', ' ')}" if known else ""
    return f"no update{' ' + identifier if identifier else ''} waits for a confirmation{last}"
