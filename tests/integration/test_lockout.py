"""
Commit-confirmed over a real network: an update that cuts a host off is undone, and what others did meanwhile stays.
"""

import json
import threading
import time

import pytest

FILE = "/etc/iptables/rules.v4"
KEPT = "-A INPUT -i lo -j ACCEPT"
GOOD = "-A INPUT -s 203.0.113.1/32 -j ACCEPT"
NO_MASTER = "-A INPUT -s 198.51.100.1/32 -j DROP"
NO_SSH = "-A INPUT -p tcp -m tcp --dport 22 -j DROP"
RIVAL = "-A INPUT -s 203.0.113.9/32 -j DROP"


def file_text(*rules):
    return "*filter\n:INPUT ACCEPT [0:0]\n" + "".join(rule + "\n" for rule in rules) + "COMMIT\n"


def rules(host):
    return [line for line in host.save().splitlines() if line.startswith("-A")]


def wait_until(true, what):
    end = time.monotonic() + 120
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.1)


@pytest.fixture(params=["m1", "m2"], ids=["nft", "legacy"])
def minion(fleet, request):
    host = fleet.minions[request.param]
    host.name = request.param
    host.restore(file_text(KEPT))
    return host


@pytest.fixture(params=["s1", "s2"], ids=["nft", "legacy"])
def ssh_host(fleet, request):
    host = fleet.ssh_hosts[request.param]
    host.name = request.param
    host.restore(file_text(KEPT))
    return host


class Call(threading.Thread):
    """A call from the master, under way; ``value`` is what the host returned."""

    def __init__(self, program, host, *args):
        super().__init__()
        self._call = lambda: program(host.name, *args, "families=[ipv4]")
        self._host = host.name
        self.start()

    def run(self):
        self._done = self._call()

    @property
    def value(self):
        self.join()
        return self._done.value[self._host]


def managed(fleet, minion, new, confirm):
    """Set the state off, and return when its rule is in the kernel."""
    minion.write(FILE, file_text(KEPT, new))
    call = Call(fleet.salt, minion, "state.single", "iptlive.managed", "firewall", f"confirm={confirm}")
    wait_until(lambda: new in rules(minion), "the update did not begin")
    return call


def rival_writes(host):
    host.run(["iptables", *RIVAL.replace("-A INPUT", "-I INPUT 1").split()])


def test_minion_cut_off(fleet, minion):
    call = managed(fleet, minion, NO_MASTER, confirm=6)
    rival_writes(minion)
    wait_until(lambda: NO_MASTER not in rules(minion), "the update was not undone")
    assert rules(minion) == [RIVAL, KEPT]
    wait_until(lambda: (fleet.salt(minion.name, "test.ping").value or {}).get(minion.name) is True, "still cut off")
    (state,) = call.value.values()
    assert (state["result"], state["changes"]) == (False, {})
    assert state["comment"].startswith("rolled back: 198.51.100.1:4506 could not be reached within 6 seconds")


def test_minion_killed_while_cut_off(fleet, minion):
    call = managed(fleet, minion, NO_MASTER, confirm=6)
    rival_writes(minion)
    kill_tree(minion, "salt-minion")
    wait_until(lambda: NO_MASTER not in rules(minion), "the update was not undone")
    assert rules(minion) == [RIVAL, KEPT]
    call.join()
    fleet.start_minion(minion)
    wait_until(lambda: (fleet.salt(minion.name, "test.ping").value or {}).get(minion.name) is True, "no new minion")
    assert fleet.salt(minion.name, "iptlive.pending").value == {minion.name: {}}


def kill_tree(host, name):
    """SIGKILL for the oldest process of this name and for all that descend from it."""
    root = host.run(["pgrep", "-o", "-f", name]).stdout.strip()
    pairs = [line.split() for line in host.run(["ps", "-e", "-o", "pid=,ppid="]).stdout.splitlines()]
    tree = [root]
    for parent in tree:
        tree += [pid for pid, above in pairs if above == parent]
    host.run(["kill", "-9", *tree], check=False)


def test_good_update_confirms_itself(fleet, minion):
    minion.write(FILE, file_text(KEPT, GOOD))
    done = fleet.salt(minion.name, "iptlive.apply", "families=[ipv4]", "confirm=60").value[minion.name]
    assert (done["applied"], done["confirm"]["state"]) == (True, "confirmed")
    assert done["confirm"]["checks"] == ["198.51.100.1:4506"]
    assert rules(minion) == [KEPT, GOOD]
    assert fleet.salt(minion.name, "iptlive.pending").value == {minion.name: {}}


def test_ssh_cut_off(fleet, ssh_host):
    ssh_host.write(FILE, file_text(KEPT, NO_SSH))
    call = Call(fleet.salt_ssh, ssh_host, "iptlive.apply", "confirm=6")
    wait_until(lambda: NO_SSH in rules(ssh_host), "the update did not begin")
    rival_writes(ssh_host)
    wait_until(lambda: NO_SSH not in rules(ssh_host), "the update was not undone")
    call.join()
    assert rules(ssh_host) == [RIVAL, KEPT]
    assert fleet.salt_ssh(ssh_host.name, "test.ping").value == {ssh_host.name: True}


def test_ssh_confirmed_by_a_new_connection(fleet, ssh_host):
    ssh_host.write(FILE, file_text(KEPT, GOOD))
    done = fleet.salt_ssh(ssh_host.name, "iptlive.apply", "families=[ipv4]", "confirm=60").value[ssh_host.name]
    assert (done["applied"], done["confirm"]["state"]) == (True, "pending")
    second = fleet.salt_ssh(ssh_host.name, "iptlive.apply", "families=[ipv4]")
    assert "waits for its confirmation" in json.dumps(second.value) + second.stderr
    confirmed = fleet.salt_ssh(ssh_host.name, "iptlive.confirm").value[ssh_host.name]
    assert (confirmed["id"], confirmed["state"]) == (done["id"], "confirmed")
    assert rules(ssh_host) == [KEPT, GOOD]


def test_ssh_not_confirmed(fleet, ssh_host):
    ssh_host.write(FILE, file_text(KEPT, GOOD))
    done = fleet.salt_ssh(ssh_host.name, "iptlive.apply", "families=[ipv4]", "confirm=2").value[ssh_host.name]
    assert done["confirm"]["state"] == "pending"
    wait_until(lambda: GOOD not in rules(ssh_host), "the update was not undone")
    assert fleet.salt_ssh(ssh_host.name, "iptlive.pending").value == {ssh_host.name: {}}
