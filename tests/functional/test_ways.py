"""Programs of other versions: what they do is found before they are relied on, and the way taken for it is right.

The old programs are played by the real ones, with one behaviour injected (``lab.stand_in``).
"""

import fcntl
import json
import subprocess
import sys
import threading

import pytest

from lab.host import BACKENDS, SaltError
from lab.rival import Rival
from lab.stand_in import real_again, stand_in
from tests.functional.test_races import KEPT, PATH, STORED, chain, file_text, stands_in_one_piece
from tests.functional.test_read_only import GENERATION, python
from tests.functional.test_scratch_kinds import IPV4, PRISON, WITHOUT_SYS_ADMIN, plan_in
from tests.functional.whole_update import World, apply, prepare, tables

RECORDS = "/var/lib/iptlive/ways"
MODERN = {"declares": "-", "lists_after_commit": True, "locks": True, "reading": "variable"}
FIT = {
    "no_wait": ("legacy", {"locks": False, "reading": "none"}, {}),
    "ignores_lockfile": ("legacy", {"reading": "private"}, {}),
    "blanks": ("nft", {}, {"blanks": True}),
    "makes_tables": ("nft", {}, {"makes_named_tables": True}),
    "needs_policy": ("nft", {"declares": "policy"}, {}),
    "lists_no_commit": ("nft", {"lists_after_commit": False}, {}),
}
UNFIT = {
    "sends_at_list": ("nft", "a listing inside a transaction already sends what stands above it"),
    "commits_first": ("nft", "a transaction that is stopped before its end leaves something behind"),
}
REFUSED = {
    "v1.8.2=(nf_tables)": "it writes while it only reads",
    "v1.8.3=(nf_tables)": "it makes tables while it only reads",
    "v1.8.4=(nf_tables)": "it fails over files that iptables-restore must add to the rules",
    "v1.6.1": "it writes another backend's rules than it says",
    "v1.4.20": "its restore program does not list rules",
}


@pytest.fixture
def old(hosts):
    """A host whose programs are replaced by stand-ins."""
    made = []

    def make(backend, behaviour, programs=("-restore",)):
        host = hosts(backend)
        made.append(host)
        stand_in(host, behaviour, programs)
        return host

    yield make
    for host in made:
        host.close()


def found(host):
    return [json.loads(host.read(f"{RECORDS}/{family}-{host.backend}.json")) for family in ("ipv4", "ipv6")]


@pytest.mark.parametrize("behaviour", FIT)
def test_the_way_taken_is_right(old, behaviour):
    """Found by the trial, for both families; and a whole update, in the end, is what it should be."""
    backend, ways, besides = FIT[behaviour]
    host = old(backend, behaviour)
    world = World(host)
    world.back()
    before = python(host, GENERATION)
    assert host.call("iptlive.plan", policy="enforce").value["status"] == "changes"
    assert python(host, GENERATION) == before
    for record in found(host):
        assert record["ways"] == {**MODERN, **ways}
        assert record["found"].items() >= besides.items()
    world.assert_finished(apply(host), [])


def refusals(host):
    """The words of each way to ask."""
    words = []
    for function in ("plan", "apply", "export"):
        with pytest.raises(SaltError) as caught:
            host.call(f"iptlive.{function}")
        words.append(caught.value.message)
    return [*words, host.state().value["comment"]]


def assert_refused(host, why):
    prepare(host)
    before = tables(host), python(host, GENERATION)
    said = refusals(host)
    assert len({words.split("IPv", 1)[1] for words in said}) == 1, said
    assert why in said[0] and "/iptables-restore'" in said[0] and "nothing was changed" in said[0]
    assert ("'backend: legacy'" in said[0]) == (", nft)" in said[0])
    assert (tables(host), python(host, GENERATION)) == before


@pytest.mark.parametrize("behaviour", UNFIT)
def test_what_cannot_be_verified_is_refused(old, behaviour):
    backend, why = UNFIT[behaviour]
    assert_refused(old(backend, behaviour), why)


@pytest.mark.parametrize("shown", REFUSED)
def test_what_cannot_work_is_refused_by_name(old, shown):
    """iptables-compat of 1.6 is one of nft that does not say so."""
    host = old("legacy" if shown == "v1.4.20" else "nft", shown, ("", "-restore", "-save"))
    assert_refused(host, REFUSED[shown])


