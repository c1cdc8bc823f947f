"""Which stored file counts, its content, and putting a new one in its place."""

import contextlib
import errno
import os
import stat
from typing import Dict, Iterable, Mapping, Optional, Tuple

from _iptlive_family import label
from _iptlive_model import HostError
from _iptlive_stored import StoredFile, parse

LARGEST = 64 << 20  # bytes: 800,000 rules


def read(family: str, candidates: Iterable[str]) -> StoredFile:
    """Read the one of the candidates that exists; none or several are an error, as in the original script."""
    path = choose(family, candidates)
    if not os.path.isfile(path):
        raise HostError(f"{path}: is not a file. Name the stored file in 'files'")
    try:
        return parse(family, path, load(path))
    except OSError as err:
        raise HostError(f"{path}: cannot be read: {err.strerror}") from err


def load(path: str) -> bytes:
    """What a regular file holds, unless it is larger than any rules. Raises OSError."""
    # A pipe is not waited for.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is no regular file", path)
        if status.st_size > LARGEST:  # a sparse file takes no room on the disk, but would in memory
            raise OSError(errno.EFBIG, f"is larger than the {LARGEST >> 20} MiB that are read", path)
        return file.read(LARGEST)


def check_all(candidates: Mapping[str, Iterable[str]]) -> None:
    """Raise one HostError for all the families whose stored file is missing or not the only one."""
    found = []
    for family, names in candidates.items():
        try:
            choose(family, names)
        except HostError as err:
            found.append(str(err))
    if found:
        raise HostError(". ".join(found))


def choose(family: str, candidates: Iterable[str]) -> str:
    names: Tuple[str, ...] = tuple(candidates)
    there = [path for path in names if os.path.exists(path)]
    if len(there) == 1:
        return there[0]
    listed = ", ".join(there or names)
    if not there:
        raise HostError(
            f"{label(family)}: no stored file: expected exactly one of {listed}. Create it (iptlive.export writes "
            f"one from the live rules), name it in 'files', or take '{family}' out of 'families'"
        )
    raise HostError(
        f"{label(family)}: {len(there)} stored files, expected exactly one: {listed}. Remove all but one, or name "
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
        return load(path)
    except FileNotFoundError:
        return None
    except OSError as err:
        raise HostError(f"{path}: cannot be read: {err.strerror}") from err


def beside(paths: Iterable[str], mark: str) -> Dict[str, str]:
    """Where new content waits to be put in place: on the same disk, so that a name is all that is still to change."""
    real = {path: os.path.realpath(path) for path in paths}
    return {
        path: os.path.join(os.path.dirname(place), f".{os.path.basename(place)}.iptlive-{mark}")
        for path, place in real.items()
    }


def prepare(waiting: Mapping[str, str], contents: Mapping[str, bytes]) -> None:
    """Write the waiting files, so that nothing can fail any more when they are put in place. Raises HostError."""
    try:
        for path in waiting:
            _write(waiting[path], contents[path])
    except OSError as err:
        drop(waiting)
        raise HostError(f"{path}: cannot be written: {err.strerror}; nothing was changed") from err


def _write(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def put(waiting: Mapping[str, str]) -> None:
    """Put the waiting files in place: all of them or, with a HostError, none.

    Until ``drop`` the new ones are in both places, and the former ones are kept beside, so that ``restore`` can undo
    what a killed run has done of it.
    """
    path = ""
    try:
        for path, name in waiting.items():
            if not _keep(os.path.realpath(path), name + _FORMER):
                _write(name + _ABSENT, b"")
            _keep(name, name + _LATEST)
        for path, name in waiting.items():
            os.replace(name + _LATEST, os.path.realpath(path))
    except OSError as err:
        restore(waiting)
        raise HostError(f"{path}: the new file {name} cannot be put in its place: {err.strerror}") from err


_FORMER, _ABSENT, _LATEST = ".former", ".absent", ".latest"


def _keep(path: str, name: str) -> bool:
    """Give a file another name, or copy it where the file system knows no second names; False where there is none."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name)
    try:
        os.link(path, name)
    except FileNotFoundError:
        return False
    except OSError:
        with open(path, "rb") as file:
            _write(name, file.read())
    return True


def restore(waiting: Mapping[str, str]) -> None:
    """Have the former files in place again, where the waiting ones are. Raises HostError."""
    for path, name in waiting.items():
        real = os.path.realpath(path)
        new = content(name)
        if new is None or content(real) != new:
            continue
        try:
            if os.path.exists(name + _FORMER):
                _keep(name + _FORMER, name + _LATEST)
                os.replace(name + _LATEST, real)
            elif os.path.exists(name + _ABSENT):
                os.unlink(real)
        except OSError as err:
            raise HostError(f"{path}: the former file {name}{_FORMER} cannot be put back: {err.strerror}") from err


def drop(waiting: Mapping[str, str]) -> None:
    """Forget them; those that are in place are not touched."""
    for name in waiting.values():
        for ending in ("", _FORMER, _ABSENT, _LATEST):
            with contextlib.suppress(OSError):
                os.unlink(name + ending)
