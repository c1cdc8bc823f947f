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
    "./dev docs": "tests/unit/test_documents.py compares what it would write",
    "./dev bench": "it measures for a quarter of an hour; it changes nothing",
    "python3 -m lab.campaign --updates 200": "hours; a short run is tests/functional/test_campaign.py",
    "python3 -m lab.terminal docs/images": "minutes; tests/functional/test_pictures.py and test_terminal.py run it",
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
_FENCE = re.compile(r"^```(.*)\n((?:(?!```).*\n)*)```$", re.MULTILINE)
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
        span for document in DOCUMENTS for _, span in _spans(document.read_text(encoding="utf-8"))
    }


def _all_blocks():
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        here = document.relative_to(REPO).as_posix()
        yield from sorted(_fenced(text, here) + _in_running_text(text, here), key=lambda block: _line(block.place))
    for source in SOURCES:
        yield from (Block(place, tuple(_commands(shown))) for place, shown in _in_docstrings(source, "bash"))


def _line(place):
    return int(place.rpartition(":")[2])


def settings():
    """(place, YAML text) of all that is shown of it."""
    for document in DOCUMENTS:
        for place, language, content in _fences(document.read_text(encoding="utf-8"), document.name):
            if language == "yaml":
                yield place, content
    for source in SOURCES:
        yield from _in_docstrings(source, "yaml")


def _fences(text, here):
    for fence in _FENCE.finditer(text):
        language, content = fence.groups()
        place = f"{here}:{_number(text, fence.start())}"
        if language not in LANGUAGES:
            raise ValueError(f"{place}: a block in {language!r}, none of {', '.join(sorted(LANGUAGES))}")
        yield place, language, content


def _fenced(text, here):
    fences = _fences(text, here)
    return [Block(place, tuple(_commands(content))) for place, language, content in fences if language == "console"]


def _number(text, offset):
    return text.count("\n", 0, offset) + 1


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


def _spans(text):
    """(line, code) for code of several words in running text."""
    blanked = _FENCE.sub(lambda fence: "\n" * fence.group().count("\n"), text)
    indented = re.search(r"\n\n {4}\S.*", blanked)
    if indented:
        raise ValueError(f"an indented block, which says not what it is: {indented.group().strip()!r}")
    for span in re.finditer(r"`((?:[^`\n]|\n(?!\n))+)`", blanked):
        code = " ".join(span.group(1).split())
        if re.match(r"[a-z./][\w./-]* ", code):
            yield _number(blanked, span.start()), code


def _in_running_text(text, here):
    found = []
    for line, span in _spans(text):
        if span not in MENTIONED:
            whole = f"salt-call {span}" if _FUNCTION.match(span) else span
            found.append(Block(f"{here}:{line}", (Command(whole),)))
    return found


def _in_docstrings(source, language):
    tree = ast.parse(source.read_text(encoding="utf-8"))
    here = source.relative_to(REPO).as_posix()
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.FunctionDef)):
            continue
        text = (ast.get_docstring(node) or "") + "\n"
        for shown in re.findall(rf"code-block:: {language}\n\n((?: {{4,}}.*\n|\n)+)", text):
            yield f"{here}:{getattr(node, 'lineno', 1)}", textwrap.dedent(shown)
