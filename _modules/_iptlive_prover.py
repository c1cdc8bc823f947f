"""A clone of this host and its rules, in which packets are tried before an update is committed.

The clone is a child process. It does not outlive the thread that opened it, and a child that is lost is an error: never
a proof.
"""

import contextlib
import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

import _iptlive_netlink as netlink
from _iptlive_family import FAMILIES, label
from _iptlive_model import BUILTIN, Chain, HostError, Table
from _iptlive_programs import SEARCH_PATH, Tools, message, run
from _iptlive_rules import parse_save, sets

_PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_iptlive_clone.py")
_TIMEOUT = 300  # seconds for one answer: thousands of probes, on a slow machine
_NATIVE_FAMILIES = {netlink.INET: "inet", 2: "ip", 10: "ip6"}
_UNSURE_WORDS = re.compile(
    r"\b(limit rate|limit name|quota|numgen|ct count|ct helper|meter|queue|tproxy|synproxy|socket|osf|hour|day|dup)\b"
)


class NoCloneError(Exception):
    """Nothing can be proved here; the text is a sentence without a full stop."""


class Probe(NamedTuple):
    """One packet, or a conversation, that is to be tried."""

    family: str
    source: Optional[str]  # None: what the routes choose; only of packets of this host's own
    destination: str
    protocol: str = "tcp"  # or udp, icmp (of IPv6 too), gre .., or a number
    port: int = 0
    icmp: Optional[Tuple[int, int]] = None  # type and code; None: an echo request
    interface: Optional[str] = None  # that it comes in by; None: a packet of this host's own
    user: Tuple[int, int] = (0, 0)  # user and group that own it
    state: str = "new"  # or established
    whole: bool = True  # the conversation; False: the first packet only
    source_port: int = 0  # 0: any


class Rule(NamedTuple):
    backend: str  # nft, legacy, or native for a table of nftables' own
    table: str
    chain: str
    number: int  # 0: the policy, or a rule of a native table
    text: str


class Open(NamedTuple):
    """A rule whose verdict no packet tells."""

    backend: str
    table: str
    chain: str
    number: int
    text: str
    match: str


class Answer(NamedTuple):
    """What became of a probe while nothing is used up; ``others`` is what else could become of it."""

    verdict: str  # accept, drop, reject or undecided
    leg: str  # where it failed: request, answer, follow-up or neighbour; "" for nowhere
    detail: str
    rule: Optional[Rule]
    arrives: str
    out: str
    others: Tuple[str, ...]
    hangs: Tuple[Open, ...]
    path: Tuple[Tuple[str, str, str, int], ...]
    why: str


class _Ruleset(NamedTuple):
    """What the child loads: programs and text of one family and backend."""

    family: str
    backend: str
    restore: str
    save: str
    text: str


class _Rules(NamedTuple):
    """All that sees the packets of this host."""

    own: Tuple[_Ruleset, ...]
    others: Tuple[_Ruleset, ...]
    sets: str
    natives: str
    unsure_natives: Dict[str, str]
    blind: Dict[str, str]  # why nothing of a family can be decided


@contextlib.contextmanager
def open_clone(
    tools: Sequence[Tools], stand_ins: Sequence[str] = (), more_sets: Sequence[str] = ()
) -> Iterator["Clone"]:
    """A clone of the network as it is now; the rules of all ``tools`` are read meanwhile.

    ``stand_ins``: interfaces that are tried though the host lacks them; ``more_sets``: ipsets that only the edits name.

    Raises NoCloneError where nothing can be proved, HostError where the host's rules cannot be read.
    """
    with contextlib.ExitStack() as stack:
        child = stack.enter_context(_started())
        child.say({"families": [one.family for one in tools], "stand_ins": list(stand_ins), "path": SEARCH_PATH})
        started = time.monotonic()
        rules = _read(tools, more_sets)
        clone = Clone(child, tools, rules)
        clone.milliseconds["read"] = 1000 * (time.monotonic() - started)
        yield clone


