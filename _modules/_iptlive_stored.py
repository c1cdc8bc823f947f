"""Text to rules: a stored file in iptables-restore syntax becomes tables, chains and rules with their line numbers.

What counts as stored is what iptables-restore would end up with after loading the file at boot: a second section of
a table replaces the first, ``-I`` puts a rule in front, ``-F`` drops what stood before it. A line whose effect a live
update cannot honour is an error that names it. Harmless deviations that iptables-restore itself would not load
(CRLF, blanks around a line, no newline at the end) are accepted with a warning, as the original script did.
"""

import re
from collections import defaultdict
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import _iptlive_switches as switches
from _iptlive_model import BUILTIN, HostError, is_builtin
from _iptlive_rules import Word, other_family, quotes_closed, words

LONGEST_LINE = 10239  # iptables-restore reads no more and takes the remainder for another line
LONGEST_NAME = 28

_DELETE = re.compile(r"#DELETE#[ \t]*", re.IGNORECASE)
_NEARLY_DELETE = re.compile(r"#+[ \t]*DEL(?:ETE?D?)?[ \t]*[#:]?[ \t]*(?:\[\d+:\d+\][ \t]*)?-(?:[AID]|-append)\b", re.I)
_COUNTERS = re.compile(r"\A\[[0-9]+:[0-9]+\][ \t]*")
_CHAIN = re.compile(r":([^ \t]+)(?:[ \t]+([^ \t]+))?(?:[ \t].*)?\Z")  # it does not look at the rest
_CONTROL = bytes(set(range(32)) - {ord("\t"), ord("\n")})
_NUMBER = re.compile(r"[0-9]{1,9}\Z")
_COMMANDS = re.compile(r"(-[ADIRNPFXZECLS]|--(?:append|delete|insert|replace|new-chain|policy|flush|delete-chain"
                       r"|zero|rename-chain|check|list|list-rules)(?![\w-])=?)(.*)\Z", re.DOTALL)  # fmt: skip
_SHORT = {
    "--append": "-A",
    "--insert": "-I",
    "--new-chain": "-N",
    "--policy": "-P",
    "--flush": "-F",
    "--delete-chain": "-X",
    "--zero": "-Z",
}


class StoredRule(NamedTuple):
    """One rule line; ``spec`` is its text without the command, the chain and counters."""

    chain: str
    spec: str
    line: int
    delete: bool = False
    insert_at: Optional[int] = None


class StoredChain(NamedTuple):
    """A chain's declaration; ``policy`` is None where the file states none."""

    policy: Optional[str]
    line: int


class StoredTable(NamedTuple):
    line: int
    chains: Dict[str, StoredChain]
    rules: Tuple[StoredRule, ...]


class StoredFile(NamedTuple):
    family: str
    path: str
    tables: Dict[str, StoredTable]
    warnings: Tuple[str, ...]
    data: bytes = b""

    def texts(self) -> List[str]:
        return [rule.spec for table in self.tables.values() for rule in table.rules]

    def only(self, keep: Callable[[StoredRule], bool]) -> "StoredFile":
        """The same without the rules that are not to be kept."""
        tables = {name: table._replace(rules=tuple(filter(keep, table.rules))) for name, table in self.tables.items()}
        return self._replace(tables=tables)


def parse(family: str, path: str, data: bytes) -> StoredFile:
    """Parse the bytes of a stored file; raises HostError naming path, line and fix."""
    reader = _Reader(family, path)
    lines = _lines(reader, data.decode("utf-8", "surrogateescape"))
    _check_bytes(path, lines)
    reader.read_all(lines)
    reader.finish(len(lines))
    stored = StoredFile(family, path, reader.tables, tuple(reader.warnings), data)
    if switches.may_hold("\n".join(stored.texts())):
        _refuse_switches(stored)
    return stored


def _refuse_switches(stored: StoredFile) -> None:
    for rule in (rule for table in stored.tables.values() for rule in table.rules):
        switch = switches.held(rule.spec)
        if switch:
            raise HostError(
                f"{stored.path}, line {rule.line}: '{switch}' is an option of the iptables program itself, not a part "
                "of a rule. Remove it"
            )


