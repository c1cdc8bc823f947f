"""What every room speaks of: tables, chains, plans, and the two errors that leave the private rooms."""

from typing import Dict, NamedTuple, Optional, Tuple

from _iptlive_family import label
from _iptlive_printable import printable

FOLDER = "/var/lib/iptlive"  # what is kept of this host between two runs

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
    """The host refused: a file, a program or the kernel. The message names the place and the fix."""


class Chain(NamedTuple):
    """One chain as the kernel prints it; ``policy`` is None for a chain of the user's."""

    policy: Optional[str]
    rules: Tuple[str, ...] = ()


Table = Dict[str, Chain]


def chain_key(family: str, table: str, chain: str) -> str:
    """The name of a chain in results and in the ``chains`` option, like ``IPv4/filter/INPUT``."""
    return f"{label(family)}/{table}/{printable(chain)}"


def is_builtin(table: str, chain: str) -> bool:
    return chain in BUILTIN[table]


class Line(NamedTuple):
    """One stored rule in the kernel's spelling, and the line of the stored file it comes from."""

    rule: str
    line: int


class StoredState(NamedTuple):
    """What the stored file says of one chain."""

    rules: Tuple[Line, ...]
    deletes: Tuple[Line, ...] = ()
    policy: Optional[str] = None
    line: Optional[int] = None
    refusals: Tuple["Refusal", ...] = ()  # of stored rules that cannot be planned at all


class Choices(NamedTuple):
    """The options that bear on one chain."""

    placement: str = "refuse"
    reorder: bool = False
    duplicates: str = "refuse"
    policy: str = "report"


class Edit(NamedTuple):
    """One step; ``position`` counts from 1 and holds at the moment the step is done."""

    action: str  # create_chain, delete, insert, policy; delete_chain when a created one is rolled back
    position: Optional[int] = None
    rule: str = ""
    line: Optional[int] = None
    moved: bool = False
    was: Optional[str] = None


class Refusal(NamedTuple):
    """Why a chain cannot be brought in line, and the smallest thing that helps."""

    reason: str
    message: str
    hint: str
    rules: Tuple[str, ...] = ()
    lines: Tuple[int, ...] = ()
    above: Optional[str] = None
    below: Optional[str] = None
    foreign: Tuple[str, ...] = ()
    expect: str = ""  # what the update would break
    witness: str = ""  # a packet that shows it


class ChainPlan(NamedTuple):
    """``result`` is the chain after the edits; with refusals there are no edits."""

    edits: Tuple[Edit, ...] = ()
    refusals: Tuple[Refusal, ...] = ()
    warnings: Tuple[str, ...] = ()
    result: Optional[Chain] = None

    def removes_chain(self) -> bool:
        return any(edit.action == "delete_chain" for edit in self.edits)
