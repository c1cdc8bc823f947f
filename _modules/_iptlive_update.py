"""One host's update from beginning to end: journalled, committed table by table, rolled back when a later one fails.

Whoever changes something holds the lock. Before each transaction the journal says what is about to be sent, so that
after a kill at any point the next run can tell from the kernel what stands, and finish it or roll it back.
"""

import contextlib
import logging
import time
from typing import Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Tuple

import _iptlive_files as files
import _iptlive_journal as journal
import _iptlive_proof as proof_room
import _iptlive_rollback as rollback_room
from _iptlive_family import label
from _iptlive_journal import Entry, Step
from _iptlive_model import COMMIT_ORDER, Chain, ChainPlan, HostError, InputError, chain_key
from _iptlive_options import Options
from _iptlive_proof import ChangedError, Proof, Prove
from _iptlive_survey import RefusedError, Survey, decider, survey
from _iptlive_transaction import Transaction

log = logging.getLogger(__name__)

WATCHDOG_SECONDS = 5  # so long after its deadline an update that is not settled has lost its watchdog
ROLL_BACK_SECONDS = 30  # for a quiet ruleset, whatever 'wait' says: a half update is worse than a late one


class Guard(NamedTuple):
    """Commit-confirmed: after so many seconds an update rolls itself back unless confirmed (0: it stays)."""

    seconds: int = 0
    checks: Tuple[str, ...] = ()
    addresses: Mapping[str, Tuple[Tuple[str, int], ...]] = {}  # of each check


class Replacements(NamedTuple):
    """Stored files that are to be replaced once the kernel has their rules.

    ``keep_old`` is called with their paths before, and returns what is to be said about it.
    """

    contents: Mapping[str, bytes] = {}
    keep_old: Callable[[Iterable[str]], List[str]] = lambda paths: []

    def outdated(self) -> "Replacements":
        """Only those that are not yet what they are to be."""
        contents = {path: data for path, data in self.contents.items() if files.content(path) != data}
        return self._replace(contents=contents)


class Applied(NamedTuple):
    """What came of an update: the plans it began with, what was committed and written, and who stood in the way."""

    found: Survey
    entry: Optional[Entry] = None
    refused: Optional[Tuple[str, ChainPlan]] = None
    notes: Tuple[str, ...] = ()
    written: Tuple[str, ...] = ()
    proof: Proof = proof_room.NOTHING

    def steps(self) -> Tuple[Step, ...]:
        return self.entry.steps if self.entry else ()


class RolledBack(NamedTuple):
    """What came of a rollback: the update, the plans that undo it, and whether they were carried out."""

    entry: Entry
    plans: Tuple[Tuple[str, ChainPlan], ...]
    done: bool


UNGUARDED = Guard()
NO_FILES = Replacements()


def apply(
    options: Options,
    guard: Guard = UNGUARDED,
    arm=None,
    new: Replacements = NO_FILES,
    prove: Prove = proof_room.prove_nothing,
) -> Applied:
    """Bring the host in line. ``arm`` starts the watchdog over an entry before anything is committed; what it returns
    tells at any time whether the watchdog lives.

    Raises HostError; nothing of the update stands then, or the message says what does.
    """
    deadline = time.monotonic() + options.wait
    with journal.lock(options.wait):
        _refuse_while_pending()
        notes = [_undone_note(entry) for entry in journal.unfinished() if _must_go(entry, options, new)]
        while True:
            try:
                return _apply(options, guard, arm, new, prove, list(notes))
            except ChangedError as err:
                log.info("%s; trying the update again", err)
                if time.monotonic() > deadline:
                    raise HostError(f"{err}, each time; nothing was changed. Set a larger 'wait'") from err


def _apply(options: Options, guard: Guard, arm, new: Replacements, prove: Prove, notes: List[str]) -> Applied:
    found = survey(options)
    # Also what could not be rolled back just now: from here on it belongs to this update.
    interrupted = journal.unfinished()
    if found.refused() and not options.partial:
        return Applied(found, notes=tuple(notes + [_undone_note(entry) for entry in interrupted]))
    proof = prove(found)
    if proof.refused():
        return Applied(found, notes=tuple(notes + [_undone_note(entry) for entry in interrupted]), proof=proof)
    if found.refused():
        new = NO_FILES  # what the kernel has is not what they hold
    if not any(plan.edits for _, plan in found.plans()):
        notes += [_completed_note(entry) for entry in interrupted]
        return _write_only(found, new.outdated(), notes)._replace(proof=proof)
    run = _Run(journal.new_entry(guard.seconds, guard.checks, guard.addresses))
    notes += [run.adopt(entry) for entry in interrupted]
    return _carry_out(found, proof, run, guard, arm, new.outdated(), notes)


