"""What was planned, sent and committed, kept on disk so that whoever comes next knows it, whatever happened to us.

Below ``/var/lib/iptlive`` (root only) each update has one JSON file, replaced atomically before the step that it
announces is taken. Its first line holds all but the steps, which may have megabytes and which few want to know. The
folder's lock lets one run at a time change anything.

Updates are numbered in the order they were made, under the lock: a host's clock may be set back.
"""

import contextlib
import fcntl
import glob
import json
import os
import shutil
import signal
import time
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from _iptlive_model import FOLDER, Chain, ChainPlan, Edit, HostError, Table

KEEP = 20

# open: being made. pending: committed, unconfirmed. rolling_back: being undone. The others (done, rolled_back,
# continued: another update has taken its steps over) are final.
UNFINISHED = ("open", "pending", "rolling_back")
# An update may wait for its confirmation across an upgrade, and its watchdog is of the version that began it.
_FORMER_WORDS = {"taken_back": "rolled_back", "taking_back": "rolling_back"}


class BusyError(HostError):
    """Another run holds the lock."""


class Step(NamedTuple):
    """One table's transaction: the chains it changes, as they were before, and the plans it carries out.

    ``chains`` names all chains that the table had; none where only built-in ones are changed, which keep their names.
    """

    family: str
    backend: str
    table: str
    before: Table
    plans: Dict[str, ChainPlan]
    state: str = "sent"  # sent (it may or may not have been committed), committed, rolled_back
    chains: Tuple[str, ...] = ()


class Entry(NamedTuple):
    """One update; ``deadline`` counts in seconds since boot, ``files`` are new stored files and where they wait."""

    id: str
    state: str
    boot: str
    pid: int
    started: str
    steps: Tuple[Step, ...] = ()
    seconds: int = 0
    deadline: Optional[float] = None
    checks: Tuple[str, ...] = ()
    reason: str = ""
    files: Mapping[str, str] = {}
    number: int = 0  # counts up with each update
    addresses: Mapping[str, Tuple[Tuple[str, int], ...]] = {}  # of each of the checks


def since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def seconds_left(entry: Entry) -> float:
    """How long an update may still wait for its confirmation; 0 where it does not wait (any more)."""
    if entry.state != "pending" or entry.deadline is None:
        return 0
    return max(0, entry.deadline - since_boot())


def new_entry(seconds: int, checks: Tuple[str, ...], addresses: Mapping[str, Tuple[Tuple[str, int], ...]]) -> Entry:
    """An entry for an update that begins now, the last of all."""
    now = time.time()
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
    return Entry(
        id=f"{stamp}-{int(now * 1000) % 1000:03d}-{os.getpid()}",
        state="open",
        boot=boot_id(),
        pid=os.getpid(),
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        seconds=seconds,
        checks=checks,
        number=1 + max((entry.number for entry in entries(steps=False)), default=0),
        addresses=addresses,
    )


@contextlib.contextmanager
def lock(wait: float) -> Iterator[None]:
    """Only one run at a time may change anything; raises BusyError naming the other one."""
    with _lock_file() as file:
        deadline = time.monotonic() + wait
        while not _try_lock(file):
            if time.monotonic() > deadline:
                file.seek(0)
                raise BusyError(
                    f"another iptlive run (process {file.read().decode() or 'unknown'}) is changing this host; waited "
                    f"{int(wait)} seconds. Try again when it has ended"
                )
            time.sleep(0.05)
        _sign(file)
        held.append(file.fileno())
        try:
            yield
        finally:
            held.remove(file.fileno())


# The descriptors of the lock that we hold. A program that may commit is given them: should we be killed, the lock is
# free only when that program has ended too, and whoever comes next finds what it has done.
held: List[int] = []


