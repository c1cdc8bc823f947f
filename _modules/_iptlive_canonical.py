"""A stored file to chains in the kernel's own spelling, with what this host lacks refused by its line.

What the kernel prints already is known; only the other lines are loaded into a sandbox, and where there are none, no
sandbox is opened.
"""

from typing import Dict, NamedTuple, Set, Tuple

import _iptlive_hostnames as hostnames
import _iptlive_kernel as kernel
import _iptlive_printed as printed
import _iptlive_references as references
import _iptlive_spelling as spelling
from _iptlive_family import label
from _iptlive_model import HostError, StoredState, Table
from _iptlive_programs import Tools, message, run
from _iptlive_sandbox import OnDemand, Task
from _iptlive_stored import StoredFile

NO_SANDBOX = "none"


class Canonical(NamedTuple):
    """The stored chains in the kernel's spelling, by table and chain; ``sandbox`` is the kind that was needed."""

    states: Dict[str, Dict[str, StoredState]]
    warnings: Tuple[str, ...]
    sandbox: str


def canonical(
    sandbox: OnDemand, tools: Tools, stored: StoredFile, live: Dict[str, Table], doubts: printed.Doubts
) -> Canonical:
    """``doubts``: what the kernel prints without its being sure that it is what is printed.

    Raises HostError naming file, line and the program's message for the first rule that is not accepted.
    """
    known = printed.texts(stored, live, doubts)
    resolved = hostnames.resolve(stored.only(lambda rule: rule.line not in known))
    rest = printed.with_context(stored, resolved.stored, known)
    # What the rules jump to without its being declared: no more than whether it is there is asked.
    jumps = references.undeclared(rest)
    live = _joined(live, kernel.find_chains(tools, {table: sorted(names) for table, names in jumps.items()}))
    host = references.Host(existing_sets, lambda name: sandbox().is_target(tools, name))
    found = references.check(rest, live, jumps, host)
    warnings, kind = list(resolved.warnings), NO_SANDBOX
    if found.usable.texts() or not printed.is_settled(stored, live):
        opened = sandbox()
        known.update(opened.spell(Task(tools, found.usable, live), found.sets))
        warnings += [f"{label(tools.family)}: {opened.caveat}"] if opened.caveat else []
        kind = opened.kind
    spelled = spelling.Spelling(known, found.refusals, resolved.lines)
    return Canonical(spelling.states(stored, spelled, live), tuple(warnings), kind)


def _joined(live: Dict[str, Table], more: Dict[str, Table]) -> Dict[str, Table]:
    return {table: {**more.get(table, {}), **live.get(table, {})} for table in {**live, **more}}


def existing_sets() -> Set[str]:
    """The names of the live ipsets."""
    done = run(["ipset", "list", "-n"])
    if done.status:
        raise HostError(f"ipset list: {message(done.err)}")
    return set(done.out.split("\n")) - {""}
