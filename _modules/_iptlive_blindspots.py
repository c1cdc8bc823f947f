"""Half the truth: rules that see the same packets but are not in what was read, or not what they are printed as."""

import contextlib
import shutil
from collections import Counter, defaultdict
from typing import Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import _iptlive_expressions as expressions
import _iptlive_netlink as netlink
from _iptlive_family import FAMILIES, label
from _iptlive_gate import StaleError
from _iptlive_kernel import read_chains
from _iptlive_model import BUILTIN, Chain, ChainPlan, HostError, Refusal, StoredState, Table, chain_key
from _iptlive_owners import NATIVE_TABLES
from _iptlive_programs import SEARCH_PATH, Tools, message, run
from _iptlive_rules import parse_save
from _iptlive_sandbox import OnDemand
from _iptlive_spelling import names_object
from _iptlive_stored import StoredFile

_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
_CHANGED = "the rules changed while they were being read; they were not checked for nftables' own"
_FAMILY_WORDS = {netlink.INET: "inet", 2: "ip", 10: "ip6"}

_MARK = "\0"  # no rule's text holds one

States = Dict[str, Dict[str, StoredState]]


def elsewhere(tools: Tools) -> List[str]:
    """Warnings about rules of the backend that is not in use, and about native tables. Creates no table."""
    warnings = _legacy_rules(tools) if tools.backend == "nft" else []
    return warnings + _nft_tables(tools)


def _legacy_rules(tools: Tools) -> List[str]:
    try:
        with open(FAMILIES[tools.family].legacy_tables, encoding="ascii") as listing:
            names = listing.read().split()
    except FileNotFoundError:
        return []
    if not names:
        return []
    program = f"{FAMILIES[tools.family].command}-legacy-save"
    if shutil.which(program, path=SEARCH_PATH) is None:
        return [
            f"{label(tools.family)}: the kernel has legacy tables ({', '.join(sorted(names))}) beside those of nft, "
            f"and '{program}' is not installed to tell whether they hold rules"
        ]
    # This one reads the tables that there are; 'iptables-legacy -S' would make one.
    done = run([program])
    if done.status:
        raise HostError(f"{program}: {message(done.err)}")
    held = Counter()
    for name, table in parse_save(done.out).items():
        held[name] = sum(len(chain.rules) + (chain.policy == "DROP") for chain in table.values())
    return _beside(tools, "legacy", held, f"{program}")


def _nft_tables(tools: Tools) -> List[str]:
    family = FAMILIES[tools.family].number
    hooks: Dict[Tuple[int, str], List[netlink.Base]] = defaultdict(list)
    try:
        # There may be very many chains and rules in the tables that iptables itself reads: they are not asked for.
        others = {key for key in netlink.tables() if key[0] in (family, netlink.INET) and not _is_read(tools, *key)}
        for chain in netlink.base_chains() if others else ():
            if (chain.family, chain.table) in others:
                hooks[(chain.family, chain.table)].append(chain)
    except netlink.NoAnswerError:
        return []  # no nf_tables in this kernel
    held = {key: sum(chain.rules + chain.drops for chain in chains) for key, chains in hooks.items()}
    own = Counter({table: held[kind, table] for kind, table in held if kind == family and table in BUILTIN})
    warnings = []
    if tools.backend == "legacy":
        warnings = _beside(tools, "nft", own, f"{FAMILIES[tools.family].command}-nft-save")
    for kind, table in sorted(hooks):
        if held[kind, table] and not (kind == family and table in BUILTIN):
            warnings.append(_native_table(_FAMILY_WORDS[kind], table, hooks[kind, table]))
    return warnings


def _is_read(tools: Tools, family: int, table: str) -> bool:
    return tools.backend == "nft" and family == FAMILIES[tools.family].number and table in BUILTIN


def _native_table(family: str, table: str, chains: Sequence[netlink.Base]) -> str:
    names = [name for number, name in enumerate(_HOOKS) if any(chain.hook == number for chain in chains)]
    writer = f" (of {NATIVE_TABLES[table]})" if table in NATIVE_TABLES else ""
    return (
        f"the nftables table '{family} {table}'{writer} sees the same packets ({', '.join(names)}) and decides over "
        f"them too; it is not looked at here. See 'nft list table {family} {table}'"
    )


