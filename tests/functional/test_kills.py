"""
SIGKILL at every step of an update: each table is either as before or as planned, and the next run ends as intended.

By default some of the decisive steps are taken (what becomes durable, what is handed to another program);
``--every-step`` takes the beginning and the end of each function that has to do with it.
"""

import json
import sys
import time

import pytest

from lab.host import REPO

V4, V6 = "/etc/iptables/rules.v4", "/etc/iptables/rules.v6"
# Two tables and two families; rules that come and go, a chain that is made, a policy that changes.
BEFORE = {
    "ipv4": "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p icmp -j ACCEPT\n"
    "-A INPUT -s 192.0.2.9/32 -j DROP\nCOMMIT\n"
    "*nat\n-A PREROUTING -i lo -j ACCEPT\n-A PREROUTING -p icmp -j ACCEPT\nCOMMIT\n",
    "ipv6": "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p ipv6-icmp -j ACCEPT\nCOMMIT\n",
}
STORED = {
    V4: "*filter\n:INPUT DROP [0:0]\n:MINE - [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp -j MINE\n"
    "-A INPUT -p icmp -j ACCEPT\n#DELETE# -A INPUT -s 192.0.2.9/32 -j DROP\n-A MINE -s 192.0.2.1/32 -j ACCEPT\nCOMMIT\n"
    "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -i lo -j ACCEPT\n-A PREROUTING -s 192.0.2.1/32 -j ACCEPT\n"
    "-A PREROUTING -p icmp -j ACCEPT\nCOMMIT\n",
    V6: "*filter\n:INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -s 2001:db8::1/128 -j ACCEPT\n"
    "-A INPUT -p ipv6-icmp -j ACCEPT\nCOMMIT\n",
}
EMPTY = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n*nat\n:PREROUTING ACCEPT\nCOMMIT\n"
SOME = 7  # every so many-th of the decisive steps
TWICE = "-A INPUT -i lo -j ACCEPT\n"


def prepare(host):
    """As before any update."""
    host.run(["rm", "-rf", "/var/lib/iptlive"])
    for family, text in BEFORE.items():
        host.restore(EMPTY + text, family)
    for path, text in STORED.items():
        host.write(path, text)


def tables(host):
    """Each table's rules by family and name."""
    found = {}
    for family in BEFORE:
        for section in host.save(family).split("*")[1:]:
            found[family, section.split("\n")[0]] = section
    return found


def victim(host, do="apply", at=None, every=False, confirm=0):
    task = json.dumps({"do": do, "at": at, "every": every, "confirm": confirm})
    return host.run([sys.executable, "-I", "-S", REPO / "lab" / "victim.py", task], check=at is None)


def unfinished(host):
    listed = host.run(["find", "/var/lib/iptlive/journal", "-name", "*.json"], check=False).stdout.split()
    entries = [json.loads(host.read(path)) for path in listed]
    return [entry for entry in entries if entry["state"] in ("open", "pending", "taking_back")]


def apply(host):
    return host.call("iptlive.apply", policy="enforce", wait=5).value


class World:
    """The host, what its tables were before the update, and what they are after it."""

    def __init__(self, host):
        prepare(host)
        self.host, self.old = host, tables(host)
        assert apply(host)["applied"]
        self.new = tables(host)

    def assert_old_or_new(self):
        now = tables(self.host)
        assert {key: text for key, text in now.items() if text not in (self.old[key], self.new[key])} == {}
        return now

    def assert_finished(self, answer, interrupted):
        """The next run ended as intended, told the truth, left nothing open, and can be taken back."""
        assert tables(self.host) == self.new
        assert [entry["id"] for entry in interrupted if entry["id"] not in str(answer["warnings"])] == []
        assert unfinished(self.host) == []
        looked = self.host.call("iptlive.plan", policy="enforce").value
        assert (looked["status"], looked["warnings"]) == ("in_sync", [])
        assert self.host.call("iptlive.rollback").value["applied"]
        assert tables(self.host) == self.old


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
    names = victim(world.host, every=every, **task).stdout.split("\n")[:-1]
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
    """By the next run the stored file is one that cannot be applied: what stands is taken back."""
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
    """Its watchdog takes it back, without anybody's help, as soon as it sees that the run has died."""
    steps = steps_of(world, every, do="apply", confirm=600)
    for number in steps:
        prepare(world.host)
        assert victim(world.host, at=number, every=every, confirm=600).returncode == -9
        if any(entry["state"] == "pending" for entry in unfinished(world.host)):
            world.host.call("iptlive.rollback")  # it had come through: nothing for the watchdog to do yet
        wait_until(lambda: not unfinished(world.host))
        assert tables(world.host) == world.old
    wait_until(lambda: not watchdogs(world.host))
    print(f"{world.host.backend}: a guarded update killed at {len(steps)} steps")


def watchdogs(host):
    """Their processes, and what they leave behind below /var."""
    running = host.run(["pgrep", "-f", "_iptlive_watchdog.py"], check=False).stdout
    return running + host.run(["ls", "/var/lib/iptlive/watchdog"], check=False).stdout


def wait_until(true):
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_watchdog_killed(world):
    """Whoever waits for the outcome takes the update back; where nobody waits, the next run does."""
    for waits in (True, False):
        prepare(world.host)
        update = world.host.call("iptlive.apply", policy="enforce", confirm=2).value
        assert update["confirm"]["state"] == "pending"
        watchdog = world.host.read(f"/var/lib/iptlive/watchdog/{update['id']}/armed")
        world.host.run(["kill", "-9", watchdog])
        if waits:
            settled = world.host.call("iptlive.outcome", update["id"]).value
            assert (settled["state"], tables(world.host)) == ("taken_back", world.old)
            assert "watchdog" in settled["reason"]
        else:
            wait_until(lambda: "interrupted" in str(world.host.call("iptlive.plan").value["warnings"]))
            answer = apply(world.host)
            assert "not confirmed within 2 seconds" in answer["warnings"][0]
            assert tables(world.host) == world.new
