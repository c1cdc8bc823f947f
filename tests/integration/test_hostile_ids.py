"""
Hosts whose names would be a path, an option or a line of their own, and hosts that answer anything: nothing is written
for them, all are told of, each in a line of its own, and the other hosts' answers are what they are.
"""

import contextlib
import copy
import json
from pathlib import Path

import _iptlive_backup as backup_room
import pytest
import salt.client
import salt.config
import salt.loader
from _iptlive_printable import printable_name
from hypothesis import example, given
from hypothesis import strategies as st

from lab.host import REPO

HOSTILE = [
    "..",
    ".",
    "../evil",
    "../../../evil",
    "evil/../../evil",
    "/run/lab/evil",
    ".hidden",
    "-oProxyCommand=touch /run/lab/evil",
    "--dest=/run/lab",
    "two words",
    "line\nbreak",
    "\x1b[2J\x1b]0;evil\x07",
    "nul\x00byte",
    "caf\xe9",
    "\u202egnp.exe",
    "\u2028",
    "a" * 300,
    "",
    "*",
    "~",
    "$(touch /run/lab/evil)",
]
NO_FOLDER = "the host's name cannot be the name of a folder"
GOOD = ["web1", "10.1.2.3", "2001:db8::1", "db_1.example.com", "root@web1"]
FILES = {"debian-v4-rules": b"*filter\nCOMMIT\n", "in-kernel-v4-rules-filter": b"*filter\nCOMMIT\n"}
PLAN = {"status": "in_sync", "changes": {}, "refusals": {}, "warnings": []}


OUTPUTTER = salt.loader.outputters(
    {**salt.config.DEFAULT_MASTER_OPTS, "extension_modules": "", "outputter_dirs": [str(REPO / "_output")]}
)["iptlive"]


