"""known_hosts: what a file says of a host, and giving the host other keys without losing a line.

Every line that is not about a host to be learnt stays byte for byte what it was, at its place.
"""

import base64
import binascii
import contextlib
import errno
import fcntl
import hashlib
import hmac
import ipaddress
import os
import re
import tempfile
import time
from typing import AbstractSet, BinaryIO, Callable, Iterable, List, NamedTuple, Optional, Sequence, Set, Tuple

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
_KIND = re.compile(r"[a-z0-9][a-z0-9@.-]{0,99}")
_FIELDS = re.compile(r"[ \t]*(?:(@[^ \t]+)[ \t]+)?([^ \t\n]+)[ \t]+([^ \t\n]+)[ \t]+([^ \t\n]+)")
_HASHED = re.compile(r"\|1\|([A-Za-z0-9+/=]+)\|([A-Za-z0-9+/=]+)")
_SKIPPED = dict.fromkeys(map(ord, "\r\v\f"))  # by OpenSSH, in the text of a key
_UNFINISHED = ".iptlive-known_hosts-"
LARGEST = 64 << 20  # bytes of a file that are read: a hundred thousand hosts' keys are a tenth of it
ATTEMPTS = 20


class Key(NamedTuple):
    """A host key as known_hosts writes it."""

    kind: str
    blob: str

    def fingerprint(self) -> str:
        digest = hashlib.sha256(base64.b64decode(self.blob)).digest()
        return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


class Line(NamedTuple):
    """One line; ``key`` is None for comments, blank lines and what OpenSSH would not understand."""

    text: str
    marker: str = ""
    hosts: Tuple[str, ...] = ()
    key: Optional[Key] = None

    def names(self, place: str) -> bool:
        """Whether the line is about this host; patterns are about many, and never touched."""
        return self.key is not None and not self.marker and any(_same(host, place) for host in self.hosts)

    def is_hashed(self) -> bool:
        return any(host.startswith("|") for host in self.hosts)


class Change(NamedTuple):
    """What became of one host's entries."""

    old: Tuple[Key, ...]
    new: Tuple[Key, ...]


def is_host(text) -> bool:
    """Whether this is an address or a name, and nothing that a program could take for an option or a pattern."""
    if not isinstance(text, str):
        return False
    try:
        ipaddress.ip_address(text)
        return "%" not in text
    except ValueError:
        return bool(_HOST.fullmatch(text))


def place(host: str, port: int) -> str:
    """How known_hosts names a host."""
    return host.lower() if port == 22 else f"[{host.lower()}]:{port}"


# --- what a file says -----------------------------------------------------------------------------------------------


def read_line(text: str) -> Line:
    fields = _FIELDS.match(text.partition("\0")[0])  # OpenSSH reads no further
    if not fields or text.lstrip(" \t").startswith("#"):
        return Line(text)
    marker, hosts, kind, blob = fields.groups()
    blob = blob.translate(_SKIPPED)
    if not _KIND.fullmatch(kind) or not _is_blob(blob):
        return Line(text)
    return Line(text, marker or "", tuple(hosts.split(",")), Key(kind, blob))


