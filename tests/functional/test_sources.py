"""Stored files from the master: planned against before they are written, written only when the kernel has them."""

import pytest

from lab.host import SaltError

FILE = "/etc/iptables/rules.v4"
HEAD = "*filter\n:INPUT ACCEPT [0:0]\n"
OLD = HEAD + "-A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\nCOMMIT\n"
TEMPLATE = (
    HEAD
    + "-A INPUT -i lo -j ACCEPT\n"
    + "{% for port in ports %}-A INPUT -p tcp -m tcp --dport {{ port }} -j ACCEPT\n{% endfor %}"
    + "COMMIT\n"
)
NEW = OLD.replace("COMMIT", "-A INPUT -p tcp -m tcp --dport 443 -j ACCEPT\nCOMMIT")
OPTIONS = {
    "families": ["ipv4"],
    "sources": {"ipv4": ["salt://fw/nobody.v4", "salt://fw/rules.v4"]},
    "template": "jinja",
    "context": {"ports": [22, 443]},
    "defaults": {"ports": []},
}


@pytest.fixture
def served(host):
    """A host whose kernel has the old file, and what its master serves."""
    host.run(["rm", "-rf", "/run/lab/agent/cache/file_backup"])
    host.write("/run/lab/files/fw/rules.v4", TEMPLATE)
    host.write(FILE, OLD, mode="0640")
    host.restore(OLD)
    return host


def look(host):
    """Everything that must not change by itself."""
    there = host.run(["find", "/etc/iptables", "-printf", "%p %m\n"]).stdout
    return there, host.read(FILE), host.save()


def state(host, test=False, opts=None, **options):
    return host.state(test=test, opts=opts, **{**OPTIONS, **options}).value


def test_the_file_is_written_with_the_kernels_rules_and_told_of_before(served):
    before = look(served)
    told = state(served, test=True)
    assert told["result"] is None
    assert look(served) == before
    done = state(served)
    assert (done["result"], done["changes"]) == (True, told["changes"])
    assert set(done["changes"]) == {"IPv4/filter/INPUT", FILE}
    assert "+-A INPUT -p tcp -m tcp --dport 443 -j ACCEPT" in done["changes"][FILE]["diff"]
    assert served.read(FILE) == NEW
    assert look(served)[0].splitlines()[1:] == [FILE + " 600"]
    assert "--dport 443" in served.save()
    again = state(served)
    assert (again["result"], again["changes"]) == (True, {})


def test_a_file_that_differs_in_words_only_is_written_too(served):
    served.write("/run/lab/files/fw/rules.v4", "# a comment\n" + OLD)
    before = look(served)
    told = state(served, test=True)
    assert (told["result"], set(told["changes"])) == (None, {FILE})
    assert look(served) == before
    assert set(state(served)["changes"]) == {FILE}
    assert served.read(FILE) == "# a comment\n" + OLD
    assert served.save() == before[2]


def test_a_host_without_a_file_gets_one(served):
    served.run(["rm", "-r", "/etc/iptables"])
    assert state(served)["changes"][FILE] == {"diff": "new file"}
    assert served.read(FILE).splitlines() == NEW.splitlines()


@pytest.mark.parametrize(
    "text, status",
    [
        (OLD.replace("-i lo", "-p udp -m udp --dport 53 -j ACCEPT\n-A INPUT -i eth7"), "refused"),
        (OLD.replace("COMMIT", "-A INPUT -m nosuch -j ACCEPT\nCOMMIT"), "salt://fw/rules.v4, line 5"),
        (OLD.replace("COMMIT", "no rule\nCOMMIT"), "salt://fw/rules.v4, line 5"),
        ("{{ unknown.value }}", "unknown"),
    ],
)
def test_what_is_refused_leaves_file_and_kernel_alone(served, text, status):
    served.restore(OLD.replace("COMMIT", "-A INPUT -j DROP\nCOMMIT").replace("-i lo", "-i eth3"))
    served.write("/run/lab/files/fw/rules.v4", text)
    before = look(served)
    for test in (True, False):
        done = state(served, test=test, defaults={})
        assert done["result"] is False
        assert done["changes"] == {}
        assert status in done["comment"].lower()
        assert look(served) == before


def test_a_source_that_is_not_there(served):
    before = look(served)
    done = state(served, sources={"ipv4": ["salt://fw/nobody.v4", "salt://fw/neither.v4"]})
    assert done["result"] is False
    assert "none of the specified sources were found" in done["comment"]
    assert "salt://fw/nobody.v4" in state(served, sources={"ipv4": "salt://fw/nobody.v4"})["comment"]
    assert look(served) == before


def test_salts_backup_convention(served):
    assert state(served, backup="minion")["result"] is True
    (kept,) = served.run(["find", "/run/lab/agent/cache/file_backup", "-type", "f"]).stdout.split()
    assert served.read(kept) == OLD
    state(served, context={"ports": [22]}, opts={"backup_mode": "minion"})
    assert len(served.run(["find", "/run/lab/agent/cache/file_backup", "-type", "f"]).stdout.split()) == 2


def test_an_update_that_is_not_confirmed_leaves_the_file(served):
    before = look(served)
    done = served.call("iptlive.apply", confirm=60, confirm_check="manual", **OPTIONS).value
    assert done["confirm"]["state"] == "pending"
    assert "written" not in done
    assert served.read(FILE) == OLD
    served.call("iptlive.rollback", done["id"])
    assert look(served) == before


def test_a_place_that_cannot_be_written_is_found_before_the_kernel_is_touched(served):
    before = look(served)
    with pytest.raises(SaltError, match="/proc/iptlive/x: cannot be written"):
        served.call("iptlive.apply", files={"ipv4": "/proc/iptlive/x"}, **OPTIONS)
    assert look(served) == before


@pytest.mark.parametrize(
    "option, value",
    [("sources", "salt://x"), ("sources", {"ipv5": "x"}), ("sources", {"ipv4": []}), ("context", []), ("backup", "x")],
)
def test_wrong_options(served, option, value):
    with pytest.raises(SaltError, match=f"option '{option}'") as caught:
        served.call("iptlive.plan", **{**OPTIONS, option: value})
    assert caught.value.kind == "SaltInvocationError"
