"""
Runs inside a throw-away host, pinned to one processor: one family, one kind of stored file, several sizes.

Takes a JSON object with ``backend``, ``kind``, ``sizes`` and ``rounds``; prints a JSON line per size. Three jobs are
done in turn: the bare listing of the stored chains, the bare programs (the file loaded into a throw-away namespace and
saved, and the listing), and the plan. What counts is processor time, of this process and of the programs: it does not
depend on what else runs on the machine.
"""

import json
import logging
import os
import resource
import statistics
import subprocess
import sys

import salt.loader  # noqa: F401 (before our own modules, as in a minion)

from bench import cases
from lab.agent import Salt
from lab.host import minion_options

PATH = "/etc/iptables/rules.v4"


def main():
    job = json.loads(sys.argv[1])
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    salt_here = Salt(minion_options("/run/lab/bench"))
    logging.getLogger().setLevel(logging.WARNING)
    face = salt_here.loaded(json.dumps([{}, {}]))[0]["iptlive.plan"].__globals__
    for size in job["sizes"]:
        print(
            json.dumps({"size": size, **Case(job["backend"], job["kind"], size, face).measure(job["rounds"])}),
            flush=True,
        )


class Case:
    """One stored file, and the kernel that it is planned for."""

    def __init__(self, backend, kind, size, face):
        self._restore, self._save = (f"iptables-{backend}-{what}" for what in ("restore", "save"))
        self._backend = backend
        self._settings = face["options_room"].parse({"families": ["ipv4"], "duplicates": "allow"})
        self._survey = face["survey"].survey
        self._report = face["report"].planned
        text = cases.many_chains(size) if kind == "chains" else cases.stored_file("ipv4", size)
        run([self._restore], text)
        saved = run([self._save, "-t", "filter"])
        os.makedirs(os.path.dirname(PATH), exist_ok=True)
        with open(PATH, "w", encoding="ascii") as file:
            file.write(text if kind == "rewritten" else saved)
        self._missing = 3 if kind == "missing" else 0
        for _ in range(self._missing):
            run(["iptables", "-D", "INPUT", str(size // 10)])
        self._chains = [line[1:].split(" ")[0] for line in saved.splitlines() if line.startswith(":")]

    def measure(self, rounds):
        found = self.plan()
        if sum(map(len, found["changes"].values())) != self._missing or found["refusals"]:
            raise SystemExit(f"another plan than expected: {found}"[:2000])
        jobs = {"listing": self.listing, "bare": self.bare, "plan": self.plan}
        times = {name: [] for name in jobs}
        for _ in range(rounds):
            for name, job in jobs.items():
                before = spent()
                job()
                times[name].append(1000 * (spent() - before))
        ratios = {
            name: statistics.median(plan / other for plan, other in zip(times["plan"], times[name]))
            for name in ("listing", "bare")
        }
        return {"ms": {name: statistics.median(all_) for name, all_ in times.items()}, "ratio": ratios}

    def plan(self):
        """Both sides read and planned, and told; what changes is not tried in a clone."""
        return self._report(self._survey(self._settings))

    def listing(self):
        if self._backend == "legacy":
            run([self._save, "-t", "filter"])
        else:
            run(
                [self._restore, "--noflush"],
                "\n".join(["*filter", *(f"-S {name}" for name in self._chains), "COMMIT", ""]),
            )

    def bare(self):
        lock = "XTABLES_LOCKFILE=/run/lab/bare.lock"
        run(["unshare", "--net", "sh", "-ec", f"{lock} {self._restore} {PATH}; {self._save} >/run/lab/spelled"])
        self.listing()


def spent():
    """Seconds of processor time of this process and of all programs that it has run."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def run(argv, text=""):
    return subprocess.run(argv, input=text, stdout=subprocess.PIPE, check=True, encoding="ascii").stdout


if __name__ == "__main__":
    main()
