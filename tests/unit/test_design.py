"""The map in docs/design.md is true: every room is on it, and imports follow its layers."""

import ast
import re
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
ROOMS = {path.stem[len("_iptlive_") :]: path for path in (REPO / "_modules").glob("_iptlive_*.py")}


def layers():
    """The rooms of each layer, from the bottom up."""
    sections = re.split(r"^### ", (REPO / "docs" / "design.md").read_text(), flags=re.MULTILINE)[1:]
    return [re.findall(r"^\| (\w+) \| \w", section.partition("\n## ")[0], re.MULTILINE) for section in sections]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (name[len("_iptlive_") :] for name in names if name.startswith("_iptlive_"))


def test_every_room_is_on_the_map_once():
    listed = [room for layer in layers() for room in layer if room != "room"]
    assert sorted(listed) == sorted(ROOMS)


def test_no_room_imports_one_of_a_layer_above():
    floor = {room: number for number, layer in enumerate(layers(), 1) for room in layer}
    upward = [
        f"{room} ({floor[room]}) imports {other} ({floor[other]})"
        for room, path in ROOMS.items()
        for other in imported(path)
        if floor[other] > floor[room]
    ]
    assert not upward