def _write_only(found: Survey, new: Replacements, notes: List[str]) -> Applied:
    """The kernel has all the rules already."""
    waiting = files.beside(new.contents, "new")
    files.prepare(waiting, new.contents)
    notes += new.keep_old(waiting)
    files.put(waiting)
    files.drop(waiting)
    return Applied(found, notes=tuple(notes), written=tuple(waiting))


def _carry_out(
    found: Survey, proof: Proof, run: "_Run", guard: Guard, arm, new: Replacements, notes: List[str]
) -> Applied:
    with contextlib.ExitStack() as stack:
        if guard.seconds:
            stack.enter_context(_logged_later())
        try:
            run.prepare(new.contents)
            if guard.seconds:
                run.arm(found.options.wait, arm)
            _commit(found, proof, run)
            proof_room.check(found, proof)
            notes += new.keep_old(run.entry.files)
            run.close("pending" if guard.seconds else "done")
        except BaseException as err:  # also when the job is told to end: no half update stays
            log.warning("Rolling the update back, because: %r", err)
            undone = _roll_back(run, str(err) or type(err).__name__)
            also = [f"{_names(undone)}: committed before, and rolled back"] if undone else []
            if isinstance(err, RefusedError):
                return Applied(found, refused=(err.key, err.plan), notes=tuple(notes + also), proof=proof)
            if isinstance(err, HostError):
                raise HostError(". ".join([str(err)] + also)) from err
            raise
    _tidy_up()
    written = () if guard.seconds else tuple(run.entry.files)
    return Applied(found, run.entry, notes=tuple(notes), written=written, proof=proof)


@contextlib.contextmanager
def _logged_later():
    """What our rooms log meanwhile is logged at the end: a handler may hang behind the new rules, or on a terminal."""
    kept = []

    def keep(record: logging.LogRecord) -> bool:
        kept.append(record)
        return False

    ours = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict) if name.startswith("_iptlive_")]
    for logger in ours:
        logger.addFilter(keep)
    try:
        yield
    finally:
        for logger in ours:
            logger.removeFilter(keep)
        for record in kept:
            logging.getLogger(record.name).handle(record)


def _tidy_up() -> None:
    for entry in journal.entries(steps=False):
        if entry.files and (entry.state not in journal.UNFINISHED or entry.boot != journal.boot_id()):
            if entry.state in journal.UNFINISHED:
                files.restore(entry.files)  # the host was booted while they waited
            files.drop(entry.files)
    journal.prune()


def _commit(found: Survey, proof: Proof, run: "_Run") -> None:
    deadline = time.monotonic() + found.options.wait
    for view in found.families:
        for table in sorted(view.plans, key=COMMIT_ORDER.index):
            if any(plan.edits for plan in view.plans[table].values()):
                decide = decider(found.options, view, table)
                record = proof_room.only_as_tried(proof, view, table, run.recorder())
                there = view.live.get(table, ())
                Transaction(view.tools, table, view.states[table], decide, deadline, record, there).run()


class _Run:
    """The entry of the update being made; each change of it is on the disk before the next step."""

    def __init__(self, entry: Entry):
        self.entry = entry
        self._is_watched: Callable[[], bool] = lambda: True  # nobody need watch it

    def recorder(self) -> Callable[[Optional[Step]], None]:
        """For the next transaction: its step is about to be sent (again), was committed, or (None) was not.

        It need not wait for the disk, while others write to the chains that were just read: our death loses no file,
        and the machine's takes the kernel's rules with it.
        """
        before = self.entry.steps

        def record(step: Optional[Step]) -> None:
            if step and step.state == "sent":
                self.check_watchdog()
            steps = before + ((step,) if step else ())
            if steps != self.entry.steps:
                self.save(flush=False, steps=steps)

        return record

    def adopt(self, entry: Entry) -> str:
        """Go on with an interrupted update: what stands of it belongs to this one from now on."""
        standing = _standing(entry)
        # A run that was killed right here had these steps in both entries.
        self.save(steps=self.entry.steps + tuple(step for step in standing if step not in self.entry.steps))
        journal.save(entry._replace(state="continued", reason=f"interrupted; completed by {self.entry.id}"))
        _undo_files(entry)
        return (
            f"the update {entry.id} was interrupted after committing {_names(standing) or 'nothing'}; "
            f"it is completed by this one"
        )

    def prepare(self, contents: Mapping[str, bytes]) -> None:
        """The new stored files wait beside their places; the journal, which must be writable, knows of them before."""
        self.save(flush=bool(contents), files=files.beside(contents, self.entry.id))
        files.prepare(self.entry.files, contents)

    def arm(self, wait: int, arm) -> None:
        """Start the watchdog before anything is committed: it takes over whatever happens to us."""
        self.save(deadline=journal.since_boot() + wait + ROLL_BACK_SECONDS + self.entry.seconds)
        self._is_watched = arm(self.entry)

    def check_watchdog(self) -> None:
        if not self._is_watched():
            raise HostError("the watchdog over the update has ended, so nobody would roll it back")

    def close(self, state: str, reason: str = "") -> None:
        before = self.entry
        if state == "pending":
            self.check_watchdog()
        deadline = journal.since_boot() + self.entry.seconds if state == "pending" else None
        ready = before.files if state == "done" else {}
        try:
            # Who waits for the outcome reads the journal: nobody may see it done before the files are in place.
            self.save(state=state, reason=reason, deadline=deadline, first=lambda: files.put(ready))
        except HostError as err:
            files.restore(ready)
            self.save(state=before.state, reason=str(err), deadline=before.deadline)
            raise
        files.drop(ready)

    def save(self, flush: bool = True, first: Callable[[], None] = lambda: None, **changes) -> None:
        self.entry = self.entry._replace(**changes)
        journal.save(self.entry, flush, first)


