"""The text that goes through iptables-restore to be read back, and what comes back: rules in the kernel's spelling.

A line may become several kernel rules (``-s a,b``), or none (``-6`` in an IPv4 file). Such a line is followed by a
marker rule that carries its number, so that it is mapped to exactly what it became; lines that become one rule each
share the marker that ends their run, and must come back in their number.
"""

import hashlib
import re
from collections import defaultdict
from typing import Dict, FrozenSet, Iterable, List, Mapping, NamedTuple, Sequence, Set, Tuple

from _iptlive_model import BUILTIN, HostError, Line, Refusal, StoredState, Table, is_builtin
from _iptlive_rules import TARGET_OPTIONS, options, targets
from _iptlive_stored import StoredFile, StoredRule

BENCH = "iptlive-bench"
GOING = "iptlive-going"  # what is to be deleted
NOWHERE = "iptlive-nowhere"  # no such chain: a command for it fails, and rolls back all that stands above it

# Objects that a throw-away namespace does not hold, or that are one for the whole machine: loading IDLETIMER there
# sets the live timer of that label.
_OBJECT_TARGETS = ("IDLETIMER", "LED", "CLUSTERIP", "SECMARK")
_OBJECT_MATCHES = ("nfacct", "rateest")

# What else than one rule comes of needs a comma or a mark of the family. These take lists that stay one rule, and
# free texts.
_HARMLESS = re.compile(r'--(?:[sd]?ports|state|ctstate|tcp-flags)[ \t]+[^ \t"]+'
                       r'|--(?:comment|log-prefix|nflog-prefix)[ \t]+"(?:[^"\\]|\\.)*"')  # fmt: skip
_FAMILY_MARK = re.compile(r"(?:^|[ \t])(?:-[46]|--ip)")

Texts = Dict[int, Tuple[str, ...]]  # by the line of the stored file


class Load(NamedTuple):
    """Input for iptables-restore; ``origin`` tells which stored rule an input line carries."""

    text: str
    origin: Dict[int, StoredRule]
    runs: Dict[int, List[int]]  # by the line that a marker carries: the lines of the rules that it ends
    chains: Dict[str, List[str]]  # those that hold rules, by table
    marker: str
    tails: Dict[int, str] = {}


def uses(spec: str, extension: str) -> bool:
    return any(option.value == extension for option in options(spec, TARGET_OPTIONS + ("-m", "--match")))


def may_name_objects(text: str) -> bool:
    """Whether it is worth while to ask of each of the rules in this text."""
    return any(mark in text for mark in (*_OBJECT_TARGETS, *_OBJECT_MATCHES, "--timeout"))


def names_object(spec: str) -> bool:
    """Whether the rule names an object of the live host, so that it must not be committed anywhere else."""
    if not may_name_objects(spec):
        return False
    jumps = targets(spec)
    matches = [option.value for option in options(spec, ("-m", "--match"))]
    return (
        any(target in _OBJECT_TARGETS for target in jumps)
        or any(match in _OBJECT_MATCHES for match in matches)
        or ("CT" in jumps and any(options(spec, ("--timeout",))))
    )


def becomes_one(spec: str) -> bool:
    """Whether the line is sure to become exactly one kernel rule."""
    marked = "-4" in spec or "-6" in spec or "--ip" in spec
    if not (marked or "," in spec or '"' in spec):
        return True
    rest = _HARMLESS.sub("", spec)
    return not ("," in rest or '"' in rest or (marked and _FAMILY_MARK.search(rest)))


class _Writer:
    """Input lines, and which of them carry a stored rule."""

    def __init__(self, stored: StoredFile):
        self._marker = _marker(stored)
        self.lines: List[str] = []
        self._origin: Dict[int, StoredRule] = {}
        self._runs: Dict[int, List[int]] = {}
        self._chains: Dict[str, List[str]] = {}
        self._open: Dict[str, List[int]] = defaultdict(list)

    def open(self, name: str, heads: Iterable[str]) -> None:
        self.lines += ["*" + name, *heads]
        self._open.clear()

    def rule(self, rule: StoredRule, chain: str, spec: str) -> None:
        """A rule with the chain and the text that stand for it."""
        alone = not becomes_one(spec)
        if alone:
            self._end_run(chain)
        self.lines.append(f"-A {chain} {spec}" if spec else f"-A {chain}")
        self._origin[len(self.lines)] = rule
        self._open[chain].append(rule.line)
        if alone:
            self._end_run(chain)

    def close(self, name: str, tails: Iterable[str] = ()) -> None:
        self._chains[name] = list(self._open)
        for chain in self._open:
            self._end_run(chain)
        self.lines += [*tails, "COMMIT"]

    def _end_run(self, chain: str) -> None:
        run = self._open[chain]
        if run:
            self.lines.append(f"-A {chain} {self._marker.format(run[-1])}")
            self._runs[run[-1]] = run
            self._open[chain] = []

    def load(self, tails: Dict[int, str]) -> Load:
        return Load("\n".join(self.lines) + "\n", self._origin, self._runs, self._chains, self._marker, tails)


