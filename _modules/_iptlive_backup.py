"""Backups: a host's stored files and kernel tables in a time-stamped folder, or packed for the way to the master.

The files' names are those of the original scripts. A folder appears whole or not at all, and is readable by root only.
"""

import base64
import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
import zlib
from typing import Any, Dict, List, Mapping, NamedTuple, Tuple

import _iptlive_kernel as kernel
import _iptlive_ways as ways
from _iptlive_family import FAMILIES
from _iptlive_files import load
from _iptlive_model import HostError, InputError
from _iptlive_options import Options
from _iptlive_printable import printable, printable_text

STORED_NAMES = {
    "/etc/iptables/rules.v4": "debian-v4-rules",
    "/etc/iptables/rules.v6": "debian-v6-rules",
    "/etc/sysconfig/iptables": "centos-v4-rules",
    "/etc/sysconfig/ip6tables": "centos-v6-rules",
}
PLACE = "/var/lib/iptlive/backup"  # unless another is named
# What one answer may hold: Salt cuts out of an event whatever makes it larger than max_event_size, 1 MiB.
PART_SIZE = 512 * 1024

_FOLDER = re.compile(r"iptables-backup-\d{8}-\d{6}(?:-\d+)?")
_UNFINISHED = ".iptables-backup-"


class Backup(NamedTuple):
    """The files by name, and what could not be had."""

    files: Dict[str, bytes]
    warnings: Tuple[str, ...] = ()


def save(options: Options, dest: Any, retain: Any, returned: Any) -> Dict[str, Any]:
    """The result of ``backup``. Raises InputError, HostError."""
    check_place(dest, retain)
    if returned not in (False, True, "packed"):
        raise InputError(f"returned: expected true, false or packed, got {returned!r}")
    saved = collect(options)
    warnings = [printable(warning) for warning in saved.warnings]
    if returned is True:
        texts = {name: printable_text(data.decode("utf-8", "surrogateescape")) for name, data in saved.files.items()}
        return {"files": texts, "warnings": warnings}
    path, pruned = write(dest, retain, saved.files)
    sizes = {name: len(data) for name, data in saved.files.items()}
    answer = {"files": sizes, "warnings": warnings, "path": path, "pruned": pruned}
    return dict(answer, **packed(saved.files)) if returned else answer


def collect(options: Options) -> Backup:
    """Every stored file there is, and every table of the kernel. Raises HostError."""
    kernel.check_rights()
    files: Dict[str, bytes] = {}
    warnings: List[str] = []
    for family in options.families:
        files.update(_stored(family, options.files[family]))
        try:
            kernel.check_family(family)
        except HostError as err:
            warnings.append(f"no kernel rules were saved: {err}")
            continue
        for table, text in kernel.save_texts(ways.find_tools(family, options.backend)).items():
            files[f"in-kernel-{FAMILIES[family].version}-rules-{table}"] = text.encode("utf-8", "surrogateescape")
    return Backup(files, tuple(warnings))


def _stored(family: str, candidates) -> Dict[str, bytes]:
    found: Dict[str, bytes] = {}
    for path in candidates:
        name = STORED_NAMES.get(path, f"stored-{FAMILIES[family].version}-rules")
        while name in found:
            name += "-more"
        try:
            found[name] = load(path)
        except FileNotFoundError:
            continue
        except OSError as err:
            raise HostError(f"{path}: cannot be read: {err.strerror}") from err
    return found


def check_place(dest: Any, retain: Any) -> None:
    if not isinstance(dest, str) or not os.path.isabs(dest):
        raise InputError(f"dest: expected an absolute path, got {dest!r}")
    if isinstance(retain, bool) or not isinstance(retain, int) or retain < 1:
        raise InputError(f"retain: expected a whole number of backups, 1 or more, got {retain!r}")


def write(dest: str, retain: int, files: Mapping[str, bytes]) -> Tuple[str, List[str]]:
    """Write a new folder below ``dest`` and prune the oldest: (the folder, the pruned ones). Raises HostError."""
    try:
        os.makedirs(dest, mode=0o700, exist_ok=True)
        with _alone(dest):
            for name in os.listdir(dest):
                if name.startswith(_UNFINISHED):  # whoever began it is dead: we hold the lock
                    shutil.rmtree(os.path.join(dest, name))
            folder = _write_folder(dest, files)
            return folder, _prune(dest, retain, os.path.basename(folder))
    except OSError as err:
        raise HostError(f"the backup cannot be written to {dest}: {err.filename or dest}: {err.strerror}") from err


@contextlib.contextmanager
def _alone(dest: str):
    handle = os.open(dest, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_folder(dest: str, files: Mapping[str, bytes]) -> str:
    unfinished = tempfile.mkdtemp(prefix=_UNFINISHED, dir=dest)
    for name, data in files.items():
        handle = os.open(os.path.join(unfinished, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    folder = base = os.path.join(dest, time.strftime("iptables-backup-%Y%m%d-%H%M%S"))
    count = 1
    while os.path.lexists(folder):
        count += 1
        folder = f"{base}-{count}"
    os.rename(unfinished, folder)
    return folder


def _age(name: str) -> Tuple[str, int]:
    stamp, number = name[:31], name[32:]
    return stamp, int(number or 1)


def _prune(dest: str, retain: int, made: str) -> List[str]:
    """All but the newest; what was ``made`` just now is kept whatever the clock says."""
    there = sorted(filter(_FOLDER.fullmatch, os.listdir(dest)), key=_age)
    there.remove(made)
    pruned = [os.path.join(dest, name) for name in [*there, made][:-retain]]
    for path in pruned:
        shutil.rmtree(path)
    return pruned


def read(folder: Any) -> Dict[str, bytes]:
    """The files of a backup that was written here. Raises InputError, HostError."""
    if not isinstance(folder, str) or not os.path.isabs(folder) or not _FOLDER.fullmatch(os.path.basename(folder)):
        raise InputError(f"expected the path of a backup's folder, got {folder!r}")
    files = {}
    try:
        for name in sorted(os.listdir(folder)):
            files[name] = load(os.path.join(folder, name))
    except OSError as err:
        raise HostError(f"{err.filename}: cannot be read: {err.strerror}") from err
    return files


def packed(files: Mapping[str, bytes], part: int = 0) -> Dict[str, Any]:
    """One part of the files, compressed: each as its name, its length and its bytes, in the order of the names."""
    whole = b"".join(b"%s %d\n%s" % (name.encode(), len(files[name]), files[name]) for name in sorted(files))
    text = base64.b64encode(zlib.compress(whole)).decode("ascii")
    parts = max(1, -(-len(text) // PART_SIZE))
    if isinstance(part, bool) or not isinstance(part, int) or not 0 <= part < parts:
        raise InputError(f"part: expected a number from 0 to {parts - 1}, got {part!r}")
    return {"parts": parts, "part": part, "archive": text[part * PART_SIZE : (part + 1) * PART_SIZE]}
