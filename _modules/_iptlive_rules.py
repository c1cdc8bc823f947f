"""Text to rules: the words of one rule line, and what ``iptables-save`` and ``iptables -S`` print."""

import re
from typing import Dict, Iterator, List, NamedTuple, Sequence, Set, Tuple

from _iptlive_family import FAMILIES
from _iptlive_model import Chain, HostError, Table

# iptables-restore knows the double quote and, inside it, the backslash; a single quote is a plain character, and a
# closing quote ends the word.
_WORD = re.compile(r'[^ \t\n"]*"(?:[^"\\]|\\.)*"|[^ \t\n"]+', re.DOTALL)
_QUOTED_PART = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_QUOTED_WORD = re.compile(" " + _QUOTED_PART.pattern, re.DOTALL)
_TEXT = "\0"
# What names a target in a line without quotes: found without splitting the line, which large files gain a lot by.
_PLAIN_TARGET = re.compile(r"(?:^|[ \t])(?:(?:-[jg]|--jump|--goto)[ \t]+|-[jg]|--(?:jump|goto)=)([^ \t]+)")
# The same for many lines at once: what begins with a plain text is found much faster.
_PLAIN_JUMP, _PLAIN_GOTO = re.compile(r" -j ([^ \n]+)"), re.compile(r" -g ([^ \n]+)")
_QUOTE_OR_ESCAPE = re.compile(r'"|\\.')
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)

_SET_OPTIONS = ("--match-set", "--add-set", "--del-set", "--map-set")
TARGET_OPTIONS = ("-j", "--jump", "-g", "--goto")


class Word(NamedTuple):
    """One argument of a rule line, unquoted, and where its raw text stands."""

    value: str
    start: int
    end: int


def quotes_closed(text: str) -> bool:
    return not _ends_open(text, False)


def words(text: str) -> List[Word]:
    """Split a rule line the way iptables-restore does."""
    return [Word(_unquote(found.group()), *found.span()) for found in _WORD.finditer(text)]


def _unquote(raw: str) -> str:
    if '"' not in raw:
        return raw
    return _QUOTED_PART.sub(lambda found: _ESCAPE.sub(r"\1", found.group(1)), raw)


class Option(NamedTuple):
    """An option of a rule line and its value; ``start`` to ``end`` is the raw text of both."""

    name: str
    value: str
    start: int
    value_start: int
    end: int


def options(text: str, names: Tuple[str, ...]) -> Iterator[Option]:
    """The named options with their values, also where they are written ``--name=value`` or ``-nvalue``."""
    found = words(text)
    for word, following in zip(found, found[1:] + [None]):
        if text[word.start] != "-":
            continue  # a quoted text may look like an option
        if word.value in names:
            if following:
                yield Option(word.value, following.value, word.start, following.start, following.end)
            continue
        for name in names:
            joint = name + "=" if name.startswith("--") else name
            if word.value.startswith(joint) and not (len(name) == 2 and word.value.startswith("--")):
                yield Option(name, word.value[len(joint) :], word.start, word.start + len(joint), word.end)


def targets(text: str) -> Tuple[str, ...]:
    """The chains or targets a rule jumps or goes to."""
    plain = _without_texts(text)
    found = _PLAIN_TARGET.findall(plain)
    if '"' in plain or any(_TEXT in name or name.startswith("-") for name in found):
        return tuple(option.value for option in options(text, TARGET_OPTIONS))
    return tuple(found)


def _without_texts(text: str) -> str:
    """With a mark for each quoted word; a quote that is left is part of some other word."""
    return _QUOTED_WORD.sub(f" {_TEXT} ", text) if '"' in text else text


def all_targets(texts: Sequence[str]) -> Set[str]:
    """The chains or targets that any of the rules jumps or goes to."""
    joined = _without_texts(" " + "\n ".join(texts))
    found = _PLAIN_JUMP.findall(joined) + _PLAIN_GOTO.findall(joined)
    names = set(found)
    unlike = joined.count(" -j") + joined.count(" -g") != len(found) or _TEXT in names
    if unlike or any(mark in joined for mark in ('"', "\t", " --jump", " --goto")):
        return {name for text in texts for name in targets(text)}
    return names


