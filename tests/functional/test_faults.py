"""
What can go wrong outside of us does: programs that fail, lie, hang or die, disks that are full, locks that are held.

The restore programs of the host are replaced by a wrapper that spoils the n-th transaction; loads of the throw-away
namespace and mere readings go through.
"""

import json
import subprocess
import threading

import pytest

from lab.host import SaltError
from tests.functional.whole_update import World, apply, tables, unfinished, victim, wait_until

FAULTS = "/run/lab/faults"
WRAPPER = """\
#!/bin/sh
real=/usr/sbin/{family}-{backend}-restore
[ -z "$XTABLES_LOCKFILE" -a "$1" != -V ] || exec $real "$@"  # in the throw-away namespace, or merely asked who it is
if [ {backend} = nft ]; then
    input=$(mktemp)
    cat >$input
    exec <$input
    grep -q '^-[DINPX] ' $input || exec $real "$@"
fi
count=$(($(cat {faults}/count) + 1))
echo $count >{faults}/count
case " {calls} " in *" $count "* | " all ") {fault} ;; esac
exec $real "$@"
"""
# The update's transactions in order; a failed one is tried three times.
TABLES = ["IPv4/filter", "IPv4/nat", "IPv6/filter"]


@pytest.fixture
def world(host):
    found = World(host)
    found.back()
    yield found
    spoil(host, "none", "true")


def spoil(host, calls, fault):
    """Let the transactions with these numbers go wrong, from now on."""
    host.write(FAULTS + "/count", "0\n")
    for family in ("iptables", "ip6tables"):
        text = WRAPPER.format(family=family, backend=host.backend, calls=calls, fault=fault, faults=FAULTS)
        host.write(f"{FAULTS}/{family}-restore", text, mode="0755")
        host.run(["ln", "-sf", f"{FAULTS}/{family}-restore", f"/etc/alternatives/{family}-restore"])


def fails(host, **options):
    with pytest.raises(SaltError) as caught:
        host.call("iptlive.apply", policy="enforce", **{"wait": 2, **options})
    assert caught.value.kind == "CommandExecutionError"
    return caught.value.message


def assert_all_back(world, message, failed):
    """Nothing of the update remains, the message says what failed and was rolled back, and the next run succeeds."""
    assert tables(world.host) == world.old
    assert message.startswith(TABLES[failed])
    for name in TABLES[:failed]:
        assert f"{name}" in message.split("exited")[-1]
    assert ("committed before, and rolled back" in message) == bool(failed)
    spoil(world.host, "none", "true")
    world.assert_finished(apply(world.host), [])


@pytest.mark.parametrize("status", [1, 4, 139])
@pytest.mark.parametrize("failed", [0, 1, 2])
def test_program_fails(world, status, failed):
    """In the first table, in the second one, in the other family."""
    spoil(world.host, " ".join(str(failed + number) for number in (1, 2, 3)), f"echo it broke >&2; exit {status}")
    message = fails(world.host)
    assert f"exited with status {status}: it broke" in message
    assert_all_back(world, message, failed)


def test_program_fails_once(world):
    spoil(world.host, "2", "exit 1")
    world.assert_finished(apply(world.host), [])


@pytest.mark.parametrize("end", ["exit 1", "kill -9 $$"])
def test_program_fails_although_it_has_committed(world, end):
    spoil(world.host, "all", f'$real "$@"; {end}')
    answer = apply(world.host)
    spoil(world.host, "none", "true")
    assert answer["applied"]
    world.assert_finished(answer, [])


def test_program_killed_before_its_commit(world):
    spoil(world.host, "2", "kill -9 $$")
    assert_all_back(world, fails(world.host), 1)


def test_program_succeeds_without_doing_anything(world):
    # A legacy one is missed at once, for it lists nothing, and started again; an nft one is found out afterwards.
    spoil(world.host, "2 3 4" if world.host.backend == "legacy" else "2", "exit 0")
    assert_all_back(world, fails(world.host), 1)


@pytest.mark.parametrize(
    "fault", ['kill -9 $PPID; exec $real "$@"', '$real "$@"; kill -9 $PPID'], ids=["before", "after"]
)
@pytest.mark.parametrize("call", [1, 2, 3])
def test_program_kills_us(world, fault, call):
    spoil(world.host, call, fault)
    assert victim(world.host).returncode == -9
    spoil(world.host, "none", "true")
    world.assert_old_or_new()
    interrupted = unfinished(world.host)
    assert len(interrupted) == 1
    world.assert_finished(apply(world.host), interrupted)


