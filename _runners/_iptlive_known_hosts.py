"""known_hosts: what a file says of a host, what a host offers, and replacing one by the other without losing a line.

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
import subprocess
import tempfile
from typing import Dict, Iterable, List, NamedTuple, Optional, Sequence, Set, Tuple

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
_KIND = re.compile(r"[a-z0-9][a-z0-9@.-]{0,99}")
_FIELDS = re.compile(r"\s*(?:(@\S+)\s+)?(\S+)\s+(\S+)\s+(\S+)")
_HASHED = re.compile(r"\|1\|([A-Za-z0-9+/=]+)\|([A-Za-z0-9+/=]+)")
_UNFINISHED = ".iptlive-known_hosts-"


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


# --- what hosts offer -----------------------------------------------------------------------------------------------


def scan(hosts: Iterable[Tuple[str, int]], timeout: int) -> Dict[str, Set[Key]]:
    """The keys that hosts offer, by place; a host that cannot be reached is left out. Raises OSError."""
    ports: Dict[int, List[str]] = {}
    for host, port in hosts:
        if not is_host(host):
            raise ValueError(host)
        ports.setdefault(port, []).append(host)
    found: Dict[str, Set[Key]] = {}
    for port, names in ports.items():
        asked = {place(name, port) for name in names}
        for line in _keyscan(names, port, timeout):
            for name in line.hosts:
                if line.key and name.lower() in asked:
                    found.setdefault(name.lower(), set()).add(line.key)
    return found


def _keyscan(names: Sequence[str], port: int, timeout: int) -> List[Line]:
    # All hosts in one run: it asks them at the same time. Names come on stdin, where nothing can be an option.
    argv = ["ssh-keyscan", "-T", str(timeout), "-p", str(port), "-f", "-"]
    # It asks for each kind of key in turn, of a few hundred hosts at a time.
    longest = (timeout + 1) * (6 + len(names) // 50)
    try:
        done = subprocess.run(
            argv,
            input="".join(name + "\n" for name in names),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
            env=dict(os.environ, LC_ALL="C"),
            timeout=longest,
            check=False,
        )
    except subprocess.TimeoutExpired as err:
        raise OSError(errno.ETIMEDOUT, f"did not end within {longest} seconds", argv[0]) from err
    return [read_line(text) for text in done.stdout.splitlines()]


# --- what a file says -----------------------------------------------------------------------------------------------


def read_line(text: str) -> Line:
    fields = _FIELDS.match(text)
    if not fields or text.lstrip().startswith("#"):
        return Line(text)
    marker, hosts, kind, blob = fields.groups()
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


def learn(lines: Sequence[Line], wanted: str, keys: Set[Key]) -> Tuple[List[Line], Change]:
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


def read(path: str) -> List[Line]:
    """The file's lines; none where there is no file yet. Raises OSError."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            text = file.read()
    except FileNotFoundError:
        return []
    return [read_line(line) for line in re.findall(r"[^\n]*\n|[^\n]+", text)]  # splitlines() knows other ends too


@contextlib.contextmanager
def alone(path: str, test: bool = False):
    """Keep other runs out while the file is read and replaced; yields the file's real path. Raises OSError."""
    path = os.path.realpath(path)
    if test:  # who only looks needs no lock: the file is replaced at once
        yield path
        return
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for name in os.listdir(folder):
            if name.startswith(_UNFINISHED):  # whoever began it is dead: we hold the lock
                os.unlink(os.path.join(folder, name))
        yield path
        os.fsync(handle)
    finally:
        os.close(handle)


def replace(path: str, lines: Iterable[Line]) -> Optional[str]:
    """Put a new file in place of the old one, at once; the old one is kept, and its name returned. Raises OSError."""
    text = "".join(line.text if line.text.endswith("\n") or not line.text else line.text + "\n" for line in lines)
    handle, unfinished = tempfile.mkstemp(prefix=_UNFINISHED, dir=os.path.dirname(path))
    with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.write(text)
        file.flush()
        kept = _keep(path, file.fileno())
        os.fsync(file.fileno())
    os.replace(unfinished, path)
    return kept


def _keep(path: str, handle: int) -> Optional[str]:
    """Give the new file the old one's owner and mode, and the old one a second name."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    os.fchown(handle, status.st_uid, status.st_gid)
    os.fchmod(handle, status.st_mode & 0o7777)
    link = os.path.join(os.path.dirname(path), f"{_UNFINISHED}{os.getpid()}")
    os.link(path, link)
    os.replace(link, path + ".old")
    return path + ".old"
