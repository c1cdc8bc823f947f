"""Running programs: which iptables there is, one that answers and ends, and one that is talked to while it runs.

All run by argument list, in the C locale, with input on stdin and a timeout.
"""

import contextlib
import fcntl
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
from typing import Dict, List, Mapping, NamedTuple, Sequence, Tuple

from _iptlive_family import FAMILIES, label
from _iptlive_model import HostError

TIMEOUT = 60  # seconds for any one program; loading 50,000 rules takes half of it
F_SETPIPE_SZ, F_GETPIPE_SZ = 1031, 1032  # fcntl has no names for them before Python 3.10
LONGEST_POLL = (1 << 31) - 1  # milliseconds, some 25 days: it takes no more
_NO_MEMORY_FILES = (AttributeError, OSError)  # of an old Python, of an old kernel

SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
_NOISE = re.compile(
    r"^(?:Try `.*|Error occurred at line: \d+|# Warning: ip6?tables-legacy tables present.*)?\n?", re.MULTILINE
)


class Ways(NamedTuple):
    """How programs of this kind are to be used: those of today by default, see ``_iptlive_ways`` for the others."""

    declares: str = "-"  # how a built-in chain is declared: "-", or with its "policy"
    lists_after_commit: bool = True  # whether one program may commit, and then list what it has committed
    locks: bool = True  # whether a legacy restore takes the xtables lock (-w); otherwise we hold it for it
    reading: str = "variable"  # how one that writes nothing keeps off the host's lock: "variable", "private", "none"


_NUMBER = re.compile(r"\bline \d+: ")
_KERNEL = re.compile(r"\bline \d+ failed\b")


class Tools(NamedTuple):
    """The programs of one family."""

    family: str
    backend: str  # nft or legacy
    version: str
    command: str
    restore: str
    save: str
    ways: Ways = Ways()


class Done(NamedTuple):
    """What a program answered."""

    status: int
    out: str
    err: str


def environment() -> Dict[str, str]:
    """The C locale, so that messages can be read."""
    return dict(os.environ, LC_ALL="C", PATH=SEARCH_PATH)


def run(argv: Sequence[str], stdin: str = "", own_lock: bool = False) -> Done:
    """One that takes the xtables lock, and yet writes nothing to the live tables, is given a lock of its own."""
    # Its input will do for that: nobody else has it, and nothing is left behind.
    env = dict(environment(), XTABLES_LOCKFILE="/proc/self/fd/0") if own_lock else environment()
    try:
        status, out, err = _run(argv, stdin.encode("utf-8", "surrogateescape"), env)
    except OSError as error:
        raise _unusable(argv[0], error) from error
    except subprocess.TimeoutExpired as error:
        raise HostError("'{}' did not end within {} seconds".format(" ".join(argv), TIMEOUT)) from error
    return Done(status, *(part.decode("utf-8", "surrogateescape") for part in (out, err)))


def _run(argv: Sequence[str], stdin: bytes, env: Mapping[str, str]) -> Tuple[int, bytes, bytes]:
    """Input and output are files in memory, so that the program need not wait until Python has time for it.

    Where there are none it takes pipes: on a full disk a program does not tell that its output ends too early.
    """
    try:
        files = [_memory_file() for _ in range(2)]
    except _NO_MEMORY_FILES:
        done = subprocess.run(argv, input=stdin, capture_output=True, env=env, timeout=TIMEOUT, check=False)
        return done.returncode, done.stdout, done.stderr
    with files[0] as given, files[1] as printed:
        given.write(stdin)
        given.seek(0)
        process = subprocess.Popen(argv, stdin=given, stdout=printed, stderr=subprocess.PIPE, env=env)
        try:
            deadline = time.monotonic() + TIMEOUT
            said = _said(process.stderr.fileno(), deadline)
            _wait(process, deadline)
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            process.stderr.close()
        printed.seek(0)
        return process.returncode, printed.read(), said


def _said(pipe: int, deadline: float) -> bytes:
    """All that is written into the pipe until the program closes it, or until the time is up."""
    parts = [b""]
    while time.monotonic() < deadline and _is_ready(pipe, select.POLLIN, deadline - time.monotonic()):
        parts.append(os.read(pipe, 65536))
        if not parts[-1]:
            break
    return b"".join(parts)


def _wait(process, deadline: float) -> None:
    """As ``Popen.wait`` with a timeout, which however may look as rarely as every twentieth of a second."""
    while process.poll() is None:
        if time.monotonic() > deadline:
            raise subprocess.TimeoutExpired(process.args, TIMEOUT)
        time.sleep(0.0002)


def _unusable(program: str, err: OSError) -> HostError:
    why = "is not installed" if isinstance(err, FileNotFoundError) else f"cannot be run: {err.strerror}"
    return HostError(f"the program '{program}' {why}")


def message(err: str) -> str:
    """A program's message, without its advice to read the manual and the line numbers of the text it was given."""
    said = _KERNEL.sub("the kernel refused it", _NUMBER.sub("", _NOISE.sub("", err)))
    return " ".join(said.split()) or "no message"