class Client:
    """Salt's client for a master whose minions have these names, and answer as ours do, or as they are told."""

    def __init__(self, names, answers):
        self.names = names
        self.answers = answers

    def cmd_iter(self, tgt, fun, **options):
        answer = PLAN if fun == "iptlive.plan" else {**backup_room.packed(FILES), "path": "/var/backup"}
        yield {"jid": "20260714061500123456", "minions": list(self.names)}
        for name in self.names:
            yield {name: {"ret": self.answers.get(name, answer), "retcode": 0}}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``run(function, names, ...)``: our runner on a master with minions of these names."""
    options = salt.config.master_config(str(tmp_path / "config"))
    options.update(cachedir=str(tmp_path / "cache"), runner_dirs=[str(REPO / "_runners")])
    runners = salt.loader.runner(options, context={})

    def call(function, names, answers=None, **arguments):
        client = contextlib.nullcontext(Client(names, answers or {}))
        monkeypatch.setattr(salt.client, "get_local_client", lambda mopts: client)
        return runners[function]("*", **arguments)

    return call


def shown_names(names):
    """As they are shown: all can be printed, and none is taken for another."""
    shown = {printable_name(name) for name in names}
    assert len(shown) == len(set(names))
    assert all(name.isprintable() for name in shown)
    return shown


def there(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def check_written(place, done):
    """A folder for each host that is said to be saved, its files in it, and nothing else anywhere."""
    whole = str(Path(done["path"]).relative_to(place))
    hosts = {f"{whole}/{host}" for host in done["saved"]}
    files = {f"{host}/{name}" for host in hosts for name in FILES}
    assert there(place) == {"dest", whole} | hosts | files


def test_no_minions_name_leads_out_of_the_backups_folder(run, tmp_path, capsys):
    place = tmp_path / "place"
    (place / "dest").mkdir(parents=True)
    done = run("iptlive.backup", HOSTILE + GOOD, dest=str(place / "dest"))
    assert (done["retcode"], set(done["saved"]), set(done["failed"])) == (1, set(GOOD), shown_names(HOSTILE))
    assert set(done["failed"].values()) == {NO_FOLDER}
    check_written(place, done)
    said = capsys.readouterr().err
    assert said.isascii()
    assert len(said.splitlines()) == 1 + len(HOSTILE + GOOD)
    assert said.replace("\n", "").isprintable()


@given(names=st.sets(st.text(max_size=12) | st.text("./-a\n \\", max_size=6), max_size=5))
def test_no_name_at_all_leads_out_of_it(tmp_path_factory, run, names):
    place = tmp_path_factory.mktemp("place")
    (place / "dest").mkdir()
    done = run("iptlive.backup", sorted(names), dest=str(place / "dest"))
    assert set(done["saved"]) | set(done["failed"]) == shown_names(names)
    check_written(place, done)


def test_the_report_shows_each_name_in_a_line_of_its_own(run):
    done = run("iptlive.report", HOSTILE + GOOD)
    assert done["hosts"].keys() == shown_names(HOSTILE + GOOD)
    shown = OUTPUTTER(done)
    assert len(shown.split("\n")) == len(HOSTILE + GOOD) + 2
    assert shown.replace("\n", "").isprintable()


STEPS = [
    {"action": "delete", "position": 3, "rule": "-j DROP", "line": 4},
    {"action": "insert", "position": 3, "rule": "-j DROP", "line": 9, "moved": True},
    {"action": "policy", "position": None, "rule": "DROP", "was": "ACCEPT", "line": 2},
    {"action": "create_chain", "position": None, "rule": "", "line": 2},
]
WHOLE = {
    "status": "refused",
    "families": {"IPv4": {"file": "/etc/iptables/rules.v4", "backend": "nft", "version": "1.8.9"}},
    "changes": {"IPv4/filter/INPUT": STEPS},
    "refusals": {
        "IPv4/filter/FORWARD": [
            {
                "reason": "foreign_between",
                "rules": ["-i lo -j ACCEPT"],
                "lines": [7],
                "message": "IPv4/filter/FORWARD: no place",
                "hint": "set placement",
                "anchors": {"above": "-j ACCEPT", "below": None},
                "foreign": ["-j DOCKER"],
                "owners": ["docker"],
                "foreign_count": 1,
            }
        ]
    },
    "warnings": ["beware"],
    "foreign": {"IPv4/filter/FORWARD": {"docker": 1}},
    "neighbours": {
        "IPv4/filter/INPUT": [
            [
                {"position": 2, "rule": "-i lo -j ACCEPT", "line": 3},
                {"position": 3, "rule": "-j DROP", "line": 9, "action": "insert"},
                {"position": 4, "rule": "-j DOCKER", "owner": "docker"},
                {"foreign": {"docker": 70}},
            ]
        ]
    },
    "applied": True,
    "id": "7-1",
    "confirm": {"state": "pending", "reason": "", "seconds_left": 40},
}
STATES = {
    "iptlive_|-fw_|-fw_|-managed": {
        "result": None,
        "changes": {"IPv4/filter/INPUT": ["insert 4: -i lo -j ACCEPT (line 9)"], "/etc/x": {"diff": "+a"}},
        "comment": "2 changes to make.",
        "name": "fw",
        "__run_num__": 1,
    }
}
FOREIGN = {"IPv4/filter/INPUT": [{"position": 1, "rule": "-j DOCKER", "owner": "docker"}]}
OBEYED = "\x1b]0;evil\x07\x9b2J\x85\u2028\u202e\r\udcff"
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.just(OBEYED) | st.binary() | st.just(10**400)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS | st.text(), inner, max_size=3)
)


def places(value, path=()):
    """The path to each part of a value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*path, key))


def damaged(value, path, junk):
    if not path:
        return junk
    value = copy.deepcopy(value)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = junk
    return value


def nested(depth):
    value = OBEYED
    for _ in range(depth):
        value = [value]
    return value


DAMAGED = st.sampled_from([WHOLE, STATES, FOREIGN]).flatmap(
    lambda whole: st.builds(damaged, st.just(whole), st.sampled_from(list(places(whole))), ANYTHING)
)


LARGE = {
    "deep": nested(5000),
    "deep in a plan": damaged(WHOLE, ("warnings",), [nested(5000)]),
    "long": damaged(WHOLE, ("warnings",), [OBEYED * 100000]),
    "an error": "\x1b[2JThe minion function caused an exception: \x85" * 1000,
}


