"""Programs run in the clone: several at a time, with input and output in memory, and never beyond our own end."""

import ctypes
import os
import signal
import time
from typing import List, NamedTuple, Optional, Sequence, Tuple

from _iptlive_model import HostError

_TIMEOUT = 120  # seconds for one program
_DIE_WITH_PARENT = 1
_NEW_MOUNTS, _BIND, _PRIVATE, _ALL_BELOW = 0x20000, 1 << 12, 1 << 18, 1 << 14
_LOCK, _OWN_LOCK = b"/run/xtables.lock", b"/tmp/xtables.lock"
_libc = ctypes.CDLL(None, use_errno=True)


class Command(NamedTuple):
    argv: Tuple[str, ...]
    stdin: str = ""


class Finished(NamedTuple):
    status: int
    out: str
    err: str


class Runner:
    """Runs programs in the clone, several at a time; they die with this process."""

    def __init__(self, path: str):
        # A lock of its own: nobody else writes here, and the host's may be held for us.
        self._environment = dict(os.environ, LC_ALL="C", PATH=path, XTABLES_LOCKFILE="/proc/self/fd/0")
        self._processors = os.sched_getaffinity(0)

    def run(self, commands: Sequence[Command]) -> List[Finished]:
        """Raises HostError for one that cannot be run or does not end."""
        started = [(command, *self._start(command)) for command in commands]
        deadline = time.monotonic() + _TIMEOUT
        return [self._finished(command, pid, files, deadline) for command, pid, files in started]

    def _start(self, command: Command) -> Tuple[int, List[int]]:
        files = [os.memfd_create("iptlive", 0) for _ in range(3)]
        _write_all(files[0], command.stdin)
        os.lseek(files[0], 0, os.SEEK_SET)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become(command, files, parent)
        return pid, files

    def _become(self, command: Command, files: Sequence[int], parent: int) -> None:
        try:
            _libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL)
            if os.getppid() == parent:
                _hide_lock()
                os.sched_setaffinity(0, self._processors)
                for number, file in enumerate(files):
                    os.dup2(file, number)
                os.execve(command.argv[0], list(command.argv), self._environment)
        finally:
            os._exit(127)

    def _finished(self, command: Command, pid: int, files: Sequence[int], deadline: float) -> Finished:
        status = _waited(pid, deadline)
        texts = [_read_all(file) for file in files[1:]]
        for file in files:
            os.close(file)
        if status in (None, 127):
            raise HostError(f"{command.argv[0]} {'cannot be run' if status else 'did not end'} in the clone")
        return Finished(status, *texts)


def _write_all(file: int, text: str) -> None:
    left = memoryview(text.encode("utf-8", "surrogateescape"))
    while left:
        left = left[os.write(file, left) :]


def _read_all(file: int) -> str:
    os.lseek(file, 0, os.SEEK_SET)
    with os.fdopen(os.dup(file), "rb") as source:
        return source.read().decode("utf-8", "surrogateescape")


def _waited(pid: int, deadline: float) -> Optional[int]:
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
        time.sleep(0.0003)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _hide_lock() -> None:
    """Programs before 1.8.6 know no other xtables lock than the one below /run, which somebody may hold."""
    if not os.path.exists(_LOCK) or _libc.unshare(_NEW_MOUNTS):
        return
    if _libc.mount(None, b"/", None, _PRIVATE | _ALL_BELOW, None) or _libc.mount(
        b"iptlive", b"/tmp", b"tmpfs", 0, None
    ):
        return
    os.close(os.open(_OWN_LOCK, os.O_CREAT | os.O_RDWR, 0o600))
    _libc.mount(_OWN_LOCK, _LOCK, None, _BIND, None)


def die_with_parent() -> None:
    """Be killed when the thread that started this process ends."""
    _libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL)
