"""
Runs inside a throw-away host, as a new process each time: loading, and one plan and one apply, with what they take
besides time.

Takes a JSON object with ``plan``: whether to go on after loading.  Prints a JSON line: what loading took, the programs
that the plan and the apply ran, and the most memory that this process needed before and after the plan, and the
largest of the programs.
"""

import json
import os
import resource
import sys
import time

import salt.loader

from lab.agent import Salt
from lab.host import minion_options


def main():
    salt_here = Salt(minion_options("/run/lab/bench"))
    loading = _loading(salt_here)
    if not json.loads(sys.argv[1])["plan"]:
        print(json.dumps({"loading ms": loading}))
        return
    functions = salt_here.loaded(json.dumps([{}, {}]))[0]
    plan, apply = functions["iptlive.plan"], functions["iptlive.apply"]
    programs = []
    sys.addaudithook(lambda event, args: programs.append(_command(args[1])) if event == "subprocess.Popen" else None)
    before = _peak(resource.RUSAGE_SELF)
    plan()
    memory = {"before": before, "plan": _peak(resource.RUSAGE_SELF), "programs": _peak(resource.RUSAGE_CHILDREN)}
    planned = programs[:]
    del programs[:]
    apply()
    print(json.dumps({"loading ms": loading, "plan": planned, "apply": programs, "memory MB": memory}))


def _loading(salt_here):
    """What our modules add to loading: the first use of a function beside the first use of one of Salt's own."""
    times = {}
    functions = salt.loader.minion_mods(dict(salt_here.opts, pillar={}))
    for name in ("test.ping", "file.file_exists", "iptlive.plan"):
        started = time.perf_counter()
        functions[name]
        times[name] = round(1000 * (time.perf_counter() - started), 1)
    return times


def _command(argv):
    return " ".join([os.path.basename(argv[0])] + [str(word) for word in argv[1:]])


def _peak(whose):
    return round(resource.getrusage(whose).ru_maxrss / 1024, 1)


if __name__ == "__main__":
    main()
