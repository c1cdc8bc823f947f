"""The rules in the clone: the live ones loaded, an update's own edits carried out, and what is there then.

Rules that hang on history, chance or time are loaded in a form that does not; a comment tells which they are, so that
they are found again wherever the edits move them. They are shown as they are on the host.
"""

import re
from collections import Counter
from typing import Callable, Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import _iptlive_openrules as openrules
from _iptlive_family import label
from _iptlive_model import BUILTIN, HostError, Table
from _iptlive_openrules import OpenRule
from _iptlive_rules import logical_lines, parse_save
from _iptlive_runner import Command, Finished, Runner

QUIET: Optional[FrozenSet[int]] = None  # the world in which nothing is used up

_INSERT = re.compile(r"(-I \S+ \d+ )(.*)", re.DOTALL)


class Place(NamedTuple):
    table: str
    chain: str
    number: int


class Ruleset:
    """All tables of one family and one backend."""

    def __init__(self, family: str, backend: str, restore: str, save: str, text: str, left, marks: Iterator[int]):
        self.family, self.backend = family, backend
        self.tables: Dict[str, Table] = {}
        self.open: Dict[int, OpenRule] = {}
        self.places: Dict[Place, int] = {}  # of the rules that are loaded in a form of ours
        self._restore, self._save, self._text = restore, save, text
        # Of chains that are not loaded whole, the numbers that their rules have on the host.
        self._left: Dict[Tuple[str, str], List[int]] = {(table, chain): numbers for table, chain, numbers in left}
        self._marks = marks
        self._world = QUIET

    # --- loading -------------------------------------------------------------------------------------------------

    def load_command(self) -> Command:
        """Loads the live rules."""
        self.tables = parse_save(self._text)
        self.places = {}
        lines = []
        table, counts = "", Counter()
        for line in logical_lines(self._text):
            if line.startswith("*"):
                table, counts = line[1:].strip(), Counter()
            if not line.startswith("-A "):
                lines.append(line)
                continue
            chain, _, rule = line[3:].partition(" ")
            counts[chain] += 1
            lines.append(self._loaded(line, Place(table, chain, counts[chain]), rule))
        return Command((self._restore,), "\n".join(lines) + "\n")

    def _loaded(self, line: str, place: Place, rule: str) -> str:
        form = self._form(rule)
        if form is None:
            return line
        self.places[place] = openrules.marker(form)
        return f"-A {place.chain} {form}"

    def edit_command(self, text: str) -> Command:
        """Loads edits, never for a moment as they are where a rule names an object of the whole machine."""
        return Command((self._restore, "--noflush"), "\n".join(map(self._edited, logical_lines(text))))

    def _edited(self, line: str) -> str:
        found = _INSERT.match(line)
        form = self._form(found.group(2)) if found and openrules.names_object(found.group(2)) else None
        return line if form is None else f"{found.group(1)}{form}"

    def save_command(self) -> Command:
        return Command((self._save,))

    def after(self, saved: str) -> Optional[Command]:
        """Read what the edits made; a command that puts new rules into the form of ours, where there are any."""
        self.tables = parse_save(saved)
        self.places = {}
        changes: Dict[str, List[str]] = {}
        for name, table in self.tables.items():
            for chain, state in table.items():
                for number, rule in enumerate(state.rules, 1):
                    mark = openrules.marker(rule)
                    if mark is None or mark not in self.open:
                        form = self._form(rule)
                        if form is None:
                            continue
                        changes.setdefault(name, []).append(f"-R {chain} {number} {form}".rstrip())
                        mark = openrules.marker(form)
                    self.places[Place(name, chain, number)] = mark
        self._show_originals()
        return self._replacing(changes)

    def _form(self, rule: str) -> Optional[str]:
        """How a rule is loaded that is not loaded as it is."""
        found = openrules.examine(rule)
        if found is None and "\n" in rule:
            found = OpenRule(rule, (), *[rule.replace("\n", " ")] * 3, openrules.MET, False, "")
        if found is None:
            return None
        number = next(self._marks)
        self.open[number] = found
        return openrules.marked(number, found.form(found.quiet))

    def _show_originals(self) -> None:
        for place, mark in self.places.items():
            state = self.tables[place.table][place.chain]
            rules = list(state.rules)
            rules[place.number - 1] = self.open[mark].text
            self.tables[place.table][place.chain] = state._replace(rules=tuple(rules))

    def _replacing(self, changes: Dict[str, List[str]]) -> Optional[Command]:
        if not changes:
            return None
        text = "".join("\n".join([f"*{table}", *lines, "COMMIT", ""]) for table, lines in changes.items())
        return Command((self._restore, "--noflush"), text)

    # --- worlds --------------------------------------------------------------------------------------------------

    def enter(self, world: Optional[FrozenSet[int]]) -> Optional[Command]:
        """``world``: the open rules whose matches are not met; those of all others are."""
        changes: Dict[str, List[str]] = {}
        for (table, chain, number), mark in self.places.items():
            now, then = (self._form_in(mark, which) for which in (self._world, world))
            if now != then:
                form = openrules.marked(mark, then)
                changes.setdefault(table, []).append(f"-R {chain} {number} {form}".rstrip())
        self._world = world
        return self._replacing(changes)

    def _form_in(self, mark: int, world: Optional[FrozenSet[int]]) -> str:
        rule = self.open[mark]
        if world is QUIET:
            return rule.form(rule.quiet)
        return rule.unmet if mark in world else rule.met

    # --- what is there -------------------------------------------------------------------------------------------

    def rule(self, table: str, chain: str, number: int) -> str:
        state = self.tables.get(table, {}).get(chain)
        return state.rules[number - 1] if state and 0 < number <= len(state.rules) else ""

    def policy(self, table: str, chain: str) -> str:
        state = self.tables.get(table, {}).get(chain)
        return (state and state.policy) or ""

    def length(self, table: str, chain: str) -> int:
        state = self.tables.get(table, {}).get(chain)
        return len(state.rules) if state else 0

    def number(self, table: str, chain: str, number: int) -> int:
        """That the rule has on the host."""
        left = self._left.get((table, chain))
        return left[number - 1] if left and 0 < number <= len(left) else number

    def at(self, table: str, chain: str, number: int) -> Optional[int]:
        """The mark of a rule that is loaded in a form of ours."""
        return self.places.get(Place(table, chain, number))

    def deciding(self) -> List[int]:
        """The marks of open rules on which a verdict may hang."""
        return [mark for mark in self.places.values() if self.open[mark].matches and self.open[mark].decides]


