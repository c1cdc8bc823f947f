"""The text that goes through the throw-away namespace, and what comes back: stored rules in the kernel's spelling.

Each stored rule is followed by a marker rule that carries its index, so that a line which becomes several kernel rules
(``-s a,b``), or none (``-6`` in an IPv4 file), is still mapped to exactly what it became.
"""

from typing import Container, Dict, List, NamedTuple, Tuple

from _iptlive_model import BUILTIN, HostError, Table, is_builtin
from _iptlive_plan import Line, StoredState
from _iptlive_rules import targets
from _iptlive_stored import StoredFile, StoredRule

_MARKER = "-m comment --comment iptlive-line-{}"  # letters that the listing does not quote


class Load(NamedTuple):
    """Input for iptables-restore; ``origin`` tells which stored rule an input line carries."""

    text: str
    origin: Dict[int, StoredRule]
    rules: Dict[str, Tuple[StoredRule, ...]]


def build(stored: StoredFile, live: Dict[str, Table], only: Container[StoredRule] = None) -> Load:
    """The scratch input; ``live`` lends the chains that stored rules jump to and only the kernel has."""
    lines: List[str] = []
    origin: Dict[int, StoredRule] = {}
    rules: Dict[str, Tuple[StoredRule, ...]] = {}
    for name, table in stored.tables.items():
        chosen = tuple(rule for rule in table.rules if only is None or rule in only)
        lines.append("*" + name)
        lines += [f":{chain} - [0:0]" for chain in _chains(stored, name, live.get(name, {}))]
        for index, rule in enumerate(chosen):
            lines.append(f"-A {rule.chain} {rule.spec}".rstrip(" "))
            origin[len(lines)] = rule
            lines.append(f"-A {rule.chain} {_MARKER.format(index)}")
        lines.append("COMMIT")
        rules[name] = chosen
    return Load("\n".join(lines) + "\n", origin, rules)


def _chains(stored: StoredFile, name: str, live: Table) -> List[str]:
    table = stored.tables[name]
    wanted = {chain for chain in table.chains if not is_builtin(name, chain)}
    for rule in table.rules:
        wanted.update(target for target in targets(rule.spec) if target in live and not is_builtin(name, target))
    return sorted(wanted)


def states(load: Load, stored: StoredFile, printed: Dict[str, Table]) -> Dict[str, Dict[str, StoredState]]:
    """The stored chains in the kernel's spelling, by table and chain; ``printed`` is the scratch's listing."""
    return {
        name: _table_states(stored, name, _became(load.rules[name], printed.get(name, {}))) for name in stored.tables
    }


def _became(rules: Tuple[StoredRule, ...], printed: Table) -> List[Tuple[str, ...]]:
    """For each stored rule the kernel rules it became."""
    became: Dict[int, Tuple[str, ...]] = {}
    markers = {_MARKER.format(index): index for index in range(len(rules))}
    for chain in printed.values():
        run: List[str] = []
        for text in chain.rules:
            if text in markers:
                became[markers[text]] = tuple(run)
                run = []
            else:
                run.append(text)
    if len(became) != len(rules):
        raise HostError(f"the throw-away namespace printed {len(became)} of {len(rules)} stored rules")
    return [became[index] for index in range(len(rules))]


def _table_states(stored: StoredFile, name: str, became: List[Tuple[str, ...]]) -> Dict[str, StoredState]:
    table = stored.tables[name]
    rules: Dict[str, List[Line]] = {chain: [] for chain in list(BUILTIN[name]) + list(table.chains)}
    deletes: Dict[str, List[Line]] = {chain: [] for chain in rules}
    for rule, texts in zip(table.rules, became):
        lines = [Line(text, rule.line) for text in texts]
        if rule.delete:
            deletes[rule.chain] += lines
        elif rule.insert_at is None:
            rules[rule.chain] += lines
        else:
            _insert(stored.path, rules[rule.chain], rule, lines)
    return {chain: _state(table, chain, rules[chain], deletes[chain]) for chain in rules}


def _insert(path: str, rules: List[Line], rule: StoredRule, lines: List[Line]) -> None:
    at = rule.insert_at - 1
    if not 0 <= at <= len(rules):
        raise HostError(
            f"{path}, line {rule.line}: '-I {rule.chain} {rule.insert_at}' is beyond the chain's end: {len(rules)} "
            "rules are stored above it"
        )
    # iptables puts each rule of a list at that very position in turn, so the last of them comes first.
    rules[at:at] = reversed(lines)


def _state(table, chain: str, rules: List[Line], deletes: List[Line]) -> StoredState:
    declared = table.chains.get(chain)
    policy, line = declared or (None, None)
    return StoredState(tuple(rules), tuple(deletes), policy, line)
