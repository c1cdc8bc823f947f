"""The one room that runs programs: which iptables there is, what the kernel holds, and the verified transaction.

All programs run by argument list, in the C locale, with input on stdin and a timeout. Reading never creates a table
(``iptables-legacy-save -t T`` would) and takes no lock.
"""

import contextlib
import fcntl
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import tempfile
import time
from types import MappingProxyType
from typing import Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from _iptlive_model import BUILTIN, FAMILIES, Chain, HostError, Table, is_builtin
from _iptlive_netlink import NoAnswerError, existing_chains
from _iptlive_plan import ChainPlan, commands, removals
from _iptlive_rules import parse_lists, parse_save, print_list

COMMANDS = {"ipv4": "iptables", "ipv6": "ip6tables"}
LEGACY_TABLES = {"ipv4": "/proc/net/ip_tables_names", "ipv6": "/proc/net/ip6_tables_names"}
TIMEOUT = 60  # seconds for any one program; loading 50,000 rules takes half of it
CAP_NET_ADMIN = 1 << 12
F_SETPIPE_SZ, F_GETPIPE_SZ = 1031, 1032  # fcntl has no names for them before Python 3.10
LONGEST_POLL = (1 << 31) - 1  # milliseconds, some 25 days: it takes no more
_NO_MEMORY_FILES = (AttributeError, OSError)  # of an old Python, of an old kernel
STDIO_BUFFERS = 3 * resource.getpagesize()  # what the program's own output buffer may hold back, with room to spare

SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
_NOISE = re.compile(
    r"^(?:Try `.*|Error occurred at line: \d+|# Warning: ip6?tables-legacy tables present.*)?\n?", re.MULTILINE
)


class Tools(NamedTuple):
    """The programs of one family."""

    family: str
    backend: str  # nft or legacy
    version: str
    command: str
    restore: str
    save: str


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
    """A program's message without its advice to read the manual."""
    return " ".join(_NOISE.sub("", err).split()) or "no message"


def find_tools(family: str, backend: str) -> Tools:
    """The programs of ``backend`` (auto: what the host's plain command is)."""
    plain = COMMANDS[family]
    path = shutil.which(plain, path=SEARCH_PATH)
    if path is None:
        raise HostError(
            f"{FAMILIES[family]}: '{plain}' is not installed (searched {SEARCH_PATH}). Install the package 'iptables', "
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
                f"{FAMILIES[tools.family]}: '{tools.command}' is of the {tools.backend} backend, '{program}' is not. "
                "Have both lead to the same one, see update-alternatives"
            )


def _programs(family: str, name: str) -> List[str]:
    paths = [shutil.which(name + suffix, path=SEARCH_PATH) for suffix in ("", "-restore", "-save")]
    if None in paths:
        raise HostError(
            f"{FAMILIES[family]}: '{name}', '{name}-restore' and '{name}-save' are not all installed. Install them, or "
            "set 'backend: auto'"
        )
    return paths


def _flavour(path: str):
    """('nft', '1.8.9'); a program too old to tell is a legacy one."""
    printed = run([path, "-V"]).out
    version = re.search(r"v(\d[\w.]*)", printed)
    return "nft" if "nf_tables" in printed else "legacy", version.group(1) if version else "unknown"


def check_rights() -> None:
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        granted = re.search(r"^CapEff:\s*([0-9a-f]+)", status.read(), re.MULTILINE)
    if not granted or not int(granted.group(1), 16) & CAP_NET_ADMIN:
        raise HostError("iptables needs root (the capability CAP_NET_ADMIN): run the minion, or salt-call, as root")


def check_family(family: str) -> None:
    if family == "ipv6" and not os.path.exists("/proc/net/if_inet6"):
        raise HostError("IPv6: this host's kernel runs without IPv6. Set 'families: [ipv4]' for it")


def read_tables(tools: Tools, names: Iterable[str]) -> Dict[str, Table]:
    """The named tables as the kernel holds them; a table that it does not have is left out."""
    found: Dict[str, Table] = {}
    for name in present(tools, names):
        done = run([tools.save, "-t", name])
        if done.status:
            raise HostError(f"{tools.save}: {message(done.err)}")
        found.update(parse_save(done.out))
    return found


Chains = Mapping[str, Sequence[str]]  # names by table


