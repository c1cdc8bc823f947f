"""What a file server gives out: ``salt/`` by gitfs, a link for each module and the state tree; ``file_root/`` else."""

import os
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
ROOT = REPO / "salt"
ANEW = "for f in _*/*.py; do ln -sf ../../$f salt/$f; done; find salt -xtype l -delete"


def test_every_module_is_linked_one_by_one():
    """One link a file, because gitfs follows no link to a folder."""
    real = {path.relative_to(REPO) for path in REPO.glob("_*/*.py")}
    linked = {path.relative_to(ROOT): os.readlink(str(path)) for path in ROOT.rglob("*") if path.is_symlink()}
    assert linked == {path: f"../../{path}" for path in real}, f"to link them anew: {ANEW}"


def test_a_file_root_is_the_same_by_links_to_folders():
    """Not to files: salt-ssh of Salt 3006 ships such a link as a link."""
    linked = {path.name: os.readlink(str(path)) for path in (REPO / "file_root").iterdir()}
    kinds = {path.name for path in ROOT.iterdir()}
    assert linked == {name: f"../{name}" if name[0] == "_" else f"../salt/{name}" for name in kinds}


def test_nothing_else_is_served():
    served = {path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path.parts[0] for path in served} == {path.name for path in REPO.glob("_*/")} - {"__pycache__"} | {
        "iptlive"
    }
    assert {path.suffix for path in served if path.parts[0] == "iptlive"} <= {".sls", ".jinja"}


def test_a_private_name_is_one_file_only():
    """One process may load modules, runners and outputters: Python knows each private name once."""
    files = {path.name: {other.resolve() for other in REPO.glob(f"*/{path.name}")} for path in REPO.glob("_*/_*.py")}
    assert not {name: found for name, found in files.items() if len(found) > 1}
