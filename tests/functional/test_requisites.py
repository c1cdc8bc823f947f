"""The state among others, through the real salt-call: what Salt's requisites do with it, with and without test=True."""

import json

import pytest

V4 = "/etc/iptables/rules.v4"
OLD = "*filter\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n"
NEW = "*filter\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\nCOMMIT\n"
STATES = {
    "file": {"file.managed": [{"name": V4}, {"contents": NEW}]},
    "fw": {"iptlive.managed": [{"families": ["ipv4"]}, {"watch": [{"file": "file"}]}]},
    "late": {"iptlive.managed": [{"families": ["ipv4"]}, {"listen": [{"file": "file"}]}, {"order": 1}]},
    "then": {"cmd.run": [{"name": "echo then >>/run/told"}, {"onchanges": [{"iptlive": "fw"}]}]},
    "first": {"cmd.run": [{"name": "echo first >>/run/told"}, {"prereq": [{"iptlive": "fw"}]}]},
}
STEP = "insert 2: -p tcp -m tcp --dport 22 -j ACCEPT (line 3)"


@pytest.fixture
def run(host):
    host.restore(OLD)
    host.write(V4, OLD)
    host.write("/run/told", "")
    host.write("/run/lab/files/fw.sls", json.dumps(STATES))
    host.salt_call("saltutil.sync_all", check=True)

    def apply(*args):
        """The results and changes by id, and what the two commands wrote."""
        done = host.salt_call("state.apply", "fw", *args).value
        states = {key.split("_|-")[1]: (ret["result"], ret["changes"]) for key, ret in done.items()}
        return states, host.read("/run/told").split()

    apply.host = host
    return apply


@pytest.mark.parametrize("kept_host", ["nft"], indirect=True)  # the backend has no part in it
def test_requisites(run):
    before = run.host.save()
    run.host.write(V4, NEW)  # what prereq can see before anything is written
    changes = {"IPv4/filter/INPUT": [STEP]}
    states = {name: body for name, body in STATES.items() if name != "late"}
    run.host.write("/run/lab/files/fw.sls", json.dumps(states))
    found, told = run("test=True")
    assert (found["fw"], told) == ((None, changes), [])
    assert (found["then"][0], found["first"][0]) == (None, None)
    assert run.host.save() == before
    found, told = run()
    assert (found["fw"], told) == ((True, changes), ["first", "then"])
    found, told = run()
    assert (found["fw"], told) == ((True, {}), ["first", "then"])


@pytest.mark.parametrize("kept_host", ["nft"], indirect=True)
def test_listen(run):
    """The state itself comes before its file does, and is run again at the end."""
    states = {name: STATES[name] for name in ("file", "late")}
    run.host.write("/run/lab/files/fw.sls", json.dumps(states))
    found, _ = run()
    assert found["late"] == (True, {})
    assert found["listener_late"] == (True, {"IPv4/filter/INPUT": [STEP]})


def test_test_is_no_option_of_the_state(host):
    ask = {
        "do": "state",
        "fun": "iptlive.managed",
        "args": ["fw"],
        "kwargs": {"test": True},
        "pillar": None,
        "opts": {},
    }
    answer = host.agent.ask(ask, 60).value
    assert (answer["result"], answer["changes"]) == (False, {})
    assert answer["comment"].startswith("'test' is no option of this state")
