"""The throw-away host itself: nothing of it is left on the machine, however it ends."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.host import BANNER, ENVIRONMENT, POLICY_COUNTERS, REPO, Host

# A program with a busy host that is killed before it can tidy up; prints what would be left.
KILLED = """
import os, signal
from lab.docker import Docker
from lab.host import Host

host = Host("{backend}")
docker = Docker(host)
docker.start()
docker.publish(8080)
host.call("test.ping")
print(host.pid, docker.peer.pid, host.cgroup, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def machine():
    """What a throw-away host could change on the machine, apart from its own control group."""
    programs = (["nft", "--stateless", "list", "ruleset"], ["iptables-legacy-save"], ["ip6tables-legacy-save"])
    saved = [subprocess.check_output(program, env=ENVIRONMENT, text=True) for program in programs]
    return {
        # Without the time of day, and without the counters of the machine's own traffic.
        "rules": [POLICY_COUNTERS.sub("", BANNER.sub("", text)) for text in saved],
        "interfaces": sorted(os.listdir("/sys/class/net")),
        "mounts": Path("/proc/self/mounts").read_text(),
        "files": sorted(map(str, [*Path("/etc").glob("iptables*/*"), *Path("/run").glob("*")])),
    }


def left_of(pids, cgroup):
    processes = [pid for pid in pids if Path("/proc", pid).exists()]
    shared = [path for path in [Path("/tmp", cgroup)] if path.exists()]
    return processes + [str(path) for path in (*shared, *Path("/sys/fs/cgroup").glob(f"**/{cgroup}"))]


def test_rules_files_and_addresses_stay_inside(host):
    before = machine()
    for family, loopback in (("ipv4", "127.0.0.1"), ("ipv6", "::1")):
        host.restore(f"*filter\n-A INPUT -s {loopback} -j ACCEPT\nCOMMIT\n", family)
        assert loopback in host.save(family)
    host.write("/etc/iptables/rules.v4", "text\n")
    host.run(["ip", "link", "add", "lab9", "type", "veth", "peer", "name", "lab8"])
    assert machine() == before
    host.run(["ip", "link", "delete", "lab9"])
    host.reset()
    assert "-A" not in host.save("ipv4") + host.save("ipv6")
    assert host.run(["test", "-e", "/etc/iptables"], check=False).returncode == 1


@pytest.mark.docker
@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_a_killed_program_leaves_nothing(backend):
    before = machine()
    program = KILLED.format(backend=backend)
    run = subprocess.run([sys.executable, "-c", program], cwd=str(REPO), stdout=subprocess.PIPE, text=True, check=False)
    *pids, cgroup = run.stdout.split()
    assert len(pids) == 2
    deadline = time.monotonic() + 30
    while left_of(pids, cgroup) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left_of(pids, cgroup) == []
    assert machine() == before


@pytest.mark.docker
def test_only_dockers_rules_make_the_port_answer(docker_host):
    assert docker_host.reachable(8080)
    docker_host.host.run(["iptables", "-t", "nat", "-F", "DOCKER"])
    assert not docker_host.reachable(8080)


def test_a_host_that_cannot_be_made_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr("lab.host.ENVIRONMENT", {"PATH": str(tmp_path)})
    with pytest.raises(RuntimeError, match="could not make a throw-away host"):
        Host("nft")
