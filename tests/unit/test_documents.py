"""What the documents promise is there, and what is there is documented."""

import ast
import re
from pathlib import Path

import _iptlive_options
import _iptlive_owners
import documented
import pytest
import yaml

from lab import optiondocs

REPO = Path(__file__).resolve().parents[2]
DOCUMENTS = documented.DOCUMENTS
FILES = {
    "execution": REPO / "_modules" / "iptlive.py",
    "state": REPO / "_states" / "iptlive.py",
    "runner": REPO / "_runners" / "iptlive.py",
}
PILLAR_ONLY = {"enabled"}


def functions(path):
    tree = ast.parse(path.read_text()) if path.exists() else ast.Module([], [])
    return {
        node.name: ast.get_docstring(node) or ""
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }


def face():
    tree = ast.parse(FILES["execution"].read_text())
    pillar_only = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "PILLAR_ONLY"
    )
    return ast.get_docstring(tree), set(pillar_only)


def test_options_are_described_once():
    """README and pillar.example are written from the docstring (./dev docs), which describes what is read."""
    described = {name: option.pillar_only for option in optiondocs.options() for name in option.names}
    read = set(_iptlive_options.Options._fields) - {"new_files"}
    _, pillar_only = face()
    assert described == {**dict.fromkeys(read, False), **dict.fromkeys(pillar_only, True)}
    assert optiondocs.README.read_text() == optiondocs.readme()
    assert optiondocs.EXAMPLE.read_text() == optiondocs.example()
    example = yaml.safe_load(optiondocs.EXAMPLE.read_text())["iptlive"]
    assert set(example) == set(described)
    assert _iptlive_options.parse({name: value for name, value in example.items() if name in read})


@pytest.mark.parametrize("name", ["enabled", "families", "files", "backend", "placement", "reorder", "wait", "confirm"])
def test_the_example_shows_the_defaults(name):
    example = yaml.safe_load((REPO / "pillar.example").read_text())["iptlive"]
    defaults = _iptlive_options.Options()
    if name in PILLAR_ONLY:
        assert example[name] is True
    else:
        assert _iptlive_options.parse({name: example[name]}) == defaults


@pytest.mark.parametrize("kind", ["execution", "state", "runner"])
def test_every_function_says_how_it_is_called(kind):
    for name, docstring in functions(FILES[kind]).items():
        assert "CLI Example:" in docstring, name
        call = "iptlive.managed" if kind == "state" else f"iptlive.{name}"
        assert call in docstring.split("CLI Example:")[1], name


def test_every_execution_function_is_in_the_readme():
    readme = (REPO / "README.md").read_text()
    internal = {"enabled", "backup_part"}
    for name in functions(FILES["execution"]).keys() - internal:
        assert f"`iptlive.{name}`" in readme, name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_only_what_exists(document):
    known = {name for path in FILES.values() for name in functions(path)}
    for name in re.findall(r"\biptlive\.([a-z_]+)\b(?!\.)", document.read_text()):
        assert name in known | {"py", "sls", "json", "git"}, name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text()):
        assert (document.parent / target).exists(), target


def options_in(shown):
    """The options of pillar, states and beacons in a piece of YAML."""
    pillar = shown.get("iptlive", {})
    if isinstance(pillar, dict):
        yield {name: value for name, value in pillar.items() if name not in face()[1]}
    for state in shown.values():
        if isinstance(state, dict) and isinstance(state.get("iptlive.managed"), list):
            yield {name: value for option in state["iptlive.managed"] for name, value in option.items()}
    for option in shown.get("beacons", {}).get("iptlive", []):
        yield {name: value for name, value in option.items() if name != "interval"}


@pytest.mark.parametrize("text", [pytest.param(text, id=place) for place, text in documented.settings()])
def test_settings_shown_are_accepted(text):
    shown = yaml.safe_load(text)
    for options in options_in(shown) if isinstance(shown, dict) else ():
        _iptlive_owners.parse(_iptlive_options.parse(options).owners)


def test_every_known_owner_is_named():
    known = (REPO / "docs" / "neighbours.md").read_text().split("Known are")[1].split("\n\n")[0]
    assert set(_iptlive_owners.OWNERS) <= set(re.findall(r"\w+", known))


def test_every_command_shown_is_run():
    """By tests/integration/test_documented_commands.py; this tells at once where one is not."""
    for block in documented.blocks():
        for command in block.commands:
            assert command.text.split()[0] in documented.RUN, f"{block.place}: {command.text} is run by no test"
            assert not command.text.endswith("..."), f"{block.place}: {command.text} cannot be run"


def test_what_is_not_run_is_still_shown():
    assert {*documented.NOT_RUN, *documented.MENTIONED, *documented.COMPLETED} <= documented.written()


def test_one_version_everywhere():
    package = (REPO / "pyproject.toml").read_text()
    changes = (REPO / "CHANGELOG.md").read_text()
    released = re.search(r"^## (\d+\.\d+\.\d+) \(\d{4}-\d\d-\d\d\)$", changes, re.MULTILINE)
    version = released.group(1)
    assert f'\nversion = "{version}"\n' in package
    assert yaml.safe_load((REPO / "FORMULA").read_text())["version"] == version
    assert f"base: v{version}\n" in (REPO / "README.md").read_text()
