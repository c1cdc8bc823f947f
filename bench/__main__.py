"""
Measure iptlive beside the bare iptables programs, on throw-away hosts: ./dev bench

    ./dev bench                    everything; takes some twenty minutes
    ./dev bench --quick            small sizes and few rounds: shows that all of it works
    ./dev bench plans planner      only these parts

Parts: single (one family on one processor, by processor time), plans (plan and apply in turn with the bare programs),
planner (without programs), memory (also loading and the programs that are run), fleet (a master with 20 minions).

The tables are printed, and written with the plot and all figures to --out (default: build/bench).
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from lab.host import BACKENDS, REPO, Host

sys.path.insert(0, str(REPO / "_modules"))

from bench import cases, fleet, planner, report

PARTS = ("single", "plans", "planner", "memory", "fleet")
# How many rules are stored, and how many of them the kernel lacks; most of the largest only beside no others.
SMALL, LARGE = [[20, 3], [1000, 3]], [[10000, 3]]
LAYOUTS = [
    ("filter", 0, [*SMALL, *LARGE, [10000, 1000]]),
    ("filter", 10000, SMALL + LARGE),
    ("nat", 10000, SMALL + LARGE),
    ("filter", 50000, SMALL + LARGE),
    ("nat", 50000, SMALL + LARGE),
]
QUICK_LAYOUTS = [("filter", 0, [[20, 3], [200, 3]]), ("filter", 400, [[20, 3]])]


# One family on one processor: how its rules are stored, and how many there are (of chains: how many chains).
SINGLE = {
    "in sync": [1000, 10000, 50000],
    "missing": [1000, 10000],
    "rewritten": [1000, 10000],
    "chains": [100, 2000, 10000],
}


def single(quick):
    found = []
    for backend in BACKENDS:
        for kind, sizes in SINGLE.items():
            say(f"{backend}, one family on one processor: {kind}")
            job = {
                "backend": backend,
                "kind": kind,
                "sizes": sizes[:1] if quick else sizes,
                "rounds": 1 if quick else 5,
            }
            with Host(backend) as host:
                for line in inside(host, "single", job).splitlines():
                    found.append({"backend": backend, "kind": kind, **json.loads(line)})
    return found


def plans(quick):
    found = []
    for backend in BACKENDS:
        for table, foreign, sizes in QUICK_LAYOUTS if quick else LAYOUTS:
            job = {"backend": backend, "table": table, "foreign": foreign, "sizes": sizes, "seconds": 0 if quick else 6}
            say(f"{backend}, {foreign:,} foreign rules in {table}")
            with Host(backend) as host:
                for line in inside(host, "inside", job).splitlines():
                    found.append({"backend": backend, "table": table, "foreign": foreign, **json.loads(line)})
    return found


def planning(quick):
    say("the planner alone")
    sizes = (100, 1000) if quick else (1000, 10000, 50000)
    return planner.measure(sizes)


def memory(quick):
    found = []
    for backend in BACKENDS:
        for size in (20, 200) if quick else (20, 10000, 50000):
            say(f"{backend}, memory of a plan with {size:,} stored rules in each family")
            with Host(backend) as host:
                for family, path in (("ipv4", "/etc/iptables/rules.v4"), ("ipv6", "/etc/iptables/rules.v6")):
                    text = cases.stored_file(family, size)
                    host.write(path, text)
                    load(host, family, text)
                cold = json.loads(inside(host, "once", {"plan": False}))["loading ms"]
                answer = json.loads(inside(host, "once", {"plan": True}))
                found.append({"backend": backend, "size": size, "loading at first ms": cold, **answer})
    return found


def load(host, family, text):
    """All stored rules but one into the kernel."""
    lines = text.splitlines()
    lines.remove([line for line in lines if line.startswith("-A INPUT")][3])
    program = f"{cases.COMMANDS[family]}-restore"
    host.run([program], input="\n".join([*lines, ""]), timeout=600)


def inside(host, module, job):
    """Run a module of ours in the host, with our Python."""
    argv = [sys.executable, "-m", f"bench.{module}", json.dumps(job)]
    return host.run(argv, env={"PYTHONPATH": str(REPO), "PYTHONDONTWRITEBYTECODE": ""}, timeout=3600).stdout


def fleets(quick):
    number = 2 if quick else 20
    say(f"a master and {number} minions")
    return fleet.measure(number, 1 if quick else 3)


def conditions():
    import salt.version

    version = subprocess.run(["iptables", "-V"], stdout=subprocess.PIPE, text=True, check=False).stdout.strip()
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "date": datetime.date.today().isoformat(),
        "kernel": platform.release(),
        "iptables": version,
        "python": platform.python_version(),
        "salt": str(salt.version.__version__),
        "processors": f"{os.cpu_count()} x {model[0].split(': ')[1] if model else platform.machine()}",
        "load average": ", ".join(f"{value:.1f}" for value in os.getloadavg()),
    }


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def tables(found):
    parts = [("Conditions", "".join(f"- {name}: {value}\n" for name, value in found["conditions"].items()))]
    if "single" in found:
        parts.append(("One family on one processor (milliseconds of processor time)", report.single(found["single"])))
        parts.append(("Growth (exponent)", report.single_growth(found["single"])))
    if "plans" in found:
        parts.append(("Plan and apply (medians, milliseconds)", report.plans(found["plans"])))
        parts.append(("Growth from 1,000 to 10,000 stored rules (exponent)", report.growth(found["plans"])))
    if "planner" in found:
        parts.append(("The planner alone", report.planner(found["planner"])))
    if "memory" in found:
        smallest = min(row["size"] for row in found["memory"])
        parts.append(("Memory (megabytes)", report.memory(found["memory"])))
        parts.append(("Programs", report.programs([row for row in found["memory"] if row["size"] == smallest])))
        parts.append(("Loading", report.loading(found["memory"])))
    if "fleet" in found:
        parts.append(("Fleet", report.fleet(found["fleet"])))
    return "\n".join(f"## {head}\n\n{body}" for head, body in parts)


def write(folder, found):
    folder.mkdir(parents=True, exist_ok=True)
    files = {"speed.json": json.dumps(found, indent=1) + "\n", "speed-tables.md": tables(found)}
    if "plans" in found:
        files["speed.svg"] = report.picture(found["plans"])
    for name, text in files.items():
        (folder / name).write_text(text)
    # Nothing that belongs to root may be left in the user's checkout.
    owner = REPO.stat()
    for path in (folder.parent, folder, *(folder / name for name in files)):
        if REPO in path.parents:
            os.chown(str(path), owner.st_uid, owner.st_gid)
    say(f"written to {folder}")


def main():
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__, formatter_class=layout)
    parser.add_argument(
        "parts", nargs="*", metavar="part", help="single, plans, planner, memory or fleet; all if left out"
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=REPO / "build" / "bench")
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    found = {"conditions": conditions()}
    for name, measure in zip(PARTS, (single, plans, planning, memory, fleets)):
        if name in (args.parts or PARTS):
            found[name] = json.loads(json.dumps(measure(args.quick)))  # as it reads back from the file
    print(tables(found))
    write(args.out.resolve(), found)


if __name__ == "__main__":
    main()
