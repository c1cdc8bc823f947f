"""The text that goes through iptables-restore to be read back, and what comes back: rules in the kernel's spelling.

A line may become several kernel rules (``-s a,b``), or none (``-6`` in an IPv4 file). Such a line is followed by a
marker rule that carries its index, so that it is mapped to exactly what it became; lines that become one rule each
share the marker that ends their run, and must come back in their number.
"""

import re
from typing import Dict, FrozenSet, Iterable, List, Mapping, NamedTuple, Sequence, Tuple

from _iptlive_model import BUILTIN, HostError, Table, is_builtin
from _iptlive_plan import Line, Refusal, StoredState
from _iptlive_rules import TARGET_OPTIONS, options, targets
from _iptlive_stored import StoredFile, StoredRule

_MARKER = "-m comment --comment iptlive-line-{}"  # letters that the listing does not quote
BENCH = "iptlive-bench"
GOING = "iptlive-going"  # what is to be deleted
NOWHERE = "iptlive-nowhere"  # no such chain: a command for it fails, and takes back all that stands above it

# Objects that a throw-away namespace does not hold, or that are one for the whole machine: loading IDLETIMER there
# sets the live timer of that label.
_OBJECT_TARGETS = ("IDLETIMER", "LED", "CLUSTERIP", "SECMARK")
_OBJECT_MATCHES = ("nfacct", "rateest")
_MAY_NAME_OBJECT = re.compile("|".join(_OBJECT_TARGETS + _OBJECT_MATCHES) + "|--timeout")

# What else than one rule comes of needs a comma or a mark of the family. These take lists that stay one rule, and
# free texts.
_MARKS = (",", '"', "-4", "-6", "--ip")  # none of them: no need to look closer
_MAY_NOT_BE_ONE = re.compile(r"[,\"]|(?:^|[ \t])(?:-[46]|--ip)")
_HARMLESS_LISTS = re.compile(r"--(?:[sd]?ports|state|ctstate|tcp-flags)[ \t]+[^ \t\"]+")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_HARMLESS_TEXTS = re.compile(r'--(?:comment|log-prefix|nflog-prefix)[ \t]+""')

Texts = Dict[int, Tuple[str, ...]]


class Item(NamedTuple):
    """One stored rule, and its index among all of its file."""

    index: int
    table: str
    rule: StoredRule


class Load(NamedTuple):
    """Input for iptables-restore; ``origin`` tells which stored rule an input line carries."""

    text: str
    origin: Dict[int, Item]
    runs: Dict[int, Tuple[int, ...]]  # by the index that a marker carries: the rules that it ends
    chains: Dict[str, List[str]]  # those that hold rules, by table
    tails: Dict[int, str] = {}


def items(stored: StoredFile) -> List[Item]:
    rules = ((name, rule) for name, table in stored.tables.items() for rule in table.rules)
    return [Item(index, table, rule) for index, (table, rule) in enumerate(rules)]


def uses(spec: str, extension: str) -> bool:
    return any(option.value == extension for option in options(spec, TARGET_OPTIONS + ("-m", "--match")))


def names_object(spec: str) -> bool:
    """Whether the rule names an object of the live host, so that it must not be committed anywhere else."""
    if not _MAY_NAME_OBJECT.search(spec):
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
    if not any(mark in spec for mark in _MARKS) or not _MAY_NOT_BE_ONE.search(spec):
        return True
    rest = _HARMLESS_TEXTS.sub("", _QUOTED.sub('""', spec)) if '"' in spec else spec
    return not _MAY_NOT_BE_ONE.search(_HARMLESS_LISTS.sub("", rest))


class _Writer:
    """Input lines, and which of them carry a stored rule."""

    def __init__(self):
        self.lines: List[str] = []
        self._origin: Dict[int, Item] = {}
        self._runs: Dict[int, Tuple[int, ...]] = {}
        self._chains: Dict[str, List[str]] = {}
        self._open: Dict[str, List[int]] = {}

    def table(self, name: str, heads: Sequence[str], rules: Iterable[Tuple[Item, str, str]], tails: Sequence[str]):
        """A whole table; each rule with the chain and the text that stand for it."""
        self.lines += ["*" + name, *heads]
        for item, chain, spec in rules:
            self._rule(item, chain, spec)
        self._chains[name] = list(self._open)
        for chain in self._open:
            self._end_run(chain)
        self._open = {}
        self.lines += [*tails, "COMMIT"]

    def _rule(self, item: Item, chain: str, spec: str) -> None:
        alone = not becomes_one(spec)
        if alone:
            self._end_run(chain)
        self.lines.append(f"-A {chain} {spec}".rstrip(" "))
        self._origin[len(self.lines)] = item
        self._open.setdefault(chain, []).append(item.index)
        if alone:
            self._end_run(chain)

    def _end_run(self, chain: str) -> None:
        run = self._open.get(chain)
        if run:
            self.lines.append(f"-A {chain} {_MARKER.format(run[-1])}")
            self._runs[run[-1]] = tuple(run)
            self._open[chain] = []

    def load(self, tails: Dict[int, str]) -> Load:
        return Load("\n".join(self.lines) + "\n", self._origin, self._runs, self._chains, tails)


