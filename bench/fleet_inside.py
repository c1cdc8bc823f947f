"""
Runs on the master of a fleet: the same jobs in turn, through Salt's own client; prints one JSON line.

Takes a JSON object with the master's ``config``, ``rounds`` and, to ask one minion and weigh its return, ``only``.
"""

import json
import statistics
import sys
import time

import salt.client
import salt.payload

JOBS = {
    "test.ping": ("test.ping", []),
    "empty state": ("state.apply", ["empty", "test=True"]),
    "iptlive": ("state.apply", ["iptlive", "test=True"]),
}
TIMEOUT = 300


def main():
    job = json.loads(sys.argv[1])
    client = salt.client.LocalClient(c_path=job["config"])
    if "only" in job:
        print(json.dumps({"bytes": _bytes(client, job["only"])}))
        return
    print(json.dumps({"all": _times(client, "*", job["rounds"]), "one": _times(client, "m1", job["rounds"])}))


def _times(client, target, rounds):
    """Milliseconds by job: from the moment it is published until the last minion has returned."""
    times = {name: [] for name in JOBS}
    returned = set()
    for _ in range(rounds):
        for name, (function, arguments) in JOBS.items():
            started = time.perf_counter()
            answers = client.cmd(target, function, arguments, timeout=TIMEOUT)
            times[name].append(1000 * (time.perf_counter() - started))
            returned.add(sum(_is_good(answer) for answer in answers.values()))
    return {
        "minions that answered": sorted(returned),
        "ms": {name: statistics.median(all_) for name, all_ in times.items()},
    }


def _is_good(answer):
    return answer is True or (
        isinstance(answer, dict) and all(state["result"] is not False for state in answer.values())
    )


def _bytes(client, minion):
    weights = {}
    for name, (function, arguments) in JOBS.items():
        answer = client.cmd(minion, function, arguments, timeout=TIMEOUT, full_return=True)[minion]
        if not _is_good(answer["ret"]):
            raise SystemExit(f"{name}: {answer}")
        weights[name] = len(salt.payload.dumps(answer))
    return weights


if __name__ == "__main__":
    main()
