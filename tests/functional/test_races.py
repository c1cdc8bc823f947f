"""
Others write to the same chains at the same time: real iptables processes without pause, and a real Docker daemon.

``--rounds 500`` makes a campaign of it; with ``-rP`` the figures are shown.
"""

import statistics
import threading
import time

import pytest

from lab.rival import Rival

PATH = "/etc/iptables/rules.v4"
STORED = [
    "-s 192.0.2.1/32 -j ACCEPT",
    "-i lo -j ACCEPT",
    "-s 192.0.2.2/32 -j ACCEPT",
    "-p icmp -j ACCEPT",
    "-s 192.0.2.3/32 -j ACCEPT",
    "-s 192.0.2.4/32 -j DROP",
]
KEPT = [rule for rule in STORED if "192.0.2" not in rule]


def file_text(lines):
    return "*filter\n:INPUT ACCEPT [0:0]\n" + "".join(line + "\n" for line in lines) + "COMMIT\n"


def chain(host, name="INPUT"):
    start = f"-A {name} "
    return [line[len(start) :] for line in host.save().splitlines() if line.startswith(start)]


def stands_in_one_piece(rules, wanted):
    """All the wanted rules, in their order, and nobody's rule in between."""
    at = rules.index(wanted[0]) if wanted[0] in rules else 0
    return rules[at : at + len(wanted)] == wanted and not set(STORED) - set(wanted) & set(rules)


class Figures:
    def __init__(self):
        self.seconds, self.retries = [], 0

    def apply(self, host, **options):
        start = time.monotonic()
        reply = host.call("iptlive.apply", families=["ipv4"], wait=60, **options)
        self.seconds.append(time.monotonic() - start)
        self.retries += sum("planning again" in text for _, text in reply.log)
        return reply.value

    def __str__(self):
        median, slowest = (1000 * each(self.seconds) for each in (statistics.median, max))
        return f"{len(self.seconds)} updates, {self.retries} retries, median {median:.0f} ms, slowest {slowest:.0f} ms"


@pytest.mark.parametrize("where", ["head", "end"])
def test_rival(host, rounds, where):
    """Rules go in at the top, in the middle and at the end of the stored ones, and out again."""
    present = file_text("-A INPUT " + rule for rule in STORED)
    absent = file_text(("" if rule in KEPT else "#DELETE# ") + "-A INPUT " + rule for rule in STORED)
    host.restore(file_text("-A INPUT " + rule for rule in KEPT))
    figures, misplaced = Figures(), []
    with Rival(host, where) as rival:
        for number in range(rounds):
            for text, wanted in ((present, STORED), (absent, KEPT)):
                host.write(PATH, text)
                answer = figures.apply(host, placement="after")
                assert answer["applied"], answer
                rules = chain(host)
                if not stands_in_one_piece(rules, wanted):
                    misplaced.append((number, rules))
    print(
        f"{host.backend}, rival at the {where}: {rounds} rounds, {figures}; {rival.told['writes']} writes by the rival"
    )
    assert misplaced == []
    assert rival.told["failed"] == []
    rules = chain(host)
    assert [rule for rule in rules if rival.is_rule(rule)] == rival.told["rules"]
    assert [rule for rule in rules if not rival.is_rule(rule)] == KEPT


@pytest.mark.docker
def test_docker(docker_host, rounds):
    """A daemon that starts and stops published containers: its rules and ours are the same afterwards."""
    host = docker_host.host
    before = host.save()
    ours = {"filter": "DOCKER-USER -s 192.0.2.1/32 -j DROP", "nat": "POSTROUTING -s 192.0.2.1/32 -j ACCEPT"}
    # Docker 28 leaves DOCKER-USER empty.
    last = {
        "filter": "-A DOCKER-USER -j RETURN\n",
        "nat": "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n",
    }
    anchors = {table: line if line in before else "" for table, line in last.items()}

    def text(mark):
        sections = [
            f"*{table}\n:{rule.split()[0]} - [0:0]\n{mark}-A {rule}\n{anchors[table]}COMMIT\n"
            for table, rule in ours.items()
        ]
        return "".join(sections).replace(":POSTROUTING -", ":POSTROUTING ACCEPT")

    figures, stop, done = Figures(), threading.Event(), []

    def come_and_go():
        while not stop.is_set():
            docker_host.publish(8081, name="guest")
            docker_host.remove("guest")
            done.append(True)

    containers = threading.Thread(target=come_and_go)
    containers.start()
    try:
        for _ in range(rounds):
            host.write(PATH, text(""))
            assert figures.apply(host, placement="before")["applied"]
            for table, rule in ours.items():
                assert f"-A {rule}\n{anchors[table]}" in host.save()
            host.write(PATH, text("#DELETE# "))
            assert figures.apply(host, placement="before")["applied"]
    finally:
        stop.set()
        containers.join()
    print(f"{host.backend}, Docker: {rounds} rounds, {figures}; {len(done)} containers came and went")
    assert done
    assert host.save() == before
    assert docker_host.reachable(8080)
