"""
Updates beside a real Docker and a real fail2ban that work all the while: what is theirs must go on as if nothing were.

    python3 -m lab.campaign --updates 200 --backend nft

In each round Docker starts or stops a published container, fail2ban bans and unbans, and in the middle of it iptlive
applies another stored file.  Afterwards every container must answer, every ban be in force, and nothing foreign be
lost.  Prints a line per ten rounds and the figures; exits with 1 if anything was wrong.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from typing import NamedTuple

from lab.docker import CLIENT, GREETING, HOST_ADDRESS, Docker
from lab.host import BACKENDS, Host
from lab.neighbours import Fail2ban

PATH = "/etc/iptables/rules.v4"
DOOR = 8022
STAYS = 8080
PORTS = range(8081, 8085)
VISITORS = [f"198.51.100.{number}" for number in range(50, 60)]
FAMILIAR = "198.51.100.70"  # never banned
OPTIONS = {"families": ["ipv4"], "chains": {"IPv4/filter/FORWARD": {"placement": "before"}}, "wait": 30}

# Stored rules that come and go between those that stay; None marks the place.
FRAME = {
    "filter/INPUT": [
        "-i lo -j ACCEPT",
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        None,
        f"-p tcp -m tcp --dport {DOOR} -j ACCEPT",
        None,
        "-p icmp -j ACCEPT",
    ],
    "filter/FORWARD": [None, "-s 192.0.2.0/24 -j REJECT --reject-with icmp-host-prohibited"],
    "nat/POSTROUTING": ["-s 192.0.2.0/24 -d 192.0.2.0/24 -j ACCEPT", None, "-s 192.0.2.0/24 -j MASQUERADE"],
}
# Rules of nobody known, in between everybody's: they must stay where they are.
CANARIES = {
    "filter/INPUT": "-s 203.0.113.1/32 -j DROP",
    "filter/FORWARD": "-s 203.0.113.2/32 -j DROP",
    "nat/POSTROUTING": "-s 203.0.113.3/32 -j ACCEPT",
}

# Runs on the other end of the wire: which ports answer, and which addresses get through the door.
KNOCK = """
import json, socket, sys, urllib.request
address, door, ports, visitors = json.loads(sys.argv[1])
def answers(port):
    try:
        return urllib.request.urlopen("http://%s:%s/" % (address, port), timeout=3).read().decode()
    except OSError as err:
        return str(err)
def passes(visitor):
    try:
        socket.create_connection((address, door), timeout=3, source_address=(visitor, 0)).close()
        return True
    except OSError:
        return False
