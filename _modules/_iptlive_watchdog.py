"""Rolls an update back at its deadline unless it was confirmed: a process of its own, outside the Salt job.

It runs from a copy of these rooms below ``/var/lib/iptlive``, so it outlives the minion, a salt-ssh session and the
files that salt-ssh removes. It looks at the journal only, and needs nothing but Python and the iptables programs.
"""

import contextlib
import glob
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from typing import List, Tuple

import _iptlive_journal as journal
import _iptlive_update as update
from _iptlive_journal import BusyError, Entry
from _iptlive_model import HostError

START_SECONDS = 15
CONNECT_SECONDS = 3
INTERVAL = 0.3
RETRY_INTERVAL = 5


def arm(entry: Entry) -> None:
    """Start the watchdog over an entry, and return when it watches; raises HostError where it cannot be started."""
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


def _detached(identifier: str) -> List[str]:
    """The program that starts it out of reach of whoever ends the minion's, or the session's, processes."""
    if os.path.isdir("/run/systemd/system") and shutil.which("systemd-run") and _in_systemds_network():
        return ["systemd-run", "--quiet", "--collect", "--unit", f"iptlive-{identifier}"]
    return ["setsid", "--fork"]


def _in_systemds_network() -> bool:
    """A unit runs in the network namespace of systemd: with other rules than ours, where ours is another one."""
    try:
        return os.path.samefile("/proc/1/ns/net", "/proc/self/ns/net")
    except OSError:
        return True  # it cannot be told, and hardly a host has two


def _wait_until_armed(identifier: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not os.path.exists(_armed_mark(identifier)):
        if time.monotonic() > deadline:
            raise HostError(f"the watchdog over the update did not start within {START_SECONDS} seconds")
        time.sleep(0.02)


def _armed_mark(identifier: str) -> str:
    return os.path.join(journal.watchdog_folder(identifier), "armed")


def watch(identifier: str) -> None:
    """Until the entry is settled; what is done about it is written into the journal."""
    with open(_armed_mark(identifier), "w", encoding="ascii") as mark:
        mark.write(str(os.getpid()))
    unreachable: List[str] = []
    pause = 0.0
    while True:
        time.sleep(pause)
        pause = INTERVAL
        try:
            entry = journal.load(identifier)
            if entry is None or entry.state not in journal.UNFINISHED:
                return
            left = journal.seconds_left(entry)
            if left and entry.checks:
                unreachable = _unreachable(entry.checks, min(left, CONNECT_SECONDS))
            _look_after(entry, unreachable)
        except BusyError:
            continue  # somebody else is at work
        except (HostError, OSError) as err:  # whatever the host refuses now, it may grant later
            sys.stderr.write(f"{err}\n")  # for systemd's journal
            pause = RETRY_INTERVAL


def _look_after(entry: Entry, unreachable: List[str]) -> None:
    """Confirm it, or roll it back: at its deadline, and at once where the run that was making it has died."""
    if journal.seconds_left(entry):
        if entry.checks and not unreachable:
            update.confirm(entry.id, 0)
        return
    why = f"not confirmed within {entry.seconds} seconds"
    if unreachable:
        why = f"{', '.join(unreachable)} could not be reached within {entry.seconds} seconds"
    elif entry.reason:  # its confirmation was tried, and failed
        why += f": {entry.reason}"
    update.expire(entry.id, why, 0)


def _unreachable(checks: Tuple[str, ...], seconds: float) -> List[str]:
    """In threads, for a name server that gives no answer must not make us miss the deadline."""
    reached: List[str] = []
    threads = [threading.Thread(target=_try, args=(check, reached), daemon=True) for check in checks]
    for thread in threads:
        thread.start()
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0, end - time.monotonic()))
    return [check for check in checks if check not in reached]


def _try(check: str, reached: List[str]) -> None:
    """Whether a new connection can be opened."""
    with contextlib.suppress(OSError):
        socket.create_connection(_address(check), timeout=CONNECT_SECONDS).close()
        reached.append(check)


def _address(check: str) -> Tuple[str, int]:
    host, _, port = check.rpartition(":")
    return host.strip("[]"), int(port)


def main() -> None:
    identifier = sys.argv[1]
    try:
        watch(identifier)
    finally:
        shutil.rmtree(journal.watchdog_folder(identifier), ignore_errors=True)


if __name__ == "__main__":
    main()
