"""A stored file as its loader reads it at boot: loaded in a fresh namespace that holds nothing else.

The kernel a plan is made for has chains and sets of other programs; a freshly booted one has none. The restore program
itself tells whether the file loads there. What it can't tell, such as all lines at once and why, is read from the text.
The verdict is kept on disk, so that a plan costs nothing more until the file changes.
"""

import contextlib
import hashlib
import json
import os
import re
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from _iptlive_family import FAMILIES, label
from _iptlive_model import BUILTIN, Chain, Refusal, StoredState, chain_key
from _iptlive_programs import Done, Tools, message
from _iptlive_references import KNOWN_TARGETS
from _iptlive_rules import other_family, parse_save, sets, targets, words
from _iptlive_sandbox import FIXES, Sandbox, open_sandbox
from _iptlive_spelling import names_object
from _iptlive_stored import StoredFile, ranges

FOLDER = "/var/lib/iptlive/boot"
# What ipset-persistent (Debian, Ubuntu) and ipset-service (Red Hat) restore before the rules are loaded.
SET_FILES = ("/etc/iptables/ipsets", "/etc/sysconfig/ipset")
MOST = 20  # problems that are looked for in one file

_ERROR_LINE = re.compile(r"(?:Error occurred at line: |\bline )(\d+)")
_RULE = re.compile(r"(?:\[\d+:\d+\][ \t]*)?-(?:A|I|-append|-insert)[ \t]+(\S+)(.*)", re.DOTALL)
_CHAIN = re.compile(r"(?::|-N[ \t]+|--new-chain[ \t]+)(\S+)")
_UNLIKE = re.compile(r"(?:-F|--flush|-Z|--zero)(?![\w-])")

States = Dict[str, Dict[str, StoredState]]


class Problem(NamedTuple):
    """What keeps a stored file from loading at boot, or has it load as something else. ``place``: table and chain."""

    line: Optional[int]
    place: Tuple[str, str]
    message: str
    fix: str


def problems(tools: Tools, stored: StoredFile, states: States) -> Optional[List[Problem]]:
    """What the loader would say to the file on a fresh boot; ``states`` are what a plan makes of it. Raises HostError.

    None where no namespace can be made: then nobody can tell.
    """
    saved = saved_sets()
    key = _key(tools, stored, states, saved)
    known = _known(stored.family, key)
    if known is None:
        known = _Rehearsal(tools, stored, states, saved).problems()
        if known is not None:
            _keep(stored.family, key, known)
    return known


class SavedSet(NamedTuple):
    """An ipset that is restored at boot: the file it is in, and the line that makes it."""

    path: str
    line: str


def saved_sets() -> Dict[str, SavedSet]:
    """By name."""
    found = {}
    for path in SET_FILES:
        with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                parts = line.split()
                if len(parts) > 2 and parts[0] in ("create", "-N"):
                    found[parts[1]] = SavedSet(path, line)
    return found


def _key(tools: Tools, stored: StoredFile, states: States, saved: Dict[str, SavedSet]) -> str:
    refused = [chain for table in states.values() for chain, state in table.items() if state.refusals]
    around = [stored.path, tools, os.uname().release, sorted(saved), refused]
    return hashlib.sha256(repr(around).encode("utf-8", "surrogateescape") + stored.data).hexdigest()


def _known(family: str, key: str) -> Optional[List[Problem]]:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        with open(os.path.join(FOLDER, family + ".json"), encoding="ascii") as file:
            kept = json.load(file)
        if kept["key"] == key:
            return [Problem(line, tuple(place), what, fix) for line, place, what, fix in kept["problems"]]
    return None


def _keep(family: str, key: str, found: Sequence[Problem]) -> None:
    """It only saves time: where it cannot be kept, the next plan tries the file again."""
    path = os.path.join(FOLDER, family + ".json")
    with contextlib.suppress(OSError):
        os.makedirs(FOLDER, mode=0o700, exist_ok=True)
        with open(f"{path}.{os.getpid()}", "w", encoding="ascii") as file:
            json.dump({"key": key, "problems": found}, file)
        os.replace(file.name, path)


class _Line(NamedTuple):
    """One line of the file: where it stands, and for a rule its chain and text."""

    number: int
    table: str
    chain: str = ""
    spec: str = ""


