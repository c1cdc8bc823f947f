"""Stored files from the master: planned against before they are written, written only when the kernel has them."""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest

from lab.host import REPO, SaltError
from tests.functional.whole_update import wait_until

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


@pytest.mark.parametrize("source", ["salt://fw/plain.v4", "/run/lab/files/fw/plain.v4"])
def test_without_a_template_engine_it_is_taken_as_it_is(served, source):
    served.write("/run/lab/files/fw/plain.v4", "# {{ no template }}\n" + NEW)
    done = state(served, sources={"ipv4": source}, template=None)
    assert (done["result"], set(done["changes"])) == (True, {"IPv4/filter/INPUT", FILE})
    assert served.read(FILE) == "# {{ no template }}\n" + NEW
    assert served.run(["test", "-e", "/run/lab/files/fw/plain.v4"]).returncode == 0


@pytest.mark.parametrize(
    "text, template, said",
    [
        ("*filter\n{{ port }}\n", "jinja", "line 2: Jinja variable 'port' is undefined"),
        ("*filter\n{{ pillar['fw']['port'] }}\n", "jinja", "line 2: Jinja variable"),
        ("*filter\n{% if %}\n", "jinja", "line 2: Jinja syntax error"),
        ("*filter\n", "py", "line 1: "),
        ("def run():\n    return 1 / 0\n", "py", ": division by zero"),
    ],
)
def test_what_a_template_lacks_is_told_in_one_line(served, text, template, said):
    served.write("/run/lab/files/fw/rules.v4", text)
    comment = state(served, template=template)["comment"]
    assert comment.startswith("salt://fw/rules.v4") and said in comment
    assert len(comment.splitlines()) == 1


def test_salts_backup_convention(served):
    assert state(served, backup="minion")["result"] is True
    (kept,) = served.run(["find", "/run/lab/agent/cache/file_backup", "-type", "f"]).stdout.split()
    assert served.read(kept) == OLD
    state(served, context={"ports": [22]}, opts={"backup_mode": "minion"})
    assert len(served.run(["find", "/run/lab/agent/cache/file_backup", "-type", "f"]).stdout.split()) == 2


MANUAL = {"confirm": 60, "confirm_check": "manual", **OPTIONS}


def test_the_file_follows_the_confirmation(served):
    """Not the next update: a reboot in between would load the old rules, which are confirmed to be no longer wanted."""
    done = served.call("iptlive.apply", **MANUAL).value
    assert (done["confirm"]["state"], done["confirm"]["files"]) == ("pending", [FILE])
    assert "written" not in done
    assert served.read(FILE) == OLD
    assert served.call("iptlive.confirm", done["id"]).value["files"] == [FILE]
    assert served.read(FILE) == NEW
    assert look(served)[0].splitlines()[1:] == [FILE + " 600"]


CONFIRM = """
import sys
sys.path.insert(0, sys.argv[1])
import _iptlive_files as files, _iptlive_journal as journal, _iptlive_update as update
put = files.put
files.put = lambda waiting: put(waiting) or print(journal.unfinished()[0].state, *waiting)
print(update.confirm(None, 0).state)
"""


def test_nobody_sees_it_confirmed_before_the_file_is_in_place(served):
    """Who waits for the outcome may look at the journal at any moment."""
    served.call("iptlive.apply", **MANUAL)
    done = served.run([sys.executable, "-I", "-S", "-c", CONFIRM, REPO / "_modules"])
    assert done.stdout.splitlines() == [f"pending {FILE}", "done"]
    assert served.read(FILE) == NEW


@contextlib.contextmanager
def listener(host):
    """Something that the watchdog can reach."""
    listen = "import socket; s = socket.create_server(('', 4507)); print(1, flush=True)\nwhile 1: s.accept()"
    with host.popen([sys.executable, "-I", "-S", "-c", listen], stdout=subprocess.PIPE) as server:
        server.stdout.readline()
        try:
            yield
        finally:
            os.killpg(server.pid, signal.SIGKILL)


def test_the_watchdog_puts_the_file_in_place(served):
    """Nobody need be there any more."""
    with listener(served):
        done = served.call("iptlive.apply", **{**MANUAL, "confirm_check": ["127.0.0.1:4507"]}).value
    assert (done["confirm"]["state"], done["written"]) == ("confirmed", [FILE])
    assert served.read(FILE) == NEW


@pytest.fixture
def held(served):
    """Its file can be written, but none can take its place: it is mounted, as into a container."""
    served.run(["mount", "--bind", FILE, FILE])
    yield served
    served.run(["umount", FILE])


def test_a_file_that_keeps_its_place(held):
    """Nobody is told that it was confirmed, or written: neither who does without, nor who asks, nor the watchdog."""
    before = look(held)
    with pytest.raises(SaltError, match=f"{FILE}: the new file .* cannot be put in its place: Device or resource busy"):
        held.call("iptlive.apply", **OPTIONS)
    assert look(held) == before

    done = held.call("iptlive.apply", **MANUAL).value
    with pytest.raises(SaltError, match="cannot be put in its place"):
        held.call("iptlive.confirm", done["id"])
    assert held.call("iptlive.pending").value["id"] == done["id"]
    held.call("iptlive.rollback", done["id"])
    assert look(held) == before

    with listener(held):
        done = held.call("iptlive.apply", **{**MANUAL, "confirm": 2, "confirm_check": ["127.0.0.1:4507"]}).value
    assert (done["confirm"]["state"], "written" in done) == ("rolled_back", False)
    assert f"not confirmed within 2 seconds: {FILE}: the new file" in done["confirm"]["reason"]
    assert look(held) == before