def _lines(reader: "_Reader", text: str) -> List[str]:
    if not text.strip():
        raise HostError(
            f"{reader.path}: the file is empty: it must hold at least one table ('*filter' ... 'COMMIT'). Write one, "
            "or take the family out of 'families'"
        )
    if text.startswith("\ufeff"):
        reader.warn("a byte order mark at its start")
        text = text[1:]
    if "\r\n" in text:
        reader.warn("the lines end in CRLF")
        text = text.replace("\r\n", "\n")
    if not text.endswith("\n"):
        reader.warn("the last line has no newline")
        text += "\n"
    return text.split("\n")[:-1]


def _check_bytes(path: str, lines: List[str]) -> None:
    whole = "\n".join(lines).encode("utf-8", "surrogateescape")
    if max(map(len, whole.split(b"\n"))) <= LONGEST_LINE and len(whole.translate(None, _CONTROL)) == len(whole):
        return
    for number, line in enumerate(whole.split(b"\n"), 1):
        if len(line) > LONGEST_LINE:
            raise HostError(
                f"{path}, line {number}: the line is {len(line)} characters long; iptables-restore reads at most "
                f"{LONGEST_LINE}. Split the rule, or put its addresses into an ipset"
            )
        if len(line.translate(None, _CONTROL)) < len(line):
            raise HostError(
                f"{path}, line {number}: the line holds a control character: this is not a text file of iptables rules"
            )


class _Section:
    """The table being read."""

    def __init__(self, name: str, line: int):
        self.name = name
        self.line = line
        self.chains: Dict[str, StoredChain] = {}
        self.rules: List[StoredRule] = []
        self._dropped: Set[int] = set()  # lines
        self._by_chain: Dict[str, List[int]] = defaultdict(list)  # lines that a flush would drop
        self._sorted = 0  # how many of the rules are in there

    def has(self, chain: str) -> bool:
        return chain in self.chains or is_builtin(self.name, chain)

    def final(self) -> Tuple[StoredRule, ...]:
        if not self._dropped:
            return tuple(self.rules)
        return tuple(rule for rule in self.rules if rule.line not in self._dropped)

    def is_empty(self) -> bool:
        return len(self.rules) == len(self._dropped) and not self.chains

    def flush(self, chains: Sequence[str]) -> List[int]:
        """Drop the rules of these chains, or of all, and return their lines."""
        for rule in self.rules[self._sorted :]:
            if not rule.delete:
                self._by_chain[rule.chain].append(rule.line)
        self._sorted = len(self.rules)
        dropped = [line for chain in chains or list(self._by_chain) for line in self._by_chain.pop(chain, ())]
        self._dropped.update(dropped)
        return sorted(dropped)