def end_holders() -> List[int]:
    """SIGKILL for every process that holds the lock, and what was killed.

    It holds the lock who has its file open in the way that locked it: those who only wait for it are let be.
    """
    killed = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        started = _started(pid)
        if int(pid) != os.getpid() and started and _holds_lock(pid) and _started(pid) == started:
            with contextlib.suppress(OSError):
                os.kill(int(pid), signal.SIGKILL)
                killed.append(int(pid))
    return killed


def _started(pid: str) -> Optional[str]:
    """When a process was started; with its number it is one of a kind. None where it has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _holds_lock(pid: str) -> bool:
    try:
        lock_file = os.stat(os.path.join(FOLDER, "lock"))
        for number in os.listdir(f"/proc/{pid}/fd"):
            found = os.stat(f"/proc/{pid}/fd/{number}")
            if (found.st_dev, found.st_ino) == (lock_file.st_dev, lock_file.st_ino):
                with open(f"/proc/{pid}/fdinfo/{number}", encoding="ascii") as file:
                    if "FLOCK" in file.read():
                        return True
    except OSError:
        pass  # it has ended, or has closed it
    return False


def _lock_file():
    """On a disk that is full or read-only by now, the file of an earlier run will do: rolling back must go on."""
    path = os.path.join(FOLDER, "lock")
    try:
        os.makedirs(_journal_folder(), mode=0o700, exist_ok=True)
        os.chmod(FOLDER, 0o700)
        return open(path, "a+b", buffering=0, opener=_private)
    except OSError as err:
        if os.path.exists(path):
            return open(path, "rb", buffering=0)
        raise _unwritable(err) from err


def _try_lock(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(file) -> None:
    with contextlib.suppress(OSError):
        file.truncate(0)
        file.write(str(os.getpid()).encode())


def _journal_folder() -> str:
    return os.path.join(FOLDER, "journal")


def watchdog_folder(identifier: str) -> str:
    return os.path.join(FOLDER, "watchdog", identifier)


def _unwritable(err: OSError) -> HostError:
    return HostError(
        f"the journal below {FOLDER} cannot be written ({err.strerror}), and no update is made without one. "
        "Make room, or make the folder writable"
    )


def save(entry: Entry, flush: bool = True, first: Callable[[], None] = lambda: None) -> None:
    """Replace the entry's file; with ``flush`` it is on the disk after the return. Raises HostError.

    ``first`` is done when the new one is written and nobody can see it yet; where it fails, the old one stays.
    """
    path = os.path.join(_journal_folder(), entry.id + ".json")
    try:
        with open(path + ".new", "w", encoding="ascii", opener=_private) as file:
            file.write(_to_json(entry))
            file.flush()
            if flush:
                os.fsync(file.fileno())
        first()
        os.replace(path + ".new", path)
        if flush:
            _flush_folder()
    except OSError as err:
        raise _unwritable(err) from err


def _flush_folder() -> None:
    folder = os.open(_journal_folder(), os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def load(identifier: Any, steps: bool = True) -> Optional[Entry]:
    """The entry, or None; ``steps``: with them."""
    if not isinstance(identifier, str) or os.path.basename(identifier) != identifier:
        return None
    try:
        with open(os.path.join(_journal_folder(), identifier + ".json"), encoding="ascii") as file:
            return _from_json(json.loads(file.read() if steps else _head(file.readline())), steps)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise HostError(
            f"the journal's entry {os.path.join(_journal_folder(), identifier)}.json cannot be read ({err}), so nobody "
            "can tell whether that update still waits or was left half done. Compare the kernel's rules with what you "
            "want there, then remove the file"
        ) from err


def _identifiers() -> List[str]:
    try:
        names = os.listdir(_journal_folder())
    except FileNotFoundError:
        return []
    except OSError as err:
        raise HostError(f"the journal below {FOLDER} cannot be read: {err.strerror}") from err
    return sorted(name[: -len(".json")] for name in names if name.endswith(".json"))


def entries(steps: bool = True) -> List[Entry]:
    """All entries that can be read, in the order in which they were made."""
    found = [_readable(identifier, steps) for identifier in _identifiers()]
    return sorted((entry for entry in found if entry), key=lambda entry: (entry.number, entry.id))


def _readable(identifier: str, steps: bool) -> Optional[Entry]:
    with contextlib.suppress(HostError):
        return load(identifier, steps)
    return None


def damaged() -> List[str]:
    """What is wrong with the entries that cannot be read, though an update may wait that they tell of."""
    boot, wrong = boot_id(), []
    for identifier in _identifiers():
        try:
            head = load(identifier, steps=False)
            if head and head.state in UNFINISHED and head.boot == boot:
                load(identifier)
        except HostError as err:
            wrong.append(str(err))
    return wrong


def unfinished() -> List[Entry]:
    """The entries of this boot that are not in a final state; with a reboot all of the kernel's rules are gone."""
    boot = boot_id()
    heads = [entry for entry in entries(steps=False) if entry.state in UNFINISHED and entry.boot == boot]
    return [entry for entry in (_readable(head.id, True) for head in heads) if entry and entry.state in UNFINISHED]


