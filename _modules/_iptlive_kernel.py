"""What the kernel holds, as the iptables programs list it. Reading creates no table and takes no lock."""

import contextlib
import os
import re
from typing import Dict, Iterable, List, Mapping, Sequence, Tuple

from _iptlive_family import FAMILIES, label
from _iptlive_model import BUILTIN, Chain, HostError, Table, is_builtin
from _iptlive_netlink import NoAnswerError, all_chains, existing_chains, tables, without_hook
from _iptlive_programs import Tools, message, run
from _iptlive_rules import parse_lists, parse_save

Chains = Mapping[str, Sequence[str]]  # names by table

CAP_NET_ADMIN = 1 << 12
MOST_LISTED = 256  # chains of a legacy table that are listed one by one: its program looks through all of them for each
NO_RULE = (1 << 31) - 1  # the number of none: a chain's rule with it is listed as nothing


def check_rights() -> None:
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        granted = re.search(r"^CapEff:\s*([0-9a-f]+)", status.read(), re.MULTILINE)
    if not granted or not int(granted.group(1), 16) & CAP_NET_ADMIN:
        raise HostError("iptables needs root (the capability CAP_NET_ADMIN): run the minion, or salt-call, as root")


def check_family(family: str) -> None:
    if family == "ipv6" and not os.path.exists("/proc/net/if_inet6"):
        raise HostError(
            "IPv6: this host's kernel runs without IPv6. Take ipv6 out of its 'families': 'families: [ipv4]'"
        )


def read_tables(tools: Tools, names: Iterable[str]) -> Dict[str, Table]:
    """The named tables as the kernel holds them; a table that it does not have is left out."""
    found: Dict[str, Table] = {}
    for name in present(tools, names):
        done = run([tools.save, "-t", name])
        if done.status:
            raise HostError(f"{tools.save}: {message(done.err)}")
        if "is incompatible, use 'nft' tool" in done.out:
            raise HostError(
                f"{label(tools.family)}: iptables cannot read the table '{name}', because another program has written "
                f"into it what iptables does not know. See 'nft list table {_nft_word(tools)} {name}' (and 'nft list "
                f"chain {_nft_word(tools)} {name} {BUILTIN[name][0]}'), and have that program use a table of its own; "
                "nothing was planned on half the truth"
            )
        found.update(parse_save(done.out))
    return found


def chain_names(tools: Tools, table: str) -> List[str]:
    """All chains of a table."""
    if tools.backend == "nft":
        with contextlib.suppress(NoAnswerError):
            return all_chains(FAMILIES[tools.family].number, table)
    return list(read_tables(tools, [table]).get(table, ()))


def read_chains(tools: Tools, wanted: Chains) -> Dict[str, Table]:
    """The wanted chains of each table as the kernel holds them; what it does not have is left out.

    A restore program with nothing but ``-S`` lines lists them, sends nothing, and creates nothing; on the nft backend
    no other chain is read for it, however many there are.
    """
    with contextlib.suppress(NoAnswerError, _UnlistedError):
        if tools.backend == "nft":
            return _read_listed(tools, existing_chains(FAMILIES[tools.family].number, wanted))
        names = present(tools, wanted)
        if all(len(wanted[name]) <= MOST_LISTED for name in names):
            return {name: dict(_list_legacy(tools, name, wanted[name])) for name in names}
    # A legacy program cannot be asked which chains there are; and where one cannot be listed, the table tells why.
    return {
        name: {chain: table[chain] for chain in wanted[name] if chain in table}
        for name, table in read_tables(tools, wanted).items()
    }


def find_chains(tools: Tools, wanted: Chains) -> Dict[str, Table]:
    """Those of the wanted chains that the kernel has; they come without their rules."""
    wanted = {table: chains for table, chains in wanted.items() if chains}
    with contextlib.suppress(NoAnswerError, _UnlistedError):
        if tools.backend == "nft":
            found = existing_chains(FAMILIES[tools.family].number, wanted)
            return {table: dict.fromkeys(chains, Chain(None)) for table, chains in found.items()}
        names = present(tools, wanted)
        if all(len(wanted[name]) <= MOST_LISTED for name in names):
            for name in names:
                _list_legacy(tools, name, wanted[name], f" {NO_RULE}")  # fails over the first that is not there
            return {name: dict.fromkeys(wanted[name], Chain(None)) for name in names}
    return {
        name: {chain: Chain(None) for chain in wanted[name] if chain in table}
        for name, table in read_tables(tools, wanted).items()
    }


class _UnlistedError(Exception):
    """A chain has gone meanwhile, or holds what the programs cannot print."""


def _read_listed(tools: Tools, there: Chains) -> Dict[str, Table]:
    if not any(there.values()):
        return {}
    done = run([tools.restore, "--noflush"], listing(there))
    if done.status:
        raise _UnlistedError
    builtin = {table: [chain for chain in chains if is_builtin(table, chain)] for table, chains in there.items()}
    unlike = without_hook(FAMILIES[tools.family].number, builtin)
    if unlike or "contains incompatible base-chains" in done.out:
        raise _not_iptables(tools, *(unlike or [(table, chains[0]) for table, chains in builtin.items() if chains])[0])
    return _by_table(there, done.out)


def _not_iptables(tools: Tools, table: str, chain: str) -> HostError:
    """The programs list such a chain as if it were empty, or none of theirs, and their transactions fail on it."""
    return HostError(
        f"{label(tools.family)}: the kernel's table '{table}' holds a chain that iptables does not make (without a "
        f"hook, or with another priority), and iptables cannot work with it. See 'nft list chain {_nft_word(tools)} "
        f"{table} {chain}'; remove it with the program that made it, or have it use a table of its own; nothing was "
        "changed"
    )


def _nft_word(tools: Tools) -> str:
    return "ip" if tools.family == "ipv4" else "ip6"


def _list_legacy(tools: Tools, table: str, chains: Sequence[str], rule: str = "") -> List[Tuple[str, Chain]]:
    """Chains of a table that is there. The program reads all of it, but that is less work than writing all of it out.

    Without a COMMIT nothing is written.
    """
    if tools.ways.reading == "private":
        raise _UnlistedError  # it would take the lock of the host
    asked = [f"-S {name}{rule}" for name in chains]
    done = run([tools.restore, "--noflush"], "\n".join(["*" + table, *asked, ""]), own_lock=True)
    if "COMMIT expected" not in done.err:
        raise _UnlistedError
    return parse_lists(done.out)


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