def _beside(tools: Tools, backend: str, held: Counter, program: str) -> List[str]:
    found = ", ".join(f"{name}: {count}" for name, count in sorted(held.items()) if count)
    if not found:
        return []
    return [
        f"{label(tools.family)}: the {backend} backend holds rules or policies too ({found}); packets pass both, "
        f"and only those of {tools.backend} are looked at here. See '{program}', and remove one of the two"
    ]


class _Suspect(NamedTuple):
    """A rule that is not plainly one of iptables', and how it is printed."""

    table: str
    chain: str
    position: int
    text: str
    rule: netlink.Rule


class Doubts(NamedTuple):
    """Rules that may do something else than what they are printed as, and chains whose rules could not be looked at."""

    suspects: Tuple[_Suspect, ...] = ()
    unread: Tuple[Tuple[str, str], ...] = ()
    warnings: Tuple[str, ...] = ()

    def texts(self, live: Dict[str, Table]) -> Dict[Tuple[str, str], Set[str]]:
        """What is printed there, by table and chain."""
        found = {(table, chain): set(live[table][chain].rules) for table, chain in self.unread}
        for suspect in self.suspects:
            found.setdefault((suspect.table, suspect.chain), set()).add(suspect.text)
        return found


def doubts(tools: Tools, live: Dict[str, Table]) -> Doubts:
    """Of the rules that were read; a legacy program prints what the kernel holds, and nothing else."""
    if tools.backend != "nft":
        return Doubts()
    wanted = {table: [name for name, chain in chains.items() if chain.rules] for table, chains in live.items()}
    left = {(table, chain): _CHANGED for table, chains in wanted.items() for chain in chains}
    suspects: List[_Suspect] = []
    plain = expressions.Plain(tools.family, tools.version)
    try:
        for table, chain, rules in netlink.expressions(FAMILIES[tools.family].number, wanted):
            printed = live[table][chain].rules
            if len(rules) == len(printed):
                del left[table, chain]
                odd = [at for at, data in enumerate(rules) if not plain.holds(data)]
                suspects += [_Suspect(table, chain, at + 1, printed[at], netlink.rule(rules[at])) for at in odd]
    except netlink.NoAnswerError as err:
        left = dict.fromkeys(left, f"not checked for nftables' own rules ({err})")
    warnings = tuple(f"{chain_key(tools.family, *place)}: {why}" for place, why in left.items())
    return Doubts(tuple(suspects), tuple(left), warnings)


def misprinted(
    sandbox: OnDemand, tools: Tools, live: Dict[str, Table], states: States, found: Doubts, stored: StoredFile
) -> Tuple[States, List[str]]:
    """The states with a refusal where a misprinted rule reads like a stored one, and a warning about any other."""
    warnings = list(found.warnings)
    refused = {table: dict(chains) for table, chains in states.items()} if found.suspects else states
    for suspect in _unchanged(tools, live, _proved(sandbox, tools, found.suspects, warnings), warnings):
        state = refused[suspect.table][suspect.chain]
        lines = _lines(suspect, state)
        if _is_stored(sandbox, tools, stored, suspect, lines):
            continue
        if lines:
            refusal = _like_stored(tools, suspect, lines)
            refused[suspect.table][suspect.chain] = state._replace(refusals=state.refusals + (refusal,))
        else:
            warnings.append(f"{_not_as_printed(tools, suspect)} it is printed as: '{suspect.text}'")
    return refused, warnings


def _is_stored(sandbox: OnDemand, tools: Tools, stored: StoredFile, suspect: _Suspect, lines: Sequence[int]) -> bool:
    """iptables writes some rules with more than it lists, like ``-i +``: then the stored line itself is written so."""
    specs = [rule.spec for rule in stored.tables[suspect.table].rules if rule.line in lines]
    chains = expressions.jumps(suspect.rule)
    written = sandbox().written(tools, suspect.table, specs, chains) if specs else []
    return any(rule is not None and expressions.same(rule, suspect.rule) for rule in written)