def _undo_files(entry: Entry) -> None:
    files.restore(entry.files)
    files.drop(entry.files)


def _refuse_while_pending() -> None:
    for problem in journal.damaged():
        raise HostError(problem)
    for entry in journal.unfinished():
        if journal.seconds_left(entry):
            raise HostError(
                f"{journal.waits(entry)}. Confirm it (iptlive.confirm) or roll it back (iptlive.rollback) first"
            )


def _must_go(entry: Entry, options: Options, new: Replacements) -> bool:
    """What an earlier run was rolling back, or its watchdog should have; any other may be completed.

    Not by an update that leaves alone one of its families, or a stored file that it had not written yet: that one does
    not know what was to become of it.
    """
    beside = any(step.family not in options.families for step in entry.steps)
    unwritten = any(path not in new.contents for path in entry.files)
    return entry.state != "open" or entry.deadline is not None or beside or unwritten


def _undone_note(entry: Entry) -> str:
    run = _Run(entry)
    try:
        undone = _roll_back(run, _why(entry))
    except HostError as err:
        return f"the update {entry.id} could not be rolled back: {err}"
    return f"the update {entry.id} was rolled back ({_names(undone) or 'nothing of it stood'}): {run.entry.reason}"


def _why(entry: Entry) -> str:
    if entry.reason:
        return entry.reason
    return f"not confirmed within {entry.seconds} seconds" if entry.state == "pending" else "it was interrupted"


def _completed_note(entry: Entry) -> str:
    """Everything the stored files want stands: the update came through, only its last word did not."""
    standing = _standing(entry)
    journal.save(entry._replace(state="done", steps=standing, reason="interrupted after its last commit"))
    _undo_files(entry)
    return f"the update {entry.id} was interrupted after committing {_names(standing) or 'nothing'}; all is in sync"


def _roll_back(run: _Run, why: str, placement: str = "after") -> Tuple[Step, ...]:
    """Undo what stands of an update, the last step first; the steps that this took.

    It goes on past what resists, and says so in its error. The entry stays unfinished then: it is tried again.
    """
    _write_down(run, state="rolling_back", reason=why)
    undone: List[Step] = []
    failures: List[str] = []
    for index, step in reversed(list(enumerate(run.entry.steps))):
        try:
            here = rollback_room.standing(step)
            if here:
                undone += rollback_room.roll_back(here, placement, time.monotonic() + ROLL_BACK_SECONDS)
        except Exception as err:  # noqa: BLE001 (memory, threads: nothing may keep us from the other steps)
            failures.append(f"{_names([step])}: {str(err) or type(err).__name__}")
        else:
            gone = step._replace(state="rolled_back")
            _write_down(run, steps=run.entry.steps[:index] + (gone,) + run.entry.steps[index + 1 :])
    try:
        files.restore(run.entry.files)
    except HostError as err:
        failures.append(str(err))
    if failures:
        raise HostError(f"{why}. And what was done could not be rolled back: {'; '.join(failures)}")
    files.drop(run.entry.files)
    _write_down(run, state="rolled_back", deadline=None, reason=". ".join([why] + _told(undone)))
    return tuple(undone)


def _told(steps: Iterable[Step]) -> List[str]:
    return [warning for step in steps for plan in step.plans.values() for warning in plan.warnings]


