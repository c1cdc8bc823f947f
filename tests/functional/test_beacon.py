"""The beacon, processed by Salt's own code: one event per change of state, none for the rules of others."""

import sys

import pytest

from lab.docker import docker_rules
from lab.host import ENVIRONMENT, REPO, SaltError

PATH = "/etc/iptables/rules.v4"
STORED = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -p icmp -j ACCEPT
-A INPUT -j REJECT --reject-with icmp-host-prohibited
-A FORWARD -j REJECT --reject-with icmp-host-prohibited
COMMIT
"""
CONFIG = [{"families": ["ipv4"]}]
INTERVALS = 1440  # a day of minutes


class Day:
    """A day's intervals, and the states that events have told of."""

    def __init__(self, host):
        self.host = host
        self.intervals = 0
        self.told = []

    def wait(self, intervals):
        """So many intervals in which nothing happens."""
        self.intervals += intervals
        for events in self.host.beacon(CONFIG, intervals).value:
            assert len(events) <= 1
            self.told += [(event["data"]["was"], event["tag"].rpartition("/")[2]) for event in events]

    def iptables(self, *words):
        self.host.run([f"iptables-{self.host.backend}", *words])


def neighbours_at_work(day):
    """Somebody comes and goes, in between the stored rules and in a chain of his own."""
    day.iptables("-N", "f2b-door")
    for position in (1, 3, 5):
        day.iptables("-I", "INPUT", str(position), "-p", "tcp", "-j", "f2b-door")
        day.wait(3)
    for number in range(10):
        day.iptables("-I", "f2b-door", "-s", f"192.0.2.{number}", "-j", "DROP")
        day.wait(1)
    for _ in range(3):
        day.iptables("-D", "INPUT", "-p", "tcp", "-j", "f2b-door")
        day.wait(20)
    day.iptables("-F", "f2b-door")
    day.iptables("-X", "f2b-door")


def test_one_event_per_change_of_state_in_a_day(host):
    host.restore(STORED)
    host.write(PATH, STORED)
    host.restart_agent()  # a minion that has just started: its beacon knows of nothing
    day = Day(host)
    day.wait(100)
    docker_rules(host)
    neighbours_at_work(day)
    assert day.told == []

    day.iptables("-D", "INPUT", "-p", "icmp", "-j", "ACCEPT")
    day.wait(200)
    day.iptables("-I", "INPUT", "1", "-p", "icmp", "-j", "ACCEPT")
    day.wait(10)
    assert day.told == [("in_sync", "changes"), ("changes", "refused")]
    day.iptables("-D", "INPUT", "1")
    host.call("iptlive.apply", families=["ipv4"], placement="after")
    day.wait(200)
    neighbours_at_work(day)
    host.write(PATH, STORED.replace("-p icmp", "-p icmpv7"))
    day.wait(3)
    host.write(PATH, STORED)
    day.wait(INTERVALS - day.intervals)
    assert day.told == [
        ("in_sync", "changes"),
        ("changes", "refused"),
        ("refused", "in_sync"),
        ("in_sync", "error"),
        ("error", "in_sync"),
    ]


def test_a_refusal_whose_cure_leaves_no_trace_in_the_ruleset(host):
    host.restore(STORED)
    host.write(PATH, STORED.replace("COMMIT", "-A OUTPUT -m set --match-set later dst -j DROP\nCOMMIT"))
    host.restart_agent()
    day = Day(host)
    day.wait(3)
    host.run(["ipset", "create", "later", "hash:ip"])
    day.wait(2)
    assert day.told == [("in_sync", "refused"), ("refused", "changes")]


def test_what_an_event_says(host):
    host.restore(STORED)
    host.write(PATH, STORED.replace("-A INPUT -p", "-A INPUT -p udp -j ACCEPT\n-A INPUT -p"))
    host.restart_agent()
    ((event,),) = host.beacon([{"families": ["ipv4"]}, {"wait": 5}]).value
    assert event["tag"] == "salt/beacon/lab/iptlive/changes"
    assert event["data"] == {
        "id": "lab",
        "was": "in_sync",
        "status": "changes",
        "changes": {"IPv4/filter/INPUT": 1},
        "refusals": {},
        "warnings": [],
    }


def test_an_unchanged_host_is_not_looked_at_again(host):
    host.restore(STORED)
    host.write(PATH, STORED)
    first = host.call("iptlive.drift", families=["ipv4"]).value
    assert first["status"] == "in_sync"
    since = first["fingerprint"]
    assert host.call("iptlive.drift", families=["ipv4"], since=since).value == {"fingerprint": since}
    for change in (
        lambda: host.write(PATH, STORED),
        lambda: host.run(["tee", PATH], input=STORED),  # the same file, as long as before
        lambda: host.run([f"iptables-{host.backend}", "-A", "OUTPUT", "-j", "ACCEPT"]),
        lambda: host.run([f"iptables-{host.backend}", "-R", "OUTPUT", "1", "-j", "DROP"]),
        lambda: host.run([f"iptables-{host.backend}", "-P", "INPUT", "DROP"]),
    ):
        change()
        after = host.call("iptlive.drift", families=["ipv4"], since=since).value
        assert after["status"] == "in_sync"
        assert after["fingerprint"] != since
        since = after["fingerprint"]
    assert "status" in host.call("iptlive.drift", families=["ipv4"], since=since, reorder=True).value


def test_wrong_options_are_an_error_event(host):
    host.restart_agent()
    ((event,),) = host.beacon(CONFIG, pillar={"iptlive": {"enabled": "no"}}).value
    assert "iptlive:enabled" in event["data"]["message"]
    host.restart_agent()
    ((event,),) = host.beacon([{"familys": ["ipv4"]}]).value
    assert event["tag"].endswith("/error")
    assert "unknown option 'familys'" in event["data"]["message"]
    with pytest.raises(SaltError, match="familys"):
        host.call("iptlive.drift", familys=["ipv4"])


def test_a_disabled_host_is_left_in_peace(host):
    host.restart_agent()
    assert host.beacon(CONFIG, pillar={"iptlive": {"enabled": False}}).value == [[]]


SYNCED_ANEW = """
import pathlib, shutil, sys
import salt.config, salt.loader

folder = pathlib.Path(sys.argv[2])
for round in ("old", "new"):
    target = folder / round
    shutil.copytree(sys.argv[1], target)
    room = target / "_iptlive_report.py"
    room.write_text(room.read_text() + f"\\nROUND = {round!r}\\n")
    opts = salt.config.apply_minion_config({"id": "lab", "module_dirs": [str(target)], "root_dir": str(folder)})
    function = salt.loader.minion_mods(opts)["iptlive.plan"]
    print(function.__globals__["report"].ROUND)
"""


def test_a_long_running_process_gets_the_private_rooms_anew(hosts):
    host = hosts("nft")
    done = host.run([sys.executable, "-c", SYNCED_ANEW, REPO / "_modules", "/run/lab/anew"], env=dict(ENVIRONMENT))
    assert done.stdout.split() == ["old", "new"]
