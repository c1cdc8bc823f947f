"""The beacon on a real minion, and the reactor that brings a drifted minion back in line."""

import time

from lab.fleet import Fleet

STORED = """\
*filter
:INPUT ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -p icmp -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
"""
REACTOR = [{"salt/beacon/*/iptlive/changes": ["salt://iptlive/reactor/reapply.sls"]}]
PILLAR = {"beacons": {"iptlive": [{"interval": 1}]}, "iptlive": {"families": ["ipv4"]}}


def wait_for(ready, seconds=60):
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_drifted_minion_is_brought_back():
    with Fleet(minions=1, ssh_hosts=0, reactor=REACTOR) as fleet:
        host = fleet.minions["m1"]
        host.restore(STORED)
        host.write("/etc/iptables/rules.v4", STORED)
        host.run(["iptables", "-A", "INPUT", "-p", "udp", "-j", "DROP"])
        in_order = host.save()
        fleet.pillar(PILLAR)
        # Salt 3006 gives its beacons the pillar that was there when the modules were loaded last.
        fleet.salt("m1", "saltutil.refresh_modules", "async=False")
        wait_for(lambda: "iptlive" in str(fleet.salt("m1", "beacons.list").value))
        host.run(["iptables", "-D", "INPUT", "-p", "icmp", "-j", "ACCEPT"])
        # As it was, the rule of somebody else too.
        wait_for(lambda: host.save() == in_order)