def _marker(stored: StoredFile) -> str:
    """A rule that no stored line can become, of letters that the listing does not quote."""
    taken = "".join(stored.texts()).replace('"', "").replace("\\", "")
    name = "iptlive-line"
    if name in taken:
        name += "-" + hashlib.sha256(taken.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return f"-m comment --comment {name}-{{}}"


def to_commit(stored: StoredFile, live: Dict[str, Table]) -> Load:
    """To be committed in a throw-away namespace; ``live`` lends the chains that only the kernel has."""
    writer = _Writer(stored)
    for name, table in stored.tables.items():
        chains = {GOING}.union(table.chains, live.get(name, ()))
        # The built-in ones are there when a rule needs them; to declare them costs nft some milliseconds.
        writer.open(name, [f":{chain} - [0:0]" for chain in sorted(chains) if not is_builtin(name, chain)])
        for rule in table.rules:
            # What is to be deleted need not go together with what is stored: two jumps may make a loop.
            writer.rule(rule, GOING if rule.delete else rule.chain, rule.spec)
        writer.close(name)
    return writer.load({})


def to_discard(bench: str, stored: StoredFile, live: Dict[str, Table]) -> Load:
    """To be listed and rolled back by a deliberate failure: nothing of it reaches the kernel.

    The table ``bench`` is only where they are read: a rule reads the same in every table and chain. What a rule jumps
    to, however, must not be listed before it is committed (the legacy program ends there); it is cut off and put back
    by hand.
    """
    writer = _Writer(stored)
    tails: Dict[int, str] = {}
    writer.open(bench, ["-N " + BENCH])
    for name, table in stored.tables.items():
        chains = set(table.chains).union(live.get(name, ()))
        for rule in table.rules:
            spec, tails[rule.line] = _without_jump(rule.spec, chains)
            writer.rule(rule, BENCH, spec)
    writer.close(bench, ["-S " + BENCH, f"-D {NOWHERE} 1"])
    return writer.load(tails)


def _without_jump(spec: str, chains: Set[str]) -> Tuple[str, str]:
    for option in options(spec, TARGET_OPTIONS):
        if option.value in chains:
            letter = "-g" if option.name in ("-g", "--goto") else "-j"
            return (spec[: option.start] + spec[option.end :]).strip(), f"{letter} {option.value}"
    return spec, ""


def became(load: Load, chains: Iterable[Sequence[str]]) -> Texts:
    """For each stored rule of the load the kernel rules it became; ``chains`` are the listed ones."""
    texts: Texts = {}
    markers = {load.marker.format(line): run for line, run in load.runs.items()}
    for rules in chains:
        start = 0
        for end, text in enumerate(rules):
            if text in markers:
                texts.update(_of_run(markers[text], rules[start:end], load.tails))
                start = end + 1
    if len(texts) != len(load.origin):
        raise HostError(f"{len(texts)} of {len(load.origin)} stored rules came back from being read by iptables")
    return texts


def _of_run(run: Sequence[int], rules: Sequence[str], tails: Dict[int, str]) -> Texts:
    parts = [tuple(rules)] if len(run) == 1 else [(rule,) for rule in rules]
    if len(parts) != len(run):
        return {}  # the caller counts
    if tails:
        parts = [tuple(f"{rule} {tails[line]}".strip() for rule in part) for line, part in zip(run, parts)]
    return dict(zip(run, parts))


class Spelling(NamedTuple):
    """What the stored rules became; ``refusals`` are those of rules that have no meaning on this host."""

    texts: Texts
    refusals: Mapping[int, Refusal]
    named: FrozenSet[int]  # the lines that name a host


def states(stored: StoredFile, spelling: Spelling, live: Dict[str, Table]) -> Dict[str, Dict[str, StoredState]]:
    """The stored chains in the kernel's spelling, by table and chain."""
    return {name: _table_states(stored, name, spelling, live.get(name, {})) for name in stored.tables}


def _table_states(stored: StoredFile, name: str, spelling: Spelling, live: Table):
    table = stored.tables[name]
    rules: Dict[str, List[Line]] = {chain: [] for chain in list(BUILTIN[name]) + list(table.chains)}
    deletes: Dict[str, List[Line]] = {chain: [] for chain in rules}
    refusals: Dict[str, List[Refusal]] = {chain: [] for chain in rules}
    for rule in table.rules:
        chain, _, number, delete, insert_at = rule
        texts = spelling.texts.get(number, ())
        if len(texts) == 1 and not delete and insert_at is None:
            rules[chain].append(Line(texts[0], number))  # nearly all of them
            continue
        if len(texts) > 1 and rule.line in spelling.named and rule.chain in live:
            texts = _as_in(live[rule.chain].rules, texts)
        lines = [Line(text, rule.line) for text in texts]
        if rule.line in spelling.refusals:
            refusals[rule.chain].append(spelling.refusals[rule.line])
        elif rule.delete:
            deletes[rule.chain] += lines
        elif rule.insert_at is None:
            rules[rule.chain] += lines
        else:
            _insert(stored.path, rules[rule.chain], rule, lines)
    return {
        chain: StoredState(
            tuple(rules[chain]), tuple(deletes[chain]), *(table.chains.get(chain) or (None, None)),
            refusals=tuple(refusals[chain]),
        )
        for chain in rules
    }  # fmt: skip


def _as_in(kernel: Sequence[str], texts: Sequence[str]) -> List[str]:
    """The rules that one host name became, in the order in which they stand already: the resolver's is no order."""
    place = {text: at for at, text in reversed(list(enumerate(kernel)))}
    return sorted(texts, key=lambda text: place.get(text, len(place)))


def _insert(path: str, rules: List[Line], rule: StoredRule, lines: List[Line]) -> None:
    at = rule.insert_at - 1
    if not 0 <= at <= len(rules):
        raise HostError(
            f"{path}, line {rule.line}: '-I {rule.chain} {rule.insert_at}' is beyond the chain's end: {len(rules)} "
            "rules are stored above it"
        )
    # iptables puts each rule of a list at that very position in turn, so the last of them comes first.
    rules[at:at] = reversed(lines)
