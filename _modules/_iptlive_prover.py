"""A clone of this host and its rules, in which packets are tried before an update is committed.

The clone is a child process. It does not outlive the thread that opened it, and a child that is lost is an error: never
a proof.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

import _iptlive_relevant as relevant
from _iptlive_everyrule import Rules, Ruleset, members, named_sets, program, read, sets_text
from _iptlive_model import Chain, HostError, Table
from _iptlive_packets import OWN_PORTS
from _iptlive_programs import SEARCH_PATH, Tools
from _iptlive_rules import parse_save

_PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_iptlive_clone.py")
_MANY = 2000  # rules of a family: so many are loaded in some milliseconds, and need not be told apart
_TIMEOUT = 300  # seconds for one answer: thousands of probes, on a slow machine


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
        rules = read(tools, more_sets)
        clone = Clone(child, tools, rules)
        clone.milliseconds["read"] = 1000 * (time.monotonic() - started)
        yield clone


class Clone:
    """``kind`` is namespace or user namespace; ``not_cloned`` what it lacks; ``facts`` the host's network."""

    def __init__(self, child: "_Child", tools: Sequence[Tools], rules: Rules):
        hello = child.first()
        self.kind: str = hello["kind"]
        self.not_cloned: List[str] = [*hello["notes"], *rules.unseen]
        self.facts: dict = {**hello["facts"], "sets": members(rules.sets)}
        self.live: Dict[str, Dict[str, Table]] = {one.family: parse_save(one.text) for one in rules.own}
        self.packets = 0
        self.milliseconds: Dict[str, float] = dict(hello["milliseconds"])
        self._child = child
        self._own = {one.family: one.backend for one in tools}
        self._loading = _Loading(rules, self.live, self.facts)
        self._edits: Dict[str, List[str]] = {}

    def routes(
        self, questions: Sequence[Tuple[str, str, Optional[str], Optional[str]]]
    ) -> List[Tuple[Optional[str], Optional[str], str]]:
        """Which way the kernel sends (family, to, from, in): the interface, the source address, the type."""
        return [tuple(way) for way in self._ask("routes", list(questions))]

    def probe(self, probes: Sequence[Probe], worlds: bool = True, trace: bool = True) -> List[Answer]:
        """What becomes of each. Without ``worlds`` only while nothing is used up; the trace tells the rule."""
        del trace  # it costs next to nothing, and tells what cannot be known
        if self._loading.reach(probes):
            self._load()
        answer = self._ask("probe", list(probes), worlds)
        self.packets = answer["packets"]
        return [_answer(one) for one in answer["answers"]]

    def load_edits(self, edits: Dict[str, Sequence[str]]) -> None:
        """Carry out an update's own transactions, by family. Raises HostError with what the program says."""
        self._edits = {family: list(texts) for family, texts in edits.items()}
        if self._loading.reach([], self._edits):
            self._load()
        else:
            self._edit()

    def saved(self) -> Dict[str, Dict[str, Table]]:
        """The rules of the clone, as the host would show them; only of chains that are in it with all their rules."""
        if self._loading.reach([]):
            self._load()
        return {
            family: {
                table: {
                    chain: Chain(policy, tuple(rules))
                    for chain, (policy, rules) in chains.items()
                    if self._loading.is_whole(family, table, chain)
                }
                for table, chains in tables.items()
            }
            for family, tables in self._ask("saved", self._own).items()
        }

    def _load(self) -> None:
        answer = self._ask("load", *self._loading.orders())
        self.not_cloned = [*answer["notes"], *self._loading.unseen]
        if self._edits:
            self._edit()

    def _edit(self) -> None:
        missing = named_sets(text for texts in self._edits.values() for text in texts) - self.facts["sets"].keys()
        if missing:
            self._ask("add_sets", ([program("ipset"), "restore", "-exist"], sets_text(missing)))
        self._ask("edit", self._edits, self._own)

    def _ask(self, what: str, *given):
        answer, milliseconds = self._child.ask({"do": what, "with": given})
        self.milliseconds[what] = self.milliseconds.get(what, 0) + milliseconds
        return answer


class _Loading:
    """What is loaded into the clone: all rules, or of very many those that may matter to the packets so far."""

    def __init__(self, rules: Rules, live: Dict[str, Dict[str, Table]], facts: dict):
        self.unseen = rules.unseen
        self._rules = rules
        loaded = rules.own + rules.others
        self._tables = {
            (one.family, one.backend): live[one.family] if one in rules.own else parse_save(one.text) for one in loaded
        }
        self._gateways = facts["gateways"]
        self._links = facts["links"]
        self._large = {
            family for family, tables in live.items() if relevant.size(tables) > _MANY and not self._is_translated()
        }
        self._addresses: Dict[str, Set[str]] = {family: set(self._own(family)) for family in live}
        self._ports: Set[int] = set()
        self._edits: Dict[str, List[str]] = {}
        self._partial: Dict[Tuple[str, str], relevant.Numbers] = {}
        self._times = 0

    def reach(self, probes: Sequence["Probe"], edits: Optional[Dict[str, List[str]]] = None) -> bool:
        """Whether the clone has to be loaded, or loaded with more than it has, to try these."""
        before = self._reached()
        for one in probes:
            self._addresses[one.family].update(address for address in (one.source, one.destination) if address)
            self._ports.update((one.port, one.source_port))
        self._edits = edits or self._edits
        return not self._times or (bool(self._large) and self._reached() != before)

    def orders(self) -> tuple:
        """What the child is told."""
        self._times += 1
        loaded = self._rules.own + self._rules.others
        texts = {(one.family, one.backend): (one.text, {}) for one in loaded}
        for family in self._large:
            texts.update(self._reduced(family, [one for one in loaded if one.family == family]))
        self._partial = {key: numbers for key, (_, numbers) in texts.items()}
        rulesets = [_order(one, *texts[one.family, one.backend]) for one in loaded]
        natives = self._rules.natives if self._times == 1 else ""  # once loaded, they stay
        return (
            rulesets,
            ([program("ipset"), "restore", "-exist"], self._rules.sets),
            ([program("nft"), "-f", "-"], natives),
            self._rules.blind,
            self._rules.unsure_natives,
        )

    def is_whole(self, family: str, table: str, chain: str) -> bool:
        own = next(one for one in self._rules.own if one.family == family)
        return (table, chain) not in self._partial[family, own.backend]

    def _reduced(self, family: str, rulesets: Sequence[Ruleset]) -> dict:
        tables = [self._tables[family, one.backend] for one in rulesets]
        texts = self._edits.get(family, [])
        found = relevant.reduce(family, tables, texts, self._addresses[family], self._ports, OWN_PORTS)
        return {(one.family, one.backend): tuple(reduced) for one, reduced in zip(rulesets, found)}

    def _reached(self) -> tuple:
        return sum(map(len, self._addresses.values())), len(self._ports), self._edits

    def _own(self, family: str) -> Iterator[str]:
        for link in self._links:
            yield from (address for name, address, _ in link["addresses"] if name == family)
        yield from (address for name, address in self._gateways if name == family)

    def _is_translated(self) -> bool:
        """By a table of nftables itself, whose addresses nobody reads here."""
        return any(word in self._rules.natives for word in ("nat", "masquerade", "redirect", "payload set", "tproxy"))


def _order(one: Ruleset, text: str, numbers: relevant.Numbers) -> list:
    return [*one[:4], text, [[table, chain, left] for (table, chain), left in numbers.items()]]


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
