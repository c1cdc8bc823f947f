"""The guard holds, whoever gets in its way while an update waits, or is made: others' programs, the host, the job."""

import json
import os
import signal
import sys

import pytest

from lab.host import REPO, SaltError
from tests.functional.whole_update import unfinished, victim, wait_until

PATH, PATH6 = "/etc/iptables/rules.v4", "/etc/iptables/rules.v6"
OURS = "-p tcp -m tcp --dport 22 -j DROP"
USERS = [f"-s 192.0.2.{number}/32 -j ACCEPT" for number in range(1, 6)]
GONE = "-s 192.0.2.9/32 -j ACCEPT"
OLD = (
    f"*filter\n:USER - [0:0]\n-A INPUT -i lo -j ACCEPT\n-A FORWARD -j USER\n-A USER {GONE}\n-A USER -j RETURN\nCOMMIT\n"
)
NEW = (
    "*filter\n:USER - [0:0]\n:MADE - [0:0]\n"
    + f"-A INPUT -i lo -j ACCEPT\n-A INPUT {OURS}\n-A INPUT -p udp -j MADE\n-A FORWARD -j USER\n"
    + "".join(f"-A USER {rule}\n" for rule in USERS)
    + f"#DELETE# -A USER {GONE}\n-A USER -j RETURN\n-A MADE -s 192.0.2.1/32 -j DROP\nCOMMIT\n"
)
GUARDED = {"families": ["ipv4"], "confirm": 2, "confirm_check": "manual"}


@pytest.fixture
def ready(host):
    host.restore(OLD)
    host.write(PATH, NEW)
    return host


def rules(host):
    return [line for line in host.save().splitlines() if line.startswith("-A")]


def rival(host, *lines):
    host.run(["iptables-restore", "--noflush"], input="\n".join(["*filter", *lines, "COMMIT", ""]))


RESTORED = ["-A INPUT -i lo -j ACCEPT", "-A FORWARD -j USER", f"-A USER {GONE}", "-A USER -j RETURN"]
# What others do to a chain while the update waits, and all rules afterwards.
RIVALS = {
    "empties it": (["-F USER"], [*RESTORED[:2], f"-A USER {GONE}"]),
    "empties another": (["-F INPUT"], RESTORED[1:]),
    "writes in it": (["-I USER 3 -s 203.0.113.1/32 -j DROP"],
                     [*RESTORED[:2], "-A USER -s 203.0.113.1/32 -j DROP", *RESTORED[2:]]),
    "takes four of five": ([f"-D USER {rule}" for rule in USERS[1:]], RESTORED),
    "removes it": (["-D FORWARD -j USER", "-F USER", "-X USER"], RESTORED[:1]),
    "renames it": (["-E USER THEIRS"], [text.replace("USER", "THEIRS") for text in RESTORED]),
    "swaps it": (["-E USER THEIRS", "-N USER", "-A USER -s 203.0.113.1/32 -j DROP", "-A THEIRS -j USER"],
                 ["-A INPUT -i lo -j ACCEPT", "-A FORWARD -j THEIRS", f"-A THEIRS {GONE}", "-A THEIRS -j RETURN",
                  "-A THEIRS -j USER", "-A USER -s 203.0.113.1/32 -j DROP"]),
    "renames ours": (["-E MADE THEIRS"], RESTORED),
    "uses ours": (["-I FORWARD -j MADE"], ["-A INPUT -i lo -j ACCEPT", "-A FORWARD -j MADE", *RESTORED[1:]]),
}  # fmt: skip


@pytest.mark.parametrize("does", RIVALS)
def test_whatever_others_do_to_a_chain_each_edit_of_ours_goes(ready, does):
    """Each chain by its own inverse: that most of what was done has gone already is no reason to leave the rest."""
    update = ready.call("iptlive.apply", **GUARDED).value
    lines, wanted = RIVALS[does]
    for line in lines:
        ready.run(["iptables", *line.split()])
    settled = ready.call("iptlive.outcome", update["id"]).value
    assert settled["state"] == "rolled_back"
    assert set(rules(ready)) == set(wanted) and len(rules(ready)) == len(wanted), "\n".join(rules(ready))


def test_what_cannot_be_put_back_keeps_nothing_of_ours_in_the_kernel(ready):
    """The set that the deleted rule asks for has gone; it is put back as soon as that is there again."""
    ready.run(["ipset", "create", "known", "hash:ip"])
    rival(ready, "-I USER -m set --match-set known src -j ACCEPT")
    before = rules(ready)
    text = NEW.replace("#DELETE#", "#DELETE# -A USER -m set --match-set known src -j ACCEPT\n#DELETE#")
    ready.write(PATH, text)
    update = ready.call("iptlive.apply", **GUARDED).value
    ready.run(["ipset", "destroy", "known"])
    wait_until(lambda: not any(OURS in rule or USERS[0] in rule for rule in rules(ready)))
    assert unfinished(ready)[0]["state"] == "rolling_back"
    ready.run(["ipset", "create", "known", "hash:ip"])
    assert ready.call("iptlive.outcome", update["id"]).value["state"] == "rolled_back"
    assert sorted(rules(ready)) == sorted(before)


