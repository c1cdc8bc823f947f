"""An update over two tables and two families, for the tests that disturb it."""

import json
import sys
import time

from lab.host import REPO

V4, V6 = "/etc/iptables/rules.v4", "/etc/iptables/rules.v6"
# Two tables and two families; rules that come and go, a chain that is made, a policy that changes.
BEFORE = {
    "ipv4": "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p icmp -j ACCEPT\n"
    "-A INPUT -s 192.0.2.9/32 -j DROP\nCOMMIT\n"
    "*nat\n-A PREROUTING -i lo -j ACCEPT\n-A PREROUTING -p icmp -j ACCEPT\nCOMMIT\n",
    "ipv6": "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p ipv6-icmp -j ACCEPT\nCOMMIT\n",
}
STORED = {
    V4: "*filter\n:INPUT DROP [0:0]\n:MINE - [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp -j MINE\n"
    "-A INPUT -p icmp -j ACCEPT\n#DELETE# -A INPUT -s 192.0.2.9/32 -j DROP\n-A MINE -s 192.0.2.1/32 -j ACCEPT\nCOMMIT\n"
    "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -i lo -j ACCEPT\n-A PREROUTING -s 192.0.2.1/32 -j ACCEPT\n"
    "-A PREROUTING -p icmp -j ACCEPT\nCOMMIT\n",
    V6: "*filter\n:INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -s 2001:db8::1/128 -j ACCEPT\n"
    "-A INPUT -p ipv6-icmp -j ACCEPT\nCOMMIT\n",
}
EMPTY = "*filter\n:INPUT ACCEPT\n:FORWARD ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n*nat\n:PREROUTING ACCEPT\nCOMMIT\n"


def prepare(host):
    """As before any update."""
    host.forget()
    for family, text in BEFORE.items():
        host.restore(EMPTY + text, family)
    for path, text in STORED.items():
        host.write(path, text)


def tables(host):
    """Each table's rules by family and name."""
    found = {}
    for family in BEFORE:
        for section in host.save(family).split("*")[1:]:
            found[family, section.split("\n")[0]] = section
    return found


def victim(host, check=False, wait=True, **task):
    """One update or rollback in a process of its own, see lab.victim; without ``wait`` it is merely started."""
    argv = [sys.executable, "-I", "-S", REPO / "lab" / "victim.py", json.dumps(task)]
    return host.run(argv, check=check) if wait else host.popen(argv)


def unfinished(host):
    listed = host.run(["find", "/var/lib/iptlive/journal", "-name", "*.json"], check=False).stdout.split()
    entries = [json.loads(host.read(path)) for path in listed]
    return [entry for entry in entries if entry["state"] in ("open", "pending", "rolling_back")]


def apply(host):
    return host.call("iptlive.apply", policy="enforce", wait=5).value


class World:
    """The host, what its tables were before the update, and what they are after it."""

    def __init__(self, host):
        prepare(host)
        self.host, self.old = host, tables(host)
        assert apply(host)["applied"]
        self.new = tables(host)

    def back(self):
        """To the beginning, with an empty journal."""
        prepare(self.host)

    def assert_old_or_new(self):
        now = tables(self.host)
        assert {key: text for key, text in now.items() if text not in (self.old[key], self.new[key])} == {}
        return now

    def assert_finished(self, answer, interrupted):
        """The next run ended as intended, told the truth, left nothing open, and can be rolled back."""
        assert tables(self.host) == self.new
        assert [entry["id"] for entry in interrupted if entry["id"] not in str(answer["warnings"])] == []
        assert unfinished(self.host) == []
        looked = self.host.call("iptlive.plan", policy="enforce").value
        assert (looked["status"], looked["warnings"]) == ("in_sync", [])
        assert self.host.call("iptlive.rollback", "last").value["applied"]
        assert tables(self.host) == self.old


def wait_until(true):
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)
