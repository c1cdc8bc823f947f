"""All rules that see the packets of this host: of both backends, of nftables itself, and the sets that they name.

Where something cannot be read, it is said what, so that nobody takes the rest for the whole.
"""

import contextlib
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Dict, Iterable, NamedTuple, Sequence, Set, Tuple

import _iptlive_netlink as netlink
from _iptlive_family import FAMILIES, label
from _iptlive_model import BUILTIN, HostError
from _iptlive_programs import SEARCH_PATH, Tools, message, run
from _iptlive_rules import parse_save, sets

_NATIVE_FAMILIES = {netlink.INET: "inet", 2: "ip", 10: "ip6"}
_ELSEWHERE = {3: "arp", 5: "netdev", 7: "bridge"}  # families whose hooks no packet of a clone passes
_UNSURE_WORDS = re.compile(
    r"\b(limit rate|limit name|quota|numgen|ct count|ct helper|meter|queue|tproxy|synproxy|socket|osf|hour|day|dup)\b"
)


class Ruleset(NamedTuple):
    """What the child loads: programs and text of one family and backend."""

    family: str
    backend: str
    restore: str
    save: str
    text: str


class Rules(NamedTuple):
    """All that sees the packets of this host."""

    own: Tuple[Ruleset, ...]
    others: Tuple[Ruleset, ...]
    sets: str
    natives: str
    unsure_natives: Dict[str, str]
    blind: Dict[str, str]  # why nothing of a family can be decided
    unseen: Tuple[str, ...]  # what no clone has of them


def read(tools: Sequence[Tools], more_sets: Sequence[str]) -> Rules:
    with ThreadPoolExecutor(2 * len(tools) + 1) as pool:
        own = [pool.submit(_save, one.family, one.backend, one.restore, one.save) for one in tools]
        others = [pool.submit(_other, one) for one in tools]
        native = pool.submit(_natives, tools)
        own, found, natives = [one.result() for one in own], [one.result() for one in others], native.result()
    others = [one for one in found if isinstance(one, Ruleset)]
    blind = {one.family: reason for one, reason in zip(tools, found) if isinstance(reason, str) and reason}
    text, unsure, reason = natives
    if reason:
        blind = {**dict.fromkeys([one.family for one in tools], reason), **blind}
    named = named_sets(one.text for one in [*own, *others]).union(more_sets)
    return Rules(tuple(own), tuple(others), sets_text(named), text, unsure, blind, _unseen())


def _save(family: str, backend: str, restore: str, save: str) -> Ruleset:
    done = run([save])
    if done.status:
        raise HostError(f"{save}: {message(done.err)}")
    return Ruleset(family, backend, restore, save, done.out)


def _other(tools: Tools):
    """The tables of the backend that is not in use; why they cannot be read; or None."""
    backend = "legacy" if tools.backend == "nft" else "nft"
    if not (_legacy_tables(tools.family) if backend == "legacy" else _nft_tables(tools.family)):
        return None
    command = f"{FAMILIES[tools.family].command}-{backend}"
    restore, save = (shutil.which(f"{command}-{action}", path=SEARCH_PATH) for action in ("restore", "save"))
    if not restore or not save:
        return f"there are {label(tools.family)} tables of the {backend} backend, and no '{command}-save' to read them"
    ruleset = _save(tools.family, backend, restore, save)
    chains = [chain for table in parse_save(ruleset.text).values() for chain in table.values()]
    return ruleset if any(chain.rules or chain.policy == "DROP" for chain in chains) else None


def _legacy_tables(family: str) -> bool:
    try:
        with open(FAMILIES[family].legacy_tables, encoding="ascii") as listing:
            return bool(listing.read().split())
    except FileNotFoundError:
        return False


def _nft_tables(family: str) -> bool:
    with contextlib.suppress(netlink.NoAnswerError):
        return any(number == FAMILIES[family].number and name in BUILTIN for number, name in netlink.tables())
    return False


def _natives(tools: Sequence[Tools]) -> Tuple[str, Dict[str, str], str]:
    """Tables of nftables' own: their text, those that hang on what no clone knows, or why they cannot be read."""
    try:
        tables = [key for key in netlink.tables() if _is_native(tools, *key)]
    except netlink.NoAnswerError:
        return "", {}, ""  # no nf_tables in this kernel
    program = shutil.which("nft", path=SEARCH_PATH)
    texts, unsure = [], {}
    for number, table in tables:
        name = f"{_NATIVE_FAMILIES[number]} {table}"
        if program is None:
            return "", {}, f"there is the nftables table '{name}', and no program 'nft' to read it"
        done = run([program, "-s", "list", "table", *name.split(" ", 1)])
        if done.status:
            return "", {}, f"the nftables table '{name}' cannot be read: {message(done.err)}"
        texts.append(done.out)
        word = _UNSURE_WORDS.search(done.out)
        if word:
            unsure[name] = word.group()
    return "".join(texts), unsure, ""


def _unseen() -> Tuple[str, ...]:
    with contextlib.suppress(netlink.NoAnswerError):
        names = [f"{_ELSEWHERE[number]} {table}" for number, table in netlink.tables() if number in _ELSEWHERE]
        return tuple(f"the nftables table '{name}'" for name in names)
    return ()


def _is_native(tools: Sequence[Tools], number: int, table: str) -> bool:
    """Whether packets of these families meet it, and iptables does not show it."""
    numbers = [FAMILIES[one.family].number for one in tools]
    return number == netlink.INET or (number in numbers and table not in BUILTIN)


def named_sets(texts: Iterable[str]) -> Set[str]:
    """The ipsets that rules name."""
    return {name for text in texts for line in text.split("\n") if "-set" in line for name in sets(line)}


def sets_text(named: Set[str]) -> str:
    """These sets, with their members; one that is not there is missed when a rule that names it is loaded."""
    if not named:
        return ""
    done = run(["ipset", "save"])
    if done.status:
        raise HostError(f"ipset save: {message(done.err)}")
    return _only(named, done.out)


def _only(named: Set[str], text: str) -> str:
    """The sets of these names, and the sets that are their members."""
    lines = [line.split(" ") for line in text.split("\n") if line]
    lists = {words[1] for words in lines if words[0] == "create" and words[2] == "list:set"}
    while True:
        more = {words[2] for words in lines if words[0] == "add" and words[1] in named & lists} - named
        if not more:
            return "".join(" ".join(words) + "\n" for words in lines if words[1] in named)
        named = named | more


def members(text: str) -> Dict[str, dict]:
    found: Dict[str, dict] = {}
    for words in (line.split(" ") for line in text.split("\n") if line):
        if words[0] == "create":
            family = words[words.index("family") + 1] if "family" in words else "inet"
            found[words[1]] = {"type": words[2], "family": family, "members": []}
        elif words[0] == "add":
            found[words[1]]["members"].append(words[2])
    return found


def program(name: str) -> str:
    return shutil.which(name, path=SEARCH_PATH) or name
