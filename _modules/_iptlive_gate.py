"""The verified transaction: one table's edits are sent only where the chains are what they were planned for.

The stock restore programs list the chains inside their transaction; that listing is compared with the plan's before
anything is committed, and the program is ended with nothing written where they differ.
"""

import contextlib
import fcntl
import os
import re
import resource
import subprocess
from typing import Callable, Dict, Iterator, NamedTuple, Optional, Sequence, Tuple

import _iptlive_programs as programs
import _iptlive_xtables_lock as xtables_lock
from _iptlive_edits import commands, removals
from _iptlive_family import FAMILIES
from _iptlive_kernel import listing, read_chains
from _iptlive_model import BUILTIN, Chain, ChainPlan, HostError, Table, is_builtin
from _iptlive_netlink import NoAnswerError, existing_chains
from _iptlive_programs import Done, Tools
from _iptlive_rules import parse_lists, print_list

_BLANKS = re.compile(rb" +(?=\n)")
STDIO_BUFFERS = 3 * resource.getpagesize()  # what the program's own output buffer may hold back, with room to spare


class StaleError(Exception):
    """The chains are not what the plan was made for; nothing was written."""


class Attempt(NamedTuple):
    """A transaction that was sent: what the program said, the chains before, the plans it carried out."""

    done: Done
    before: Table
    plans: Dict[str, ChainPlan]


Decide = Callable[[Table], Dict[str, ChainPlan]]


def attempt(
    tools: Tools, table: str, chains: Sequence[str], decide: Decide, wait: int, kept_open: Sequence[int] = ()
) -> Optional[Attempt]:
    """One verified transaction over the plans that ``decide`` makes for the chains as they are; None if it makes none.

    What was planned is compared with the chains as they are inside the transaction: StaleError is raised, and nothing
    written, when they differ. ``decide`` may raise. ``kept_open`` are descriptors that the program that commits keeps
    open as long as it runs.
    """
    way = _legacy_attempt if tools.backend == "legacy" else _nft_attempt
    try:
        return way(tools, table, chains, decide, wait, kept_open)
    except xtables_lock.BusyError:
        return Attempt(Done(4, "", f"Another app is currently {programs.LOCK_REFUSAL}"), {}, {})


def _nft_attempt(tools, table: str, chains, decide: Decide, wait: int, kept_open) -> Optional[Attempt]:
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
        fcntl.fcntl(writer, programs.F_SETPIPE_SZ, resource.getpagesize())
        hold_back = fcntl.fcntl(writer, programs.F_GETPIPE_SZ) + STDIO_BUFFERS
        with programs.started(program, subprocess.PIPE) as lister, programs.started(
            program, writer, kept_open
        ) as process:
            os.close(writer)
            writer = -1
            before = _snapshot(tools, lister, table, chains)
            plans = decide(before)
            if not plans:
                return None
            text, first, second = _nft_input(table, before, plans, hold_back, tools.ways.declares)
            programs.say(process, text)
            programs.hang_up(process)
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
        there = existing_chains(FAMILIES[tools.family].number, {table: chains})[table]
        if not there:
            return {}
        # The first chain's second header tells that all of them have been listed.
        programs.say(lister, listing({table: there + there[:1]}) + "end\n")
        programs.hang_up(lister)
        listed = _listed_until_again(lister)
        if listed is not None:
            return dict(parse_lists(listed))
    return read_chains(tools, {table: chains}).get(table, {})


def _listed_until_again(lister) -> Optional[str]:
    """What is listed before the first line comes again; None where the program ended instead."""
    got, end = bytearray(), -1
    while end < 0:
        part = programs.read(lister, lister.stdout.fileno(), 65536)
        if not part:
            return None
        seen = len(got)
        got += part
        header = got.find(b"\n") + 1
        # Only in what is new, with as much before it as the line is long: a listing may have megabytes.
        end = got.find(b"\n" + got[:header], max(header - 1, seen - header)) if header else -1
    return got[: end + 1].decode("utf-8", "surrogateescape")


