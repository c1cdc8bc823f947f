"""The host list through Salt's own roster loader: the original's file, and pillar."""

import json

import pytest
import salt.config
import salt.roster
import salt.utils.user

from lab.host import REPO

# The manual's own example, chapter 4.1.
MANUAL = """\
[
  { "name":"host-1", "ip":"10.128.129.130", "user":"admin",   "state":"on" },
  { "name":"host-2", "ip":"172.16.1.1",      "user":"SRCUSER", "state":"on" },
  { "name":"host-3", "ip":"192.168.1.1",     "user":"root",    "state":"off" }
]
"""
GOOD = {"name": "good", "ip": "192.0.2.1", "user": "root", "state": "on"}


@pytest.fixture
def roster(tmp_path, caplog):
    """``roster(entries)``: the targets that Salt finds; entries as JSON text, or anything for pillar."""

    def find(entries, target="*", name="host-list.json"):
        options = salt.config.master_config(str(tmp_path / "master"))
        options.update(
            cachedir=str(tmp_path),
            extension_modules=str(tmp_path),
            roster_dirs=[str(REPO / "_roster")],
            pillar_roots={"base": [str(tmp_path)]},
        )
        if isinstance(entries, str):
            (tmp_path / name).write_text(entries)
            options["roster_file"] = str(tmp_path / name)
        else:
            (tmp_path / "top.sls").write_text('base: {"*_master": [list]}')
            (tmp_path / "list.sls").write_text(json.dumps({"iptlive": {"hosts": entries}}))
        caplog.clear()
        return salt.roster.Roster(options, "iptlive").targets(target, "glob")

    return find


def test_the_manuals_list(roster):
    local = salt.utils.user.get_user()
    local_sudo = {} if local == "root" else {"sudo": True}
    assert roster(MANUAL) == {
        "host-1": {"host": "10.128.129.130", "user": "admin", "sudo": True},
        "host-2": {"host": "172.16.1.1", "user": local, **local_sudo},
    }
    assert set(roster(json.loads(MANUAL))) == {"host-1", "host-2"}
    assert set(roster(MANUAL, "*-2")) == {"host-2"}


def test_comments_and_other_states_are_ignored_without_a_word(roster, caplog):
    entries = [
        {"#": "the old ones"},
        {**GOOD, "#note": "leased"},
        {"name": "x", "ip": "y", "user": "z", "state": "OFF"},
    ]
    assert set(roster(json.dumps(entries))) == {"good"}
    assert not [record for record in caplog.records if "iptlive" in record.name]


def test_yaml_reads_a_bare_on_as_true(roster):
    assert set(roster([{**GOOD, "state": True}, {**GOOD, "name": "off", "state": False}])) == {"good"}


@pytest.mark.parametrize(
    "entry, message",
    [
        *((dict(GOOD, **{field: None}), f"'{field}' is no ") for field in ("name", "ip", "user")),
        ({"name": "a", "ip": "192.0.2.1", "user": "root"}, "field 'state' is missing"),
        ({"name": "a", "user": "root", "state": "on"}, "field 'ip' is missing"),
        ("web1", "no mapping"),
        (dict(GOOD, ip="-oProxyCommand=touch${IFS}/run/lab/pwned"), "no address nor"),
        (dict(GOOD, ip="192.0.2.1; touch /run/lab/pwned"), "no address nor"),
        (dict(GOOD, ip="fe80::1%eth0;x"), "no address nor"),
        (dict(GOOD, name="../../x"), "no host name"),
        (dict(GOOD, name="-oProxyCommand=x"), "no host name"),
        (dict(GOOD, name="two words"), "no host name"),
        (dict(GOOD, name="line\nbreak"), "no host name"),
        (dict(GOOD, name="caf\xe9"), "no host name"),
        (dict(GOOD, name=".."), "no host name"),
        (dict(GOOD, user="-lroot"), "no user name"),
        (dict(GOOD, user="a b"), "no user name"),
        (GOOD, "there is a host good already"),
    ],
)
def test_an_entry_that_cannot_be_used_is_left_out_with_a_warning_naming_it(roster, caplog, entry, message):
    assert roster(json.dumps([GOOD, entry])) == {"good": {"host": "192.0.2.1", "user": "root"}}
    (warning,) = [record.getMessage() for record in caplog.records if "entry" in record.getMessage()]
    assert "host-list.json: entry 2 is left out" in warning
    assert message in warning
    assert "\n" not in warning


@pytest.mark.parametrize(
    "entries, message",
    [("[", "is no host list in JSON"), ('{"name": "a"}', "expected a list"), ({}, "expected a list")],
)
def test_what_is_no_list_has_no_targets_and_an_error(roster, caplog, entries, message):
    assert roster(entries) == {}
    assert message in caplog.text