def prune() -> None:
    """Forget the oldest entries, and what killed runs left behind; unfinished entries of this boot are kept."""
    kept = {entry.id for entry in unfinished()}
    for entry in entries(steps=False)[:-KEEP]:
        if entry.id not in kept:
            _remove(os.path.join(_journal_folder(), entry.id + ".json"))
    for path in glob.glob(os.path.join(_journal_folder(), "*.new")):
        _remove(path)
    for path in glob.glob(watchdog_folder("*")):
        if os.path.basename(path) not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.remove(path)


def _to_json(entry: Entry) -> str:
    head = _without_defaults(entry, ("number", "addresses"))
    steps = [_step_to_json(step) for step in head.pop("steps")]
    return json.dumps(head)[:-1] + ',\n"steps": ' + json.dumps(steps) + "}"


def _without_defaults(record: NamedTuple, names: Tuple[str, ...]) -> Dict[str, Any]:
    """Without those fields that say nothing: the watchdog of an earlier version does not know them."""
    data = record._asdict()
    return {name: value for name, value in data.items() if name not in names or value}


def _head(line: str) -> str:
    """All but the steps, which follow in the next line."""
    return line if line.endswith("}") else line.rstrip(",\n") + "}"


def _step_to_json(step: Step) -> Dict[str, Any]:
    return dict(
        _without_defaults(step, ("chains",)),
        plans={chain: {"edits": plan.edits, "result": plan.result} for chain, plan in step.plans.items()},
    )


def _from_json(data: Dict[str, Any], steps: bool) -> Entry:
    data["state"] = _FORMER_WORDS.get(data["state"], data["state"])
    data["checks"] = tuple(data["checks"])
    data["addresses"] = {
        check: tuple((host, port) for host, port in found) for check, found in data.get("addresses", {}).items()
    }
    data["steps"] = tuple(_step_from_json(step) for step in data["steps"]) if steps else ()
    return Entry(**data)


def _step_from_json(data: Dict[str, Any]) -> Step:
    data["state"] = _FORMER_WORDS.get(data["state"], data["state"])
    data["before"] = {chain: _chain(state) for chain, state in data["before"].items()}
    data["plans"] = {
        chain: ChainPlan(edits=tuple(Edit(*edit) for edit in plan["edits"]), result=_chain(plan["result"]))
        for chain, plan in data["plans"].items()
    }
    data["chains"] = tuple(data.get("chains", ()))
    return Step(**data)


def _chain(state: List[Any]) -> Chain:
    return Chain(state[0], tuple(state[1]))


def waits(entry: Entry) -> str:
    return f"the update {entry.id} waits for its confirmation, {int(seconds_left(entry))} seconds are left"


def notices() -> List[str]:
    """What the journal has to say to somebody who only looks."""
    said = damaged()
    for entry in unfinished():
        if seconds_left(entry):
            said.append(waits(entry))
        else:
            said.append(f"the update {entry.id} was interrupted; the next apply completes it or rolls it back")
    return said
