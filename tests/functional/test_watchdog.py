"""The watchdog over an unconfirmed update does not give up, whatever the host does to it."""

import contextlib
import sys
import time

import pytest

from lab.host import REPO
from lab.systemd import Systemd
from tests.functional.whole_update import wait_until

PATH = "/etc/iptables/rules.v4"
OLD = "*filter\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n"
NEW = "*filter\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 22 -j DROP\nCOMMIT\n"
GUARDED = {"families": ["ipv4"], "confirm": 1, "confirm_check": "manual"}


@pytest.fixture
def ready(host):
    host.restore(OLD)
    host.write(PATH, NEW)
    return host


@contextlib.contextmanager
def unusable(host, program):
    """A program that cannot be started, as in the middle of its upgrade: the operating system refuses, not the file."""
    link = f"/etc/alternatives/{program}"
    target = host.run(["readlink", link]).stdout.strip()
    host.write("/run/unusable", "no program\n", mode="0755")
    host.run(["ln", "-sfn", "/run/unusable", link])
    try:
        yield
    finally:
        host.run(["ln", "-sfn", target, link])


def test_programs_that_cannot_be_started_for_a_while(ready):
    before = ready.save()
    update = ready.call("iptlive.apply", **GUARDED).value
    assert ready.save() != before
    with unusable(ready, "iptables-restore"):
        time.sleep(2)  # past the deadline; it looks three times a second
        assert ready.save() != before
    wait_until(lambda: ready.save() == before)
    assert ready.call("iptlive.outcome", update["id"]).value["reason"] == "not confirmed within 1 seconds"
    wait_until(lambda: not ready.run(["ls", "/var/lib/iptlive/watchdog"], check=False).stdout)


def test_first_update_of_a_host(new_host):
    """Which makes the built-in chains on the nft backend: they cannot be removed again, with a policy that drops."""
    host = new_host
    host.write(PATH, NEW.replace("*filter\n", "*filter\n:INPUT DROP [0:0]\n:MINE - [0:0]\n-A MINE -j DROP\n"))
    update = host.call("iptlive.apply", policy="enforce", **GUARDED).value
    assert ":INPUT DROP" in host.save() and "-N MINE" in host.run(["iptables", "-S"]).stdout
    wait_until(lambda: ":INPUT ACCEPT" in host.save())
    assert host.call("iptlive.outcome", update["id"]).value["reason"] == "not confirmed within 1 seconds"
    assert host.run(["iptables", "-S"]).stdout == "-P INPUT ACCEPT\n-P FORWARD ACCEPT\n-P OUTPUT ACCEPT\n"


GUARDED_UPDATE = """
import sys
sys.path.insert(0, sys.argv[1])
import _iptlive_options as options, _iptlive_update as update, _iptlive_watchdog as watchdog
result = update.apply(options.parse({"families": ["ipv4"]}), update.Guard(int(sys.argv[2])), watchdog.arm)
"""
MINION = """
import time
print(f"iptlive-{result.entry.id}.service", end="", file=open("/run/applied", "w"), flush=True)
time.sleep(600)
"""


def test_minion_in_a_network_namespace_of_its_own(new_host):
    """On a host with systemd, whose units would look at the rules of another network."""
    host = new_host
    host.write("/run/net", "")
    host.run(["unshare", "--net=/run/net", "true"])
    inside = ["nsenter", "--net=/run/net"]
    host.run([*inside, "iptables-restore"], input=OLD)
    host.write(PATH, NEW)
    with Systemd(host) as systemd:
        systemd.run([*inside, sys.executable, "-I", "-S", "-c", GUARDED_UPDATE, REPO / "_modules", "1"])
        assert "--dport 22" in host.run([*inside, "iptables-save"]).stdout
        wait_until(lambda: "rolled_back" in host.run(["sh", "-c", "cat /var/lib/iptlive/journal/*"]).stdout)
        assert "--dport 22" not in host.run([*inside, "iptables-save"]).stdout


def test_systemd_looks_after_it(new_host):
    """Where the minion is a service, stopping it ends all of its processes: the watchdog is none of them."""
    host = new_host
    host.restore(OLD)
    before = host.save()
    host.write(PATH, NEW)
    with Systemd(host) as systemd:
        minion = [sys.executable, "-I", "-S", "-c", GUARDED_UPDATE + MINION, REPO / "_modules", "10"]
        systemd.run(["systemd-run", "--unit=minion", *minion])
        wait_until(lambda: not host.run(["test", "-s", "/run/applied"], check=False).returncode)
        assert "--dport 22" in host.save()
        systemd.run(["systemctl", "stop", "minion"])
        shown = systemd.run(["systemctl", "status", "iptlive-*"]).stdout
        assert host.read("/run/applied") in shown and "active (running)" in shown
        wait_until(lambda: host.save() == before)
        assert "not confirmed within 10 seconds" in host.run(["sh", "-c", "cat /var/lib/iptlive/journal/*"]).stdout
        wait_until(
            lambda: not systemd.run(["systemctl", "list-units", "--all", "--plain", "--no-legend", "iptlive-*"]).stdout
        )
