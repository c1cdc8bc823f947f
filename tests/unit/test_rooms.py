"""The private rooms are loaded when they are needed, and a new version of the modules never works with an old one."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError, SaltInvocationError

MODULES = Path(__file__).resolve().parents[2] / "_modules"


@pytest.fixture
def folder(tmp_path):
    """The modules as a sync lays them out."""
    shutil.copytree(MODULES, tmp_path / "modules", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "modules"


def face(folder, pillar=None):
    """``iptlive`` as Salt's loader reads it: its folder is on the path only meanwhile."""
    spec = importlib.util.spec_from_file_location("face", folder / "iptlive.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    loaded.__pillar__ = {"iptlive": pillar or {}}
    loaded.__opts__ = {"cachedir": str(folder.parent / "cache"), "file_client": "local"}
    return loaded


def replace(folder, name, text):
    """As a sync does it."""
    path = folder / name
    new = path.with_suffix(".new")
    new.write_text(path.read_text() + text)
    new.replace(path)


def test_only_what_a_call_needs(folder):
    loaded = face(folder)
    assert not loaded._ROOMS._loaded
    assert loaded.enabled() is True
    assert not loaded._ROOMS._loaded
    with pytest.raises(SaltInvocationError, match="nonsense"):
        loaded.plan(nonsense=1)
    assert {"_iptlive_options", "_iptlive_model"} <= set(loaded._ROOMS._loaded)
    assert "_iptlive_graph" not in loaded._ROOMS._loaded


def test_nothing_is_left_behind(folder):
    before = {name: module for name, module in sys.modules.items() if name.startswith("_iptlive_")}
    path = list(sys.path)
    face(folder).survey.survey  # noqa: B018 (the room is loaded by it)
    assert {name: module for name, module in sys.modules.items() if name.startswith("_iptlive_")} == before
    assert (sys.path, sys.pycache_prefix) == (path, None)


def test_an_old_version_takes_no_new_room(folder):
    old = face(folder)
    old.journal.MARK = "old"
    replace(folder, "_iptlive_survey.py", "\nMARK = 'new'\n")
    with pytest.raises(CommandExecutionError, match="run it again"):
        old.survey.survey  # noqa: B018
    new = face(folder)
    assert new.survey.MARK == "new"
    assert not hasattr(new.journal, "MARK")
    assert old.journal.MARK == "old"


def test_every_room_of_a_version_raises_the_same_errors(folder):
    loaded = face(folder)
    loaded.options_room.parse({})
    assert loaded.update.HostError is loaded.survey.kernel.HostError is loaded.model.HostError
    with pytest.raises(SaltInvocationError), loaded._salt_errors():
        raise loaded.update.InputError("wrong")


def test_what_was_compiled_outlives_a_sync(folder, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    loaded = face(folder)
    loaded.survey.survey  # noqa: B018
    assert list((folder.parent / "cache" / "iptlive").rglob("_iptlive_survey.*.pyc"))
    assert not list(folder.rglob("_iptlive_*.pyc"))
