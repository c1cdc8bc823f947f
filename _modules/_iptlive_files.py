"""Which stored file counts, its content, and putting a new one in its place."""

import contextlib
import os
import tempfile
from typing import Iterable, Mapping, Optional, Tuple

from _iptlive_model import FAMILIES, HostError
from _iptlive_stored import StoredFile, parse


def read(family: str, candidates: Iterable[str]) -> StoredFile:
    """Read the one of the candidates that exists; none or several are an error, as in the original script."""
    path = choose(family, candidates)
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as err:
        raise HostError(f"{path}: cannot be read: {err.strerror}") from err
    return parse(family, path, data)


def choose(family: str, candidates: Iterable[str]) -> str:
    names: Tuple[str, ...] = tuple(candidates)
    there = [path for path in names if os.path.exists(path)]
    if len(there) == 1:
        return there[0]
    listed = ", ".join(there or names)
    if not there:
        raise HostError(
            f"{FAMILIES[family]}: no stored file: expected exactly one of {listed}. Create it (iptlive.export writes "
            f"one from the live rules), name it in 'files', or take '{family}' out of 'families'"
        )
    raise HostError(
        f"{FAMILIES[family]}: {len(there)} stored files, expected exactly one: {listed}. Remove all but one, or name "
        "the right one in 'files'"
    )


def destination(family: str, candidates: Iterable[str]) -> str:
    """Where a new stored file belongs: the one there is, else the first candidate whose folder there is."""
    names = tuple(candidates)
    if any(map(os.path.exists, names)):
        return choose(family, names)
    return next((path for path in names if os.path.isdir(os.path.dirname(path))), names[0])


def content(path: str) -> Optional[bytes]:
    """What a file holds; None where there is none. Raises HostError."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as err:
        raise HostError(f"{path}: cannot be read: {err.strerror}") from err


@contextlib.contextmanager
def prepared(files: Mapping[str, bytes]):
    """Write files beside their places, so that nothing can fail any more when they are moved there.

    Yields a function that moves them all. What it was not called for is removed. Raises HostError.
    """
    waiting = {}
    try:
        try:
            for path, data in files.items():
                waiting[path] = _beside(os.path.realpath(path), data)
        except OSError as err:
            raise HostError(f"{path}: cannot be written: {err.strerror}; nothing was changed") from err

        def move():
            for path in list(waiting):
                os.replace(waiting[path], os.path.realpath(path))
                del waiting[path]

        yield move
    finally:
        for left in waiting.values():
            os.unlink(left)


def _beside(path: str, data: bytes) -> str:
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".iptlive-", dir=folder)  # mode 0600
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return name