class _Reader:
    """Takes the lines of one file in turn."""

    def __init__(self, family: str, path: str):
        self.family = family
        self.path = path
        self.tables: Dict[str, StoredTable] = {}
        self.warnings: List[str] = []
        self._section: Optional[_Section] = None
        self._blanks: List[int] = []
        self._number = 0

    def warn(self, what: str) -> None:
        self.warnings.append(f"{self.path}: {what}; iptables-restore itself may refuse such a file at boot")

    def error(self, what: str) -> HostError:
        return HostError(f"{self.path}, line {self._number}: {what}")

    def read_all(self, lines: List[str]) -> None:
        """Most lines are a rule of the same chain as the one before, with no more to look at."""
        start, chain, add = "\n", "", None  # no line starts like that
        for number, line in enumerate(lines, 1):
            if line.startswith(start) and ('"' not in line or quotes_closed(line)):
                add(StoredRule(chain, line[len(start) :].strip(" \t"), number))
            elif self.read_plain(number, line):
                chain, add = self._section.rules[-1].chain, self._section.rules.append
                start = f"-A {chain} "
            else:
                self.read(number, line)
                start = "\n"

    def read_plain(self, number: int, raw: str) -> bool:
        """Take a rule that is written as nearly all are; it need not be split into words."""
        line = _COUNTERS.sub("", raw) if raw.startswith("[") else raw
        chain, _, spec = line[3:].partition(" ")
        if not (self._section and line.startswith("-A ") and self._section.has(chain)):
            return False
        if '"' in line and ('"' in chain or not quotes_closed(line)):
            return False
        self._section.rules.append(StoredRule(chain, spec.strip(" \t"), number))
        return True

    def read(self, number: int, raw: str) -> None:
        self._number = number
        line = raw.strip(" \t")
        if self._refused_by_restore(raw, line):
            self._blanks.append(number)
        if not line:
            return
        marked = _DELETE.match(line) if line[0] == "#" else None
        if marked:
            self._delete(line[marked.end() :])
        elif line.startswith("*"):
            self._open(line)
        elif line.startswith(":"):
            self._declare(line)
        elif line == "COMMIT":
            self._commit()
        elif not line.startswith("#"):
            self._command(line)
        elif _NEARLY_DELETE.match(line):
            self.warnings.append(
                f"{self.path}, line {number}: {line[:60]!r} is a comment, and deletes nothing. To delete the rule, "
                "write '#DELETE# -A CHAIN ...'"
            )

    def finish(self, number: int) -> None:
        self._number = number
        if self._section:
            raise self.error(
                f"the table '{self._section.name}' opened at line {self._section.line} has no COMMIT: "
                "iptables-restore would load nothing of it. "
                "Add a line COMMIT at its end"
            )
        if not self.tables:
            raise HostError(f"{self.path}: no table in the file: expected '*filter' ... 'COMMIT'")
        if self._blanks:
            self.warn(f"blanks around a line or in an empty one (line {ranges(self._blanks)})")

    @staticmethod
    def _refused_by_restore(raw: str, line: str) -> bool:
        """Blanks in front of anything but a rule, in an otherwise empty line, around COMMIT."""
        if raw == line:
            return False
        return not line or line == "COMMIT" or (line[0] in "#*:[" and raw[0] in " \t")

    def _open(self, line: str) -> None:
        name = line[1:].strip(" \t")
        if self._section:
            raise self.error(
                f"the table '{self._section.name}' opened at line {self._section.line} has no COMMIT before this "
                "one. Add a line COMMIT above"
            )
        if not re.match(r"[A-Za-z0-9_-]+\Z", name):
            raise self.error(f"malformed table header {line!r}: expected '*' and a table's name, like '*filter'")
        if name not in BUILTIN:
            raise self.error("unknown table '{}': iptables has {}".format(name, ", ".join(BUILTIN)))
        earlier = self.tables.get(name)
        if earlier:
            self.warnings.append(
                f"{self.path}: table '{name}' appears twice, at line {earlier.line} and line {self._number}: "
                "iptables-restore flushes it at the second, so that "
                "only the second counts. Join the two"
            )
        self._section = _Section(name, self._number)

    def _inside(self) -> _Section:
        if not self._section:
            raise self.error("the line is outside a table. Put it between '*filter' (or another table) and COMMIT")
        return self._section

    def _commit(self) -> None:
        if not self._section:
            raise self.error("COMMIT ends no table: there is none open here. Remove the line")
        section = self._inside()
        self.tables[section.name] = StoredTable(section.line, section.chains, section.final())
        self._section = None

    def _declare(self, line: str) -> None:
        section = self._inside()
        found = _CHAIN.match(line)
        name, policy = found.groups() if found else (None, None)
        if not name or policy is None:
            raise self.error(
                f"malformed chain header {line!r}: expected ':CHAIN POLICY [0:0]', like ':INPUT ACCEPT [0:0]' or, "
                "for a chain of your own, ':MYCHAIN - [0:0]'"
            )
        if _COUNTERS.fullmatch(policy):
            policy = self._policy_left_out(section, name)
        self._new_chain(section, name, policy)

    def _policy_left_out(self, section: _Section, name: str) -> str:
        self.warn(f"line {self._number}: ':{name}' has counters but no policy")
        return "-"

    def _new_chain(self, section: _Section, name: str, policy: str) -> None:
        if len(name) > LONGEST_NAME:
            raise self.error(
                f"the chain name '{name}' has {len(name)} characters; the kernel takes at most {LONGEST_NAME}"
            )
        if name[0] in "-!":
            raise self.error(f"the chain name '{name}' starts with '{name[0]}', which iptables takes for an option")
        earlier = section.chains.get(name)
        if earlier:
            raise self.error(f"chain '{name}' is declared already at line {earlier.line}. Remove one of the two")
        section.chains[name] = StoredChain(self._policy(section, name, policy), self._number)

    def _policy(self, section: _Section, name: str, policy: str) -> Optional[str]:
        if policy == "-":
            return None
        if not is_builtin(section.name, name):
            raise self.error(
                f"chain '{name}' is not built in and cannot have the policy {policy}: write ':{name} - [0:0]'"
            )
        if policy not in ("ACCEPT", "DROP"):
            raise self.error(f"unknown policy '{policy}' of chain '{name}': expected ACCEPT or DROP")
        return policy

    def _delete(self, rest: str) -> None:
        if not rest or rest[0] in "*:#" or re.match(r"COMMIT(?![^ \t])", rest):
            raise self.error(
                "#DELETE# is in front of {}; it can only mark a rule ('#DELETE# -A CHAIN ...')".format(
                    "a table, chain or COMMIT line" if rest else "nothing"
                )
            )
        self._inside()
        self._command(rest, delete=True)

    def _command(self, line: str, delete: bool = False) -> None:
        section = self._inside()
        line = _COUNTERS.sub("", line)
        if not quotes_closed(line):
            raise self.error("a double quote is opened and never closed; a quoted text cannot go on in the next line")
        parts = words(line)
        place = next((i for i, word in enumerate(parts) if _COMMANDS.match(word.value)), None)
        if place is None:
            raise self.error(f"no rule, chain, table or comment: {line[:80]!r}")
        command, joined = _COMMANDS.match(parts[place].value).groups()
        command = command.rstrip("=")
        command = _SHORT.get(command, command)
        arguments = ([Word(joined, 0, 0)] if joined else []) + parts[place + 1 :]
        if other_family(line, self.family) and not self._is_known_rule(section, command, arguments):
            return  # the loader does not even look for the chain
        if command in ("-A", "-I"):
            self._rule(section, line, parts[place], arguments, command == "-I", delete)
        elif delete:
            raise self.error(f"#DELETE# can only mark a rule ('#DELETE# -A CHAIN ...'), not '{command}'")
        else:
            self._other_command(section, command, [word.value for word in arguments])

    @staticmethod
    def _is_known_rule(section: _Section, command: str, arguments: List[Word]) -> bool:
        return command in ("-A", "-I") and bool(arguments) and section.has(arguments[0].value)

    def _rule(self, section: _Section, line: str, command: Word, arguments: List[Word], insert: bool, delete: bool):
        if not arguments:
            raise self.error(f"'{command.value}' names no chain")
        chain, end, insert_at = arguments[0].value, arguments[0].end or command.end, None
        if insert:
            insert_at = 1
            if len(arguments) > 1 and _NUMBER.match(arguments[1].value):
                insert_at, end = int(arguments[1].value), arguments[1].end
        spec = " ".join(part for part in (line[: command.start].strip(" \t"), line[end:].strip(" \t")) if part)
        self._add(section, StoredRule(chain, spec, self._number, delete, None if delete else insert_at))

    def _add(self, section: _Section, rule: StoredRule) -> None:
        if not section.has(rule.chain):
            raise self.error(
                f"chain '{rule.chain}' of table '{section.name}' is not declared. Add ':{rule.chain} - [0:0]' below "
                f"'*{section.name}'"
            )
        section.rules.append(rule)

    def _other_command(self, section: _Section, command: str, arguments: List[str]) -> None:
        if command == "-N" and len(arguments) == 1 and not is_builtin(section.name, arguments[0]):
            self._new_chain(section, arguments[0], "-")
        elif command == "-P" and len(arguments) == 2:
            self._set_policy(section, *arguments)
        elif command == "-F" and len(arguments) < 2:
            self._flush(section, arguments)
        elif command == "-X" and len(arguments) < 2 and section.is_empty():
            pass  # at the start of a section there is no chain yet that it could delete
        elif command == "-Z" and len(arguments) < 3:
            pass  # a freshly loaded table counts from zero anyway
        else:
            raise self.error(
                "'{}' tells how to get somewhere, not what is stored, and cannot be part of a live update. Remove the "
                "line and write the rules that it leads to".format(" ".join([command] + arguments[:2]))
            )

    def _set_policy(self, section: _Section, chain: str, policy: str) -> None:
        if not is_builtin(section.name, chain):
            raise self.error(f"chain '{chain}' is not built in and cannot have a policy")
        section.chains[chain] = StoredChain(self._policy(section, chain, policy), self._number)

    def _flush(self, section: _Section, chains: List[str]) -> None:
        dropped = section.flush(chains)
        if dropped:
            self.warnings.append(
                f"{self.path}: line {self._number} ('-F') drops the rules stored above it (line {ranges(dropped)}), as "
                "iptables-restore would"
            )


def ranges(numbers: List[int]) -> str:
    """[1, 2, 3, 7] as "1-3, 7"."""
    runs: List[List[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