class Clone:
    """``kind`` is namespace or user namespace; ``not_cloned`` what it lacks; ``facts`` the host's network."""

    def __init__(self, child: "_Child", tools: Sequence[Tools], rules: _Rules):
        hello = child.first()
        self.kind: str = hello["kind"]
        self.not_cloned: List[str] = hello["notes"]
        self.facts: dict = {**hello["facts"], "sets": _members(rules.sets)}
        self.live: Dict[str, Dict[str, Table]] = {one.family: parse_save(one.text) for one in rules.own}
        self.packets = 0
        self.milliseconds: Dict[str, float] = dict(hello["milliseconds"])
        self._child = child
        self._rules = rules
        self._own = {one.family: one.backend for one in tools}
        self._is_loaded = False

    def routes(
        self, questions: Sequence[Tuple[str, str, Optional[str], Optional[str]]]
    ) -> List[Tuple[Optional[str], Optional[str], str]]:
        """Which way the kernel sends (family, to, from, in): the interface, the source address, the type."""
        return [tuple(way) for way in self._ask("routes", list(questions))]

    def probe(self, probes: Sequence[Probe], worlds: bool = True, trace: bool = True) -> List[Answer]:
        """What becomes of each. Without ``worlds`` only while nothing is used up; the trace tells the rule."""
        del trace  # it costs next to nothing, and tells what cannot be known
        self._load()
        answer = self._ask("probe", list(probes), worlds)
        self.packets = answer["packets"]
        return [_answer(one) for one in answer["answers"]]

    def load_edits(self, edits: Dict[str, Sequence[str]]) -> None:
        """Carry out an update's own transactions, by family. Raises HostError with what the program says."""
        self._load()
        missing = _named(text for texts in edits.values() for text in texts) - self.facts["sets"].keys()
        if missing:
            self._ask("add_sets", ([_program("ipset"), "restore", "-exist"], _sets(missing)))
        self._ask("edit", {family: list(texts) for family, texts in edits.items()}, self._own)

    def saved(self) -> Dict[str, Dict[str, Table]]:
        """The rules of the clone, as the host would show them."""
        self._load()
        return {
            family: {
                table: {chain: Chain(policy, tuple(rules)) for chain, (policy, rules) in chains.items()}
                for table, chains in tables.items()
            }
            for family, tables in self._ask("saved", self._own).items()
        }

    def _load(self) -> None:
        if self._is_loaded:
            return
        self._is_loaded = True
        rules = self._rules
        loaded = [list(one) for one in rules.own + rules.others]
        sets_program = [_program("ipset"), "restore", "-exist"]
        natives_program = [_program("nft"), "-f", "-"]
        answer = self._ask(
            "load", loaded, (sets_program, rules.sets), (natives_program, rules.natives), rules.blind,
            rules.unsure_natives,
        )  # fmt: skip
        self.not_cloned = answer["notes"]

    def _ask(self, what: str, *given):
        answer, milliseconds = self._child.ask({"do": what, "with": given})
        self.milliseconds[what] = self.milliseconds.get(what, 0) + milliseconds
        return answer


def _answer(one: dict) -> Answer:
    return Answer(
        one["verdict"], one["leg"], one["detail"], Rule(*one["rule"]) if one["rule"] else None, one["arrives"],
        one["out"], tuple(one["others"]), tuple(Open(*rule) for rule in one["hangs"]),
        tuple(tuple(rule) for rule in one["path"]), one["why"],
    )  # fmt: skip


# --- the child -------------------------------------------------------------------------------------------------------


class _Child:
    """The process that is the clone, and what is said to it and by it."""

    def __init__(self, process: subprocess.Popen):
        self._process = process
        self._said = b""

    def say(self, request) -> None:
        with contextlib.suppress(BrokenPipeError):  # its end, and its message, show when it is to answer
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def first(self) -> dict:
        """Its answer to the first request; it may ask for its users to be named before that."""
        said = self._next()
        if "users" in said:
            self._process.stdin.write(b"named\n" if _name_users(said["users"]) else b"refused\n")
            self._process.stdin.flush()
            said = self._next()
        return _checked(said)["answer"]

    def ask(self, request: dict) -> Tuple[object, float]:
        self.say(request)
        said = _checked(self._next())
        return said["answer"], said["milliseconds"]

    def _next(self) -> dict:
        deadline = time.monotonic() + _TIMEOUT
        while b"\n" not in self._said:
            waiting = select.poll()  # select() takes no descriptor above 1023, and a minion may have more
            waiting.register(self._process.stdout, select.POLLIN)
            ready = waiting.poll(1000 * max(0.0, deadline - time.monotonic()))
            part = os.read(self._process.stdout.fileno(), 1 << 20) if ready else b""
            if not part:
                raise self._lost("gave no answer in time" if not ready else "ended without an answer")
            self._said += part
        line, _, self._said = self._said.partition(b"\n")
        try:
            return json.loads(line)
        except ValueError as err:
            raise self._lost("gave no proper answer") from err

    def _lost(self, what: str) -> HostError:
        self._process.kill()
        self._process.wait()
        self._process.errors.seek(0)
        said = self._process.errors.read().decode("utf-8", "replace").strip().split("\n")[-1]
        return HostError(f"the clone in which the update was to be tried {what}{': ' + said if said else ''}")


def _checked(said: dict) -> dict:
    if "cannot" in said:
        raise NoCloneError(said["cannot"])
    if "error" in said:
        raise HostError(said["error"])
    return said


@contextlib.contextmanager
def _started() -> Iterator[_Child]:
    with contextlib.ExitStack() as stack:
        errors = stack.enter_context(open(os.memfd_create("iptlive"), "w+b"))
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        process.errors = errors
        stack.callback(_end, process)
        yield _Child(process)


def _end(process: subprocess.Popen) -> None:
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    process.stdout.close()
    process.kill()
    process.wait()


def _name_users(pid: int) -> bool:
    """Every user keeps its number."""
    try:
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as mapping:
                mapping.write("0 0 4294967295\n")
    except OSError:
        return False
    return True


# --- the host's rules ------------------------------------------------------------------------------------------------


