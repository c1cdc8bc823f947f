"""plan, and test=True, read only: no rule, chain, table, counter or lock of the live firewall is made or changed."""

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys

import pytest

# A file with everything to do: chains to make, rules to delete and to insert, policies, tables that do not exist yet.
STORED = """\
*filter
:INPUT DROP [0:0]
:NEW - [0:0]
:USED - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp --dport 22 -j NEW
#DELETE# -A INPUT -p tcp --dport 23 -j ACCEPT
-A INPUT -j USED
-A NEW -j RETURN
-A OUTPUT -p udp --dport 9 -m quota --quota 100 -j ACCEPT
COMMIT
*raw
-A PREROUTING -i lo -j ACCEPT
COMMIT
*nat
:MINE - [0:0]
-A POSTROUTING -o eth0 -j MINE
COMMIT
"""
LIVE = """\
*filter
:INPUT ACCEPT [3:180]
:USED - [0:0]
[5:300] -A INPUT -i lo -j ACCEPT
[6:360] -A INPUT -p tcp -m tcp --dport 23 -j ACCEPT
[7:420] -A INPUT -j USED
[8:480] -A USED -i eth0 -j DROP
[0:0] -A OUTPUT -p udp --dport 9 -m quota --quota 100 -j ACCEPT
COMMIT
"""
PATHS = {"ipv4": "/etc/iptables/rules.v4", "ipv6": "/etc/iptables/rules.v6"}
WAYS = "/var/lib/iptlive/ways"
COMMANDS = {"ipv4": "iptables", "ipv6": "ip6tables"}
# NFT_MSG_GETGEN and its answer's first attribute, the ruleset's generation: every commit of anybody raises it.
GENERATION = """
import socket, struct
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
s.send(struct.pack("=IHHII4B", 20, (10 << 8) | 16, 1, 1, 0, 0, 0, 0, 0))
print(struct.unpack(">I", s.recv(4096)[24:28])[0])
"""
SEND = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x' * 60, ('127.0.0.1', 9))"


def python(host, program):
    return host.run([sys.executable, "-I", "-S", "-c", program]).stdout


def everything(host):
    """All that a write would change, as text."""
    texts = [python(host, GENERATION), host.run(["nft", "--handle", "list", "ruleset"]).stdout]
    texts += [host.run(["cat", f"/proc/net/{name}_tables_names"], check=False).stdout for name in ("ip", "ip6")]
    if host.backend == "legacy":
        texts += [host.save(family, counters=True) for family in PATHS]
    texts.append(host.run(["ipset", "list"]).stdout)
    # What the first plan finds out is kept: about the programs themselves, and about a reboot with this file.
    kept = [WAYS + "*", "/var/lib", "/var/lib/iptlive", "/var/lib/iptlive/boot*"]
    apart = [word for path in kept for word in ("-not", "-path", path)]
    texts.append(host.run(["find", "/etc", "/var", "-newer", "/run/before", *apart]).stdout)
    return texts


@contextlib.contextmanager
def lock_held(host):
    with open(f"/proc/{host.pid}/root/run/xtables.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def nothing_heard(host):
    """``nft monitor`` hears nothing between two changes that we make ourselves to see that it listens."""
    monitor = host.popen(["stdbuf", "-oL", "nft", "monitor"], stdout=subprocess.PIPE, bufsize=0)
    try:
        while not select.select([monitor.stdout], [], [], 0.1)[0]:
            host.run(["nft", "add table ip begin; delete table ip begin"])
        host.run(["nft", "add table ip begun; delete table ip begun"])
        while b"delete table ip begun" not in monitor.stdout.readline():
            pass
        yield
        host.run(["nft", "add table ip end; delete table ip end"])
        heard = b""
        while b"delete table ip end" not in heard:
            heard += monitor.stdout.readline()
    finally:
        os.killpg(monitor.pid, signal.SIGKILL)
        monitor.communicate()
    lines = [line for line in heard.splitlines() if not line.startswith(b"# new generation")]
    assert lines == [b"add table ip end", b"delete table ip end"]


def ways_to_read(host):
    assert host.call("iptlive.plan", policy="enforce").value["status"] == "changes"
    assert host.call("iptlive.apply", test=True, policy="enforce").value["applied"] is False
    assert host.state(test=True, policy="enforce").value["result"] is None
    assert host.call("iptlive.plan", policy="refuse", backend=host.backend).value["status"] == "refused"


@pytest.mark.parametrize("live", [LIVE, None], ids=["rules", "no table"])
def test_nothing_is_written(new_host, live):
    """Not even on a host on which no table was ever made; and while another program holds the xtables lock."""
    host = new_host
    for family, path in PATHS.items():
        host.write(path, STORED)
        if live:
            host.run([COMMANDS[family] + "-restore", "--counters"], input=live)
    host.agent  # noqa: B018 (what Salt writes when it starts is not ours)
    host.call("test.ping")
    host.run(["mkdir", "-p", WAYS])
    host.write("/run/before", "")
    with nothing_heard(host):
        before = everything(host)
        with lock_held(host):
            ways_to_read(host)
        assert everything(host) == before


def test_no_table_is_replaced(new_host):
    """iptables-legacy replaces a whole table with each commit, which fills used quotas again: one packet, no more."""
    host = new_host
    host.restore(LIVE)
    host.write(PATHS["ipv4"], STORED)
    python(host, SEND)
    assert host.call("iptlive.plan", families=["ipv4"]).value["status"] == "changes"
    python(host, SEND)
    (rule,) = [line for line in host.save(counters=True).splitlines() if "quota" in line]
    assert rule.startswith("[1:88]")
