"""
Runs inside a throw-away host: one layout of foreign rules, several sizes of the stored file, bare tools and iptlive
in turn.  Takes a JSON object with ``backend``, ``table``, ``foreign``, ``sizes`` and ``seconds``; prints a JSON line
per size.

Bare is what the iptables programs need for the same job, called from here without anything in between: one after the
other, each once per family, and only as many processes as the job takes.
"""

import json
import logging
import statistics
import subprocess
import sys
import time

import salt.loader  # noqa: F401 (before our own modules, as in a minion)

from bench import cases
from lab.agent import Salt
from lab.host import minion_options

FILES = {"ipv4": "/etc/iptables/rules.v4", "ipv6": "/etc/iptables/rules.v6"}
ROUNDS = (3, 25)  # at least, at most


class Bench:
    """One host, filled for one layout."""

    def __init__(self, job):
        self._backend = job["backend"]
        self._seconds = job["seconds"]
        if job["foreign"]:
            self._restore("ipv4", cases.foreign_rules(job["table"], job["foreign"]))
        salt = Salt(minion_options("/run/lab/bench"))
        logging.getLogger().setLevel(logging.WARNING)  # a minion's, once it has read its configuration
        functions = salt.loaded(json.dumps([{}, {}]))[0]
        self._context = salt.context
        self._plan, self._apply = functions["iptlive.plan"], functions["iptlive.apply"]

    def measure(self, size, missing):
        """The times of one size, in milliseconds; ``missing`` stored rules are not in the kernel."""
        self._fill(size)
        self._edits = {family: _edits(family, size, missing) for family in FILES}
        for family in FILES:
            self._restore(family, self._edits[family][0])
        self._chains = {family: self._rules(family) for family in FILES}
        plan = self._plan()
        found = sum(len(edits) for edits in plan["changes"].values())
        if plan["status"] != "changes" or found != missing * len(FILES):
            raise SystemExit(
                f"{found} edits were planned where {missing * len(FILES)} rules are missing: {plan}"[:2000]
            )
        jobs = {
            "bare plan": self.bare_plan,
            "bare plan, parallel": self.bare_plan_parallel,
            "plan": self._plan,
            "bare commit": self.bare_commit,
            "apply": self._apply,
        }
        return self._alternate(jobs)

    def _alternate(self, jobs):
        """All jobs in turn, again and again; what a job changed is rolled back outside of its time."""
        walls = {name: [] for name in jobs}
        own = {name: [] for name in jobs}
        started = time.monotonic()
        while True:
            for name, job in jobs.items():
                wall, processor = time.perf_counter(), time.process_time()
                job()
                walls[name].append(1000 * (time.perf_counter() - wall))
                own[name].append(1000 * (time.process_time() - processor))
                if name in ("bare commit", "apply"):
                    self._undo()
            rounds = len(walls["plan"])
            if rounds >= ROUNDS[1] or (rounds >= ROUNDS[0] and time.monotonic() - started > self._seconds):
                break
        medians = {name: statistics.median(times) for name, times in walls.items()}
        processor = {name: statistics.median(own[name]) for name in ("plan", "apply")}
        ratios = {
            "plan": _ratio(walls["plan"], walls["bare plan"]),
            "plan, parallel": _ratio(walls["plan"], walls["bare plan, parallel"]),
            "apply": _ratio(walls["apply"], map(sum, zip(walls["plan"], walls["bare commit"]))),
        }
        return {"rounds": rounds, "ms": medians, "own processor ms": processor, "ratio": ratios}

    # --- the bare tools -----------------------------------------------------------------------------------------

    def bare_plan(self):
        """Canonical spelling of both files in one throw-away namespace, and the chains that they name."""
        self._run(["unshare", "--net", "sh", "-ec", " ".join(self._spell(family) for family in FILES)])
        for family in FILES:
            self._read(family)

    def bare_plan_parallel(self):
        """The same, both families at a time."""
        both = "(" + ") & (".join(self._spell(family) for family in FILES) + "); wait"
        self._run(["unshare", "--net", "sh", "-ec", both])
        readers = [self._start(family) for family in FILES]
        for reader in readers:
            reader.communicate()

    def _spell(self, family):
        tool = f"{cases.COMMANDS[family]}-{self._backend}"
        # A lock of its own: nothing here may wait for the host's.
        lock = f"XTABLES_LOCKFILE=/run/lab/{family}.lock "
        return f"{lock}{tool}-restore {FILES[family]}; {tool}-save >/run/lab/{family}.spelled;"

    def _read(self, family):
        argv, text = self._reader(family)
        return self._run(argv, text)

    def _rules(self, family):
        """The chains without policies' counters and the time."""
        return [line for line in self._read(family).splitlines() if line.startswith(b"-A")]

    def _start(self, family):
        argv, text = self._reader(family)
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process.stdin.write(text)
        process.stdin.flush()
        return process

    def _reader(self, family):
        tool = f"{cases.COMMANDS[family]}-{self._backend}"
        if self._backend == "legacy":
            return [tool + "-save", "-t", "filter"], b""
        return [tool + "-restore", "--noflush"], _listing()

    def bare_commit(self):
        """Read, commit with a listing of the chains before and after the edits, read again; each family."""
        for family in FILES:
            self._read(family)
            self._restore(family, self._edits[family][1])
            self._read(family)

    # --- the host -----------------------------------------------------------------------------------------------

    def _fill(self, size):
        """The stored files, and their rules in the kernel in place of an earlier size's."""
        self._run(["mkdir", "-p", "/etc/iptables"])
        for family, path in FILES.items():
            text = cases.stored_file(family, size)
            with open(path, "w", encoding="ascii") as file:
                file.write(text)
            flushed = text.replace(":OUTPUT ACCEPT [0:0]", ":OUTPUT ACCEPT [0:0]\n-F INPUT\n-F FORWARD")
            self._restore(family, flushed)

    def _undo(self):
        for family in FILES:
            self._restore(family, self._edits[family][0])
            if self._rules(family) != self._chains[family]:
                raise SystemExit("the kernel is not as it was before the measurement")

    def _restore(self, family, text):
        self._run([f"{cases.COMMANDS[family]}-{self._backend}-restore", "--noflush"], text.encode())

    @staticmethod
    def _run(argv, stdin=b""):
        return subprocess.run(argv, input=stdin, stdout=subprocess.PIPE, check=True).stdout


