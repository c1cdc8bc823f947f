"""
SIGKILL at every step of an update: each table is either as before or as planned, and the next run ends as intended.

By default some of the decisive steps are taken (what becomes durable, what is handed to another program);
``--every-step`` takes the beginning and the end of each function that has to do with it.
"""

import pytest

from tests.functional.whole_update import STORED, V4, World, apply, prepare, tables, unfinished, victim, wait_until

SOME = 7  # every so many-th of the decisive steps
TWICE = "-A INPUT -i lo -j ACCEPT\n"


@pytest.fixture
def world(host):
    return World(host)


@pytest.fixture(scope="session")
def every(request):
    return request.config.getoption("--every-step")


def steps_of(world, every, first=1, **task):
    """The numbers of the steps at which to kill, of those that a run without a kill goes through."""
    prepare(world.host)
    if task["do"] == "rollback":
        apply(world.host)
    names = victim(world.host, every=every, check=True, **task).stdout.split("\n")[:-1]
    if task.get("confirm"):
        world.host.call("iptlive.confirm")
        first = names.index("watchdog.arm return") + 1
    return range(first, len(names) + 1, 1 if every else SOME)


def test_update_killed(world, every):
    steps = steps_of(world, every, do="apply")
    for number in steps:
        prepare(world.host)
        assert victim(world.host, at=number, every=every).returncode == -9
        world.assert_old_or_new()
        interrupted = unfinished(world.host)
        world.assert_finished(apply(world.host), interrupted)
    print(f"{world.host.backend}: an update killed at {len(steps)} steps")


def test_update_killed_and_refused_then(world, every):
    """By the next run the stored file is one that cannot be applied: what stands is rolled back."""
    steps = steps_of(world, every, do="apply", first=3)
    for number in steps:
        prepare(world.host)
        victim(world.host, at=number, every=every)
        interrupted = unfinished(world.host)
        now = tables(world.host)
        world.host.write(V4, STORED[V4].replace(TWICE, TWICE + TWICE))
        answer = apply(world.host)
        assert answer["status"] == "refused"
        assert tables(world.host) == (world.old if interrupted else now)
        assert [entry["id"] for entry in interrupted if entry["id"] not in str(answer["warnings"])] == []
        assert unfinished(world.host) == []
    print(f"{world.host.backend}: an update killed at {len(steps)} steps, and refused then")


def test_rollback_killed(world, every):
    steps = steps_of(world, every, do="rollback")
    for number in steps:
        prepare(world.host)
        apply(world.host)
        assert victim(world.host, do="rollback", at=number, every=every).returncode == -9
        world.assert_old_or_new()
        interrupted = unfinished(world.host)
        world.assert_finished(apply(world.host), interrupted)
    print(f"{world.host.backend}: a rollback killed at {len(steps)} steps")


def test_guarded_update_killed(world, every):
    """Its watchdog rolls it back, without anybody's help, as soon as it sees that the run has died."""
    steps = steps_of(world, every, do="apply", confirm=600)
    for number in steps:
        prepare(world.host)
        assert victim(world.host, at=number, every=every, confirm=600).returncode == -9
        if any(entry["state"] == "pending" for entry in unfinished(world.host)):
            world.host.call("iptlive.rollback", "last")  # it had come through: nothing for the watchdog to do yet
        wait_until(lambda: not unfinished(world.host))
        assert tables(world.host) == world.old
    wait_until(lambda: not watchdogs(world.host))
    print(f"{world.host.backend}: a guarded update killed at {len(steps)} steps")


def watchdogs(host):
    """Their processes, and what they leave behind below /var."""
    running = host.run(["pgrep", "-f", "_iptlive_watchdog.py"], check=False).stdout
    return running + host.run(["ls", "/var/lib/iptlive/watchdog"], check=False).stdout


def test_watchdog_killed(world):
    """Whoever waits for the outcome rolls the update back; where nobody waits, the next run does."""
    for waits in (True, False):
        prepare(world.host)
        update = world.host.call("iptlive.apply", policy="enforce", confirm=2).value
        assert update["confirm"]["state"] == "pending"
        watchdog = world.host.read(f"/var/lib/iptlive/watchdog/{update['id']}/armed")
        world.host.run(["kill", "-9", watchdog])
        if waits:
            settled = world.host.call("iptlive.outcome", update["id"]).value
            assert (settled["state"], tables(world.host)) == ("rolled_back", world.old)
            assert "watchdog" in settled["reason"]
        else:
            wait_until(lambda: "interrupted" in str(world.host.call("iptlive.plan").value["warnings"]))
            answer = apply(world.host)
            assert "not confirmed within 2 seconds" in answer["warnings"][0]
            assert tables(world.host) == world.new


def interrupt(world):
    """An update that was killed when it had committed everything but the last table."""
    names = victim(world.host, check=True).stdout.split("\n")[:-1]
    saved = [number for number, name in enumerate(names, 1) if name == "journal.save return"]
    prepare(world.host)
    assert victim(world.host, at=saved[-3]).returncode == -9
    (entry,) = unfinished(world.host)
    return entry["id"]


def test_next_update_leaves_a_family_of_the_killed_one_alone(world):
    """It cannot complete what was begun there, so that is rolled back, and nothing claims to be complete."""
    prepare(world.host)
    killed = interrupt(world)
    assert tables(world.host) != world.old
    answer = world.host.call("iptlive.apply", policy="enforce", families=["ipv6"]).value
    assert set(answer["changes"]) == {"IPv6/filter/INPUT"}
    (note,) = [warning for warning in answer["warnings"] if killed in warning]
    assert "was rolled back (IPv4/nat, IPv4/filter)" in note
    now = tables(world.host)
    assert {key for key in now if now[key] != world.old[key]} == {("ipv6", "filter")}


def test_next_update_no_longer_stores_a_table_of_the_killed_one(world):
    prepare(world.host)
    killed = interrupt(world)
    world.host.write(V4, STORED[V4].partition("*nat")[0])
    answer = apply(world.host)
    assert any(f"{killed} was interrupted" in warning for warning in answer["warnings"])
    assert tables(world.host) == world.new
    assert unfinished(world.host) == []