def read_chains(tools: Tools, wanted: Chains, named: Chains = MappingProxyType({})) -> Dict[str, Table]:
    """The wanted chains of each table as the kernel holds them; what it does not have is left out.

    Of the chains in ``named`` only the existence matters: they come without rules. A restore program with nothing but
    ``-S`` lines lists them, sends nothing, and creates nothing; on the nft backend no other chain is read for it,
    however many there are.
    """
    with contextlib.suppress(NoAnswerError, _UnlistedError):
        if tools.backend == "legacy":
            names = present(tools, wanted)
            return {name: _list_legacy(tools, name, wanted[name], named.get(name, ())) for name in names}
        live = _read_listed(tools, existing_chains(tools.family, wanted))
        return _with_empty(live, existing_chains(tools.family, named))
    # A legacy program cannot be asked which chains there are; and where one cannot be listed, the table tells why.
    found = read_tables(tools, wanted)
    live = {name: {chain: table[chain] for chain in wanted[name] if chain in table} for name, table in found.items()}
    return _with_empty(live, {name: list(table.keys() & named.get(name, ())) for name, table in found.items()})


def _with_empty(live: Dict[str, Table], chains: Chains) -> Dict[str, Table]:
    for table, names in chains.items():
        live.setdefault(table, {}).update((name, Chain(None)) for name in names)
    return live


class _UnlistedError(Exception):
    """A chain has gone meanwhile, or holds what the programs cannot print."""


def _read_listed(tools: Tools, there: Chains) -> Dict[str, Table]:
    if not any(there.values()):
        return {}
    done = run([tools.restore, "--noflush"], listing(there))
    if done.status:
        raise _UnlistedError
    return _by_table(there, done.out)


def _list_legacy(tools: Tools, table: str, chains: Sequence[str], named: Sequence[str]) -> Table:
    """Chains of a table that is there. The program reads all of it, but that is less work than writing all of it out.

    Without a COMMIT nothing is written.
    """
    asked = ["-S " + name for name in chains] + [f"-S {name} {NO_RULE}" for name in named]
    done = run([tools.restore, "--noflush"], "\n".join(["*" + table, *asked, ""]), own_lock=True)
    if "COMMIT expected" not in done.err:
        raise _UnlistedError
    return {**dict.fromkeys(named, Chain(None)), **dict(parse_lists(done.out))}


def listing(chains: Chains) -> str:
    """Input for a restore program that lists these chains of each table and changes nothing."""
    lines = [["*" + table] + ["-S " + name for name in names] + ["COMMIT\n"] for table, names in chains.items()]
    return "".join(map("\n".join, lines))


def _by_table(chains: Chains, listed: str) -> Dict[str, Table]:
    """What was printed for a ``listing`` of these chains: those of two tables may share a name."""
    parsed = iter(parse_lists(listed))
    return {table: dict(next(parsed) for _ in names) for table, names in chains.items()}


def save_texts(tools: Tools) -> Dict[str, str]:
    """Every table in iptables-save syntax; one that the kernel does not have yet as it would be when new."""
    texts = {}
    for name, chains in BUILTIN.items():
        texts[name] = "*{}\n{}COMMIT\n".format(name, "".join(f":{chain} ACCEPT [0:0]\n" for chain in chains))
    for name in present(tools, BUILTIN):
        done = run([tools.save, "-t", name])
        if done.status:
            raise HostError(f"{tools.save}: {message(done.err)}")
        if parse_save(done.out):
            texts[name] = done.out
    return texts


def present(tools: Tools, names: Iterable[str]) -> List[str]:
    """Those of the tables that can be read without creating them."""
    if tools.backend == "nft":
        return list(names)
    try:
        with open(LEGACY_TABLES[tools.family], encoding="ascii") as listing:
            loaded = set(listing.read().split())
    except FileNotFoundError:
        return []
    return [name for name in names if name in loaded]


NO_RULE = (1 << 31) - 1  # the number of none: a chain's rule with it is listed as nothing

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


class StaleError(Exception):
    """The chains are not what the plan was made for; nothing was written."""


class Attempt(NamedTuple):
    """A transaction that was sent: what the program said, the chains before, the plans it carried out."""

    done: Done
    before: Table
    plans: Dict[str, ChainPlan]


Decide = Callable[[Table], Dict[str, ChainPlan]]


def attempt(tools: Tools, table: str, chains: Sequence[str], decide: Decide, wait: int) -> Optional[Attempt]:
    """One verified transaction over the plans that ``decide`` makes for the chains as they are; None if it makes none.

    What was planned is compared with the chains as they are inside the transaction: StaleError is raised, and nothing
    written, when they differ. ``decide`` may raise.
    """
    way = _legacy_attempt if tools.backend == "legacy" else _nft_attempt
    return way(tools, table, chains, decide, wait)


