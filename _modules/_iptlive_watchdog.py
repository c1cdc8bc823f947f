"""Takes an update back at its deadline unless it was confirmed: a process of its own, outside the Salt job.

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
import time
from typing import List, Tuple

import _iptlive_journal as journal
import _iptlive_update as update
from _iptlive_journal import Entry
from _iptlive_model import HostError

START_SECONDS = 15
CONNECT_SECONDS = 3
LOCK_SECONDS = 600
INTERVAL = 0.3


def arm(entry: Entry) -> None:
    """Start the watchdog over an entry, and return when it watches; raises HostError where it cannot be started."""
    folder = _folder(entry.id)
    try:
        os.makedirs(folder, mode=0o700)
        for room in glob.glob(os.path.join(os.path.dirname(os.path.abspath(__file__)), "_iptlive_*.py")):
            shutil.copy(room, folder)
        script = os.path.join(folder, os.path.basename(__file__))
        subprocess.Popen(
            _detached(entry.id) + [sys.executable, "-s", "-E", script, entry.id],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
    except OSError as err:
        raise HostError(f"the watchdog over the update could not be started: {err}. Nothing was changed") from err
    _wait_until_armed(entry.id)


def _detached(identifier: str) -> List[str]:
    """Under systemd a unit of its own: stopping the minion's, or the session's, would end all that they started."""
    if not os.path.isdir("/run/systemd/system") or not shutil.which("systemd-run"):
        return []
    return ["systemd-run", "--quiet", "--collect", "--unit", f"iptlive-{identifier}"]


def _wait_until_armed(identifier: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not os.path.exists(_armed_mark(identifier)):
        if time.monotonic() > deadline:
            raise HostError(f"the watchdog over the update did not start within {START_SECONDS} seconds")
        time.sleep(0.02)


def _folder(identifier: str) -> str:
    return os.path.join(journal.FOLDER, "watchdog", identifier)


def _armed_mark(identifier: str) -> str:
    return os.path.join(_folder(identifier), "armed")


def watch(identifier: str) -> None:
    """Until the entry is settled; what is done about it is written into the journal."""
    with open(_armed_mark(identifier), "w", encoding="ascii") as mark:
        mark.write(str(os.getpid()))
    unreachable: List[str] = []
    while True:
        entry = journal.load(identifier)
        if entry is None or entry.state not in journal.UNFINISHED:
            return
        if entry.state == "pending" and entry.checks:
            unreachable = [check for check in entry.checks if not _reachable(check)]
            if not unreachable:
                with contextlib.suppress(HostError):  # settled by somebody else, or tried again in a moment
                    update.confirm(identifier, LOCK_SECONDS)
                continue
        if entry.deadline is not None and journal.since_boot() > entry.deadline:
            update.expire(identifier, _why(entry, unreachable), LOCK_SECONDS)
            return
        time.sleep(INTERVAL)


def _why(entry: Entry, unreachable: List[str]) -> str:
    if unreachable:
        return f"{', '.join(unreachable)} could not be reached within {entry.seconds} seconds"
    return f"not confirmed within {entry.seconds} seconds"


def _reachable(check: str) -> bool:
    """Whether a new connection can be opened."""
    try:
        socket.create_connection(_address(check), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _address(check: str) -> Tuple[str, int]:
    host, _, port = check.rpartition(":")
    return host.strip("[]"), int(port)


def main() -> None:
    identifier = sys.argv[1]
    try:
        watch(identifier)
    finally:
        shutil.rmtree(_folder(identifier), ignore_errors=True)


if __name__ == "__main__":
    main()
