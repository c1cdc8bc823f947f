"""The xtables lock, held by us for restore programs that take none (before 1.6.2).

Without it a rule that somebody else writes at the same time may be lost, and nobody would be told.
"""

import contextlib
import errno
import fcntl
import os
import socket
import time
from typing import Callable, Iterator, Tuple

PATH = "/run/xtables.lock"  # what the command line programs lock since 1.6.0
NAME = "\0xtables"  # and what they bind before


class BusyError(Exception):
    """Somebody else has held it all the time."""


@contextlib.contextmanager
def held(seconds: float) -> Iterator[Tuple[int, int]]:
    """Both kinds of it, for nobody knows which programs the others use; the descriptors keep it held.

    Raises BusyError after so many seconds.
    """
    deadline = time.monotonic() + seconds
    with open(PATH, "ab", opener=_private) as file, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as name:
        _until(lambda: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB), deadline)
        _until(lambda: name.bind(NAME), deadline)
        yield file.fileno(), name.fileno()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _until(take: Callable[[], None], deadline: float) -> None:
    while True:
        try:
            return take()
        except OSError as err:
            if err.errno not in (errno.EAGAIN, errno.EADDRINUSE):
                raise
            if time.monotonic() > deadline:
                raise BusyError from err
        time.sleep(0.005)
