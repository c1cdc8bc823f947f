"""
Commit-confirmed over a real network: an update that cuts a host off is undone, and what others did meanwhile stays.

Each case is a function of a host, and done on a host of each backend side by side: most of it is waiting.
"""

import concurrent.futures
import json
import threading
import time

FILE = "/etc/iptables/rules.v4"
KEPT = "-A INPUT -i lo -j ACCEPT"
GOOD = "-A INPUT -s 203.0.113.1/32 -j ACCEPT"
NO_MASTER = "-A INPUT -s 198.51.100.1/32 -j DROP"
NO_JOBS = "-A INPUT -p tcp -m tcp --sport 4505 -j DROP"
NO_REQUESTS = "-A INPUT -p tcp -m tcp --sport 4506 -j REJECT"
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


def at_once(hosts, *cases):
    """Do the cases on so many hosts each, all at the same time."""
    pairs = list(zip((case for case in cases for _ in range(len(hosts) // len(cases))), hosts.items()))
    with concurrent.futures.ThreadPoolExecutor(len(pairs)) as pool:
        runs = {(case.__name__, name): pool.submit(_case, case, name, host) for case, (name, host) in pairs}
    failed = {run: done.exception() for run, done in runs.items() if done.exception()}
    for run, error in failed.items():
        raise AssertionError(f"{run}, of {list(failed)}: {error}") from error


def _case(case, name, host):
    host.name = name
    host.reset()
    host.restore(file_text(KEPT))
    case(host)


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


def managed(fleet, minion, new, confirm, program=None):
    """Set the state off, and return when its rule is in the kernel. That it cuts the master off is said to be meant."""
    minion.write(FILE, file_text(KEPT, new))
    meant = "expect=[{drop: 4505/tcp, to: master}]"
    call = Call(
        program or fleet.salt, minion, "state.single", "iptlive.managed", "firewall", f"confirm={confirm}", meant
    )
    wait_until(lambda: new in rules(minion), "the update did not begin")
    return call


def rival_writes(host):
    host.run(["iptables", *RIVAL.replace("-A INPUT", "-I INPUT 1").split()])


def test_minions_cut_off(fleet):
    def cut_off(minion):
        call = managed(fleet, minion, NO_MASTER, confirm=6)
        rival_writes(minion)
        wait_until(lambda: NO_MASTER not in rules(minion), "the update was not undone")
        assert rules(minion) == [RIVAL, KEPT]
        (state,) = call.value.values()
        assert (state["result"], state["changes"]) == (False, {})
        assert state["comment"].startswith("rolled back: 198.51.100.1:4506 could not be reached within 6 seconds")
        assert fleet.salt(minion.name, "test.ping").value == {minion.name: True}

    def killed_while_cut_off(minion):
        call = managed(fleet, minion, NO_MASTER, confirm=6, program=fleet.salt_to_some)
        rival_writes(minion)
        fleet.daemons[minion.name].terminate()  # SIGKILL, for all that descend from it too
        wait_until(lambda: NO_MASTER not in rules(minion), "the update was not undone")
        assert rules(minion) == [RIVAL, KEPT]
        call.join()
        fleet.start(minion.name)
        assert fleet.salt(minion.name, "iptlive.pending").value == {minion.name: {}}

    at_once(fleet.minions, cut_off, killed_while_cut_off)


def test_a_minion_is_not_cut_off_in_the_first_place(fleet):
    """From the port of jobs, from that of requests, and by first stateful rules: refused, and nothing was written."""

    def refused(minion):
        for cut in [
            file_text(KEPT, NO_MASTER),
            file_text(KEPT, NO_JOBS),
            file_text(KEPT, NO_REQUESTS),
            file_text(KEPT, "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT", "-A INPUT -j DROP"),
        ]:
            minion.write(FILE, cut)
            done = fleet.salt(minion.name, "iptlive.apply", "families=[ipv4]").value[minion.name]
            assert (done["status"], done["applied"]) == ("refused", False)
            ((refusal, *_),) = done["refusals"].values()
            assert (
                refusal["reason"] == "expectation" and "to the master would no longer be accepted" in refusal["message"]
            )
            assert rules(minion) == [KEPT]

    at_once({name: fleet.minions[name] for name in ("m1", "m2")}, refused)


def test_a_good_update_confirms_itself(fleet):
    def good(minion):
        minion.write(FILE, file_text(KEPT, GOOD))
        done = fleet.salt(minion.name, "iptlive.apply", "families=[ipv4]", "confirm=60").value[minion.name]
        assert (done["applied"], done["confirm"]["state"]) == (True, "confirmed")
        assert done["confirm"]["checks"] == ["198.51.100.1:4506"]
        assert rules(minion) == [KEPT, GOOD]
        assert fleet.salt(minion.name, "iptlive.pending").value == {minion.name: {}}

    at_once({name: fleet.minions[name] for name in ("m1", "m2")}, good)


def test_ssh_hosts_cut_off(fleet):
    def cut_off(host):
        host.write(FILE, file_text(KEPT, NO_SSH))
        call = Call(fleet.salt_ssh, host, "iptlive.apply", "confirm=6")
        wait_until(lambda: NO_SSH in rules(host), "the update did not begin")
        rival_writes(host)
        wait_until(lambda: NO_SSH not in rules(host), "the update was not undone")
        call.join()
        assert rules(host) == [RIVAL, KEPT]
        assert fleet.salt_ssh(host.name, "test.ping").value == {host.name: True}

    at_once(fleet.ssh_hosts, cut_off)


def test_over_ssh_a_new_connection_confirms(fleet):
    def confirmed(host):
        host.write(FILE, file_text(KEPT, GOOD))
        done = fleet.salt_ssh(host.name, "iptlive.apply", "families=[ipv4]", "confirm=120").value[host.name]
        assert (done["applied"], done["confirm"]["state"]) == (True, "pending")
        second = fleet.salt_ssh(host.name, "iptlive.apply", "families=[ipv4]")
        assert "waits for its confirmation" in json.dumps(second.value) + second.stderr
        confirmed = fleet.salt_ssh(host.name, "iptlive.confirm").value[host.name]
        assert (confirmed["id"], confirmed["state"]) == (done["id"], "confirmed")
        assert rules(host) == [KEPT, GOOD]

    def not_confirmed(host):
        host.write(FILE, file_text(KEPT, GOOD))
        done = fleet.salt_ssh(host.name, "iptlive.apply", "families=[ipv4]", "confirm=2").value[host.name]
        assert done["confirm"]["state"] == "pending"
        wait_until(lambda: GOOD not in rules(host), "the update was not undone")
        assert fleet.salt_ssh(host.name, "iptlive.pending").value == {host.name: {}}

    s1, s2 = fleet.ssh_hosts["s1"], fleet.ssh_hosts["s2"]
    at_once({"s1": s1, "s2": s2}, confirmed, not_confirmed)
    at_once({"s2": s2, "s1": s1}, confirmed, not_confirmed)
