"""Cheap evidence that neither the stored files nor the kernel's rules have changed since the last look.

No throw-away namespace is made for it, and on nft no program is run: the kernel counts the generations of its ruleset.
Legacy has no such count; there the rules are listed and hashed, and only where tables are loaded at all.
"""

import hashlib
import os
import re
import shutil
from typing import Any, Dict, Iterable, List, Mapping, Optional

import _iptlive_programs as programs
from _iptlive_family import FAMILIES
from _iptlive_model import HostError
from _iptlive_netlink import generation
from _iptlive_options import Options

_COUNTERS = re.compile(r"^(?:#.*|(:[^ \n]+ [^ \n]+) \[[0-9]+:[0-9]+\])$", re.MULTILINE)


def fingerprint(options: Options) -> str:
    """A text that is another one whenever a file, the ruleset, the options or the iptables programs have changed."""
    evidence: List[Any] = [sorted(options._asdict().items(), key=repr)]
    evidence += [_file(path) for family in options.families for path in options.files[family]]
    programs = {family: os.path.realpath(_program(FAMILIES[family].command)) for family in options.families}
    evidence.append(sorted(programs.items()))
    if any(_may_be(options, "nft", path) for path in programs.values()):
        evidence.append(generation())
    evidence += [_legacy(family) for family, path in programs.items() if _may_be(options, "legacy", path)]
    return hashlib.sha256(repr(evidence).encode("utf-8", "surrogateescape")).hexdigest()


def _file(path: str) -> Optional[tuple]:
    try:
        found = os.stat(path)
    except OSError as err:
        return (path, err.errno)
    return (path, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _program(name: str) -> str:
    return shutil.which(name, path=programs.SEARCH_PATH) or ""


def _may_be(options: Options, backend: str, path: str) -> bool:
    """Told by the program behind the plain command; one that does not say so in its name may be either."""
    if options.backend != "auto":
        return options.backend == backend
    other = "legacy" if backend == "nft" else "nft"
    return other not in os.path.basename(path)


def _legacy(family: str) -> str:
    """A hash of the listed rules without their counters; empty where no legacy table is loaded."""
    try:
        with open(FAMILIES[family].legacy_tables, encoding="ascii") as names:
            loaded = names.read().split()
    except OSError:
        loaded = []
    if not loaded:
        return ""
    plain = FAMILIES[family].command
    program = _program(f"{plain}-legacy-save") or f"{plain}-save"
    listed = programs.run([program])
    if listed.status:
        raise HostError(f"{program}: {programs.message(listed.err)}")
    rules = _COUNTERS.sub(r"\1", listed.out)
    return hashlib.sha256(rules.encode("utf-8", "surrogateescape")).hexdigest()


def summary(answer: Mapping[str, Any]) -> Dict[str, Any]:
    """A plan's result in few words."""
    return {
        "status": answer["status"],
        "changes": {chain: len(steps) for chain, steps in answer["changes"].items()},
        "refusals": {chain: _reasons(refusals) for chain, refusals in answer["refusals"].items()},
        "warnings": list(answer["warnings"]),
    }


def _reasons(refusals: Iterable[Mapping[str, Any]]) -> List[str]:
    return sorted({refusal["reason"] for refusal in refusals})
