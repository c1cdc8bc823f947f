"""Text from outside, made safe to show: no terminal obeys it, and no line of it looks like another's.

The same file serves the modules on a host, and the runners, the outputter and the wrappers of the master: Salt takes
each kind from a folder of its own, so theirs are links to this one.
"""

import reprlib
from typing import Any

DEEPEST = 20  # our answers are half as deep

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60


def printable(text: str) -> str:
    """One line of text: control characters, line ends of all kinds and what turns the line round are escaped.

    A rule's comment may hold bytes that are no UTF-8, too; JSON, Salt's transport and log files take none of them.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte that is no UTF-8
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def printable_text(text: str) -> str:
    """The same for a text of several lines."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else _escaped(char) for char in text)


def printable_name(text: str) -> str:
    """The same for a name, so that no two names become one."""
    return text if text.isprintable() and "\\" not in text else printable(text.replace("\\", "\\\\"))


def clean(value: Any, depth: int = DEEPEST) -> Any:
    """An answer of any shape, with texts that can be shown, keys that are texts, and an end to its depth."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return printable_text(value)
    if depth == 0:
        return "..."
    if isinstance(value, dict):
        return {printable(brief(key)): clean(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [clean(item, depth - 1) for item in value]
    return printable(brief(value))


def brief(value: Any) -> str:
    """What a value looks like, whatever it is and however large."""
    return value if isinstance(value, str) else _REPR.repr(value)