def sets(text: str) -> List[str]:
    """The ipsets a rule names."""
    return [option.value for option in options(text, _SET_OPTIONS)] if "-set" in text else []


def other_family(text: str, family: str) -> bool:
    """Whether the line is one for the other family, which iptables-restore passes over."""
    marks = FAMILIES[family].passed_over
    return (marks[0] in text or marks[1] in text) and any(word.value in marks for word in words(text))


def logical_lines(text: str) -> List[str]:
    """Lines of a listing; a quoted comment that holds a newline stays in one piece.

    Programs before 1.8.8 print blanks behind some rules; they mean nothing.
    """
    lines = text.split("\n")
    quoted = [line for line in lines if '"' in line]
    if any(line.count('"') % 2 or "\\" in line for line in quoted) and any(map(_goes_on, quoted)):
        lines = list(_joined(lines))
    return [line.rstrip(" ") for line in lines] if " \n" in text else lines


def _goes_on(line: str) -> bool:
    """Whether a quoted text is open at the end; a quote inside a word is part of a name, which is printed as it is."""
    return '"' in line and ' "' in _QUOTED_WORD.sub("", line)


def _joined(lines: List[str]) -> Iterator[str]:
    pending: List[str] = []
    for line in lines:
        if '"' not in line and not pending:
            yield line
            continue
        pending.append(line)
        if _ends_open(line, len(pending) > 1):
            continue
        yield "\n".join(pending)
        pending = []
    if pending:
        raise HostError(f"the kernel's listing ends inside a quoted comment: {pending[0][:200]!r}")


def _ends_open(line: str, is_open: bool) -> bool:
    """Whether a quoted text goes on in the next line; ``is_open``: whether one goes on in this."""
    if "\\" not in line:
        return is_open != bool(line.count('"') % 2)
    # A backslash escapes inside a quoted text only: at the end of a line, the newline.
    for found in _QUOTE_OR_ESCAPE.finditer(line):
        if found.group() == '"':
            is_open = not is_open
        elif not is_open and found.group().endswith('"'):
            is_open = True
    return is_open


def parse_save(text: str) -> Dict[str, Table]:
    """What ``iptables-save`` printed, by table."""
    tables: Dict[str, Table] = {}
    found: Dict[str, Tuple] = {}
    for line in logical_lines(text):
        if line.startswith("-A "):
            chain, _, rule = line[3:].partition(" ")
            found[chain][1].append(rule)
        elif line.startswith(":"):
            chain, policy = line[1:].split(" ")[:2]
            found[chain] = (None if policy == "-" else policy, [])
        elif line.startswith("*"):
            found = {}
            tables[line[1:].strip()] = found
        elif line.startswith("#") and "is incompatible" in line:
            raise HostError(
                "the iptables programs cannot read what another program wrote into the kernel ({}); "
                "nothing was planned on half the truth".format(line.lstrip("# "))
            )
    return {name: _frozen(table) for name, table in tables.items()}


def parse_lists(text: str) -> List[Tuple[str, Chain]]:
    """What one or more ``iptables -S CHAIN`` printed, in that order: chains of two tables may share a name."""
    found: List[Tuple[str, Chain]] = []
    lines = logical_lines(text)
    heads = [at for at, line in enumerate(lines) if line.startswith(("-P ", "-N "))]
    for at, end in zip(heads, heads[1:] + [len(lines)]):
        chain, _, policy = lines[at][3:].partition(" ")
        start = len(f"-A {chain} ")
        rules = tuple([line[start:] for line in lines[at + 1 : end] if line.startswith("-A ")])
        found.append((chain, Chain(policy.split(" ")[0] or None, rules)))
    return found


def _frozen(found: Dict[str, Tuple]) -> Table:
    return {chain: Chain(policy, tuple(rules)) for chain, (policy, rules) in found.items()}


def print_list(chain: str, state: Chain) -> str:
    """The very text ``iptables -S CHAIN`` prints for this chain."""
    head = f"-N {chain}" if state.policy is None else f"-P {chain} {state.policy}"
    start = f"-A {chain}"
    return "\n".join([head] + [start + " " + rule if rule else start for rule in state.rules]) + "\n"