def test_program_hangs(world):
    spoil(world.host, "2", "sleep 1000")
    done = victim(world.host, timeout=2)
    assert "HostError: IPv4/nat" in done.stderr
    assert "it was ended by signal 9" in done.stderr
    assert world.host.run(["pgrep", "-x", "sleep"], check=False).stdout == ""
    assert tables(world.host) == world.old


def test_taking_back_fails_too(world):
    """The message says so, and the next run makes up for it."""
    spoil(world.host, " ".join(map(str, range(2, 60))), "echo it broke >&2; exit 1")
    message = fails(world.host)
    assert "what was done could not be rolled back: IPv4/filter" in message
    half = world.assert_old_or_new()
    assert [key for key in half if half[key] == world.old[key]] != list(half)
    interrupted = unfinished(world.host)
    spoil(world.host, "none", "true")
    world.assert_finished(apply(world.host), interrupted)


@pytest.fixture
def small_disk(world):
    world.host.run(["mkdir", "-p", "/var/lib/iptlive"])
    world.host.run(["mount", "--no-mtab", "-t", "tmpfs", "-o", "size=256k", "lab", "/var/lib/iptlive"])
    world.host.call("iptlive.plan")  # what is found about the programs is kept there too
    yield world.host
    world.host.run(["umount", "/var/lib/iptlive"])


def fill(host, leave):
    """Leave so many pages of the journal's disk."""
    host.run(["mkdir", "-p", "/var/lib/iptlive/journal"])
    host.write("/var/lib/iptlive/lock", "4711")
    host.run(["dd", "if=/dev/zero", "of=/var/lib/iptlive/ballast", "bs=4k"], check=False)
    free = int(host.run(["stat", "-c", "%s", "/var/lib/iptlive/ballast"]).stdout) - leave * 4096
    host.run(["truncate", "--size", str(free), "/var/lib/iptlive/ballast"])


@pytest.mark.parametrize("leave", [0, 1])
def test_disk_full(world, small_disk, leave):
    """From the beginning, or only when the update has begun to commit."""
    fill(small_disk, leave)
    message = fails(small_disk)
    assert "the journal below /var/lib/iptlive cannot be written (No space left on device)" in message
    assert tables(small_disk) == world.old
    interrupted = unfinished(small_disk)
    assert len(interrupted) == bool(leave)
    small_disk.run(["rm", "/var/lib/iptlive/ballast"])
    world.assert_finished(apply(small_disk), interrupted)


def test_read_only_disk(world, small_disk):
    small_disk.run(["mount", "--no-mtab", "-o", "remount,ro", "/var/lib/iptlive"])
    message = fails(small_disk)
    assert "the journal below /var/lib/iptlive cannot be written (Read-only file system)" in message
    assert tables(small_disk) == world.old


@pytest.fixture
def lock_holder(world):
    if world.host.backend == "nft":
        yield None  # its programs take no lock
        return
    holder = world.host.popen(
        ["flock", "/run/xtables.lock", "sh", "-c", "echo held; exec sleep 1000"], stdout=subprocess.PIPE
    )
    holder.stdout.readline()
    yield "flock"
    world.host.run(["pkill", "-x", "flock|sleep"])


def test_lock_held_for_ever(world, lock_holder):
    if lock_holder:
        message = fails(world.host, wait=1)
        assert "Another app is currently holding the xtables lock" in message
        assert f", {lock_holder})" in message
        assert tables(world.host) == world.old
    else:
        world.assert_finished(apply(world.host), [])


def test_two_runs_at_once(world):
    """The second one is told so, or waits until the first one is through."""
    host = world.host
    host.run(["rm", "-f", FAULTS + "/go", FAULTS + "/begun"])
    spoil(host, "2", f"touch {FAULTS}/begun; until [ -e {FAULTS}/go ]; do sleep 0.05; done")
    first, second = [], []
    run = threading.Thread(target=lambda: first.append(victim(host, check=True)))
    run.start()
    wait_until(lambda: host.run(["ls", FAULTS + "/begun"], check=False).stdout)
    entry = unfinished(host)[0]
    message = fails(host, wait=1)
    assert f"another iptlive run (process {entry['pid']}) is changing this host" in message
    assert host.call("iptlive.plan", policy="enforce").value["status"] == "changes"
    late = threading.Thread(target=lambda: second.append(host.call("iptlive.apply", policy="enforce", wait=60).value))
    late.start()
    host.run(["touch", FAULTS + "/go"])
    run.join()
    late.join()
    assert (second[0]["status"], second[0]["applied"], second[0]["warnings"]) == ("in_sync", False, [])
    assert json.dumps(entry["id"]) not in json.dumps(second[0])
    world.assert_finished(second[0], [])