class Stage:
    """All rulesets of the clone. ``changed`` is called whenever rules have changed."""

    def __init__(self, runner: Runner, rulesets: Sequence[Ruleset], changed: Callable[[], None]):
        self.rulesets = rulesets
        self._runner = runner
        self._changed = changed

    def load(self, sets: Command, natives: Command) -> str:
        """Why the tables of nftables itself could not be loaded, or ""; raises HostError for all others."""
        self.add_sets(sets)
        self._run([ruleset.load_command() for ruleset in self.rulesets], "the host's rules")
        self._changed()
        if not natives.stdin:
            return ""
        (done,) = self._runner.run([natives])
        return _said(done.err) if done.status else ""

    def add_sets(self, sets: Command) -> None:
        if sets.stdin:
            self._run([sets], "the host's ipsets")

    def edit(self, texts: Dict[str, List[str]], own: Dict[str, str]) -> None:
        """``own``: the backend of each family that is edited."""
        for ruleset in self._own(own):
            for text in texts.get(ruleset.family, ()):
                self._run([ruleset.edit_command(text)], f"the update of {label(ruleset.family)}")
        edited = [ruleset for ruleset in self._own(own) if texts.get(ruleset.family)]
        saved = self._run([ruleset.save_command() for ruleset in edited], "reading the rules back")
        self._do([ruleset.after(one.out) for ruleset, one in zip(edited, saved)])

    def enter(self, family: str, world: Optional[FrozenSet[int]]) -> None:
        self._do([ruleset.enter(world) for ruleset in self.rulesets if ruleset.family == family])

    def door(self, family: str, is_open: bool) -> None:
        """Let everything through the filter, whatever its rules, or no longer."""
        lines = [f"-I {chain} 1 -j ACCEPT" if is_open else f"-D {chain} 1" for chain in BUILTIN["filter"]]
        text = "\n".join(["*filter", *lines, "COMMIT", ""])
        self._do([ruleset.edit_command(text) for ruleset in self.rulesets if ruleset.family == family])

    def _own(self, own: Dict[str, str]) -> List[Ruleset]:
        return [ruleset for ruleset in self.rulesets if own.get(ruleset.family) == ruleset.backend]

    def _do(self, commands: Sequence[Optional[Command]]) -> None:
        wanted = [command for command in commands if command]
        if wanted:
            self._run(wanted, "its own rules")
        self._changed()

    def _run(self, commands: Sequence[Command], what: str) -> List[Finished]:
        finished = self._runner.run(commands)
        for command, done in zip(commands, finished):
            if done.status:
                raise HostError(f"the clone refuses {what}: {command.argv[0]}: {_said(done.err)}")
        return finished


def _said(err: str) -> str:
    return " ".join(err.split())[:500] or "no message"
