"""Hosts whose names would be a path, an option or a line of their own: nothing is written for them, all are told."""

import contextlib
import json
from pathlib import Path

import _iptlive_backup as backup_room
import pytest
import salt.client
import salt.config
import salt.loader
from hypothesis import given
from hypothesis import strategies as st

from lab.fleet import BASE
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


class Client:
    """Salt's client for a master whose minions have these names, and answer as ours do."""

    def __init__(self, names):
        self.names = names

    def cmd_iter(self, tgt, fun, **options):
        answer = PLAN if fun == "iptlive.plan" else backup_room.packed(FILES)
        yield {"jid": "20260714061500123456", "minions": list(self.names)}
        for name in self.names:
            yield {name: {"ret": answer, "retcode": 0}}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``run(function, names, ...)``: our runner on a master with minions of these names."""
    options = salt.config.master_config(str(tmp_path / "config"))
    options.update(cachedir=str(tmp_path / "cache"), runner_dirs=[str(REPO / "_runners")])
    runners = salt.loader.runner(options, context={})

    def call(function, names, **arguments):
        client = contextlib.nullcontext(Client(names))
        monkeypatch.setattr(salt.client, "get_local_client", lambda mopts: client)
        return runners[function]("*", **arguments)

    return call


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
    assert (done["retcode"], set(done["saved"]), set(done["failed"])) == (1, set(GOOD), set(HOSTILE))
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
    assert set(done["saved"]) | set(done["failed"]) == names
    check_written(place, done)


def test_the_report_shows_each_name_in_a_line_of_its_own(run):
    done = run("iptlive.report", HOSTILE + GOOD)
    assert done["hosts"].keys() == set(HOSTILE + GOOD)
    options = {**salt.config.DEFAULT_MASTER_OPTS, "extension_modules": "", "outputter_dirs": [str(REPO / "_output")]}
    shown = salt.loader.outputters(options)["iptlive"](done)
    assert len(shown.split("\n")) == len(HOSTILE + GOOD) + 2
    assert shown.replace("\n", "").isprintable()


@pytest.fixture
def roster(fleet):
    """``roster(names)``: salt-ssh knows one host, by all these names."""
    path = BASE + "/roster"
    own = fleet.master.read(path)
    address = {"host": "198.51.100.21", "user": "root"}
    yield lambda names: fleet.master.write(path, json.dumps(dict.fromkeys(names, address)))
    fleet.master.write(path, own)


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
    assert done.value["failed"] == dict.fromkeys(evil, NO_FOLDER)
    assert list(done.value["saved"]) == ["good"]
    assert "\n-" not in done.stderr
    assert backups(fleet) - before == {"{}/good/in-kernel-v4-rules-nat".format(done.value["path"])}
    assert fleet.master.run(["find", "/run", "-name", "*stray*", "-type", "f"]).stdout == ""


def backups(fleet):
    """The backups there are on the master, wherever they are."""
    found = fleet.master.run(["find", "/run", "/etc", "/var", "-name", "in-kernel-v4-rules-nat"]).stdout
    return set(found.splitlines())
