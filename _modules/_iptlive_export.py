"""Adoption: a stored file written from the live kernel, without the rules that other programs write themselves.

What is kept of a chain is a part of it in its own order, so the file plans as in sync with the kernel it was taken
from. That is tried before anything is written.
"""

import os
import tempfile
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Tuple

import _iptlive_kernel as kernel
import _iptlive_programs as programs
import _iptlive_ways as ways
from _iptlive_family import label
from _iptlive_files import destination
from _iptlive_model import BUILTIN, Chain, HostError, Table, chain_key
from _iptlive_options import Options
from _iptlive_owners import UNKNOWN, Owners, add
from _iptlive_printable import printable, printable_text
from _iptlive_stored import LONGEST_LINE
from _iptlive_survey import survey

ATTEMPTS = 3
BEFORE = ".before-export"


class Draft(NamedTuple):
    """A file to be; ``left_out`` counts rules by owner."""

    path: str
    text: str
    rules: int
    left_out: Dict[str, int]
    warnings: Tuple[str, ...]


def export(options: Options, owners: Owners, test: bool, overwrite: bool) -> Dict[str, Any]:
    """Per family the file, and what was left out; written only where all of them plan as in sync. Raises HostError."""
    kernel.check_rights()
    for family in options.families:
        kernel.check_family(family)
    tools = [ways.find_tools(family, options.backend) for family in options.families]
    paths = {family: destination(family, options.files[family]) for family in options.families}
    if not test and not overwrite:
        _refuse_existing(paths.values())
    for attempt in range(1, ATTEMPTS + 1):
        found = {one.family: _candidate(options, owners, one, paths[one.family]) for one in tools}
        differences = _differences(options, found)
        if not differences:
            break
        if attempt == ATTEMPTS:
            raise HostError(
                "nothing was written: the exported rules do not plan as in sync with the kernel they were read from: "
                + "; ".join(differences)
            )
    if not test:
        for draft in found.values():
            write(draft.path, draft.text, keep=True)
    return {label(family): _result(draft, not test) for family, draft in found.items()}


def _refuse_existing(paths: Iterable[str]) -> None:
    there = [path for path in paths if os.path.exists(path)]
    if there:
        raise HostError(
            "{} there already; nothing was written. Look at the export with 'test=True', and write it with "
            "'overwrite=True' (the old file is kept as {}{})".format(
                " and ".join(there) + (" is" if len(there) == 1 else " are"), there[0], BEFORE
            )
        )


def _candidate(options: Options, owners: Owners, tools: programs.Tools, path: str) -> Draft:
    writer = _Writer(options, owners, tools.family)
    content = kernel.read_tables(tools, BUILTIN)
    for table in BUILTIN:
        writer.add(table, content.get(table, {}))
    return writer.draft(path)