class _Rehearsal:
    """The trial of one file."""

    def __init__(self, tools: Tools, stored: StoredFile, states: States, saved: Dict[str, SavedSet]):
        self._tools = tools
        self._stored = stored
        self._states = states
        self._saved = saved
        self._raw = stored.data.decode("utf-8", "surrogateescape").split("\n")
        self._rules = list(_rules(self._raw))
        self._loader = f"{FAMILIES[tools.family].command}-restore"
        self._found: Dict[int, Problem] = {}
        # Loading these would change objects of the live host; whether they load is not tried.
        self._left_out = {rule.number for rule in self._rules if names_object(rule.spec)}

    def problems(self) -> Optional[List[Problem]]:
        with open_sandbox() as sandbox:
            if not sandbox.can_load:
                return None
            if self._saved:
                sandbox.run(["ipset", "restore", "-exist"], "".join(one.line for one in self._saved.values()))
            done = self._load(sandbox)
            if done.status:
                self._find(sandbox, done)
            elif not self._left_out:
                self._compare(sandbox)
        return [self._found[number] for number in sorted(self._found)]

    def _load(self, sandbox: Sandbox, until: Optional[int] = None) -> Done:
        """The file, or its beginning; without the lines that are known to be refused, of which each keeps its place."""
        gone = self._left_out.union(self._found)
        lines = ["#" if number in gone else line for number, line in enumerate(self._raw, 1)]
        text = "\n".join(lines) if until is None else "\n".join(lines[:until] + ["COMMIT", ""])
        return sandbox.restore(self._tools._replace(restore=self._loader), text)

    def _find(self, sandbox: Sandbox, done: Done) -> None:
        self._found.update((problem.line, problem) for problem in self._unmet())
        if self._found:
            done = self._load(sandbox)
        while done.status and len(self._found) < MOST:
            rule, done = self._culprit(sandbox, done)
            self._found[rule.number] = self._refused(rule, done)
            if not rule.spec and not rule.chain:
                return  # not a rule: what stands below would be refused for the want of it
            done = self._load(sandbox)

    def _unmet(self) -> Iterator[Problem]:
        """Rules that name what a fresh host lacks when they are loaded. Some targets may be known all the same."""
        declared: Dict[str, Dict[str, int]] = {}
        for number, table, name in _chains(self._raw):
            declared.setdefault(table, {}).setdefault(name, number)
        for rule in self._rules:
            if other_family(rule.spec, self._tools.family) or rule.number in self._left_out:
                continue
            chains = declared.get(rule.table, {})
            for name in [rule.chain, *targets(rule.spec)]:
                known = name in BUILTIN[rule.table] or name in KNOWN_TARGETS
                if not known and chains.get(name, rule.number) >= rule.number:
                    yield self._unknown_chain(rule, name, chains.get(name))
                    break
            for name in sets(rule.spec):
                if name not in self._saved:
                    yield self._unknown_set(rule, name)
                    break

    def _unknown_chain(self, rule: _Line, name: str, below: Optional[int]) -> Problem:
        if below:
            what = f"names the chain '{name}', which is declared only below, in line {below}"
            return self._problem(rule, what, f"Move line {below} up, below '*{rule.table}'")
        what = f"names the chain '{name}', which this file does not declare: at boot nobody has made it yet"
        fix = f"Declare it with ':{name} - [0:0]' below '*{rule.table}', or take the line out of the file"
        return self._problem(rule, what, fix)

    def _unknown_set(self, rule: _Line, name: str) -> Problem:
        what = f"names the ipset '{name}', which nothing makes before the file is loaded"
        fix = (
            f"Have it restored at boot (ipset-persistent reads {SET_FILES[0]}, ipset-service {SET_FILES[1]}), or take "
            "the line out of the file where a program makes the set later"
        )
        return self._problem(rule, what, fix)

    def _culprit(self, sandbox: Sandbox, done: Done) -> Tuple[_Line, Done]:
        """The line that is refused; where COMMIT is, the shortest beginning of its section that is refused, too."""
        numbers = [int(number) for number in _ERROR_LINE.findall(done.err)]
        by_number = {rule.number: rule for rule in self._rules}
        named = next((number for number in reversed(numbers) if 0 < number <= len(self._raw)), len(self._raw))
        if named in by_number and named not in self._found:
            return by_number[named], done
        if self._raw[named - 1].strip() != "COMMIT":
            return _Line(named, _table_at(self._raw, named)), done
        start = max([0] + [number for number in range(1, named) if self._raw[number - 1].startswith("*")])
        here = [rule for rule in self._rules if start < rule.number < named and rule.number not in self._found]
        if not here or not self._load(sandbox, until=here[-1].number).status:
            return _Line(named, _table_at(self._raw, named)), done
        good, bad = -1, len(here) - 1
        while bad - good > 1:
            middle = (good + bad) // 2
            tried = self._load(sandbox, until=here[middle].number)
            good, bad, done = (good, middle, tried) if tried.status else (middle, bad, done)
        return here[bad], done

    def _refused(self, rule: _Line, done: Done) -> Problem:
        found = ((pattern.search(done.err), sentence) for pattern, sentence in FIXES)
        fixes = [sentence.format(*match.groups()) for match, sentence in found if match]
        fix = fixes[0] if fixes else self._fix_of_form(rule.number)
        said = message(done.err).rstrip(".")
        return self._problem(rule, f"is refused by {self._loader} ({said})", fix)

    def _fix_of_form(self, number: int) -> str:
        """What is accepted here but not by the loader, because of how the line is written."""
        line = self._raw[number - 1]
        if line.endswith("\r"):
            return "Write the file with LF line ends"
        if line.startswith("\ufeff"):
            return "Remove the byte order mark"
        if number == len(self._raw):
            return "End the file with a newline"
        if _UNLIKE.match(line.strip()):
            return "Remove it: a table that is just being loaded is empty, and counts from zero"
        return "Remove the blanks around it" if line != line.strip() else "Correct the line"

    def _compare(self, sandbox: Sandbox) -> None:
        """What was loaded against what a plan takes the file for."""
        loaded = parse_save(sandbox.run([f"{FAMILIES[self._tools.family].command}-save"]).out)
        for table, states in self._states.items():
            for chain, state in states.items():
                there = loaded.get(table, {}).get(chain) or Chain(state.policy)
                if not state.refusals and (
                    tuple(line.rule for line in state.rules) != there.rules or state.policy not in (None, there.policy)
                ):
                    line = _first_difference(state, there.rules)
                    self._found[line or 0] = self._unlike(table, chain, line, state, there)

    def _unlike(self, table: str, chain: str, line: Optional[int], state: StoredState, there: Chain) -> Problem:
        commands = [number for number, text in enumerate(self._raw, 1) if _UNLIKE.match(text.strip())]
        what = (
            f"{chain_key(self._tools.family, table, chain)}: {self._loader} makes {len(there.rules)} rules of what is "
            f"taken for {len(state.rules)} here"
        )
        fix = f"Remove line {ranges(commands)} (-F, -Z)" if commands else "Write the chain in the form of iptables-save"
        return Problem(line, (table, chain), f"{self._at(line)}: {what}", fix)

    def _problem(self, rule: _Line, what: str, fix: str) -> Problem:
        place = (rule.table, rule.chain or BUILTIN[rule.table][0])
        return Problem(rule.number, place, f"{self._at(rule.number)}: the line {what}", fix)

    def _at(self, line: Optional[int]) -> str:
        return f"{self._stored.path}, line {line}" if line else self._stored.path


