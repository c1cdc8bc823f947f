"""A stored file to chains in the kernel's own spelling, with what this host lacks refused by its line."""

from typing import Dict, Mapping, NamedTuple, Set, Tuple

import _iptlive_hostnames as hostnames
import _iptlive_references as references
import _iptlive_spelling as spelling
from _iptlive_family import label
from _iptlive_model import HostError, StoredState, Table
from _iptlive_programs import Tools, message, run
from _iptlive_sandbox import Sandbox, Task
from _iptlive_stored import StoredFile


class Canonical(NamedTuple):
    """The stored chains in the kernel's spelling, by table and chain."""

    states: Dict[str, Dict[str, StoredState]]
    warnings: Tuple[str, ...]


def canonical(
    sandbox: Sandbox, tools: Tools, stored: StoredFile, live: Dict[str, Table], jumps: Mapping[str, Set[str]]
) -> Canonical:
    """``jumps``: what the rules of each table jump to without declaring it.

    Raises HostError naming file, line and the program's message for the first rule that is not accepted.
    """
    resolved = hostnames.resolve(stored)
    stored = resolved.stored
    host = references.Host(existing_sets, lambda name: sandbox.is_target(tools, name))
    found = references.check(stored, live, jumps, host)
    spelled = sandbox.spell(Task(tools, found.usable, live), found.sets)
    found_texts = spelling.Spelling(spelled, found.refusals, resolved.lines)
    caveats = [f"{label(tools.family)}: {sandbox.caveat}"] if sandbox.caveat else []
    return Canonical(spelling.states(stored, found_texts, live), tuple(resolved.warnings + caveats))


def existing_sets() -> Set[str]:
    """The names of the live ipsets."""
    done = run(["ipset", "list", "-n"])
    if done.status:
        raise HostError(f"ipset list: {message(done.err)}")
    return set(done.out.split())
