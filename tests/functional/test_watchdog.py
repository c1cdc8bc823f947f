"""The watchdog over an unconfirmed update does not give up, whatever the host does to it."""

import contextlib
import time

import pytest

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