def _read(tools: Sequence[Tools], more_sets: Sequence[str]) -> _Rules:
    with ThreadPoolExecutor(2 * len(tools) + 1) as pool:
        own = [pool.submit(_save, one.family, one.backend, one.restore, one.save) for one in tools]
        others = [pool.submit(_other, one) for one in tools]
        native = pool.submit(_natives, tools)
        own, found, natives = [one.result() for one in own], [one.result() for one in others], native.result()
    others = [one for one in found if isinstance(one, _Ruleset)]
    blind = {one.family: reason for one, reason in zip(tools, found) if isinstance(reason, str) and reason}
    text, unsure, reason = natives
    if reason:
        blind = {**dict.fromkeys([one.family for one in tools], reason), **blind}
    named = _named(one.text for one in [*own, *others]).union(more_sets)
    return _Rules(tuple(own), tuple(others), _sets(named), text, unsure, blind)


def _save(family: str, backend: str, restore: str, save: str) -> _Ruleset:
    done = run([save])
    if done.status:
        raise HostError(f"{save}: {message(done.err)}")
    return _Ruleset(family, backend, restore, save, done.out)


def _other(tools: Tools):
    """The tables of the backend that is not in use; why they cannot be read; or None."""
    backend = "legacy" if tools.backend == "nft" else "nft"
    if not (_legacy_tables(tools.family) if backend == "legacy" else _nft_tables(tools.family)):
        return None
    command = f"{FAMILIES[tools.family].command}-{backend}"
    restore, save = (shutil.which(f"{command}-{action}", path=SEARCH_PATH) for action in ("restore", "save"))
    if not restore or not save:
        return f"there are {label(tools.family)} tables of the {backend} backend, and no '{command}-save' to read them"
    ruleset = _save(tools.family, backend, restore, save)
    chains = [chain for table in parse_save(ruleset.text).values() for chain in table.values()]
    return ruleset if any(chain.rules or chain.policy == "DROP" for chain in chains) else None


def _legacy_tables(family: str) -> bool:
    try:
        with open(FAMILIES[family].legacy_tables, encoding="ascii") as listing:
            return bool(listing.read().split())
    except FileNotFoundError:
        return False


def _nft_tables(family: str) -> bool:
    with contextlib.suppress(netlink.NoAnswerError):
        return any(number == FAMILIES[family].number and name in BUILTIN for number, name in netlink.tables())
    return False


def _natives(tools: Sequence[Tools]) -> Tuple[str, Dict[str, str], str]:
    """Tables of nftables' own: their text, those that hang on what no clone knows, or why they cannot be read."""
    try:
        tables = [key for key in netlink.tables() if _is_native(tools, *key)]
    except netlink.NoAnswerError:
        return "", {}, ""  # no nf_tables in this kernel
    program = shutil.which("nft", path=SEARCH_PATH)
    texts, unsure = [], {}
    for number, table in tables:
        name = f"{_NATIVE_FAMILIES[number]} {table}"
        if program is None:
            return "", {}, f"there is the nftables table '{name}', and no program 'nft' to read it"
        done = run([program, "-s", "list", "table", *name.split(" ", 1)])
        if done.status:
            return "", {}, f"the nftables table '{name}' cannot be read: {message(done.err)}"
        texts.append(done.out)
        word = _UNSURE_WORDS.search(done.out)
        if word:
            unsure[name] = word.group()
    return "".join(texts), unsure, ""


def _is_native(tools: Sequence[Tools], number: int, table: str) -> bool:
    """Whether packets of these families meet it, and iptables does not show it."""
    numbers = [FAMILIES[one.family].number for one in tools]
    return number == netlink.INET or (number in numbers and table not in BUILTIN)


def _named(texts: Iterable[str]) -> Set[str]:
    """The ipsets that rules name."""
    return {name for text in texts for line in text.split("\n") if "-set" in line for name in sets(line)}


def _sets(named: Set[str]) -> str:
    """These sets, with their members; one that is not there is missed when a rule that names it is loaded."""
    if not named:
        return ""
    done = run(["ipset", "save"])
    if done.status:
        raise HostError(f"ipset save: {message(done.err)}")
    return _only(named, done.out)


def _only(named: Set[str], text: str) -> str:
    """The sets of these names, and the sets that are their members."""
    lines = [line.split(" ") for line in text.split("\n") if line]
    lists = {words[1] for words in lines if words[0] == "create" and words[2] == "list:set"}
    while True:
        more = {words[2] for words in lines if words[0] == "add" and words[1] in named & lists} - named
        if not more:
            return "".join(" ".join(words) + "\n" for words in lines if words[1] in named)
        named = named | more


def _members(text: str) -> Dict[str, dict]:
    found: Dict[str, dict] = {}
    for words in (line.split(" ") for line in text.split("\n") if line):
        if words[0] == "create":
            family = words[words.index("family") + 1] if "family" in words else "inet"
            found[words[1]] = {"type": words[2], "family": family, "members": []}
        elif words[0] == "add":
            found[words[1]]["members"].append(words[2])
    return found


def _program(name: str) -> str:
    return shutil.which(name, path=SEARCH_PATH) or name
