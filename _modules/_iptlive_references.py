"""What stored rules name and this host may lack: chains, targets and ipsets, looked for before anything is loaded."""

from typing import Callable, Container, Dict, Mapping, NamedTuple, Optional, Sequence, Set

from _iptlive_model import BUILTIN, HostError, Refusal, Table, chain_key
from _iptlive_rules import all_targets, other_family, sets, targets
from _iptlive_stored import StoredFile, StoredRule

# The targets that come with iptables; a program is asked about any other name.
KNOWN_TARGETS = frozenset(
    """ACCEPT DROP QUEUE RETURN AUDIT CHECKSUM CLASSIFY CLUSTERIP CONNMARK CONNSECMARK CT DNAT DNPT DSCP ECN HL HMARK
    IDLETIMER LED LOG MARK MASQUERADE MIRROR NETMAP NFLOG NFQUEUE NOTRACK RATEEST REDIRECT REJECT SECMARK SET SNAT SNPT
    SYNPROXY TCPMSS TCPOPTSTRIP TEE TOS TPROXY TRACE TTL ULOG""".split()
)


class References(NamedTuple):
    """The file with the rules that can be loaded, and by line which are refused.

    A rule that is to be deleted and names a thing that does not exist cannot be in the kernel: it is in neither.
    """

    usable: StoredFile
    refusals: Dict[int, Refusal]
    sets: Set[str]


class Host(NamedTuple):
    """What can be asked about the host, in case it must be."""

    sets: Callable[[], Set[str]]
    is_target: Callable[[str], bool]


def undeclared(stored: StoredFile) -> Dict[str, Set[str]]:
    """What each table's rules jump to without its being declared there or iptables' own: a chain of others, mostly.

    What is called like a target is no chain, unless the host lacks the target: then the rule is refused by its line.
    """
    return {
        name: all_targets([rule.spec for rule in table.rules]).difference(table.chains, BUILTIN[name], KNOWN_TARGETS)
        for name, table in stored.tables.items()
    }


def check(stored: StoredFile, live: Dict[str, Table], jumps: Mapping[str, Set[str]], host: Host) -> References:
    """``jumps`` are the ``undeclared`` ones. Raises HostError for a chain that no host can have."""
    _check_names(stored, live, host)
    missing = {
        name: {target for target in found.difference(live.get(name, ())) if not host.is_target(target)}
        for name, found in jumps.items()
    }
    texts = stored.texts()
    named = {name for spec in texts for name in sets(spec)} if "-set" in "\n".join(texts) else set()
    existing = named & host.sets() if named else set()
    if not any(missing.values()) and named == existing:
        return References(stored, {}, existing)
    left_out: Set[int] = set()
    refusals: Dict[int, Refusal] = {}
    for name, table in stored.tables.items():
        for rule in table.rules:
            what = _what_is_missing(name, rule, missing[name], existing)
            if what and not other_family(rule.spec, stored.family):
                left_out.add(rule.line)
                if not rule.delete:
                    refusals[rule.line] = _refuse(stored, name, rule, *what)
    return References(stored.only(lambda rule: rule.line not in left_out), refusals, existing)


def _check_names(stored: StoredFile, live: Dict[str, Table], host: Host) -> None:
    for table, own in stored.tables.items():
        for name, chain in own.chains.items():
            if name in KNOWN_TARGETS and name not in live.get(table, ()) and host.is_target(name):
                raise HostError(
                    f"{stored.path}, line {chain.line}: the chain '{name}' is called like a target, and iptables makes "
                    "no such chain. Give it another name; nothing was changed"
                )


def _what_is_missing(
    table: str, rule: StoredRule, missing: Set[str], existing: Container[str]
) -> Optional[Sequence[str]]:
    """In words, with the fix."""
    for name in targets(rule.spec):
        if name in missing:
            return (
                f"jumps to '{name}', which is neither a chain (stored or in the kernel) nor a target",
                f"declare the chain with ':{name} - [0:0]' below '*{table}', start the program that makes it "
                "before this runs, or correct the name",
            )
    for name in sets(rule.spec):
        if name not in existing:
            return (
                f"names the ipset '{name}', which does not exist",
                f"create it before this runs ('ipset create {name} TYPE'), or correct the name",
            )
    return None


def _refuse(stored: StoredFile, table: str, rule: StoredRule, what: str, hint: str) -> Refusal:
    message = f"{chain_key(stored.family, table, rule.chain)}: line {rule.line} {what}"
    return Refusal("missing_reference", message, hint, (rule.spec,), (rule.line,))