def find_tools(family: str, backend: str) -> Tools:
    """The programs of ``backend`` (auto: what the host's plain command is)."""
    plain = FAMILIES[family].command
    path = shutil.which(plain, path=SEARCH_PATH)
    if path is None:
        raise HostError(
            f"{label(family)}: '{plain}' is not installed (searched {SEARCH_PATH}). Install the package 'iptables', "
            f"or take '{family}' out of 'families'"
        )
    kind, version = _flavour(path)
    if backend not in ("auto", kind):
        kind, version = _flavour(_programs(family, f"{plain}-{backend}")[0])
        plain = f"{plain}-{kind}"
    tools = Tools(family, kind, version, *_programs(family, plain))
    _check_programs(tools)
    return tools


def _check_programs(tools: Tools) -> None:
    """They are links, and somebody may have turned some of them only: we would read one backend and write the other."""
    programs = (tools.command, tools.restore, tools.save)
    if len(set(map(os.path.realpath, programs))) == 1:
        return
    for program in programs[1:]:
        if ("nf_tables" in run([program, "-V"]).out) != (tools.backend == "nft"):
            raise HostError(
                f"{label(tools.family)}: '{tools.command}' is of the {tools.backend} backend, '{program}' is not. "
                "Point both at the same backend, see update-alternatives"
            )


def _programs(family: str, name: str) -> List[str]:
    paths = [shutil.which(name + suffix, path=SEARCH_PATH) for suffix in ("", "-restore", "-save")]
    if None in paths:
        raise HostError(
            f"{label(family)}: '{name}', '{name}-restore' and '{name}-save' are not all installed. Install them, or "
            "set 'backend: auto'"
        )
    return paths


def _flavour(path: str):
    """('nft', '1.8.9'); a program too old to tell is a legacy one."""
    printed = run([path, "-V"]).out
    version = re.search(r"v(\d[\w.]*)", printed)
    return "nft" if "nf_tables" in printed else "legacy", version.group(1) if version else "unknown"


LOCK_REFUSAL = "holding the xtables lock"


def is_lock_refusal(done: Done) -> bool:
    return LOCK_REFUSAL in done.err


def lock_holder() -> str:
    """Who holds the xtables lock, as far as this namespace can tell: " (held by process 17, fail2ban)"."""
    path = os.environ.get("XTABLES_LOCKFILE", "/run/xtables.lock")
    try:
        inode = os.stat(path).st_ino
        with open("/proc/locks", encoding="ascii") as locks:
            found = [line.split() for line in locks if line.split()[5].endswith(f":{inode}")]
        pid = found[0][4]
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
            return f" (held by process {pid}, {comm.read().strip()})"
    except (OSError, IndexError):
        return ""


def _memory_file():
    return open(os.memfd_create("iptlive"), "w+b")


def private_file():
    """A full disk must not keep us from taking an update back."""
    try:
        return _memory_file()
    except _NO_MEMORY_FILES:
        return tempfile.TemporaryFile()


@contextlib.contextmanager
def started(argv: Sequence[str], stdout: int, keep: Sequence[int] = ()):
    """A restore program that waits for its input; unless we are killed, it does not outlive us.

    The descriptors in ``keep`` are its own too: a lock that we hold outlives us as long as it does.
    """
    with private_file() as stderr:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                env=environment(),
                start_new_session=True,
                pass_fds=tuple(keep),
            )
        except OSError as err:
            raise _unusable(argv[0], err) from err
        process.errors = stderr
        try:
            # Whoever must read an answer before it has said all may say so much at once.
            fcntl.fcntl(process.stdin, F_SETPIPE_SZ, 1 << 20)
            yield process
        finally:
            end(process)
            hang_up(process)
            if process.stdout:
                process.stdout.close()


def end(process) -> None:
    """Kill it, and what it may have started: a wrapper's child must not commit after we have given up."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def read(process, reader: int, count: int, wait: int = 0) -> bytes:
    """What there is to read; nothing where the program has ended, or had to be ended because it hangs."""
    if not _is_ready(reader, select.POLLIN, wait + TIMEOUT):
        end(process)
        return b""
    return os.read(reader, count)


def _is_ready(pipe: int, event: int, seconds: float) -> bool:
    waiting = select.poll()  # select() takes no descriptor above 1023, and a minion may have more
    waiting.register(pipe, event)
    return bool(waiting.poll(min(1000 * seconds, LONGEST_POLL)))


def ended(process, reader: int) -> Done:
    """How the program ended, once it may say all that it wants to.

    One that had to be killed may have committed: the caller reads the kernel anyway.
    """
    while read(process, reader, 65536):
        pass
    try:
        _wait(process, time.monotonic() + TIMEOUT)
    except subprocess.TimeoutExpired:
        end(process)
    status = process.returncode
    process.errors.seek(0)
    said = process.errors.read().decode("utf-8", "surrogateescape")
    return Done(status, "", said or (f"it was ended by signal {-status}" if status < 0 else ""))


def say(process, text: str) -> None:
    """Nothing may hang for ever: a program that does not take its input is ended."""
    left = memoryview(text.encode("utf-8", "surrogateescape"))
    pipe = process.stdin.fileno()
    os.set_blocking(pipe, False)
    # Where it ended on an error its status and message tell which.
    with contextlib.suppress(BrokenPipeError):
        while left:
            if not _is_ready(pipe, select.POLLOUT, TIMEOUT):
                end(process)
                return
            left = left[os.write(pipe, left) :]


def hang_up(process) -> None:
    process.stdin.close()
