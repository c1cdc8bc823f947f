"""What the kernel holds, as the iptables programs list it. Reading creates no table and takes no lock."""

import contextlib
import os
import re
from types import MappingProxyType
from typing import Dict, Iterable, List, Mapping, Sequence

from _iptlive_family import FAMILIES
from _iptlive_model import BUILTIN, Chain, HostError, Table
from _iptlive_netlink import NoAnswerError, existing_chains, tables
from _iptlive_programs import Tools, message, run
from _iptlive_rules import parse_lists, parse_save

CAP_NET_ADMIN = 1 << 12
NO_RULE = (1 << 31) - 1  # the number of none: a chain's rule with it is listed as nothing


def check_rights() -> None:
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        granted = re.search(r"^CapEff:\s*([0-9a-f]+)", status.read(), re.MULTILINE)
    if not granted or not int(granted.group(1), 16) & CAP_NET_ADMIN:
        raise HostError("iptables needs root (the capability CAP_NET_ADMIN): run the minion, or salt-call, as root")


def check_family(family: str) -> None:
    if family == "ipv6" and not os.path.exists("/proc/net/if_inet6"):
        raise HostError("IPv6: this host's kernel runs without IPv6. Set 'families: [ipv4]' for it")


def read_tables(tools: Tools, names: Iterable[str]) -> Dict[str, Table]:
    """The named tables as the kernel holds them; a table that it does not have is left out."""
    found: Dict[str, Table] = {}
    for name in present(tools, names):
        done = run([tools.save, "-t", name])
        if done.status:
            raise HostError(f"{tools.save}: {message(done.err)}")
        found.update(parse_save(done.out))
    return found


Chains = Mapping[str, Sequence[str]]  # names by table


def read_chains(tools: Tools, wanted: Chains, named: Chains = MappingProxyType({})) -> Dict[str, Table]:
    """The wanted chains of each table as the kernel holds them; what it does not have is left out.

    Of the chains in ``named`` only the existence matters: they come without rules. A restore program with nothing but
    ``-S`` lines lists them, sends nothing, and creates nothing; on the nft backend no other chain is read for it,
    however many there are.
    """
    with contextlib.suppress(NoAnswerError, _UnlistedError):
        if tools.backend == "legacy":
            names = present(tools, wanted)
            return {name: _list_legacy(tools, name, wanted[name], named.get(name, ())) for name in names}
        live = _read_listed(tools, existing_chains(FAMILIES[tools.family].number, wanted))
        return _with_empty(live, existing_chains(FAMILIES[tools.family].number, named))
    # A legacy program cannot be asked which chains there are; and where one cannot be listed, the table tells why.
    found = read_tables(tools, wanted)
    live = {name: {chain: table[chain] for chain in wanted[name] if chain in table} for name, table in found.items()}
    return _with_empty(live, {name: list(table.keys() & named.get(name, ())) for name, table in found.items()})


def _with_empty(live: Dict[str, Table], chains: Chains) -> Dict[str, Table]:
    for table, names in chains.items():
        live.setdefault(table, {}).update((name, Chain(None)) for name in names)
    return live


class _UnlistedError(Exception):
    """A chain has gone meanwhile, or holds what the programs cannot print."""


def _read_listed(tools: Tools, there: Chains) -> Dict[str, Table]:
    if not any(there.values()):
        return {}
    done = run([tools.restore, "--noflush"], listing(there))
    if done.status:
        raise _UnlistedError
    return _by_table(there, done.out)


def _list_legacy(tools: Tools, table: str, chains: Sequence[str], named: Sequence[str]) -> Table:
    """Chains of a table that is there. The program reads all of it, but that is less work than writing all of it out.

    Without a COMMIT nothing is written.
    """
    if tools.ways.reading == "private":
        raise _UnlistedError  # it would take the lock of the host
    asked = ["-S " + name for name in chains] + [f"-S {name} {NO_RULE}" for name in named]
    done = run([tools.restore, "--noflush"], "\n".join(["*" + table, *asked, ""]), own_lock=True)
    if "COMMIT expected" not in done.err:
        raise _UnlistedError
    return {**dict.fromkeys(named, Chain(None)), **dict(parse_lists(done.out))}


def listing(chains: Chains) -> str:
    """Input for a restore program that lists these chains of each table and changes nothing."""
    # A program before 1.8.6 makes the table that it is told the name of.
    listed = ((table, names) for table, names in chains.items() if names)
    return "".join("\n".join(["*" + table, *("-S " + name for name in names), "COMMIT\n"]) for table, names in listed)


def _by_table(chains: Chains, listed: str) -> Dict[str, Table]:
    """What was printed for a ``listing`` of these chains: those of two tables may share a name."""
    parsed = iter(parse_lists(listed))
    return {table: dict(next(parsed) for _ in names) for table, names in chains.items()}


def save_texts(tools: Tools) -> Dict[str, str]:
    """Every table in iptables-save syntax; one that the kernel does not have yet as it would be when new."""
    texts = {}
    for name, chains in BUILTIN.items():
        texts[name] = "*{}\n{}COMMIT\n".format(name, "".join(f":{chain} ACCEPT [0:0]\n" for chain in chains))
    for name in present(tools, BUILTIN):
        done = run([tools.save, "-t", name])
        if done.status:
            raise HostError(f"{tools.save}: {message(done.err)}")
        if parse_save(done.out):
            texts[name] = done.out
    return texts


def present(tools: Tools, names: Iterable[str]) -> List[str]:
    """Those of the tables that can be read without creating them."""
    if tools.backend == "nft":
        return _present_nft(FAMILIES[tools.family].number, names)
    try:
        with open(FAMILIES[tools.family].legacy_tables, encoding="ascii") as listing:
            loaded = set(listing.read().split())
    except FileNotFoundError:
        return []
    return [name for name in names if name in loaded]


def _present_nft(family: int, names: Iterable[str]) -> List[str]:
    with contextlib.suppress(NoAnswerError):
        there = tables()
        return [name for name in names if (family, name) in there]
    return list(names)
