"""
Another program that writes to a chain without pause, as Docker or fail2ban do on a bad day: real iptables processes in
a throw-away host.  Each of its rules is written once and differs from all others, so one that is lost, or that comes
back after it was deleted, is noticed.

    with Rival(host, "head") as rival:
        ...
    rival.told   # {"rules": [as they should stand], "failed": [messages], "writes": 4711}
"""

import json
import select
import subprocess
import sys

KEPT = 2  # so many of its rules stand between two writes, at most


class Rival:
    """``where`` it inserts (and deletes again): ``head`` or ``end`` of the chain."""

    def __init__(self, host, where, chain="INPUT"):
        self.told = None
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = host.popen([sys.executable, "-I", "-S", __file__, where, chain], **pipes)

    def __enter__(self):
        self._process.stdout.readline()  # it has begun
        return self

    def __exit__(self, *exc_info):
        self.told = json.loads(self._process.communicate()[0])

    @staticmethod
    def is_rule(rule):
        return rule.startswith("-s 10.2")


def rule(number):
    return f"-s 10.{200 + (number >> 16)}.{number >> 8 & 255}.{number & 255}/32 -j ACCEPT"


def main(where, chain):
    standing, failed, writes = [], [], 0

    def write(option, number):
        nonlocal writes
        writes += 1
        done = subprocess.run(
            ["iptables", "-w", option, chain, *rule(number).split()], stderr=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            failed.append(f"{option} {rule(number)}: {done.stderr.strip()}")

    number = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        write("-I" if where == "head" else "-A", number)
        standing.append(number)
        if number == 0:
            print("begun", flush=True)
        # Now and then none of its rules is there.
        while len(standing) > number % (KEPT + 1):
            write("-D", standing.pop(0))
        number += 1
    rules = [rule(each) for each in (reversed(standing) if where == "head" else standing)]
    print(json.dumps({"rules": rules, "failed": failed, "writes": writes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
