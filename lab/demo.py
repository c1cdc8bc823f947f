"""
The main job on a throw-away host: ``./dev demo``.

A host that runs Docker gets three new rules into the middle of its INPUT chain, and loses them again, by
``salt-call --local state.apply iptlive``; an update that would close a port that must stay open is refused.  Each claim
is checked, and the exit status is 1 when one is false.  At the end the same host is reloaded the usual way, for
comparison: its container is cut off.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import re
import sys
import textwrap

from lab.docker import Docker, StandIn, installed
from lab.host import BACKENDS, Host

PORT = 8088
CLIENT = "198.51.100.2"  # who asks for the published port
WIDTH = 100
RULES_V4 = "/etc/iptables/rules.v4"
# The example of the iptables-liveupdate manual, chapter 3; the marked rules are the ones that it adds and removes.
STORED_V4 = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p icmp -j ACCEPT
-A INPUT -i lo -j ACCEPT
<new> -A INPUT -p udp -m state --state NEW -m udp --dport 53 -j ACCEPT
<new> -A INPUT -p udp -m state --state NEW -m udp --dport 123 -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 80 -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 443 -j ACCEPT
<new> -A INPUT -p tcp -m state --state NEW -m tcp --dport 8000 -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 8080 -j ACCEPT
-A INPUT -j REJECT --reject-with icmp-host-prohibited
-A FORWARD -j REJECT --reject-with icmp-host-prohibited
COMMIT
"""
STORED_V6 = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p ipv6-icmp -j ACCEPT
-A INPUT -j REJECT --reject-with icmp6-adm-prohibited
COMMIT
"""
AT_BOOT = re.sub(r"^<new>.*\n", "", STORED_V4, flags=re.MULTILINE)
EXTENDED = STORED_V4.replace("<new> ", "")
DELETING = STORED_V4.replace("<new>", "#DELETE#")
NEW_RULES = re.findall(r"^<new> (.*)$", STORED_V4, flags=re.MULTILINE)
SSH = "-A INPUT -p tcp -m state --state NEW -m tcp --dport 22"
CLOSING = EXTENDED.replace(SSH, "-A INPUT -p tcp -m tcp --dport 22 -j DROP\n" + SSH)
EXPECT = [{"accept": "22/tcp", "name": "SSH"}]
STATE = ("state.apply", "iptlive")


class Demo:
    """What the steps share: the host, the container, and whether every claim was true so far."""

    def __init__(self, host, docker):
        self.host, self.docker = host, docker
        self.true = True
        self.colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def paint(self, text, colour):
        return f"\033[{colour}m{text}\033[0m" if self.colour else text

    def title(self, text):
        print(self.paint(text, "1"))

    def claim(self, *claims):
        """Print the claims, each a text and whether it is true."""
        for what, true in claims:
            print("  " + (self.paint("ok", "32") if true else self.paint("FALSE", "31")) + "  " + what)
            self.true = self.true and true

    def apply(self, *arguments):
        """Run the state by the real salt-call; its result, changes and comment."""
        run = self.host.salt_call(*STATE, *arguments, "pillar=" + json.dumps({"iptlive": {"expect": EXPECT}}))
        if not isinstance(run.value, dict):
            print(run.stdout + run.stderr)
            return False, {}, ""
        (state,) = run.value.values()
        return state["result"], state["changes"], state["comment"]

    def show(self, changes):
        for chain, steps in changes.items():
            print(f"  {chain}")
            for step in steps:
                print("    " + self.paint(step, "36"))

    def kernel(self):
        """All rules of both families, and the packets each rule has counted."""
        rules, packets = [], {}
        for family in ("ipv4", "ipv6"):
            lines = self.host.save(family).splitlines()
            counted = self.host.save(family, counters=True).splitlines()
            rules += lines
            packets.update((line, int(count)) for line, count in zip(lines, _packets(counted)) if line[:1] == "-")
        return rules, packets

    def answers(self):
        return f"the container answers on port {PORT}", self.docker.reachable(PORT)


def _packets(counted):
    for line in counted:
        counter = re.match(r"\[(\d+):", line)
        yield counter.group(1) if counter else 0


def positions(changes, action):
    """The positions in the changes of INPUT; None unless they are the only changes, and all of this action."""
    found = [step.split(":")[0].split() for step in changes.get("IPv4/filter/INPUT", [])]
    if set(changes) != {"IPv4/filter/INPUT"} or {word for word, _ in found} != {action}:
        return None
    return [int(position) for _, position in found]


def set_up(demo):
    """A host as it was before the rules file was edited: its rules loaded at boot, then Docker started."""
    host = demo.host
    host.restore(AT_BOOT, "ipv4")
    host.restore(STORED_V6, "ipv6")
    demo.docker.start()
    demo.docker.publish(PORT)
    version = host.run(["iptables", "--version"]).stdout.strip()
    host.run(["ip", "route", "add", "default", "via", CLIENT])  # as nearly every host has one
    docker = (
        "a real Docker daemon" if demo.docker.real else "a stand-in for Docker (./dev demo --docker has a real one)"
    )
    print(f"A throw-away host: {version}, Salt {importlib.metadata.version('salt')}, {docker}")
    host.write("/etc/iptables/rules.v6", STORED_V6)
    host.salt_call("saltutil.sync_all", check=True)


def rehearse(demo):
    demo.title(f"\n1. Three lines are added to {RULES_V4}: salt-call --local state.apply iptlive test=True")
    demo.host.write(RULES_V4, EXTENDED)
    before = demo.kernel()[0]
    result, changes, comment = demo.apply("test=True")
    demo.show(changes)
    for line in comment.splitlines():
        if line.startswith(("opens", "closes")):
            print(f"    {line}")
    demo.claim(("nothing has changed in the kernel", result is None and demo.kernel()[0] == before))


def extend(demo):
    demo.title("\n2. For real: salt-call --local state.apply iptlive")
    before, packets = demo.kernel()
    result, changes, _ = demo.apply()
    after, counted = demo.kernel()
    done = result is True and positions(changes, "insert") == [4, 5, 9]
    others = [line for line in after if line not in NEW_RULES]
    foreign = sum(line[:1] == "-" for line in before) - AT_BOOT.count("\n-A") - STORED_V6.count("\n-A")
    kept = sum(packets.values()) > 0 and all(counted.get(rule, -1) >= packets[rule] for rule in packets)
    again, changes, _ = demo.apply()
    demo.claim(
        ("inserted at 4, 5 and 9", done and set(NEW_RULES) <= set(after)),
        (
            f"Docker's {foreign} rules and all others are as they were; no packet counter was reset",
            others == before and kept,
        ),
        demo.answers(),
        ("a second run has nothing to do", again is True and not changes),
    )


def refuse(demo):
    demo.title("\n3. Somebody drops port 22, which pillar expects to be open: state.apply iptlive")
    demo.host.write(RULES_V4, CLOSING)
    before = demo.kernel()[0]
    result, _, comment = demo.apply()
    reason = next((line for line in comment.splitlines() if "22/tcp" in line), comment)
    print(textwrap.indent(textwrap.fill(reason, WIDTH - 4), "    "))
    demo.claim(("refused before anything was written", result is False and demo.kernel()[0] == before))


def delete(demo, at_first):
    demo.title("\n4. #DELETE# in front of the three lines: state.apply iptlive")
    demo.host.write(RULES_V4, DELETING)
    result, changes, _ = demo.apply()
    demo.show(changes)
    done = result is True and positions(changes, "delete") == [4, 4, 7]
    demo.claim(
        ("deleted at 4, 4 and 7: each number is the rule's when its turn comes", done),
        ("the kernel's rules are as they were at first", demo.kernel()[0] == at_first),
        demo.answers(),
    )


def reload(demo):
    demo.title(f"\n5. For comparison, the usual way: iptables-restore < {RULES_V4}")
    before = demo.kernel()[0]
    demo.host.run(["sh", "-c", f"grep -v '^#DELETE#' {RULES_V4} | iptables-restore"])
    after = demo.kernel()[0]
    lost = sum(line[:1] == "-" and line not in after for line in before)
    what, reached = demo.answers()
    print(f"  {lost} of Docker's rules are gone; {what}: {'yes' if reached else demo.paint('no', '31')}")
    demo.true = demo.true and lost > 0 and not reached


def main():
    parser = argparse.ArgumentParser(prog="./dev demo")
    parser.add_argument("--backend", choices=BACKENDS, default="nft", help="what iptables is on the host")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(Host(args.backend))
        docker = Docker(host) if installed() else StandIn(host)
        demo = Demo(host, stack.enter_context(docker))
        set_up(demo)
        at_first = demo.kernel()[0]
        rehearse(demo)
        extend(demo)
        refuse(demo)
        delete(demo, at_first)
        reload(demo)
    sys.exit(0 if demo.true else 1)


if __name__ == "__main__":
    main()