def _first_difference(state: StoredState, rules: Sequence[str]) -> Optional[int]:
    for at, line in enumerate(state.rules):
        if at >= len(rules) or rules[at] != line.rule:
            return line.line
    return state.rules[-1].line if state.rules else state.line


def _sections(raw: Sequence[str]) -> Iterator[Tuple[int, str, str]]:
    """Each line with its number and the table that it stands in."""
    table = ""
    for number, line in enumerate(raw, 1):
        text = line.strip()
        if text.startswith("*"):
            table = text[1:].strip()
        yield number, table if table in BUILTIN else "filter", text


def _table_at(raw: Sequence[str], number: int) -> str:
    return next(table for line, table, _ in _sections(raw) if line == number)


def _rules(raw: Sequence[str]) -> Iterator[_Line]:
    for number, table, text in _sections(raw):
        found = _RULE.match(text)
        if found:
            yield _Line(number, table, words(found.group(1))[0].value, found.group(2).strip())


def _chains(raw: Sequence[str]) -> Iterator[Tuple[int, str, str]]:
    for number, table, text in _sections(raw):
        found = _CHAIN.match(text)
        if found:
            yield number, table, found.group(1)


def judged(choice: str, tools: Tools, stored: StoredFile, states: States) -> Tuple[States, List[str]]:
    """The option ``boot``: the states, with refusals where it is ``refuse``, and the warnings."""
    found = (problems(tools, stored, states) if choice != "ignore" else None) or []
    if choice != "refuse":
        told = f"{label(tools.family)} would not come up at boot as stored: "
        return states, [f"{told}{one.message}. {one.fix}" for one in found]
    refused = {table: dict(chains) for table, chains in states.items()}
    for one in found:
        table, chain = one.place
        state = refused.setdefault(table, {}).get(chain, StoredState(()))
        refused[table][chain] = state._replace(refusals=state.refusals + (_refusal(tools.family, one),))
    return refused, []


def _refusal(family: str, problem: Problem) -> Refusal:
    what = f"{chain_key(family, *problem.place)} would not come up at boot as stored: {problem.message}"
    return Refusal("boot", what, problem.fix, lines=(problem.line,) if problem.line else ())