def _nft_input(table: str, before: Table, plans: Dict[str, ChainPlan], hold_back: int, declares: str):
    """The program's input, and what it must list: before the edits, and behind them."""
    present = {chain: before[chain] for chain in plans if chain in before}
    first = "".join(print_list(chain, state) for chain, state in present.items())
    listings = {chain: _listing_inside(table, chain, before.get(chain), plan) for chain, plan in plans.items()}
    longest = max(listings, key=lambda chain: len(listings[chain]))
    padding = hold_back // len(listings[longest]) + 2
    lines = ["*" + table]
    lines += ["-S " + chain for chain in present]
    lines += commands(table, before, plans, declares)
    lines += ["-S " + chain for chain in plans] + ["-S " + longest] * padding + removals(plans) + ["COMMIT", ""]
    # One listing of the padding is compared too: nothing more may stand at the end of the last chain.
    return "\n".join(lines), first, "".join(listings.values()) + listings[longest]


def _listing_inside(table: str, chain: str, before: Optional[Chain], plan: ChainPlan) -> str:
    """What ``-S`` prints after the edits and before the commit: by then iptables-nft shows no new policy."""
    policy = before.policy if before else "ACCEPT" if is_builtin(table, chain) else None
    return print_list(chain, plan.result._replace(policy=policy))


def _release(process, reader: int, first: str, second: str) -> Done:
    """Compare what the program lists with what was planned; let it commit only if both are equal."""
    wanted = [_BLANKS.sub(b"", text.encode("utf-8", "surrogateescape")) for text in (first, second)]
    planned = b"".join(wanted)
    seen, blanks = 0, b""
    while seen < len(planned):
        # No more than that, or the program would go on.
        part = programs.read(process, reader, max(1, min(4096, len(planned) - seen - len(blanks))))
        if not part:
            break
        part, blanks = _without_blanks(blanks + part)
        if not planned.startswith(part, seen):
            programs.end(process)
            raise _difference(planned, planned[:seen] + part, len(wanted[0]))
        seen += len(part)
    return programs.ended(process, reader)


def _without_blanks(listed: bytes) -> Tuple[bytes, bytes]:
    """A piece of a listing without the blanks at the end of its lines, and those that may yet turn out to be some."""
    known = listed.rstrip(b" ")
    return _BLANKS.sub(b"", known), listed[len(known) :]


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


def _legacy_attempt(tools, table: str, chains, decide: Decide, wait: int, kept_open) -> Optional[Attempt]:
    """iptables-legacy-restore carries out each line at once, in its own copy of the table, under the xtables lock.

    So the chains are listed, planned and edited under one lock, and nothing is written unless COMMIT follows.
    """
    mark = f"iptlive-{os.getpid()}"
    # A built-in chain is there as soon as the program has named its table.
    listing = ["-S " + chain for chain in sorted(set(chains) | set(BUILTIN[table]))]
    # The mark ends the listing; it lives and dies in the program's copy of the table.
    opening = ["*" + table] + listing + ["-N " + mark, "-S " + mark, "-X " + mark, ""]
    with _legacy_started(tools, wait, kept_open) as process:
        programs.say(process, "\n".join(opening))
        listed = _listed_until(process, f"-N {mark}\n", wait)
        if listed is None:
            return Attempt(programs.ended(process, process.stdout.fileno()), {}, {})
        before = dict(parse_lists(listed))
        plans = decide(before)
        if not plans:
            return None
        edits = commands(table, before, plans, tools.ways.declares) + removals(plans)
        programs.say(process, "\n".join([*edits, "COMMIT", ""]))
        programs.hang_up(process)
        return Attempt(programs.ended(process, process.stdout.fileno()), before, plans)


@contextlib.contextmanager
def _legacy_started(tools: Tools, wait: int, kept_open: Sequence[int]) -> Iterator[subprocess.Popen]:
    """The restore program under the xtables lock."""
    program, seconds = [tools.restore, "--noflush"], max(1, int(wait))
    if tools.ways.locks:
        with programs.started([*program, "-w", str(seconds)], subprocess.PIPE, kept_open) as process:
            yield process
        return
    with xtables_lock.held(seconds) as lock:
        with programs.started(program, subprocess.PIPE, [*lock, *kept_open]) as process:
            yield process


def _listed_until(process, mark: str, wait: int) -> Optional[str]:
    """What the program lists before the mark; None where it ended instead."""
    end, got = mark.encode(), bytearray()
    while not (got == end or got.endswith(b"\n" + end)):
        part = programs.read(process, process.stdout.fileno(), 65536, wait)
        if not part:
            return None
        got += part
    return got[: -len(end)].decode("utf-8", "surrogateescape")
