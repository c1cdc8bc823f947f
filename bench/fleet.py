"""A master and its minions, each with a firewall of its own, on this machine: what a state run costs the fleet."""

import json
import sys
import time
from unittest import mock

from bench import cases
from lab.fleet import Fleet
from lab.host import ENVIRONMENT, REPO

STORED = 20
PATIENCE = 900  # seconds; so many minions on one machine take their time
EDITS = (0, 3, 30, 300, 1000)


def measure(minions, rounds):
    with mock.patch.dict(ENVIRONMENT):
        del ENVIRONMENT["PYTHONDONTWRITEBYTECODE"]  # a minion's Python keeps what it has compiled
        started = time.monotonic()
        with Fleet(minions=minions, ssh_hosts=0) as fleet:
            came_up = round(time.monotonic() - started)
            return {"minions": minions, "seconds until all answered": came_up, **_figures(fleet, rounds)}


def _figures(fleet, rounds):
    fleet.master.write("/run/lab/states/empty.sls", "{}")
    fleet.pillar({"iptlive": {"families": ["ipv4"]}})
    for host in fleet.minions.values():
        host.restore(cases.stored_file("ipv4", STORED))
        host.write("/etc/iptables/rules.v4", host.save())
    found = {"in sync": _on_master(fleet, {"rounds": rounds})}
    for host in fleet.minions.values():
        host.run(["iptables", "-D", "INPUT", "3"])
    found["a rule missing"] = _on_master(fleet, {"rounds": rounds})
    return {**found, "return bytes": _sizes(fleet)}


def _sizes(fleet):
    """What one minion's return weighs, by the number of edits."""
    found = {}
    host = fleet.minions["m1"]
    for edits in EDITS:
        stored = cases.stored_file("ipv4", 20 + 2 * edits)
        host.write("/etc/iptables/rules.v4", stored)
        kept, left = [], edits
        for line in stored.splitlines():
            if left and line.startswith("-A INPUT"):
                left -= 1
            else:
                kept.append(line)
        host.run(["iptables", "-F"])
        host.run(["iptables", "-X"])
        host.restore("\n".join([*kept, ""]))
        found[edits] = _on_master(fleet, {"rounds": 1, "only": "m1"})["bytes"]
    return found


def _on_master(fleet, job):
    options = json.dumps({"config": fleet.daemons["master"].config_file, **job})
    argv = [sys.executable, "-m", "bench.fleet_inside", options]
    done = fleet.master.run(argv, timeout=PATIENCE, env={"PYTHONPATH": str(REPO)})
    return json.loads(done.stdout.splitlines()[-1])