def to_commit(stored: StoredFile, live: Dict[str, Table], chosen: Sequence[Item]) -> Load:
    """To be committed in a throw-away namespace; ``live`` lends the chains that only the kernel has."""
    writer = _Writer()
    for name in stored.tables:
        rules = [item for item in chosen if item.table == name]
        chains = {GOING}.union(stored.tables[name].chains, live.get(name, ()))
        # The built-in ones are there when a rule needs them; to declare them costs nft some milliseconds.
        heads = [f":{chain} - [0:0]" for chain in sorted(chains) if not is_builtin(name, chain)]
        # What is to be deleted need not go together with what is stored: two jumps may make a loop.
        lines = ((item, GOING if item.rule.delete else item.rule.chain, item.rule.spec) for item in rules)
        writer.table(name, heads, lines, ())
    return writer.load({})


def to_discard(table: str, stored: StoredFile, live: Dict[str, Table], chosen: Sequence[Item]) -> Load:
    """To be listed and taken back by a deliberate failure: nothing of it reaches the kernel.

    ``table`` is only the work bench: a rule reads the same in every table and chain. What a rule jumps to, however,
    must not be listed before it is committed (the legacy program ends there); it is cut off and put back by hand.
    """
    writer = _Writer()
    chains = {name: set(own.chains).union(live.get(name, ())) for name, own in stored.tables.items()}
    cut = {item.index: _without_jump(item.rule.spec, chains[item.table]) for item in chosen}
    rules = ((item, BENCH, cut[item.index][0]) for item in chosen)
    writer.table(table, ["-N " + BENCH], rules, ["-S " + BENCH, f"-D {NOWHERE} 1"])
    return writer.load({index: tail for index, (_, tail) in cut.items()})


def _without_jump(spec: str, chains: Iterable[str]) -> Tuple[str, str]:
    for option in options(spec, TARGET_OPTIONS):
        if option.value in chains:
            letter = "-g" if option.name in ("-g", "--goto") else "-j"
            return (spec[: option.start] + spec[option.end :]).strip(), f"{letter} {option.value}"
    return spec, ""


def became(load: Load, chains: Iterable[Sequence[str]]) -> Texts:
    """For each stored rule of the load the kernel rules it became; ``chains`` are the listed ones."""
    texts: Texts = {}
    markers = {_MARKER.format(index): run for index, run in load.runs.items()}
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
        parts = [tuple(f"{rule} {tails[index]}".strip() for rule in part) for index, part in zip(run, parts)]
    return dict(zip(run, parts))


class Spelling(NamedTuple):
    """What the stored rules became; ``refusals`` are those of rules that have no meaning on this host."""

    texts: Texts
    refusals: Mapping[int, Refusal]
    named: FrozenSet[int]  # the lines that name a host


def states(stored: StoredFile, spelling: Spelling, live: Dict[str, Table]) -> Dict[str, Dict[str, StoredState]]:
    """The stored chains in the kernel's spelling, by table and chain."""
    chosen = items(stored)
    return {
        name: _table_states(stored, name, [item for item in chosen if item.table == name], spelling, table)
        for name, table in ((name, live.get(name, {})) for name in stored.tables)
    }


def _table_states(stored: StoredFile, name: str, chosen: Sequence[Item], spelling: Spelling, live: Table):
    table = stored.tables[name]
    rules: Dict[str, List[Line]] = {chain: [] for chain in list(BUILTIN[name]) + list(table.chains)}
    deletes: Dict[str, List[Line]] = {chain: [] for chain in rules}
    refusals: Dict[str, List[Refusal]] = {chain: [] for chain in rules}
    for index, _, rule in chosen:
        texts = spelling.texts.get(index, ())
        if rule.line in spelling.named and len(texts) > 1 and rule.chain in live:
            texts = _as_in(live[rule.chain].rules, texts)
        lines = [Line(text, rule.line) for text in texts]
        if index in spelling.refusals:
            refusals[rule.chain].append(spelling.refusals[index])
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
