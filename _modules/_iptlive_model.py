"""What every room speaks of: families, tables, chains, and the two errors that leave the private rooms."""

from typing import Dict, NamedTuple, Optional, Tuple

FAMILIES = {"ipv4": "IPv4", "ipv6": "IPv6"}

BUILTIN = {
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "raw": ("PREROUTING", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}

# A packet must never be redirected by a rule whose filter is not there yet: nat comes last.
COMMIT_ORDER = ("raw", "mangle", "filter", "security", "nat")


class InputError(ValueError):
    """Wrong arguments: the caller must change what was asked for."""


class HostError(RuntimeError):
    """The host refused: a file, a program or the kernel. The message names the place and the cure."""


class Chain(NamedTuple):
    """One chain as the kernel prints it; ``policy`` is None for a chain of the user's."""

    policy: Optional[str]
    rules: Tuple[str, ...] = ()


Table = Dict[str, Chain]


def chain_key(family: str, table: str, chain: str) -> str:
    """The name of a chain in results and in the ``chains`` option, like ``IPv4/filter/INPUT``."""
    return f"{FAMILIES[family]}/{table}/{chain}"


def plain(text: str) -> str:
    """A comment may hold bytes that are no UTF-8; JSON, Salt's transport and log files take none of them."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_builtin(table: str, chain: str) -> bool:
    return chain in BUILTIN[table]