def _write_down(run: _Run, **changes) -> None:
    """Rolling back must go on even when the disk is full: the next run looks at the kernel anyway."""
    try:
        run.save(**changes)
    except Exception as err:  # noqa: BLE001 (as little memory as there may be)
        log.error("%s", str(err) or type(err).__name__)


def _standing(entry: Entry) -> Tuple[Step, ...]:
    """What was committed of an entry."""
    return tuple(step for step in map(rollback_room.standing, entry.steps) if step)


def _names(steps: Iterable[Step]) -> str:
    return ", ".join(dict.fromkeys(f"{label(step.family)}/{step.table}" for step in steps))


def rollback(identifier: Optional[str], wait: int, placement: str = "refuse", test: bool = False) -> RolledBack:
    """Roll the last update, or the named one, back by inverse delta; all of it or, where one chain refuses, nothing."""
    with journal.lock(wait):
        run = _Run(_chosen(identifier))
        plans = _undoing(run.entry, placement)
        if test or any(plan.refusals for _, plan in plans):
            return RolledBack(run.entry, plans, done=False)
        undone = _roll_back(run, "rollback was asked for", placement)
        carried_out = tuple((_key(step, chain), plan) for step in undone for chain, plan in step.plans.items())
        return RolledBack(run.entry, carried_out, done=True)


def _undoing(entry: Entry, placement: str) -> Tuple[Tuple[str, ChainPlan], ...]:
    """What rolls the update back: the last step first, each planned for what the one before leaves."""
    plans = []
    deadline = time.monotonic() + ROLL_BACK_SECONDS
    tables: Dict[Tuple[str, str], Dict[str, Optional[Chain]]] = {}
    for step in reversed(_standing(entry)):
        table = tables.setdefault((step.family, step.table), {})
        for chain, plan in rollback_room.inverse(step, table, placement, deadline).items():
            plans.append((_key(step, chain), plan))
            if plan.edits:
                table[chain] = None if plan.removes_chain() else plan.result
    return tuple(plans)


def _key(step: Step, chain: str) -> str:
    return chain_key(step.family, step.table, chain)


def _chosen(identifier: Optional[str]) -> Entry:
    if identifier is not None:
        entry = _known(identifier)
        if entry.boot != journal.boot_id() or entry.state in ("rolled_back", "continued"):
            raise InputError(f"the update {identifier} cannot be rolled back: it is {_why_not(entry)}")
        return entry
    known = [entry for entry in journal.entries() if entry.boot == journal.boot_id()]
    done = [entry for entry in known if entry.steps and entry.state in ("done",) + journal.UNFINISHED]
    if not done:
        raise HostError("there is no update to roll back since this host was booted")
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


def expire(known: Entry, why: str, wait: int) -> Entry:
    """Roll an update back that nobody is working on (we have the lock), unless it may still wait or is settled.

    Where the journal has lost the entry it is rolled back as it was ``known``.
    """
    with journal.lock(wait):
        found = _readable(known.id)
        run = _Run(found or known)
        if found is None:
            _roll_back(run, f"{why}. The journal had lost its entry")
        elif found.state in journal.UNFINISHED and not journal.seconds_left(found):
            _roll_back(run, why if found.state == "pending" else _why(found))
        return run.entry


def _readable(identifier: str) -> Optional[Entry]:
    with contextlib.suppress(HostError):
        return journal.load(identifier)
    return None


def settled(entry: Optional[Entry]) -> Optional[Entry]:
    """An update that must be confirmed: one that confirms by itself is waited for, one that somebody must is not."""
    if entry is None or entry.state != "pending":
        return None
    return outcome(entry.id) if entry.checks else entry


def outcome(identifier: str) -> Entry:
    """Wait until a guarded update is confirmed or rolled back. Where its watchdog is gone, we roll it back."""
    entry = _known(identifier)
    if entry.boot != journal.boot_id():
        raise InputError(f"the update {identifier} is of an earlier boot")
    while entry.state in journal.UNFINISHED:
        if journal.since_boot() > (entry.deadline or 0) + WATCHDOG_SECONDS:
            entry = expire(entry, f"{_why(entry)}, and its watchdog is gone", ROLL_BACK_SECONDS)
            continue
        time.sleep(0.2)
        entry = _readable(identifier) or entry
    return entry


def _known(identifier: str) -> Entry:
    entry = journal.load(identifier)
    if entry is None:
        raise InputError(f"there is no update {identifier!r} in the journal")
    return entry


def _nothing_pending(identifier: Optional[str]) -> str:
    known = [entry for entry in journal.entries() if identifier in (None, entry.id)]
    last = f"; the last one, {known[-1].id}, is {known[-1].state.replace('_', ' ')}" if known else ""
    return f"no update{f' {identifier}' if identifier else ''} waits for a confirmation{last}"