def _nft_attempt(tools: Tools, table: str, chains: Sequence[str], decide: Decide, wait: int) -> Optional[Attempt]:
    """iptables-nft-restore lists the chains before and after the edits, and sends its batch only after that.

    Positions are resolved to rule handles in the very snapshot it lists. Its output goes into a pipe that is too small
    for the padding behind the listings, so it stands still until the listings have been compared: then the pipe is
    drained, or the program is killed with nothing written.

    It is started before the chains are read, and takes its snapshot at its COMMIT: the less time is between the two,
    the less often others who write without pause make the plan stale.
    """
    program = [tools.restore, "--noflush"]
    reader, writer = os.pipe()
    try:
        fcntl.fcntl(writer, F_SETPIPE_SZ, resource.getpagesize())
        hold_back = fcntl.fcntl(writer, F_GETPIPE_SZ) + STDIO_BUFFERS
        with _started(program, subprocess.PIPE) as lister, _started(program, writer) as process:
            os.close(writer)
            writer = -1
            before = _snapshot(tools, lister, table, chains)
            plans = decide(before)
            if not plans:
                return None
            text, first, second = _nft_input(table, before, plans, hold_back)
            _say(process, text)
            _hang_up(process)
            return Attempt(_release(process, reader, first, second), before, plans)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)


def _snapshot(tools: Tools, lister, table: str, chains: Sequence[str]) -> Table:
    """The chains as they are, without waiting for the end of the program that lists them.

    When it closes its netlink socket the kernel makes it wait for the commit that somebody else is in the middle of,
    and after that the listing is no longer true. A line that is no command makes it write out what it has first.
    """
    with contextlib.suppress(NoAnswerError):
        there = existing_chains(tools.family, {table: chains})[table]
        if not there:
            return {}
        # The first chain's second header tells that all of them have been listed.
        _say(lister, listing({table: there + there[:1]}) + "end\n")
        _hang_up(lister)
        listed = _listed_until_again(lister)
        if listed is not None:
            return dict(parse_lists(listed))
    return read_chains(tools, {table: chains}).get(table, {})


def _listed_until_again(lister) -> Optional[str]:
    """What is listed before the first line comes again; None where the program ended instead."""
    got, end = bytearray(), -1
    while end < 0:
        part = _read(lister, lister.stdout.fileno(), 65536)
        if not part:
            return None
        seen = len(got)
        got += part
        header = got.find(b"\n") + 1
        # Only in what is new, with as much before it as the line is long: a listing may have megabytes.
        end = got.find(b"\n" + got[:header], max(header - 1, seen - header)) if header else -1
    return got[: end + 1].decode("utf-8", "surrogateescape")


def _nft_input(table: str, before: Table, plans: Dict[str, ChainPlan], hold_back: int):
    """The program's input, and what it must list: before the edits, and behind them."""
    present = {chain: before[chain] for chain in plans if chain in before}
    first = "".join(print_list(chain, state) for chain, state in present.items())
    listings = {chain: _listing_inside(table, chain, before.get(chain), plan) for chain, plan in plans.items()}
    longest = max(listings, key=lambda chain: len(listings[chain]))
    padding = hold_back // len(listings[longest]) + 2
    lines = ["*" + table]
    lines += ["-S " + chain for chain in present]
    lines += commands(table, before, plans)
    lines += ["-S " + chain for chain in plans] + ["-S " + longest] * padding + removals(plans) + ["COMMIT", ""]
    # One listing of the padding is compared too: nothing more may stand at the end of the last chain.
    return "\n".join(lines), first, "".join(listings.values()) + listings[longest]


def _listing_inside(table: str, chain: str, before: Optional[Chain], plan: ChainPlan) -> str:
    """What ``-S`` prints after the edits and before the commit: by then iptables-nft shows no new policy."""
    policy = before.policy if before else "ACCEPT" if is_builtin(table, chain) else None
    return print_list(chain, plan.result._replace(policy=policy))


def _memory_file():
    return open(os.memfd_create("iptlive"), "w+b")


def _message_file():
    """A full disk must not keep us from taking an update back."""
    try:
        return _memory_file()
    except _NO_MEMORY_FILES:
        return tempfile.TemporaryFile()


@contextlib.contextmanager
def _started(argv: Sequence[str], stdout: int):
    """A restore program that waits for its input; whatever happens, it does not outlive us."""
    with _message_file() as stderr:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                env=environment(),
                start_new_session=True,
            )
        except OSError as err:
            raise _unusable(argv[0], err) from err
        process.errors = stderr
        try:
            # Whoever must read an answer before it has said all may say so much at once.
            fcntl.fcntl(process.stdin, F_SETPIPE_SZ, 1 << 20)
            yield process
        finally:
            _end(process)
            _hang_up(process)
            if process.stdout:
                process.stdout.close()