print(json.dumps([{p: answers(p) for p in ports}, {v: passes(v) for v in visitors}]))
"""


class Pool:
    """The stored files: rules that are in one and out, marked for deletion, in the next."""

    def __init__(self, chance):
        self._chance = chance
        self._rules = {
            place: [f"-s 192.0.2.{number}/32 -p tcp -m tcp --dport {3000 + number} -j ACCEPT" for number in range(1, 7)]
            for place in FRAME
        }

    def next(self):
        """Another stored file."""
        return "".join(self._table(table) for table in ("filter", "nat"))

    def _table(self, table):
        lines = [f"*{table}"] + [f":{chain} {policy} [0:0]" for chain, policy in POLICIES[table].items()]
        for place, frame in FRAME.items():
            if place.startswith(table):
                lines += self._chain(place.split("/")[1], frame, self._rules[place])
        return "\n".join(lines + ["COMMIT", ""])

    def _chain(self, chain, frame, rules):
        gaps = frame.count(None)
        shares = [rules[at::gaps] for at in range(gaps)]
        for rule in frame:
            for line in [rule] if rule else shares.pop(0):
                mark = "#DELETE# " if rule is None and self._chance.random() < 0.5 else ""
                yield f"{mark}-A {chain} {line}"


POLICIES = {"filter": {"INPUT": "DROP", "FORWARD": "DROP"}, "nat": {"POSTROUTING": "ACCEPT"}}


class Round(NamedTuple):
    """What one update took, and what was wrong after it."""

    seconds: float
    edits: int
    retries: int
    wrong: list


class Campaign:
    """A host with its neighbours, and the rounds."""

    def __init__(self, host, docker, fail2ban, seed=1):
        self.host, self.docker, self.fail2ban = host, docker, fail2ban
        self._chance = random.Random(seed)
        self._pool = Pool(self._chance)
        self._running = {}
        self._banned = set()

    def prepare(self):
        """The neighbours at home, the stored rules in the kernel, a door to knock at and visitors to knock."""
        self.docker.start()
        self.docker.publish(STAYS)
        self.fail2ban.start()
        self.fail2ban.offend(VISITORS[0])
        self.fail2ban.wait_for({VISITORS[0]})
        self._banned.add(VISITORS[0])
        self._load_frame()
        for address in [*VISITORS, FAMILIAR]:
            self.docker.peer.run(["ip", "address", "add", f"{address}/24", "dev", "lab0"])
        server = [sys.executable, "-I", "-m", "http.server", "--directory", "/run/lab/fail2ban", str(DOOR)]
        self.host.popen(server, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.host.write(PATH, self._pool.next())
        self._settled = self._foreign()

    def _load_frame(self):
        text = ""
        for table in ("filter", "nat"):
            lines = [f"*{table}"] + [f":{chain} {policy} [0:0]" for chain, policy in POLICIES[table].items()]
            for place, frame in FRAME.items():
                if place.startswith(table):
                    chain = place.split("/")[1]
                    rules = [rule for rule in frame if rule]
                    # Docker's policy of FORWARD stays, and the canary stands where no stored rule will have to go.
                    lines += [f"-A {chain} {rule}" for rule in rules] + [f"-I {chain} {CANARIES[place]}"]
            text += "\n".join(lines + ["COMMIT", ""])
        self.host.run([f"iptables-{self.host.backend}-restore", "--noflush"], input=text)

    def round(self):
        """One update in the middle of the neighbours' work."""
        action = self._docker_action()
        self._fail2ban_action()
        self.host.write(PATH, self._pool.next())
        time.sleep(self._chance.random() * 0.5)
        started = time.monotonic()
        reply = self.host.call("iptlive.apply", **OPTIONS)
        seconds = time.monotonic() - started
        wrong = self._wrong_at_once()
        _, stderr = action.communicate(timeout=60)
        if action.returncode:
            wrong.append(f"docker: {stderr.strip()}")
        self.fail2ban.wait_for(self._banned)
        wrong += self._wrong_when_settled(reply)
        retries = sum("planning again" in text for _, text in reply.log)
        return Round(seconds, sum(map(len, reply.value["changes"].values())), retries, wrong)

    def _docker_action(self):
        """Start or stop a container, without waiting for it."""
        self._moving = self._chance.choice(PORTS)
        name = f"web{self._moving}"
        if self._running.pop(self._moving, None):
            words = ["rm", "--force", name]
        else:
            self._running[self._moving] = name
            words = ["run", "--detach", "--stop-signal=KILL", f"--name={name}", f"--publish={self._moving}:80", "lab"]
            words += ["/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/www"]
        return self.host.popen([*CLIENT, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def _fail2ban_action(self):
        """Ban one visitor or more, pardon others."""
        self._were_banned = set(self._banned)
        banned = {visitor for visitor in VISITORS if self._chance.random() < 0.4}
        if self._banned - banned:
            self.fail2ban.pardon(*(self._banned - banned))
        if banned - self._banned:
            self.fail2ban.offend(*(banned - self._banned))
        self._banned = banned

    def _knock(self, ports, visitors):
        question = json.dumps([HOST_ADDRESS, DOOR, list(ports), list(visitors)])
        answers, passes = json.loads(self.docker.peer.run([sys.executable, "-I", "-S", "-c", KNOCK, question]).stdout)
        return {int(port): answer for port, answer in answers.items()}, passes

    def _wrong_at_once(self):
        """Right behind the update: what the neighbours are not changing at this very moment."""
        ports = [STAYS] + [port for port in self._running if port != self._moving]
        return self._wrong(ports, self._were_banned & self._banned, {FAMILIAR}, "at once")

    def _wrong_when_settled(self, reply):
        wrong = self._wrong([STAYS, *self._running], self._banned, set(VISITORS) - self._banned, "settled")
        if reply.value["status"] == "refused":
            wrong.append(f"refused: {reply.value['refusals']}")
        plan = self.host.call("iptlive.plan", **OPTIONS).value
        if plan["status"] != "in_sync":
            wrong.append(f"not in sync: {plan['changes']} {plan['refusals']}")
        foreign = self._foreign()
        expected = self._settled + Counter({("docker", "published"): len(self._running)})
        expected[("fail2ban", "banned")] = len(self._banned)
        if foreign != +expected:
            wrong.append(f"foreign rules: lost {expected - foreign}, too many {foreign - expected}")
        return wrong

    def _wrong(self, ports, banned, others, when):
        answers, passes = self._knock(ports, banned | others)
        wrong = [f"{when}: port {port}: {answer}" for port, answer in answers.items() if answer != GREETING]
        wrong += [f"{when}: the banned {visitor} got through" for visitor in banned if passes[visitor]]
        return wrong + [f"{when}: {visitor} was kept out" for visitor in others if not passes[visitor]]

    def _foreign(self):
        """All foreign rules; those of a container or a ban only counted, because their addresses vary."""
        listed = self.host.call("iptlive.foreign", **OPTIONS).value
        rules = Counter()
        for chain, entries in listed.items():
            for entry in entries:
                if "DNAT" in entry["rule"]:
                    rules[("docker", "published")] += 1
                elif chain.endswith("/f2b-door") and "-s " in entry["rule"]:
                    rules[("fail2ban", "banned")] += 1
                elif not _of_one_container(entry["rule"]):
                    rules[(chain, entry["owner"], entry["rule"])] += 1
        return rules


def _of_one_container(rule):
    return "-d 172.17." in rule


def run(backend, updates, seed=1, progress=None):
    """So many rounds on a fresh host; a list of ``Round``."""
    rounds = []
    with Host(backend) as host, Docker(host) as docker, Fail2ban(host) as fail2ban:
        campaign = Campaign(host, docker, fail2ban, seed)
        campaign.prepare()
        for number in range(1, updates + 1):
            rounds.append(campaign.round())
            if progress and number % 10 == 0:
                progress(number, rounds)
    return rounds


def figures(backend, rounds):
    """What the rounds come to."""
    seconds = [one.seconds for one in rounds]
    return {
        "backend": backend,
        "updates": len(rounds),
        "edits": sum(one.edits for one in rounds),
        "planned_again": sum(one.retries for one in rounds),
        "seconds_median": round(statistics.median(seconds), 3),
        "seconds_most": round(max(seconds), 3),
        "wrong": sum(map(len, (one.wrong for one in rounds))),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="default: both")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()

    def progress(number, rounds):
        print(f"{number:4} updates, {sum(bool(one.wrong) for one in rounds)} with something wrong", flush=True)

    failed = False
    for backend in given.backend or BACKENDS:
        rounds = run(backend, given.updates, given.seed, progress)
        for number, one in enumerate(rounds, 1):
            for what in one.wrong:
                print(f"{backend}, update {number}: {what}")
        print(json.dumps(figures(backend, rounds)), flush=True)
        failed = failed or any(one.wrong for one in rounds)
    sys.exit(failed)


if __name__ == "__main__":
    main()
