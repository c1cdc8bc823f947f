"""
The options as the documents show them.  The execution module's docstring is their one source: README's table and the
comments of pillar.example are written from it, and a test tells where they are not.

    ./dev docs       write both
"""

import ast
import re
import textwrap
from pathlib import Path
from typing import NamedTuple

import yaml

REPO = Path(__file__).resolve().parent.parent
FACE = REPO / "_modules" / "iptlive.py"
README = REPO / "README.md"
EXAMPLE = REPO / "pillar.example"

_ENTRY = re.compile(r"^(\w+(?:, \w+)*)\n((?:    .*\n)+)", re.MULTILINE)
_DEFAULT = re.compile(r"(.*?)\s*Default: (.*?)\.?\Z", re.DOTALL)
_ROLE = re.compile(r":py:func:`(\w+)`")
_TABLE = re.compile(r"(?<=^\| name \| default \| meaning \|\n\|---\|---\|---\|\n)(?:\|.*\n)+", re.MULTILINE)
_EXAMPLE_KEY = re.compile(r"(?:^  #.*\n)*^  (\w+):", re.MULTILINE)
_PILLAR_ONLY = "Only in pillar:"
WIDTH = 120


class Option(NamedTuple):
    """One entry of the docstring: a name, or several that are described together."""

    names: tuple
    meaning: str  # in Markdown
    default: str
    pillar_only: bool


def options():
    docstring = ast.get_docstring(ast.parse(FACE.read_text())) + "\n"
    border = docstring.index(_PILLAR_ONLY)
    return [_option(found, found.start() > border) for found in _ENTRY.finditer(docstring)]


def _option(found, pillar_only):
    text = _ROLE.sub(r"``iptlive.\1``", " ".join(textwrap.dedent(found.group(2)).split()))
    meaning, default = _DEFAULT.match(text.replace("``", "`")).groups()
    return Option(tuple(found.group(1).split(", ")), meaning, default, pillar_only)


def table():
    rows = []
    for option in options():
        names = ", ".join(f"`{name}`" for name in option.names)
        only = " (pillar only)" if option.pillar_only else ""
        rows.append(f"| {names}{only} | {option.default} | {option.meaning} |\n")
    return "".join(rows)


def readme():
    """README with the table as it should be."""
    return _TABLE.sub(lambda _: table(), README.read_text(), count=1)


def example():
    """pillar.example with the comments as they should be: its values are written by hand."""
    return _EXAMPLE_KEY.sub(_commented, EXAMPLE.read_text())


def _commented(found):
    name = found.group(1)
    option = next(option for option in options() if name in option.names)
    if name != option.names[0]:
        return f"  {name}:"
    text = option.meaning.replace("`", "")
    if not _shows_default(name, option):
        text += f" Shown is an example; the default is {option.default.replace('`', '')}."
    lines = textwrap.wrap(text, WIDTH, initial_indent="  # ", subsequent_indent="  # ", break_on_hyphens=False)
    return "\n".join([*lines, f"  {name}:"])


def _shows_default(name, option):
    shown = yaml.safe_load(EXAMPLE.read_text())["iptlive"][name]
    return name == "files" or f"`{shown}`".lower().replace("'", "") == option.default


def main():
    README.write_text(readme())
    EXAMPLE.write_text(example())


if __name__ == "__main__":
    main()
