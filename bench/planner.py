"""The planner alone, without programs or kernel: one chain against itself with differences, and its worst cases."""

import random
import time
import tracemalloc

from _iptlive_model import Chain, Choices, Line, StoredState
from _iptlive_plan import plan_chain

ROUNDS = 3
MOVING = Choices(placement="after", reorder=True, duplicates="allow")


def rules(count):
    return [
        f"-s 10.{at >> 16}.{at >> 8 & 255}.{at & 255}/32 -p tcp -m tcp --dport 443 -j ACCEPT" for at in range(count)
    ]


def scattered(count):
    """One rule in twenty differs: half of them missing in the kernel, half of them foreign."""
    chance = random.Random(count)
    kernel = rules(count)
    for at in sorted(chance.sample(range(count), count // 40), reverse=True):
        kernel[at : at + 1] = []
    for at in sorted(chance.sample(range(len(kernel)), count // 40), reverse=True):
        kernel.insert(at, f"-m comment --comment foreign-{at} -j ACCEPT")
    return rules(count), kernel


CASES = {
    "one in twenty differs": scattered,
    "in sync": lambda count: (rules(count), rules(count)),
    "kernel empty": lambda count: (rules(count), []),
    "every second rule missing": lambda count: (rules(count), rules(count)[::2]),
    "reversed order, moved": lambda count: (rules(count), rules(count)[::-1]),
    "each kernel rule twice": lambda count: (rules(count), [rule for rule in rules(count) for _ in range(2)]),
    "two rules in turn, out of step": lambda count: (["a", "b"] * (count // 2), ["b", "a"] * (count // 2)),
    "one rule, all copies": lambda count: (["a"] * count, ["a"] * (count - 1)),
}


def measure(sizes):
    """Per case the least processor time in milliseconds by size: what other programs run does not count."""
    return {
        name: {size: round(_best(*case(size)), 2) for size in sizes if size <= 10000 or "cop" not in name}
        for name, case in CASES.items()
    }


def _best(stored, kernel):
    state = StoredState(tuple(Line(rule, at + 1) for at, rule in enumerate(stored)))
    chain = Chain("ACCEPT", tuple(kernel))
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.process_time()
        plan_chain("IPv4/filter/INPUT", state, chain, MOVING)
        best = min(best, time.process_time() - started)
    return 1000 * best


def memory(size):
    """The most memory that planning takes on top of its input, in megabytes."""
    stored, kernel = scattered(size)
    state = StoredState(tuple(Line(rule, at + 1) for at, rule in enumerate(stored)))
    tracemalloc.start()
    plan_chain("IPv4/filter/INPUT", state, Chain("ACCEPT", tuple(kernel)), MOVING)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return round(peak / 1e6, 1)
