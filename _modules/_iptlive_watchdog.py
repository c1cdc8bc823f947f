"""Rolls an update back at its deadline unless it was confirmed: a process of its own, outside the Salt job.

It runs from a copy of these rooms below ``/var/lib/iptlive``, so it outlives the minion, a salt-ssh session and the
files that salt-ssh removes. It looks at the journal only, and needs nothing but Python and the iptables programs.

It holds a lock on its mark for as long as it lives: the job looks at that before it commits, and before it says that
the update waits. It ends when the update is settled and not before, whatever the host does to it: it starts no threads,
asks no name server, remembers the journal's entry should that be lost, and ends whoever still holds the lock after the
deadline.
"""

import contextlib
import fcntl
import functools
import glob
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import Callable, List, Optional

import _iptlive_journal as journal
import _iptlive_reach as reach
import _iptlive_rollback as rollback
import _iptlive_update as update
from _iptlive_journal import BusyError, Entry
from _iptlive_model import HostError

START_SECONDS = 15
CONNECT_SECONDS = 3
INTERVAL = 0.3
RETRY_INTERVAL = 5
LOCK_SECONDS = 5  # so long whoever has the lock at the deadline may go on: it may be confirming the update
ROLL_BACK_SECONDS = 60  # or rolling it back
# What a service manager does not hand on, and the programs are to find and do the same by as in the job.
ENVIRONMENT = ("PATH", "XTABLES_LOCKFILE")


def arm(entry: Entry) -> Callable[[], bool]:
    """Start the watchdog over an entry, and return when it watches: with a function that tells whether it still does.

    Raises HostError where it cannot be started.
    """
    folder = journal.watchdog_folder(entry.id)
    try:
        os.makedirs(folder, mode=0o700)
        for room in glob.glob(os.path.join(os.path.dirname(os.path.abspath(__file__)), "_iptlive_*.py")):
            shutil.copy(room, folder)
        script = os.path.join(folder, os.path.basename(__file__))
        subprocess.run(
            _detached(entry.id) + [sys.executable, "-s", "-E", script, entry.id],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            timeout=START_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as err:
        raise HostError(f"the watchdog over the update could not be started: {err}") from err
    _wait_until_armed(entry.id)
    return functools.partial(is_watched, entry.id)


def is_watched(identifier: str) -> bool:
    """Whether the watchdog over this entry lives."""
    try:
        with open(_armed_mark(identifier), "rb") as mark:
            fcntl.flock(mark, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _detached(identifier: str) -> List[str]:
    """The program that starts it out of reach of whoever ends the minion's, or the session's, processes."""
    if os.path.isdir("/run/systemd/system") and shutil.which("systemd-run") and _in_systemds_network():
        handed_on = [f"--setenv={name}={os.environ[name]}" for name in ENVIRONMENT if name in os.environ]
        return ["systemd-run", "--quiet", "--collect", "--unit", f"iptlive-{identifier}", *handed_on]
    return ["setsid", "--fork"]


def _in_systemds_network() -> bool:
    """A unit runs in the network namespace of systemd: with other rules than ours, where ours is another one."""
    try:
        return os.path.samefile("/proc/1/ns/net", "/proc/self/ns/net")
    except OSError:
        return True  # it cannot be told, and hardly a host has two


def _wait_until_armed(identifier: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_watched(identifier):
        if time.monotonic() > deadline:
            raise HostError(f"the watchdog over the update did not start within {START_SECONDS} seconds")
        time.sleep(0.02)


def _armed_mark(identifier: str) -> str:
    return os.path.join(journal.watchdog_folder(identifier), "armed")


def watch(identifier: str) -> None:
    """Until the entry is settled; what is done about it is written into the journal."""
    with _mark(identifier):
        watched = _Watched(identifier)
        pause = 0.0
        while watched.waits:
            try:
                time.sleep(pause)
                pause = INTERVAL
                watched.look()
            except BusyError:
                continue  # somebody else is at work
            except Exception as err:  # noqa: BLE001 (whatever the host refuses now, it may grant later)
                _say(str(err) or type(err).__name__)
                pause = RETRY_INTERVAL


@contextlib.contextmanager
def _mark(identifier: str):
    with open(_armed_mark(identifier), "wb", buffering=0) as mark:
        with contextlib.suppress(OSError):  # a full disk: the lock is what counts
            mark.write(str(os.getpid()).encode())
        fcntl.flock(mark, fcntl.LOCK_EX)
        yield


def _say(text: str) -> None:
    """For systemd's journal, without waiting for it."""
    with contextlib.suppress(OSError):
        os.set_blocking(2, False)
        os.write(2, text.encode("utf-8", "backslashreplace") + b"\n")


class _Watched:
    """The update that is watched, as the journal last told of it."""

    def __init__(self, identifier: str):
        self.waits = True
        self._id = identifier
        self._entry: Optional[Entry] = None
        self._unreachable: List[str] = []

    def look(self) -> None:
        """Confirm it, or roll it back: at its deadline, and at once where the run that was making it has died."""
        entry, lost = self._known()
        if entry is None or entry.state not in journal.UNFINISHED:
            self.waits = False
        elif lost:
            update.expire(entry, "it could no longer be confirmed", 0)
        elif not journal.seconds_left(entry):
            self._roll_back(entry)
        elif entry.checks:
            self._unreachable = reach.unreached(entry.addresses, min(journal.seconds_left(entry), CONNECT_SECONDS))
            if not self._unreachable:
                update.confirm(entry.id, 0)

    def _known(self):
        """The entry, and whether it is only remembered."""
        try:
            found = journal.load(self._id)
        except HostError:
            found = None
        self._entry = found or self._entry
        rollback.learn(found.steps if found else ())
        return self._entry, found is None

    def _roll_back(self, entry: Entry) -> None:
        why = f"not confirmed within {entry.seconds} seconds"
        if self._unreachable:
            why = f"{', '.join(self._unreachable)} could not be reached within {entry.seconds} seconds"
        elif entry.reason:  # its confirmation was tried, and failed
            why += f": {entry.reason}"
        try:
            update.expire(entry, why, 0)
        except BusyError:
            patience = ROLL_BACK_SECONDS if entry.state == "rolling_back" else LOCK_SECONDS
            if journal.since_boot() > (entry.deadline or 0) + patience:
                journal.end_holders()
            raise


def main() -> None:
    identifier = sys.argv[1]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        watch(identifier)
    finally:
        shutil.rmtree(journal.watchdog_folder(identifier), ignore_errors=True)


if __name__ == "__main__":
    main()
