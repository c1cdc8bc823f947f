"""What this host's iptables programs do, tried in a throw-away network namespace before they are relied on.

Run as a program it is given the words of ``Tools`` and answers with JSON: the ways to use these programs, what was
found about them besides, and why they are not to be used at all, if so. There is nothing that it could spoil.
"""

import contextlib
import json
import os
import sys
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, Sequence

import _iptlive_programs as programs
from _iptlive_family import FAMILIES
from _iptlive_gate import StaleError, attempt
from _iptlive_kernel import listing, read_chains, read_tables
from _iptlive_model import ChainPlan, Choices, HostError, Line, StoredState, Table
from _iptlive_netlink import NoAnswerError, generation
from _iptlive_plan import plan_chain
from _iptlive_programs import Done, Tools, Ways, message

CHAIN = "iptlive-trial"
NOWHERE = "iptlive-nowhere"
KEPT = ("-i lo -j ACCEPT", "-m comment --comment iptlive")
NEW, RIVAL, NEVER = "-i eth1 -j ACCEPT", "-i eth2 -j DROP", "-i eth3 -j DROP"
SECONDS = 5


class UnfitError(Exception):
    """The programs do not do what has to be relied on."""


def trial(tools: Tools) -> Dict[str, Any]:
    """Each step relies on those before it."""
    found: Dict[str, Any] = {}
    try:
        reads(tools, found)
        locks = _locks(tools) if tools.backend == "legacy" else {}
        tools = tools._replace(ways=Ways(**locks))
        declares = loads(tools, found)
        discards(tools)
        ways = tools.ways._replace(declares=declares, lists_after_commit=lists_after_commit(tools))
        tools = tools._replace(ways=ways)
        commits(tools)
        if tools.backend == "nft":
            is_gated(tools)
    except UnfitError as err:
        return {"ways": None, "found": found, "unfit": str(err)}
    return {"ways": tools.ways._asdict(), "found": found, "unfit": ""}


def restore(tools: Tools, *lines: str) -> Done:
    text = "\n".join(["*filter", *lines, "COMMIT", ""])
    words = ["-w", str(SECONDS)] if tools.backend == "legacy" and tools.ways.reading == "private" else []
    return programs.run([tools.restore, "--noflush", *words], text)


def rules(tools: Tools) -> List[str]:
    chain = read_tables(tools, ["filter"]).get("filter", {}).get(CHAIN)
    return list(chain.rules) if chain else []


def state(tools: Tools) -> Any:
    """What must not change while we only look."""
    tables = FAMILIES[tools.family].legacy_tables
    if tools.backend == "nft":
        return generation()
    with contextlib.suppress(FileNotFoundError), open(tables, encoding="ascii") as names:
        return names.read()
    return ""


def reads(tools: Tools, found: Dict[str, Any]) -> None:
    """What does not exist is looked for without making it; which these programs may do when it is named."""
    before = state(tools)
    read_chains(tools, {"filter": ["INPUT"], "nat": ["OUTPUT"]})
    read_tables(tools, ["filter", "nat"])
    if state(tools) != before:
        raise UnfitError("reading the rules makes tables in the kernel")
    if tools.backend == "nft":
        programs.run([tools.restore, "--noflush"], f"*security\n-D {NOWHERE} 1\nCOMMIT\n")
        if state(tools) != before:
            raise UnfitError("a transaction that fails makes tables in the kernel")
    programs.run([tools.restore, "--noflush"], "*mangle\n-S OUTPUT\nCOMMIT\n")
    found["makes_named_tables"] = state(tools) != before


def _locks(tools: Tools) -> Dict[str, Any]:
    """How the programs keep off each other, and how one that writes nothing can be kept off the host's lock."""
    if restore(tools._replace(ways=Ways(reading="private"))).status:
        return {"locks": False, "reading": "none"}
    with variable("XTABLES_LOCKFILE", f"/proc/{os.getpid()}/none/lock"):
        refused = programs.run([tools.restore, "--noflush"], "*filter\nCOMMIT\n").status
    return {"locks": True, "reading": "variable" if refused else "private"}


@contextlib.contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    before = os.environ[name]
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ[name] = before


