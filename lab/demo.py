"""
The main job on a throw-away host: ``./dev demo``.

A host that runs Docker gets three new rules into the middle of its INPUT chain, and loses them again, by
``salt-call --local state.apply iptlive``.  After each step it is proved, not said, that nothing else has changed and
that the container's published port still answers.  The exit status is 1 when a proof fails.
"""

import argparse
import contextlib
import importlib.metadata
import os
import re
import sys

from lab.docker import Docker, StandIn, installed
from lab.host import BACKENDS, Host

PORT = 8088
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
STATE = ("state.apply", "iptlive")


class Demo:
    """What the steps share: the host, the container, and whether all was proved so far."""

    def __init__(self, host, docker):
        self.host, self.docker = host, docker
        self.proved = True
        self.colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def paint(self, text, colour):
        return f"\033[{colour}m{text}\033[0m" if self.colour else text

    def title(self, text):
        print(self.paint(text, "1"))

    def prove(self, what, true):
        print("  " + (self.paint("proved", "32") if true else self.paint("FAILED", "31")) + "  " + what)
        self.proved = self.proved and true

    def apply(self, *arguments, steps=True):
        """Run the state by the real salt-call; print its comment (and steps), return its result and changes."""
        self.title("\n# salt-call --local " + " ".join(STATE + arguments))
        run = self.host.salt_call(*STATE, *arguments)
        if not isinstance(run.value, dict):
            print(run.stdout + run.stderr)
            return False, {}
        (state,) = run.value.values()
        print("  " + state["comment"].replace("\n", "\n  "))
        for chain, changes in state["changes"].items() if steps else ():
            print("  " + chain)
            for change in changes:
                print("    " + change)
        return state["result"], state["changes"]

    def show(self, chain):
        """Print a kernel chain with rule numbers, the demo's own rules marked."""
        policy, *rules = self.host.run(["iptables", "-S", chain]).stdout.splitlines()
        print(f"  kernel: {policy}")
        for number, rule in enumerate(rules, start=1):
            new = rule in NEW_RULES
            line = "    {:2} {} {}".format(number, "+" if new else " ", rule.partition(f"-A {chain} ")[2])
            print(self.paint(line, "36") if new else line)

    def kernel(self):
        """All rules of both families, and the packets each rule has counted."""
        rules, packets = [], {}
        for family in ("ipv4", "ipv6"):
            lines = self.host.save(family).splitlines()
            counted = self.host.save(family, counters=True).splitlines()
            rules += lines
            packets.update((line, int(count)) for line, count in zip(lines, _packets(counted)) if line[:1] == "-")
        return rules, packets


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
    print(f"A throw-away host with namespaces of its own: {version}, Salt {importlib.metadata.version('salt')}")
    if demo.docker.real:
        print(f"A real Docker daemon runs a container in it; its port is published as {PORT}.")
    else:
        print("Docker is not installed here: the rules that it writes are loaded by hand, and a namespace stands in")
        print(f"for the container, published as port {PORT}. (./dev demo --docker installs Docker.)")
    host.write("/etc/iptables/rules.v6", STORED_V6)
    host.write(RULES_V4, EXTENDED)
    print("# salt-call --local saltutil.sync_all")
    host.salt_call("saltutil.sync_all", check=True)
    print(f"{RULES_V4} now holds the manual's file: {len(NEW_RULES)} of its rules are not in the kernel yet.")


def reachable(demo):
    demo.prove(f"the container answers on port {PORT}", demo.docker.reachable(PORT))


def rehearse(demo):
    before = demo.kernel()[0]
    result, changes = demo.apply("test=True")
    demo.prove("told as in the manual: inserts at 4, 5 and 9", positions(changes, "insert") == [4, 5, 9])
    demo.prove("nothing has changed in the kernel", result is None and demo.kernel()[0] == before)


def extend(demo):
    before, packets = demo.kernel()
    result, changes = demo.apply(steps=False)
    after, counted = demo.kernel()
    demo.show("INPUT")
    demo.show("FORWARD")
    done = result is True and positions(changes, "insert") == [4, 5, 9]
    demo.prove("inserted at 4, 5 and 9", done and set(NEW_RULES) <= set(after))
    others = [line for line in after if line not in NEW_RULES]
    foreign = sum(line[:1] == "-" for line in before) - AT_BOOT.count("\n-A") - STORED_V6.count("\n-A")
    demo.prove(f"all else is as it was, Docker's {foreign} rules too", others == before)
    kept = sum(packets.values()) > 0 and all(counted.get(rule, -1) >= packets[rule] for rule in packets)
    demo.prove("no rule lost its packet counter", kept)
    reachable(demo)


def repeat(demo):
    result, changes = demo.apply()
    demo.prove("nothing to do", result is True and not changes)


def delete(demo, at_first):
    demo.host.write(RULES_V4, DELETING)
    print(f"\n{RULES_V4} now has #DELETE# in front of the {len(NEW_RULES)} rules.", end="")
    result, changes = demo.apply()
    done = result is True and positions(changes, "delete") == [4, 4, 7]
    demo.prove("deleted at 4, 4 and 7", done)
    demo.prove("the kernel's rules are again as at first", demo.kernel()[0] == at_first)
    reachable(demo)


def main():
    parser = argparse.ArgumentParser(prog="./dev demo")
    parser.add_argument("--backend", choices=BACKENDS, default="nft", help="what iptables is on the host")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        host = stack.enter_context(Host(args.backend))
        docker = Docker(host) if installed() else StandIn(host)
        demo = Demo(host, stack.enter_context(docker))
        set_up(demo)
        reachable(demo)
        at_first = demo.kernel()[0]
        rehearse(demo)
        extend(demo)
        repeat(demo)
        delete(demo, at_first)
    sys.exit(0 if demo.proved else 1)


if __name__ == "__main__":
    main()
