"""Stored lines that the kernel prints just so: they are in its spelling already and need no sandbox.

What iptables prints it reads back as the same rule, with the exceptions named here. A line counts only where its own
chain prints it: the kernel has accepted that very rule in that very place.
"""

import re
from collections import defaultdict
from typing import Dict, Iterable, Mapping, Sequence, Set, Tuple

from _iptlive_model import Table, is_builtin
from _iptlive_rules import targets
from _iptlive_spelling import Texts
from _iptlive_stored import StoredFile, StoredRule

# Names that iptables prints as they are, without the quotes that a blank in them needs: what a text with one holds.
_TORN = {
    " -i ": re.compile(" -i [^ \n]+ [^-!]"),
    " -o ": re.compile(" -o [^ \n]+ [^-!]"),
    " --physdev-": re.compile(" --physdev-(?:in|out) [^ \n]+ [^-!]"),
    " --name ": re.compile(" --name [^ \n]+ [^-!]"),
    " --hashlimit-name ": re.compile(" --hashlimit-name [^ \n]+ [^-!]"),
    " --label ": re.compile(" --label [^ \n]+ [^-!]"),
    "-set ": re.compile("-set (?<=[hdlp]-set )[^ \n]+ (?!(?:src|dst)(?:,(?:src|dst))*(?:$| [-!]))", re.MULTILINE),
}
_QUOTED_WORD = re.compile(r' "(?:[^"\\]|\\.)*"(?=[ \n]|\Z)')
_WITHOUT_SPI = re.compile(r" -m ipcomp(?! ! --ipcompspi| --ipcompspi)")

Doubts = Mapping[Tuple[str, str], Set[str]]  # by table and chain: what is printed there without being sure to mean it


def texts(stored: StoredFile, live: Mapping[str, Table], doubts: Doubts) -> Texts:
    """The stored lines that stand in the kernel's listing of their own chain, each as the rule that it is."""
    found: Texts = {}
    for name, table in stored.tables.items():
        known = {chain: _known(live, name, chain, doubts) for chain in {rule.chain for rule in table.rules}}
        found.update({rule.line: (rule.spec,) for rule in table.rules if rule.spec in known[rule.chain]})
    if reads_back([spec for (spec,) in found.values()]):
        return found
    return {line: spec for line, spec in found.items() if reads_back(spec)}


def _known(live: Mapping[str, Table], table: str, chain: str, doubts: Doubts) -> Set[str]:
    there = live.get(table, {}).get(chain)
    return set(there.rules).difference(doubts.get((table, chain), ())) if there else set()


def reads_back(printed: Sequence[str]) -> bool:
    """Whether iptables reads each of these printed rules as the very same rule."""
    text = " " + "\n ".join(printed)
    if '"' in text and '"' in _QUOTED_WORD.sub("", text):
        return False  # a quote that is part of a name
    if " -m ipcomp" in text and _WITHOUT_SPI.search(text):
        return False  # prints nothing of the match for every index, and reads nothing as the index 0
    return not any(mark in text and torn.search(text) for mark, torn in _TORN.items())


def is_settled(stored: StoredFile, live: Mapping[str, Table]) -> bool:
    """Whether the kernel has all of the stored tables and chains: it has accepted their names."""
    return all(
        live.get(name) and all(chain in live[name] or is_builtin(name, chain) for chain in table.chains)
        for name, table in stored.tables.items()
    )


def with_context(stored: StoredFile, rest: StoredFile, known: Texts) -> StoredFile:
    """The rules that must be loaded, with those known ones on which it depends whether the kernel takes them.

    The kernel looks at a rule by itself, and at the ways that lead to it: whether they begin at a hook where it is
    allowed, make a loop, or are too long. So a jump brings all that can be reached by it, and each rule the jumps that
    lead to its chain.
    """
    if not known:
        return rest
    tables = {
        name: table._replace(rules=_in_context(name, rest.tables[name].rules, table.rules, known))
        for name, table in stored.tables.items()
    }
    return rest._replace(tables=tables)


def _in_context(
    table: str, rest: Sequence[StoredRule], rules: Sequence[StoredRule], known: Texts
) -> Tuple[StoredRule, ...]:
    chains = {rule.chain for rule in rules}
    news = [rule for rule in rest if not rule.delete]  # what is to be deleted is loaded into a chain of its own
    jumps = [(rule, target) for rule in news for target in chains.intersection(targets(rule.spec))]
    if not jumps and all(is_builtin(table, rule.chain) for rule in news):
        return tuple(rest)
    reached = {target for _, target in jumps}
    olds = [rule for rule in rules if rule.line in known and not rule.delete]
    jumps += [(rule, target) for rule, target in [(rule, _last_word(rule.spec)) for rule in olds] if target in chains]
    onward: Dict[str, Set[str]] = defaultdict(set)
    back: Dict[str, Set[str]] = defaultdict(set)
    for rule, target in jumps:
        onward[rule.chain].add(target)
        back[target].add(rule.chain)
    below = _closure(reached, onward)
    above = _closure((rule.chain for rule in news), back)
    needed = [rule for rule in olds if rule.chain in below] + [rule for rule, target in jumps if target in above]
    return tuple({rule.line: rule for rule in sorted([*needed, *rest], key=lambda rule: rule.line)}.values())


def _last_word(printed: str) -> str:
    """Where a printed rule jumps to a chain, its name ends it."""
    return printed[printed.rfind(" ") + 1 :]


def _closure(start: Iterable[str], steps: Mapping[str, Set[str]]) -> Set[str]:
    found: Set[str] = set()
    waiting = set(start)
    while waiting:
        chain = waiting.pop()
        found.add(chain)
        waiting |= steps.get(chain, set()) - found
    return found