@pytest.mark.parametrize("name, at", [("transaction._verify call", 1), ("update.check_watchdog call", 2)])
def test_a_job_that_stops_in_the_middle_is_ended_and_rolled_back(ready, name, at):
    """It holds the lock, and would never let it go."""
    before = ready.save()
    stopped = victim(ready, wait=False, families=["ipv4"], confirm=1, patience=1, signal="STOP", name=name, at=at)
    try:
        wait_until(lambda: OURS in ready.save())
        wait_until(lambda: not unfinished(ready))
        assert ready.save() == before
        assert not ready.run(["pgrep", "-f", "victim.py"], check=False).stdout
    finally:
        os.killpg(stopped.pid, signal.SIGKILL)  # nsenter, which stops with it
        stopped.wait()


LOSE_WATCHDOG = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import _iptlive_journal as journal, _iptlive_options as options, _iptlive_update as update
import _iptlive_transaction as transaction, _iptlive_watchdog as watchdog

def end_watchdog(entry):
    if not watchdog.is_watched(entry.id):
        return
    with open(os.path.join(journal.watchdog_folder(entry.id), "armed")) as mark:
        os.kill(int(mark.read()), signal.SIGKILL)
    while watchdog.is_watched(entry.id):
        pass

def arm(entry):
    is_watched = watchdog.arm(entry)
    if sys.argv[2] == "at once":
        end_watchdog(entry)
    else:
        verify = transaction.Transaction._verify
        transaction.Transaction._verify = lambda *args: (end_watchdog(entry), verify(*args))
    return is_watched

try:
    update.apply(options.parse({"families": ["ipv4"]}), update.Guard(600), arm)
except RuntimeError as err:
    print(err)
"""


@pytest.mark.parametrize("when", ["at once", "after the commit"])
def test_no_update_waits_without_its_watchdog(ready, when):
    before = ready.save()
    done = ready.run([sys.executable, "-I", "-S", "-c", LOSE_WATCHDOG, REPO / "_modules", when])
    assert "the watchdog over the update has ended" in done.stdout
    assert ready.save() == before and not unfinished(ready)


def entry_file(host, update):
    return f"/var/lib/iptlive/journal/{update['id']}.json"


@pytest.mark.parametrize("harm", ["rm", "truncate --size=20", "rm -r"])
def test_a_lost_journal_entry_is_remembered(ready, harm):
    before = ready.save()
    update = ready.call("iptlive.apply", **{**GUARDED, "confirm": 60}).value
    ready.run(["sleep", "0.7"])  # the watchdog has looked at it
    target = "/var/lib/iptlive" if harm == "rm -r" else entry_file(ready, update)
    ready.run([*harm.split(), target])
    wait_until(lambda: ready.save() == before)
    wait_until(lambda: not unfinished(ready))
    settled = ready.call("iptlive.outcome", update["id"]).value
    assert settled["state"] == "rolled_back" and "The journal had lost its entry" in settled["reason"]


def test_an_entry_that_nobody_can_read_stops_updates_until_it_is_dealt_with(ready):
    update = ready.call("iptlive.apply", **GUARDED).value
    watchdog = ready.read(f"/var/lib/iptlive/watchdog/{update['id']}/armed")
    ready.run(["kill", "-9", watchdog])
    ready.run(["truncate", "--size=20", entry_file(ready, update)])
    told = f"the journal's entry {entry_file(ready, update)} cannot be read"
    assert told in str(ready.call("iptlive.plan", families=["ipv4"]).value["warnings"])
    with pytest.raises(SaltError, match=told):
        ready.call("iptlive.apply", families=["ipv4"])
    ready.run(["rm", entry_file(ready, update)])
    assert ready.call("iptlive.apply", families=["ipv4"]).value["status"] == "in_sync"


TWO = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
import _iptlive_files as files, _iptlive_options as options, _iptlive_update as update
new = json.loads(sys.argv[2])
settings = options.parse({"sources": {"ipv4": "salt://4", "ipv6": "salt://6"}})
settings = settings._replace(
    new_files={family: options.NewFile("x", text.encode(), path) for family, (path, text) in new.items()}
)
contents = {one.path: one.data for one in settings.new_files.values()}
if sys.argv[3] == "kill":
    replace, calls = os.replace, []
    def counted(source, target):
        calls.append(target)
        replace(source, target)
        if target == list(contents)[0]:
            os.kill(os.getpid(), signal.SIGKILL)
    os.replace = counted
try:
    update.apply(settings, new=update.Replacements(contents))
except RuntimeError as err:
    print(err)
"""