def _lines(suspect: _Suspect, state: StoredState) -> Tuple[int, ...]:
    return tuple(line.line for line in state.rules + state.deletes if line.rule == suspect.text)


def _like_stored(tools: Tools, suspect: _Suspect, lines: Tuple[int, ...]) -> Refusal:
    what = f"{_not_as_printed(tools, suspect)} line {lines[0]}, although it is printed like it"
    hint = "remove it with the program that wrote it (nft), or have it write to a table of its own"
    return Refusal("native_rule", what, hint, (suspect.text,), lines)


def _not_as_printed(tools: Tools, suspect: _Suspect) -> str:
    key = chain_key(tools.family, suspect.table, suspect.chain)
    return f"{key}: the rule at position {suspect.position} was not written by iptables and does something else than"


def refused_since(tools: Tools, table: str, chain: str, live: Optional[Chain], state: StoredState) -> StoredState:
    """The stored chain, with a refusal where a rule that has come since the survey is misprinted like a stored one."""
    if live is None:
        return state
    refusals = []
    for suspect in _misprints(tools, table, {chain: live}):
        lines = _lines(suspect, state)
        if lines:
            refusals.append(_like_stored(tools, suspect, lines))
    return state._replace(refusals=tuple(dict.fromkeys((*state.refusals, *refusals))))


def without_misprints(tools: Tools, table: str, live: Table) -> Table:
    """The chains, with a mark at each rule that is not what it is printed as: it is none of ours, however it reads."""
    ours = dict(live)
    for suspect in _misprints(tools, table, live):
        rules = list(ours[suspect.chain].rules)
        rules[suspect.position - 1] += _MARK
        ours[suspect.chain] = ours[suspect.chain]._replace(rules=tuple(rules))
    return ours


def with_misprints(plan: ChainPlan) -> ChainPlan:
    """The plan for chains with such marks, as one for the chains without them."""
    if plan.result is None:
        return plan
    rules = tuple(rule[: -len(_MARK)] if rule.endswith(_MARK) else rule for rule in plan.result.rules)
    return plan._replace(result=plan.result._replace(rules=rules))


def _misprints(tools: Tools, table: str, live: Table) -> List[_Suspect]:
    """What is now in these chains, which were just read."""
    found = doubts(tools, {table: live})
    if any(warning.endswith(_CHANGED) for warning in found.warnings):
        raise StaleError
    if not found.suspects:
        return []
    with contextlib.ExitStack() as stack:
        return _proved(OnDemand(stack), tools, found.suspects, [])


def _unchanged(tools: Tools, live: Dict[str, Table], proved: Sequence[_Suspect], warnings) -> List[_Suspect]:
    """Texts and expressions were read one after the other: they belong together only if the texts are the same now."""
    wanted = {table: sorted({suspect.chain for suspect in proved if suspect.table == table}) for table in live}
    now = read_chains(tools, {table: chains for table, chains in wanted.items() if chains}) if proved else {}
    same = [
        suspect
        for suspect in proved
        if now.get(suspect.table, {}).get(suspect.chain) == live[suspect.table][suspect.chain]
    ]
    if len(same) < len(proved):
        warnings.append(f"{label(tools.family)}: {_CHANGED}")
    return same


def _proved(sandbox: OnDemand, tools: Tools, suspects: Sequence[_Suspect], warnings) -> List[_Suspect]:
    """Those whose printed text, written by iptables, is another rule."""
    checked = [suspect for suspect in suspects if not names_object(suspect.text) and sandbox().can_load]
    if len(checked) < len(suspects):
        warnings.append(
            f"{label(tools.family)}: {len(suspects) - len(checked)} rules of the kernel could not be checked for "
            "being what they are printed as"
        )
    proved = []
    for table in dict.fromkeys(suspect.table for suspect in checked):
        here = [suspect for suspect in checked if suspect.table == table]
        chains = sorted({chain for suspect in here for chain in expressions.jumps(suspect.rule)})
        written = sandbox().written(tools, table, [suspect.text for suspect in here], chains)
        proved += [
            suspect for suspect, rule in zip(here, written) if rule is None or not expressions.same(rule, suspect.rule)
        ]
    return proved