def _listing():
    return "\n".join(["*filter"] + [f"-S {chain}" for chain in (*cases.CHAINS, "OUTPUT")] + ["COMMIT", ""]).encode()


def _edits(family, size, missing):
    """The restore input that takes scattered rules out of the chain INPUT, and the one that puts them back."""
    rules = [line for line in cases.stored_file(family, size).splitlines() if line.startswith("-A INPUT ")]
    places = sorted({(2 * index + 1) * len(rules) // (2 * missing) for index in range(missing)})
    gone = [f"-D INPUT {place + 1}" for place in reversed(places)]
    back = [rules[place].replace("-A INPUT", f"-I INPUT {place + 1}") for place in places]
    listing = [f"-S {chain}" for chain in ("INPUT",)]
    return (
        "\n".join(["*filter"] + gone + ["COMMIT", ""]),
        "\n".join(["*filter"] + listing + back + listing + ["COMMIT", ""]),
    )


def _ratio(times, beside):
    """The median of the ratios within each round: what the machine did meanwhile hits both."""
    return statistics.median(time / other for time, other in zip(times, beside))


def main():
    job = json.loads(sys.argv[1])
    bench = Bench(job)
    for size, missing in job["sizes"]:
        print(json.dumps({"size": size, "missing": missing, **bench.measure(size, missing)}), flush=True)


if __name__ == "__main__":
    main()
