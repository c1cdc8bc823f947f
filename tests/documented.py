"""
Every command that the documents and docstrings show, found by how it is written:

- in Markdown, a ``console`` block: where lines begin with ``$ `` these are commands and the others what they print,
  otherwise each line is a command (a block that does not say what it is in is refused);
- in Markdown, code in running text of more than one word, unless ``MENTIONED`` says that it is no command of ours;
- in docstrings, a ``code-block:: bash``.

``NOT_RUN`` and ``MENTIONED`` are the only exceptions. tests/integration/test_documented_commands.py runs all others.
"""

import ast
import re
import textwrap
from pathlib import Path
from typing import NamedTuple, Tuple

from markdown_it import MarkdownIt

REPO = Path(__file__).resolve().parent.parent
DOCUMENTS = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
SOURCES = [
    *(REPO / kind / "iptlive.py" for kind in ("_modules", "_states", "_runners", "_output", "_roster", "_beacons")),
    REPO / "wrapper" / "iptlive.py",
]
LANGUAGES = {"console", "text", "yaml"}

RUN = ("salt", "salt-call", "salt-run", "salt-ssh")
# What is run elsewhere, or changes what the lab has not got; each with the reason.
NOT_RUN = {
    "./dev demo": "it is the demo",
    "./dev test": "it is what runs this",
    "./dev test --on debian-11": ".ci/run runs it",
    "./dev docs": "tests/unit/test_documents.py compares what it would write",
    "./dev bench": "it measures for a quarter of an hour; it changes nothing",
    "python3 -m lab.campaign --updates 200": "hours; a short run is tests/functional/test_campaign.py",
    "python3 -m lab.terminal docs/images": "minutes; tests/functional/test_pictures.py and test_terminal.py run it",
    "salt '*' state.apply iptlive.boot": "it installs packages; tests/functional/test_boot_state.py runs it",
    "salt-pip install /srv/iptlive": "salt-pip belongs to Salt's packages; test_extension.py does it with their pip",
    "systemctl status 'iptlive-*'": "tests/functional/test_watchdog.py runs it, where there is a systemd",
}
# Code in running text that is more than one word, and no command line for the reader.
MENTIONED = {
    # the scripts of before
    "iptables-liveupdate.py --live-update",
    "iptables-liveupdate-driver.py host-list.json",
    "iptables-liveupdate-driver.py --live-update host-list.json",
    "iptables-backup.py host-list.json",
    "relearn-known-hosts.py host-list.json",
    # what other programs do
    "systemctl restart iptables",
    "netfilter-persistent reload",
    "iptables -I",
    # what iptlive runs by itself
    "iptables -V",
    "iptables-nft-restore --noflush",
    "iptables-restore --noflush",
    "nsenter ... iptables-restore --noflush",
    "iptables-legacy-save -t filter",
    "unshare --net cat",
    "ipset list -n",
    "ipset restore",
    # values
    "in sync",
    "no answer",
    "user namespace",
    "dry run",
    "table/CHAIN rule",
}
# Beginnings of commands, as they stand in running text, made whole.
COMPLETED = {
    "salt-call --local": "salt-call --local iptlive.plan",
    "salt-call -l debug": "salt-call -l debug iptlive.plan",
    "salt-run iptlive.report": "salt-run iptlive.report '*'",
    "salt-run iptlive.backup": "salt-run iptlive.backup '*'",
    "salt-run iptlive.relearn_known_hosts": "salt-run iptlive.relearn_known_hosts '*'",
    "salt-ssh --roster iptlive": "salt-ssh --roster iptlive '*' iptlive.plan",
    "salt-ssh --ssh-option ConnectTimeout=5": "salt-ssh --ssh-option ConnectTimeout=5 '*' iptlive.plan",
}
_MARKDOWN = MarkdownIt().enable("table")
_FUNCTION = re.compile(r"(iptlive|state)\.\w+")


class Command(NamedTuple):
    """A command as written, on one line, and the lines that are shown as its output."""

    text: str
    output: Tuple[str, ...] = ()


class Block(NamedTuple):
    """Commands that follow each other, and where they stand: ``docs/fleet.md:35``."""

    place: str
    commands: Tuple[Command, ...]


def blocks():
    """All commands to be run, each text once; one whose output is shown every time."""
    found, seen = [], set()
    for block in _all_blocks():
        new = [one for one in block.commands if one.output or one.text not in seen]
        new = [one._replace(text=COMPLETED.get(one.text, one.text)) for one in new if one.text not in NOT_RUN]
        seen |= {one.text for one in block.commands} | {one.text for one in new}
        if new:
            found.append(Block(block.place, tuple(new)))
    return found


def written():
    """All texts as they stand there, those of the exceptions too."""
    return {one.text for block in _all_blocks() for one in block.commands} | {
        content for document in DOCUMENTS for _, kind, content in _code(document) if kind == "span"
    }


def _all_blocks():
    for document in DOCUMENTS:
        for place, kind, content in _code(document):
            if kind == "console":
                yield Block(place, tuple(_commands(content)))
            elif kind == "span" and content not in MENTIONED:
                yield Block(place, (Command(f"salt-call {content}" if _FUNCTION.match(content) else content),))
    for source in SOURCES:
        yield from (Block(place, tuple(_commands(shown))) for place, shown in _in_docstrings(source, "bash"))


def settings():
    """(place, YAML text) of all that is shown of it."""
    for document in DOCUMENTS:
        for place, kind, content in _code(document):
            if kind == "yaml":
                yield place, content
    for source in SOURCES:
        yield from _in_docstrings(source, "yaml")


def _code(document):
    """(place, kind, text) of each block, where the kind is its language, and each ``span`` of several words."""
    for token in _MARKDOWN.parse(document.read_text(encoding="utf-8")):
        place = f"{document.relative_to(REPO).as_posix()}:{token.map[0] + 1}" if token.map else ""
        if token.type in ("fence", "code_block"):  # the latter by indentation, which says not what it is
            if token.info not in LANGUAGES:
                raise ValueError(f"{place}: a block in {token.info!r}, none of {', '.join(sorted(LANGUAGES))}")
            yield place, token.info, token.content
        for child in token.children or ():
            if child.type == "code_inline" and re.match(r"[a-z./][\w./-]* ", child.content):
                yield place, "span", " ".join(child.content.split())


def _commands(content):
    lines = re.sub(r" *\\\n\s*", " ", content).splitlines()
    if not any(line.startswith("$ ") for line in lines):
        yield from (Command(re.sub(r"\s+#.*", "", line)) for line in lines if line)
        return
    for line in _runs(lines):
        yield Command(line[0][2:], tuple(line[1:]))


def _runs(lines):
    """Each prompt's line with what follows it."""
    runs = []
    for line in lines:
        if line.startswith("$ "):
            runs.append([line])
        else:
            runs[-1].append(line)
    return runs


def _in_docstrings(source, language):
    tree = ast.parse(source.read_text(encoding="utf-8"))
    here = source.relative_to(REPO).as_posix()
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.FunctionDef)):
            continue
        text = (ast.get_docstring(node) or "") + "\n"
        for shown in re.findall(rf"code-block:: {language}\n\n((?: {{4,}}.*\n|\n)+)", text):
            yield f"{here}:{getattr(node, 'lineno', 1)}", textwrap.dedent(shown)