def _is_blob(text: str) -> bool:
    try:
        return bool(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        return False


def _same(host: str, wanted: str) -> bool:
    hashed = _HASHED.fullmatch(host)
    if not hashed:
        return host.lower() == wanted
    try:
        salt, digest = (base64.b64decode(part, validate=True) for part in hashed.groups())
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(hmac.new(salt, wanted.encode(), hashlib.sha1).digest(), digest)


def _hash(wanted: str) -> str:
    salt = os.urandom(20)
    digest = hmac.new(salt, wanted.encode(), hashlib.sha1).digest()
    return "|1|{}|{}".format(*(base64.b64encode(part).decode("ascii") for part in (salt, digest)))


def revoked(lines: Iterable[Line]) -> Set[Key]:
    return {line.key for line in lines if line.marker == "@revoked" and line.key}


def learn(lines: Sequence[Line], wanted: str, keys: AbstractSet[Key]) -> Tuple[List[Line], Change]:
    """The lines with exactly these keys for one host: those it had stay, others go, new ones come at the end."""
    kept: List[Line] = []
    old: List[Key] = []
    hashed = False
    for line in lines:
        if not line.names(wanted):
            kept.append(line)
            continue
        old.append(line.key)
        hashed = hashed or line.is_hashed()
        if line.key in keys:
            kept.append(line)
        elif len(line.hosts) > 1:
            kept.append(_without(line, wanted))
    name = _hash(wanted) if hashed else wanted
    new = sorted(keys - set(old))
    kept += [read_line(f"{name} {key.kind} {key.blob}\n") for key in new]
    return kept, Change(tuple(old), tuple(sorted(keys)))


def _without(line: Line, wanted: str) -> Line:
    """The line for the other hosts it names."""
    others = [host for host in line.hosts if not _same(host, wanted)]
    return read_line(line.text.replace(",".join(line.hosts), ",".join(others), 1)) if others else Line("")


# --- replacing the file ---------------------------------------------------------------------------------------------


def split(data: bytes) -> List[str]:
    """Lines with their ends; only a newline ends one, here as in OpenSSH."""
    return re.findall(r"[^\n]*\n|[^\n]+", data.decode("utf-8", "surrogateescape"))


def read(path: str) -> List[Line]:
    """The file's lines; none where there is no file yet. Raises OSError."""
    try:
        with open(path, "rb") as file:
            return [read_line(line) for line in split(_content(file))]
    except FileNotFoundError:
        return []


def _content(file: BinaryIO) -> bytes:
    if os.fstat(file.fileno()).st_size > LARGEST:
        raise OSError(errno.EFBIG, f"is larger than the {LARGEST >> 20} MiB that are read", file.name)
    return file.read(LARGEST)


def rewrite(path: str, change: Callable[[List[Line]], List[Line]], test: bool = False) -> Optional[str]:
    """Put what ``change`` makes of the file in its place, at once; the old one is kept, and its name returned.

    Lines that ssh appends meanwhile are carried over. Where another program replaces the file meanwhile, its file is
    changed instead. Raises OSError.
    """
    path = os.path.realpath(path)
    if test:  # no lock is needed to look: the file is replaced at once
        change(read(path))
        return None
    with _alone(os.path.dirname(path)):
        for _ in range(ATTEMPTS):
            try:
                return _replace(path, change)
            except _ReplacedError:
                continue
    raise OSError(errno.EBUSY, "other programs replace the file all the time", path)


class _ReplacedError(Exception):
    """Another program has put a file of its own in place."""


@contextlib.contextmanager
def _alone(folder: str):
    """Keep other runs out while the file is read and replaced."""
    os.makedirs(folder, mode=0o700, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for name in os.listdir(folder):
            if name.startswith(_UNFINISHED):  # the run that began it is dead: we hold the lock
                os.unlink(os.path.join(folder, name))
        yield
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(path: str, change: Callable[[List[Line]], List[Line]]) -> Optional[str]:
    try:
        old = open(path, "rb")
    except FileNotFoundError:
        _create(path, change([]))
        return None
    with old:
        data = _content(old)
        lines = [read_line(text) for text in split(data)]
        changed = change(lines)
        if changed == lines:
            return None
        status = os.fstat(old.fileno())
        unfinished = _written(path, changed, status)
        if not os.path.samestat(os.stat(path), status):
            raise _ReplacedError
        link = os.path.join(os.path.dirname(path), f"{_UNFINISHED}{os.getpid()}")
        os.link(path, link)
        os.replace(unfinished, path)
        _carry_over(old, len(data), path)
        os.replace(link, path + ".old")
    return path + ".old"


def _create(path: str, lines: Iterable[Line]) -> None:
    unfinished = _written(path, lines, None)
    try:
        os.link(unfinished, path)
    except FileExistsError:
        raise _ReplacedError from None
    finally:
        os.unlink(unfinished)


def _written(path: str, lines: Iterable[Line], status: Optional[os.stat_result]) -> str:
    """The name of a new file with these lines, and with the old one's owner and mode."""
    texts = (line.text if line.text.endswith("\n") or not line.text else line.text + "\n" for line in lines)
    handle, unfinished = tempfile.mkstemp(prefix=_UNFINISHED, dir=os.path.dirname(path))
    with os.fdopen(handle, "wb") as file:
        file.write("".join(texts).encode("utf-8", "surrogateescape"))
        file.flush()
        if status:
            os.fchown(file.fileno(), status.st_uid, status.st_gid)
            os.fchmod(file.fileno(), status.st_mode & 0o7777)
        os.fsync(file.fileno())
    return unfinished


def _carry_over(old: BinaryIO, size: int, path: str) -> None:
    """Append what was appended to the old file since it was read to the new one."""
    _wait_until_closed(old.fileno())
    old.seek(size)
    appended = old.read(LARGEST)
    if appended:
        with open(path, "ab") as file:
            file.write(appended)
            file.flush()
            os.fsync(file.fileno())


def _wait_until_closed(handle: int) -> None:
    """Wait for programs that opened the file by its former name: one may still append to it."""
    for _ in range(100):
        try:
            # Granted only where nobody else has the file open. Nobody knows its present name, so none can break it.
            fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            return
        except BlockingIOError:
            time.sleep(0.02)
        except OSError:  # another user's file, or a file system without leases
            time.sleep(0.1)
            return