def loads(tools: Tools, found: Dict[str, Any]) -> str:
    """How a built-in chain is declared, be it there or not: with its policy wherever that is needed."""
    bare = not restore(tools, ":INPUT - [0:0]").status
    text = [f"-N {CHAIN}", *(f"-A {CHAIN} {rule}" for rule in KEPT)]
    done = restore(tools, ":INPUT ACCEPT [0:0]", *text)
    if done.status:
        raise HostError(f"{tools.restore} cannot load a rule: {message(done.err)}")
    if tools.backend == "legacy" and "filter" not in state(tools).split():
        raise UnfitError("it writes another backend's rules than it says")
    if rules(tools) != list(KEPT):
        raise UnfitError(f"it prints rules in another form than it takes: {rules(tools)}")
    found["blanks"] = " \n" in restore(tools, f"-S {CHAIN}").out
    return "-" if bare and not restore(tools, ":INPUT - [0:0]").status else "policy"


def discards(tools: Tools) -> None:
    """A listing shows what stands above it in the transaction, and sends nothing of it."""
    done = restore(tools, f"-A {CHAIN} {NEVER}", f"-S {CHAIN}", f"-D {NOWHERE} 1")
    if not done.status or rules(tools) != list(KEPT):
        raise UnfitError("a listing inside a transaction already sends what stands above it")
    if f"-A {CHAIN} {NEVER}\n" not in done.out:
        raise UnfitError("it does not list rules inside a transaction")
    programs.run([tools.restore, "--noflush"], f"*filter\n-A {CHAIN} {NEVER}\n")
    if rules(tools) != list(KEPT):
        raise UnfitError("it writes rules although no COMMIT follows")


def lists_after_commit(tools: Tools) -> bool:
    edits = f"*filter\n-A {CHAIN} {NEW}\nCOMMIT\n", f"*filter\n-D {CHAIN} {NEW}\nCOMMIT\n"
    done = programs.run([tools.restore, "--noflush"], edits[0] + listing({"filter": [CHAIN]}))
    listed = not done.status and f"-A {CHAIN} {NEW}" in done.out
    programs.run([tools.restore, "--noflush"], edits[1])
    if rules(tools) != list(KEPT):
        raise UnfitError("it does not delete the rule that it is told to")
    return listed


def planned(live: Table, wanted: Sequence[str], gone: str) -> Dict[str, ChainPlan]:
    stored = StoredState(tuple(Line(rule, 1) for rule in wanted), (Line(gone, 1),))
    plan = plan_chain(CHAIN, stored, live[CHAIN], Choices("after"))
    if plan.refusals:
        raise UnfitError(f"it lists other rules inside a transaction than {list(wanted)}")
    return {CHAIN: plan}


def commits(tools: Tools) -> None:
    """A verified transaction does what was planned, positions and all, and so does the one that undoes it."""
    for wanted, gone in (((NEW, KEPT[1]), KEPT[0]), (KEPT, NEW)):
        try:
            sent = attempt(tools, "filter", [CHAIN], partial(planned, wanted=wanted, gone=gone), SECONDS)
        except (HostError, StaleError) as err:
            raise UnfitError(f"a verified transaction fails: {str(err) or 'the rules seem to change'}") from err
        if sent is None or sent.done.status or rules(tools) != list(wanted):
            raise UnfitError(f"a verified transaction leaves {rules(tools)} ({message(sent.done.err) if sent else ''})")


def is_gated(tools: Tools) -> None:
    """A rival who writes between our reading and our batch: the program is ended, and nothing of the batch was sent."""

    def decide(live: Table) -> Dict[str, ChainPlan]:
        if rules(tools) == list(KEPT):
            restore(tools, f"-I {CHAIN} 1 {RIVAL}")
        return planned(live, (NEW, KEPT[1]), KEPT[0])

    with contextlib.suppress(StaleError):
        attempt(tools, "filter", [CHAIN], decide, SECONDS)
        raise UnfitError("a transaction is not stopped although the rules are others than those that it was made for")
    if rules(tools) != [RIVAL, *KEPT]:
        raise UnfitError("a transaction that is stopped before its end leaves something behind")


def answer(words: List[str], tried: Callable[[Tools], Dict[str, Any]] = trial) -> Dict[str, Any]:
    """``words`` are those of ``Tools`` but for the ways."""
    tools = Tools(*words)
    try:
        with programs.private_file() as lock:
            os.environ["XTABLES_LOCKFILE"] = f"/proc/{os.getpid()}/fd/{lock.fileno()}"
            if not os.path.realpath(tools.restore).startswith("/run/"):  # where some distribution keeps its programs
                done = programs.run(["mount", "-t", "tmpfs", "iptlive", "/run"])
                if done.status:
                    raise HostError(f"mount: {message(done.err)}")
            return tried(tools)
    except (HostError, StaleError, NoAnswerError, OSError) as err:
        return {"failed": str(err) or type(err).__name__}


if __name__ == "__main__":
    print(json.dumps(answer(sys.argv[1:])))