def _end(process) -> None:
    """Kill it, and what it may have started: a wrapper's child must not commit after we have given up."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _release(process, reader: int, first: str, second: str) -> Done:
    """Compare what the program lists with what was planned; let it commit only if both are equal."""
    wanted = (first + second).encode("utf-8", "surrogateescape")
    seen = 0
    while seen < len(wanted):
        part = _read(process, reader, min(4096, len(wanted) - seen))
        if not part:
            break
        if not wanted.startswith(part, seen):
            _end(process)
            raise _difference(wanted, wanted[:seen] + part, len(first.encode("utf-8", "surrogateescape")))
        seen += len(part)
    return _ended(process, reader)


def _difference(wanted: bytes, got: bytes, before: int) -> Exception:
    at = len(os.path.commonprefix([wanted, got]))
    start = wanted.rfind(b"\n", 0, at) + 1
    if start <= before:
        return StaleError()
    lines = [text[start:].split(b"\n", 1)[0].decode("utf-8", "replace") for text in (wanted, got)]
    return HostError(
        f"the transaction was taken back before its commit: the chain would have had {lines[1]!r} where {lines[0]!r} "
        "was planned"
    )


def _read(process, reader: int, count: int, wait: int = 0) -> bytes:
    """What there is to read; nothing where the program has ended, or had to be ended because it hangs."""
    if not _is_ready(reader, select.POLLIN, wait + TIMEOUT):
        _end(process)
        return b""
    return os.read(reader, count)


def _is_ready(pipe: int, event: int, seconds: float) -> bool:
    waiting = select.poll()  # select() takes no descriptor above 1023, and a minion may have more
    waiting.register(pipe, event)
    return bool(waiting.poll(min(1000 * seconds, LONGEST_POLL)))


def _ended(process, reader: int) -> Done:
    """How the program ended, once it may say all that it wants to.

    One that had to be killed may have committed: the caller reads the kernel anyway.
    """
    while _read(process, reader, 65536):
        pass
    try:
        _wait(process, time.monotonic() + TIMEOUT)
    except subprocess.TimeoutExpired:
        _end(process)
    status = process.returncode
    process.errors.seek(0)
    said = process.errors.read().decode("utf-8", "surrogateescape")
    return Done(status, "", said or (f"it was ended by signal {-status}" if status < 0 else ""))


def _legacy_attempt(tools: Tools, table: str, chains: Sequence[str], decide: Decide, wait: int) -> Optional[Attempt]:
    """iptables-legacy-restore carries out each line at once, in its own copy of the table, under the xtables lock.

    So the chains are listed, planned and edited under one lock, and nothing is written unless COMMIT follows.
    """
    mark = f"iptlive-{os.getpid()}"
    # A built-in chain is there as soon as the program has named its table.
    listing = ["-S " + chain for chain in sorted(set(chains) | set(BUILTIN[table]))]
    # The mark ends the listing; it lives and dies in the program's copy of the table.
    opening = ["*" + table] + listing + ["-N " + mark, "-S " + mark, "-X " + mark, ""]
    with _started([tools.restore, "--noflush", "-w", str(max(1, int(wait)))], subprocess.PIPE) as process:
        _say(process, "\n".join(opening))
        listed = _listed_until(process, f"-N {mark}\n", wait)
        if listed is None:
            return Attempt(_ended(process, process.stdout.fileno()), {}, {})
        before = dict(parse_lists(listed))
        plans = decide(before)
        if not plans:
            return None
        _say(process, "\n".join(commands(table, before, plans) + removals(plans) + ["COMMIT", ""]))
        _hang_up(process)
        return Attempt(_ended(process, process.stdout.fileno()), before, plans)


def _say(process, text: str) -> None:
    """Nothing may hang for ever: a program that does not take its input is ended."""
    left = memoryview(text.encode("utf-8", "surrogateescape"))
    pipe = process.stdin.fileno()
    os.set_blocking(pipe, False)
    # Where it ended on an error its status and message tell which.
    with contextlib.suppress(BrokenPipeError):
        while left:
            if not _is_ready(pipe, select.POLLOUT, TIMEOUT):
                _end(process)
                return
            left = left[os.write(pipe, left) :]


def _hang_up(process) -> None:
    process.stdin.close()


def _listed_until(process, mark: str, wait: int) -> Optional[str]:
    """What the program lists before the mark; None where it ended instead."""
    end, got = mark.encode(), bytearray()
    while not (got == end or got.endswith(b"\n" + end)):
        part = _read(process, process.stdout.fileno(), 65536, wait)
        if not part:
            return None
        got += part
    return got[: -len(end)].decode("utf-8", "surrogateescape")