@given(DAMAGED | ANYTHING)
@example({"status": "no_answer", "changes": {}, "refusals": {}})
@example({"status": ["in_sync"], "changes": [], "refusals": 7})
def test_whatever_a_host_answers_it_is_told_of_and_the_others_are_too(run, answer):
    check_told(run, answer)


@pytest.mark.parametrize("kind", LARGE)
def test_large_answers_are_told_of_too(run, kind):
    check_told(run, LARGE[kind])


def check_told(run, answer):
    done = run("iptlive.report", ["good", "evil", "other"], {"evil": answer})
    assert list(done["hosts"]) == ["good", "evil", "other"]
    assert done["hosts"]["good"] == done["hosts"]["other"]
    assert done["hosts"]["evil"]["status"] in ("in_sync", "changes", "refused", "error")
    assert all(text.replace("\n", "").isprintable() for text in texts(done))
    shown = OUTPUTTER(done)
    assert shown.replace("\n", "").isprintable()
    assert [line.split()[0] for line in shown.split("\n") if line[:1].strip()] == ["evil", "good", "other", "3"]
    shown = OUTPUTTER({"good": PLAN, "evil": answer, "other": PLAN})
    assert shown.replace("\n", "").replace("\t", "").isprintable()
    assert {"good: in sync", "other: in sync"} <= set(shown.split("\n"))


def texts(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)


def test_what_is_whole_is_shown_as_it_is(run):
    assert run("iptlive.report", ["web1"], {"web1": WHOLE})["hosts"]["web1"]["refusals"][0]["hint"] == "set placement"
    assert "to be confirmed within 40 seconds" in OUTPUTTER({"web1": WHOLE})
    assert "1 docker" in OUTPUTTER({"web1": FOREIGN})
    assert "to do  iptlive.managed fw" in OUTPUTTER({"web1": STATES})


@given(DAMAGED | ANYTHING | st.builds(damaged, st.just(backup_room.packed(FILES)), st.just(("archive",)), ANYTHING))
def test_a_backup_of_anything_else_is_written_nowhere(tmp_path_factory, run, answer):
    place = tmp_path_factory.mktemp("place")
    (place / "dest").mkdir()
    done = run("iptlive.backup", ["evil", "good"], {"evil": answer}, dest=str(place / "dest"))
    assert (set(done["saved"]), set(done["failed"])) == ({"good"}, {"evil"})
    assert all(text.isprintable() for text in texts(done["failed"]))
    check_written(place, done)


@pytest.fixture
def roster(fleet):
    """``roster(names)``: salt-ssh knows one host, by all these names."""
    path = Path(fleet.config_dir, "roster")
    own = path.read_text()
    address = {"host": "198.51.100.21", "user": "root"}
    yield lambda names: path.write_text(json.dumps(dict.fromkeys(names, address)))
    path.write_text(own)


def test_names_of_a_roster_lead_nowhere(fleet, roster):
    """Through the whole of salt-ssh, to a host that answers; what was written elsewhere is found by its name."""
    evil = [
        "..",
        "../stray",
        "/run/lab/stray",
        "-oProxyCommand=touch /run/stray",
        "two words",
        "line\nbreak",
        "caf\xe9",
    ]
    roster(["good", *evil])
    fleet.master.run(["mkdir", "-p", "/run/lab/place"])
    before = backups(fleet)
    # One after the other: salt-ssh at once by two names unpacks Salt twice into one folder, which it empties first.
    done = fleet.salt_run("iptlive.backup", "*", "ssh=True", "batch=1", "dest=/run/lab/place")
    assert done.retcode == 1
    assert done.value["failed"] == dict.fromkeys(map(printable_name, evil), NO_FOLDER)
    assert list(done.value["saved"]) == ["good"]
    assert "\n-" not in done.stderr
    assert backups(fleet) - before == {"{}/good/in-kernel-v4-rules-nat".format(done.value["path"])}
    assert fleet.master.run(["find", "/run", fleet.master.shared, "-name", "*stray*", "-type", "f"]).stdout == ""


def backups(fleet):
    """The backups there are on the master, wherever they are."""
    places = ["/run", "/etc", "/var", fleet.master.shared]
    return set(fleet.master.run(["find", *places, "-name", "in-kernel-v4-rules-nat"]).stdout.splitlines())