@pytest.mark.parametrize("harm", ["kill", "mount"])
@pytest.mark.parametrize("first_is_new", [False, True])
def test_of_two_stored_files_both_are_replaced_or_none(ready, harm, first_is_new):
    """The second cannot take its place, or the run is killed before: the next boot must not load one of them."""
    old6 = "*filter\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n"
    ready.restore(old6, "ipv6")
    ready.write(PATH6, old6)
    ready.write(PATH, OLD)
    if first_is_new:
        ready.run(["rm", PATH])
    new = {"ipv4": (PATH, NEW), "ipv6": (PATH6, old6.replace("COMMIT", "-A INPUT -p udp -j DROP\nCOMMIT"))}
    task = [sys.executable, "-I", "-S", "-c", TWO, REPO / "_modules", json.dumps(new), harm]
    before = ready.save(), ready.save("ipv6")
    if harm == "mount":
        ready.run(["mount", "--bind", PATH6, PATH6])
        try:
            assert "cannot be put in its place" in ready.run(task).stdout
        finally:
            ready.run(["umount", PATH6])
    else:
        assert ready.run(task, check=False).returncode == -signal.SIGKILL
        ready.call("iptlive.rollback", "last")
    assert (ready.save(), ready.save("ipv6")) == before
    assert ready.read(PATH6) == old6
    assert ready.run(["cat", PATH], check=False).stdout == ("" if first_is_new else OLD)
    assert set(ready.run(["ls", "-A", "/etc/iptables"]).stdout.split()) <= {"rules.v4", "rules.v6"}
    assert ready.run(task[:-1] + ["-"]).stdout == ""
    assert ready.read(PATH6) == new["ipv6"][1] and ready.read(PATH) == NEW


@pytest.fixture
def nft_ready(hosts):
    host = hosts("nft")
    host.restore(OLD)
    host.write(PATH, NEW)
    return host


LIKE_OURS = "tcp dport 22 ip saddr { 10.0.0.5, 10.0.0.7 } counter drop"


def native(host):
    host.run(["nft", "insert rule ip filter INPUT " + LIKE_OURS])
    return host.run(["nft", "-a", "list", "chain", "ip", "filter", "INPUT"]).stdout


def test_a_native_rule_that_reads_like_ours_is_not_taken_for_ours(nft_ready):
    host = nft_ready
    before = host.save()
    update = host.call("iptlive.apply", **GUARDED).value
    native(host)
    assert rules(host)[0] == f"-A INPUT {OURS}", "this is how iptables prints it"
    assert host.call("iptlive.outcome", update["id"]).value["state"] == "rolled_back"
    assert "10.0.0.5, 10.0.0.7" in host.run(["nft", "list", "chain", "ip", "filter", "INPUT"]).stdout
    assert host.save().replace(f"-A INPUT {OURS}\n", "", 1) == before


DURING = """
import subprocess, sys
sys.path.insert(0, sys.argv[1])
import _iptlive_options as options, _iptlive_update as update
survey = update.survey
def and_then(given):
    found = survey(given)
    subprocess.run(["nft", "insert rule ip filter INPUT " + sys.argv[2]], check=True)
    return found
update.survey = and_then
print(update.apply(options.parse({"families": ["ipv4"], "placement": "after"})).refused)
"""


def test_a_native_rule_that_comes_while_the_update_is_made(nft_ready):
    host = nft_ready
    done = host.run([sys.executable, "-I", "-S", "-c", DURING, REPO / "_modules", LIKE_OURS])
    assert "native_rule" in done.stdout
    assert [rule for rule in rules(host) if rule not in RESTORED] == [f"-A INPUT {OURS}"]


def test_a_handler_that_hangs_hangs_behind_the_update(ready):
    """Nothing is logged between the first commit and the moment at which the update waits."""
    script = """
import logging, sys
sys.path.insert(0, sys.argv[1])
import _iptlive_journal as journal, _iptlive_options as options
import _iptlive_update as update, _iptlive_watchdog as watchdog
said = []
class Handler(logging.Handler):
    def emit(self, record):
        said.append((record.getMessage(), [(entry.state, len(entry.steps)) for entry in journal.unfinished()]))
logging.basicConfig(level=0, handlers=[Handler()])
update.apply(options.parse({"families": ["ipv4"]}), update.Guard(1), watchdog.arm)
assert any("completed" in text for text, _ in said), said
print([(text, states) for text, states in said if ("open", 1) in states])
"""
    done = ready.run([sys.executable, "-I", "-S", "-c", script, REPO / "_modules"])
    assert done.stdout == "[]\n"
    wait_until(lambda: not unfinished(ready))


def test_the_lock_is_free_only_when_the_program_that_may_commit_has_ended(ready):
    """Who comes after a killed run must find what its program has done."""
    done = ready.run([sys.executable, "-I", "-S", "-c", HELD, REPO / "_modules"])
    assert done.stdout.split() == ["busy", "free"]


HELD = """
import os, subprocess, sys, time
sys.path.insert(0, sys.argv[1])
import _iptlive_journal as journal, _iptlive_programs as programs
if os.fork() == 0:
    with journal.lock(0), programs.started(["sleep", "1000"], subprocess.PIPE, journal.held) as child:
        os.kill(os.getpid(), 9)
os.wait()
try:
    with journal.lock(0):
        print("free")
except journal.BusyError:
    print("busy")
assert len(journal.end_holders()) == 1
with journal.lock(5):
    print("free")
"""
