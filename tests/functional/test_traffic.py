"""Under continuous traffic through a rule that stays, a large update loses no packet and no count."""

import re
import subprocess
import sys
import time

import pytest

from lab.host import BACKENDS, Host, wire

PATH = "/etc/iptables/rules.v4"
KEPT = "-A INPUT -p udp -m udp --dport 9000 -j ACCEPT"
RECEIVE = """
import select, socket, sys
line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
line.setsockopt(socket.SOL_SOCKET, 33, 1 << 25)  # SO_RCVBUFFORCE: a slow reader must not lose what the rules let in
line.bind(("", 9000))
print("ready", flush=True)
seen = 0
while line in select.select([line, sys.stdin], [], [], 1)[0]:
    line.recv(64)
    seen += 1
print(seen)
"""
SEND = """
import select, socket, sys, time
line = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sent, start = 0, time.monotonic()
while not select.select([sys.stdin], [], [], 0.001)[0]:
    while sent < 4000 * (time.monotonic() - start):
        line.sendto(b"x", ("198.51.100.1", 9000))
        sent += 1
print(sent)
"""


@pytest.fixture(params=BACKENDS)
def pair(request):
    with Host(request.param) as host, Host(request.param) as peer:
        wire(host, peer)
        yield host, peer


def python(host, script):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return host.popen([sys.executable, "-I", "-S", "-c", script], **pipes)


def file_text(*rules):
    return "*filter\n:INPUT DROP [0:0]\n" + "".join(rule + "\n" for rule in rules) + "COMMIT\n"


def test_nothing_is_lost(pair):
    host, peer = pair
    old = [f"-A INPUT -s 192.0.2.{number}/32 -j DROP" for number in range(25)]
    new = [f"-A INPUT -s 203.0.113.{number}/32 -j ACCEPT" for number in range(75)]
    host.restore(file_text(*old, KEPT, "-A INPUT -i lo -j ACCEPT"))
    gone = ["#DELETE# " + rule for rule in old]
    host.write(PATH, file_text(*gone, *new[:40], KEPT, *new[40:], "-A INPUT -i lo -j ACCEPT"))
    receiver = python(host, RECEIVE)
    receiver.stdout.readline()
    sender = python(peer, SEND)
    time.sleep(1)
    done = host.call("iptlive.apply", families=["ipv4"]).value
    assert done["applied"]
    assert len(done["changes"]["IPv4/filter/INPUT"]) == 100
    time.sleep(1)
    sent = int(sender.communicate("\n")[0])
    received = int(receiver.communicate()[0])
    counted = re.search(r"\[(\d+):\d+\] " + KEPT, host.save(counters=True)).group(1)
    assert sent > 2000
    assert (received, int(counted)) == (sent, sent)
    print(f"{host.backend}: {sent} packets sent, received and counted during an update of 100 changes")