class _Writer:
    """Writes the tables of one family."""

    def __init__(self, options: Options, owners: Owners, family: str):
        self._options = options
        self._owners = owners
        self._family = family
        self._lines: List[str] = []
        self._rules = 0
        self._left_out: Dict[str, int] = {}
        self._warnings: List[str] = []

    def add(self, table: str, content: Table) -> None:
        kept = {chain: self._kept(table, chain, state) for chain, state in content.items()}
        chains = {chain: content[chain].policy for chain in kept if self._stays(chain, kept[chain])}
        if table == "filter":
            chains = dict(dict.fromkeys(BUILTIN["filter"], "ACCEPT"), **chains)
        if table != "filter" and not any(map(kept.get, chains)) and set(chains.values()) <= {"ACCEPT"}:
            return
        self._lines.append("*" + table)
        self._lines += [f":{chain} {policy or '-'} [0:0]" for chain, policy in chains.items()]
        for chain in chains:
            self._write(table, chain, kept.get(chain, ()))
            if content.get(chain, Chain(None)).policy == "DROP":
                self._note_policy(table, chain, content[chain])
        self._lines.append("COMMIT")

    def _stays(self, chain: str, kept: Tuple[str, ...]) -> bool:
        """A chain that somebody makes for the administrator is worth its place when there is something in it."""
        return not self._owners.of_chain(chain) or bool(self._owners.is_yours(chain) and kept)

    def _kept(self, table: str, chain: str, state: Chain) -> Tuple[str, ...]:
        whose = self._owners.of_rules(table, chain, state.rules)
        add(self._left_out, (owner for owner in whose if owner != UNKNOWN))
        return tuple(rule for rule, owner in zip(state.rules, whose) if owner == UNKNOWN)

    def _write(self, table: str, chain: str, rules: Iterable[str]) -> None:
        key = chain_key(self._family, table, chain)
        together = self._options.choices(self._family, table, chain).duplicates == "allow"
        written = set()
        for rule in rules:
            line = f"-A {chain} {rule}".rstrip(" ")
            if _unwritable(line):
                self._warnings.append(f"{key}: left out, because no stored file can hold it: {line!r}")
            elif rule in written and not together:
                self._lines.append(f"# twice in the kernel: {line}")
                self._warnings.append(f"{key}: a second copy was left out (or set 'duplicates: allow'): {line}")
            else:
                self._lines.append(line)
                self._rules += 1
                written.add(rule)

    def _note_policy(self, table: str, chain: str, state: Chain) -> None:
        others = set(self._owners.of_rules(table, chain, state.rules)) - {UNKNOWN}
        if others:
            self._warnings.append(
                f"{chain_key(self._family, table, chain)}: the policy DROP was exported; see whether it is yours or "
                "was set by " + " or ".join(sorted(others))
            )

    def draft(self, path: str) -> Draft:
        left_out = [f"{count} of {owner}" for owner, count in sorted(self._left_out.items())]
        head = ["# Written by iptlive.export from the live kernel."]
        if left_out:
            head.append("# Left out are rules that other programs write themselves: " + ", ".join(left_out) + ".")
        text = "\n".join(head + self._lines) + "\n"
        return Draft(path, text, self._rules, self._left_out, tuple(self._warnings))


def _unwritable(line: str) -> Optional[bool]:
    return len(line.encode("utf-8", "surrogateescape")) > LONGEST_LINE or any(
        sign < " " and sign != "\t" for sign in line
    )


def _differences(options: Options, found: Dict[str, Draft]) -> List[str]:
    """What the planner says to the candidates."""
    with tempfile.TemporaryDirectory(prefix="iptlive-export-") as folder:
        files = {}
        for family, draft in found.items():
            files[family] = (os.path.join(folder, family),)
            _create(files[family][0], draft.text, 0o600)
        planned = survey(options._replace(files=files))
    differences = [refusal.message for _, plan in planned.plans() for refusal in plan.refusals]
    return differences + [f"{key}: {len(plan.edits)} changes" for key, plan in planned.plans() if plan.edits]


def write(path: str, text: str, keep: bool = False) -> None:
    """Write a file as a whole or not at all; one that was there lends its rights, and is kept beside it on request.

    Where the path is a link it stays one, and what it leads to is written.
    """
    path = os.path.realpath(path)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".iptlive-", dir=os.path.dirname(path)) as folder:
            fresh = os.path.join(folder, "fresh")
            _create(fresh, text, 0o600)
            if os.path.exists(path):
                was = os.stat(path)
                os.chown(fresh, was.st_uid, was.st_gid)
                os.chmod(fresh, was.st_mode & 0o7777)
                if keep:
                    _keep(path)
            os.replace(fresh, path)
    except OSError as err:
        raise HostError(f"{path}: cannot be written: {err.strerror}") from err


def _keep(path: str) -> None:
    with tempfile.TemporaryDirectory(prefix=".iptlive-", dir=os.path.dirname(path)) as folder:
        link = os.path.join(folder, "kept")
        os.link(path, link)
        os.replace(link, path + BEFORE)


def _create(path: str, text: str, mode: int) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(text.encode("utf-8", "surrogateescape"))
        file.flush()
        os.fsync(file.fileno())


def _result(draft: Draft, written: bool) -> Dict[str, Any]:
    result = {
        "file": draft.path,
        "written": written,
        "rules": draft.rules,
        "left_out": draft.left_out,
        "warnings": [printable(warning) for warning in draft.warnings],
    }
    return result if written else dict(result, text=printable_text(draft.text))