def test_rules_of_a_rival_survive_a_restore_without_a_lock(old, rounds):
    """It would lose them without a word: the lock that the rival waits for is ours."""
    host = old("legacy", "no_wait")
    present = file_text("-A INPUT " + rule for rule in STORED)
    absent = file_text(("" if rule in KEPT else "#DELETE# ") + "-A INPUT " + rule for rule in STORED)
    host.restore(file_text("-A INPUT " + rule for rule in KEPT))
    with Rival(host, "head") as rival:
        for _ in range(rounds):
            for text, wanted in ((present, STORED), (absent, KEPT)):
                host.write(PATH, text)
                assert host.call("iptlive.apply", families=["ipv4"], placement="after", wait=60).value["applied"]
                assert stands_in_one_piece(chain(host), wanted)
    assert rival.told["failed"] == []
    assert [rule for rule in chain(host) if rival.is_rule(rule)] == rival.told["rules"]


SOCKET = """
import socket, sys
name = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
name.bind("\\0xtables")
print("held", flush=True)
sys.stdin.read()
"""
HOLDERS = {"file": ["flock", "/run/xtables.lock", "sh", "-c", "echo held; exec cat"],
           "socket": [sys.executable, "-I", "-S", "-c", SOCKET]}  # fmt: skip


@pytest.mark.parametrize("holder", HOLDERS)
def test_the_lock_that_we_hold_ourselves_is_waited_for(old, holder):
    """As long as 'wait' says, on the file of 1.6 and on the socket of 1.4.21; nobody waits for a plan."""
    host = old("legacy", "no_wait")
    world = World(host)
    world.back()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with host.popen(HOLDERS[holder], **pipes) as process:
        process.stdout.readline()
        assert host.call("iptlive.plan", policy="enforce").value["status"] == "changes"
        with pytest.raises(SaltError, match="holding the xtables lock"):
            host.call("iptlive.apply", policy="enforce", wait=1)
        assert tables(host) == world.old
        release = threading.Timer(2, process.stdin.close)
        release.start()
        world.assert_finished(host.call("iptlive.apply", policy="enforce", wait=60).value, [])
        release.join()


def test_a_plan_does_not_wait_for_the_hosts_lock(old):
    """Although the programs can be told of no other one."""
    host = old("legacy", "ignores_lockfile")
    World(host).back()
    with open(f"/proc/{host.pid}/root/run/xtables.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert host.call("iptlive.plan", policy="enforce").value["status"] == "changes"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_program_that_changes_is_tried_anew(old, backend):
    host = old(backend, "lists_no_commit" if backend == "nft" else "no_wait")
    World(host).back()
    host.call("iptlive.plan")
    first = found(host)
    host.call("iptlive.plan")
    assert found(host) == first
    real_again(host)
    host.call("iptlive.plan")
    assert [record["ways"] for record in found(host)] == [MODERN, MODERN]


def test_a_record_that_cannot_be_written(old):
    """Nor read: the programs are tried each time, and the plan is the same."""
    host = old("nft", "needs_policy")
    World(host).back()
    host.run(["mkdir", "-p", "/var/lib/iptlive"])
    host.write(RECORDS, "no folder\n")
    plans = [host.call("iptlive.plan", policy="enforce").value for _ in range(2)]
    assert plans[0]["status"] == "changes" and plans[0] == plans[1]


@pytest.mark.parametrize(
    ("shown", "why"),
    [("v1.8.9=(nf_tables)", ""), ("v1.9.0=(nf_tables)", "not known to iptlive"), ("v0=(nf_tables)", "cannot be used")],
)
def test_without_a_namespace_the_version_decides(old, shown, why):
    host = old("nft", shown, ("", "-restore", "-save"))
    host.write("/run/kernel", "*filter\nCOMMIT\n")
    host.write("/run/kernel6", "*filter\nCOMMIT\n")
    host.write(PATH, "*filter\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n")
    prison = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", PRISON + 'exec "$@"', "sh"]
    if why:
        with pytest.raises(subprocess.CalledProcessError, match=why):
            plan_in(host, prison + WITHOUT_SYS_ADMIN, options=IPV4)
    else:
        assert plan_in(host, prison + WITHOUT_SYS_ADMIN, options=IPV4)["status"] == "changes"
    assert host.run(["test", "-e", RECORDS], check=False).returncode == 1
