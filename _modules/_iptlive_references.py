"""What stored rules name and this host may lack: chains, targets and ipsets, looked for before anything is loaded."""

from typing import Callable, Container, Dict, List, NamedTuple, Optional, Sequence, Set

from _iptlive_model import HostError, Table, chain_key, is_builtin
from _iptlive_plan import Refusal
from _iptlive_rules import other_family, sets, targets
from _iptlive_scratch import Item
from _iptlive_stored import StoredFile

# The targets that come with iptables; a program is asked about any other name.
KNOWN_TARGETS = frozenset(
    """ACCEPT DROP QUEUE RETURN AUDIT CHECKSUM CLASSIFY CLUSTERIP CONNMARK CONNSECMARK CT DNAT DNPT DSCP ECN HL HMARK
    IDLETIMER LED LOG MARK MASQUERADE MIRROR NETMAP NFLOG NFQUEUE NOTRACK RATEEST REDIRECT REJECT SECMARK SET SNAT SNPT
    SYNPROXY TCPMSS TCPOPTSTRIP TEE TOS TPROXY TRACE TTL ULOG""".split()
)


class References(NamedTuple):
    """Which rules can be loaded; which are refused; and which need not be looked at.

    A rule that is to be deleted and names a thing that does not exist cannot be in the kernel.
    """

    usable: List[Item]
    refusals: Dict[int, Refusal]
    sets: Set[str]


class Host(NamedTuple):
    """What can be asked about the host, in case it must be."""

    sets: Callable[[], Set[str]]
    is_target: Callable[[str], bool]


def check(stored: StoredFile, live: Dict[str, Table], chosen: Sequence[Item], host: Host) -> References:
    """Raises HostError for a chain that cannot be made, whatever the host has."""
    _check_names(stored, live, host)
    named = {name for item in chosen for name in sets(item.rule.spec)}
    existing = host.sets() if named else set()
    foreign_targets: Dict[str, bool] = {}
    usable: List[Item] = []
    refusals: Dict[int, Refusal] = {}
    chains = {name: set(table.chains).union(live.get(name, ())) for name, table in stored.tables.items()}
    for item in chosen:
        if other_family(item.rule.spec, stored.family):
            usable.append(item)
            continue
        missing = _missing_target(item, chains[item.table], foreign_targets, host) or _missing_set(item, existing)
        if missing is None:
            usable.append(item)
        elif not item.rule.delete:
            refusals[item.index] = _refuse(stored, item, *missing)
    return References(usable, refusals, named & existing)


def _check_names(stored: StoredFile, live: Dict[str, Table], host: Host) -> None:
    for table, own in stored.tables.items():
        for name, chain in own.chains.items():
            if name in KNOWN_TARGETS and name not in live.get(table, ()) and host.is_target(name):
                raise HostError(
                    f"{stored.path}, line {chain.line}: the chain '{name}' is called like a target, and iptables makes "
                    "no such chain. Give it another name; nothing was changed"
                )


def _missing_target(item: Item, own: Container[str], asked: Dict[str, bool], host: Host) -> Optional[Sequence[str]]:
    for name in targets(item.rule.spec):
        if name in own or name in KNOWN_TARGETS or is_builtin(item.table, name):
            continue
        if name not in asked:
            asked[name] = host.is_target(name)
        if not asked[name]:
            return (
                f"jumps to '{name}', which is neither a chain (stored or in the kernel) nor a target",
                f"declare the chain with ':{name} - [0:0]' below '*{item.table}', start the program that makes it "
                "before this runs, or correct the name",
            )
    return None


def _missing_set(item: Item, existing: Container[str]) -> Optional[Sequence[str]]:
    for name in sets(item.rule.spec):
        if name not in existing:
            return (
                f"names the ipset '{name}', which does not exist",
                f"create it before this runs ('ipset create {name} TYPE'), or correct the name",
            )
    return None


def _refuse(stored: StoredFile, item: Item, what: str, hint: str) -> Refusal:
    key = chain_key(stored.family, item.table, item.rule.chain)
    message = f"{key}: line {item.rule.line} {what}"
    return Refusal("missing_reference", message, hint, (item.rule.spec,), (item.rule.line,))