@pytest.mark.parametrize("who", ["rollback", "watchdog"])
def test_an_update_that_is_not_confirmed_leaves_the_file(served, who):
    before = look(served)
    done = served.call("iptlive.apply", **{**MANUAL, "confirm": 60 if who == "rollback" else 1}).value
    assert look(served)[0] != before[0], "it waits beside"
    if who == "rollback":
        served.call("iptlive.rollback", done["id"])
    assert served.call("iptlive.outcome", done["id"]).value["state"] == "rolled_back"
    assert look(served) == before


def test_state_that_is_confirmed_by_hand(served):
    """It waits, and reports the file too."""
    states = []
    waiting = threading.Thread(target=lambda: states.append(state(served, confirm=60, confirm_check="manual")))
    waiting.start()
    confirm = "import _iptlive_update as update; update.confirm(None, 10)"
    wait_until(lambda: served.run(["grep", "-rl", '"pending"', "/var/lib/iptlive/journal"], check=False).stdout)
    served.run([sys.executable, "-c", f"import sys; sys.path.insert(0, {str(REPO / '_modules')!r}); {confirm}"])
    waiting.join()
    assert (states[0]["result"], set(states[0]["changes"])) == (True, {"IPv4/filter/INPUT", FILE})
    assert served.read(FILE) == NEW


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import _iptlive_options as options, _iptlive_update as update
path, data = sys.argv[2], sys.argv[3].encode()
settings = options.parse({"families": ["ipv4"], "sources": {"ipv4": "salt://x"}})
settings = settings._replace(new_files={"ipv4": options.NewFile("salt://x", data, path)})
update.apply(settings, new=update.Replacements({path: data}, lambda paths: os.kill(os.getpid(), signal.SIGKILL)))
"""


@pytest.mark.parametrize("finish", ["iptlive.apply", "iptlive.rollback", "local file"])
def test_killed_between_kernel_and_file(served, finish):
    """The next update puts the file in place, or rolls back what follows the host's own; and nothing is left beside."""
    before = look(served)
    done = served.run([sys.executable, "-I", "-S", "-c", KILLED, REPO / "_modules", FILE, NEW], check=False)
    assert done.returncode == -9
    assert (served.read(FILE), "--dport 443" in served.save()) == (OLD, True)
    assert len(look(served)[0].splitlines()) == 3
    if finish == "iptlive.apply":
        assert served.call(finish, **OPTIONS).value["written"] == [FILE]
        assert served.read(FILE) == NEW
        assert look(served)[0].splitlines()[1:] == [FILE + " 600"]
        return
    if finish == "iptlive.rollback":
        served.call(finish, "last")
    else:
        (note,) = served.call("iptlive.apply", families=["ipv4"]).value["warnings"]
        assert "was rolled back (IPv4/filter): it was interrupted" in note
    assert look(served) == before


def test_booted_while_the_update_waited(served):
    """The old file was loaded then; nobody can confirm the new one any more."""
    served.call("iptlive.apply", **MANUAL)
    entry = served.run(["sh", "-c", "ls /var/lib/iptlive/journal/*.json"]).stdout.strip()
    served.run(["sed", "-i", 's/"boot": "[^"]*"/"boot": "former"/', entry])
    served.restore(OLD)
    served.call("iptlive.apply", **OPTIONS)
    assert served.read(FILE) == NEW
    assert look(served)[0].splitlines()[1:] == [FILE + " 600"]


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


RESTRICTED = [
    ("iptlive.plan", {"files": {"ipv4": "/etc/shadow"}}),
    ("iptlive.plan", {"sources": {"ipv4": "/run/evil.v4"}, "template": "jinja"}),
    ("iptlive.plan", {"context": {"ports": []}}),
    ("iptlive.plan", {"saltenv": "dev"}),
    ("iptlive.backup", {"dest": "/run/evil"}),
    ("iptlive.backup", {"files": {"ipv4": "/etc/shadow"}, "returned": True}),
    ("iptlive.backup_part", {"path": "/run/iptables-backup-20260714-061500"}),
    ("iptlive.graph", {"path": "/run/evil.dot"}),
    ("iptlive.export", {"files": {"ipv4": "/run/evil.v4"}}),
]


@pytest.mark.parametrize(("function", "arguments"), RESTRICTED)
def test_a_caller_who_is_not_root_names_no_file_and_renders_nothing(served, function, arguments):
    """Salt packs the user that published a job into the arguments, over what a caller gives by that name."""
    served.write("/run/evil.v4", "{{ salt['cmd.run']('touch /run/evil') }}")
    pillar = {"iptlive": OPTIONS}
    with pytest.raises(SaltError, match="user 'bob' may") as caught:
        served.call(function, pillar=pillar, __pub_user="bob", **arguments)
    assert caught.value.kind == "SaltInvocationError"
    assert served.run(["ls", "-d", "/run/evil"], check=False).returncode
    assert served.call("iptlive.plan", pillar=pillar, __pub_user="bob").value["files"]
