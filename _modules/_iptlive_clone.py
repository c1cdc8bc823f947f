"""A throw-away clone of the host, in which packets are tried. Run as a program: requests and answers are JSON lines.

    python3 -I _iptlive_clone.py

It looks at the network that it was started in, leaves it for a namespace of its own, and never goes back. Everything
it made ends with it: when its input ends, or when whoever started it dies.
"""

import ctypes
import errno
import itertools
import json
import os
import sys
import time

# An isolated Python does not look for modules where its program is.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import _iptlive_network as network
from _iptlive_conversation import Conversations
from _iptlive_findings import Judge
from _iptlive_model import HostError
from _iptlive_packets import protocol_number
from _iptlive_probe import Probe
from _iptlive_rehearsal import Ruleset, Stage
from _iptlive_replica import CloneError, Replica
from _iptlive_runner import Command, Runner, die_with_parent
from _iptlive_tracer import Tracer
from _iptlive_wire import Wire

_NEW_NETWORK, _NEW_USERS = 0x40000000, 0x10000000


class Clone:
    """Answers requests, each by the method of its name."""

    def __init__(self, order: dict):
        self._families = order["families"]
        started = time.monotonic()
        self._host = network.read()
        unseen = network.unseen(self._host)
        self._kind = self._leave()
        self._runner = Runner(order["path"])
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # no packet is handed to another processor
        self._replica = Replica(self._host, order["stand_ins"])
        self._replica.notes += unseen
        self._wire = Wire(self._replica, self._families)
        self._conversations = None
        self._sessions = {}
        self._milliseconds = {"clone": 1000 * (time.monotonic() - started)}

    def hello(self) -> dict:
        facts = network.facts(self._host)
        return {"kind": self._kind, "facts": facts, "notes": self._replica.notes, "milliseconds": self._milliseconds}

    def routes(self, questions: list) -> list:
        """Which way: interface, source address, type."""
        found = []
        for family, to, source, interface in questions:
            way = self._replica.route(family, to, source or "", interface or "")
            found.append([self._replica.name(way.index) or None, way.source or None, way.type])
        return found

    def load(self, rulesets: list, sets: list, natives: list, blind: dict, unsure_natives: dict) -> dict:
        """For the first time, or once more with more of very many rules."""
        marks = itertools.count(1)
        loaded = [Ruleset(*ruleset, marks) for ruleset in rulesets]
        if self._conversations is None:
            legacy = {ruleset.family for ruleset in loaded if ruleset.backend == "legacy"}
            self._conversations = Conversations(self._wire, Tracer(sorted(legacy)))
        self._stage = Stage(self._runner, loaded, self._conversations.refresh)
        refused = self._stage.load(*(Command(tuple(argv), text) for argv, text in (sets, natives)))
        if refused:
            reason = f"the tables of nftables itself cannot be loaded into the clone ({refused})"
            blind = dict.fromkeys(self._families, reason)
        self._replica.set_conntrack(self._host)
        self._judge = Judge(self._conversations, self._stage, self._sessions, blind, unsure_natives)
        return {"notes": self._replica.notes}

    def add_sets(self, sets: list) -> dict:
        self._stage.add_sets(Command(tuple(sets[0]), sets[1]))
        return {}

    def edit(self, texts: dict, own: dict) -> dict:
        self._stage.edit(texts, own)
        return {}

    def probe(self, probes: list, worlds: bool) -> dict:
        answers = self._judge.judge([_probe(*one) for one in probes], worlds)
        return {"answers": answers, "packets": self._conversations.packets}

    def saved(self, own: dict) -> dict:
        """All chains, as the host would show them."""
        return {one.family: one.tables for one in self._stage.rulesets if own.get(one.family) == one.backend}

    def _leave(self) -> str:
        """Into a network of our own; where that is not allowed, as root of users of our own, which our parent names."""
        if _unshare(_NEW_NETWORK) == 0:
            return "namespace"
        refused = _unshare(_NEW_USERS)
        if refused:
            raise CloneError(f"no throw-away namespace can be made here ({os.strerror(refused)})")
        _say({"users": os.getpid()})
        if sys.stdin.readline().strip() != "named":
            raise CloneError("the users of a throw-away namespace cannot be named here")
        refused = _unshare(_NEW_NETWORK)
        if refused:
            raise CloneError(f"no throw-away network namespace can be made here ({os.strerror(refused)})")
        return "user namespace"


def _unshare(what: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() or errno.EPERM if libc.unshare(what) else 0


def _probe(family, source, destination, protocol, port, icmp, interface, user, state, whole, source_port) -> Probe:
    interface = "" if interface in (None, "lo") else interface
    number = protocol_number(protocol, family)
    kind = tuple(icmp) if icmp else None
    established = state == "established"
    return Probe(
        family, source or "", destination, number, port, kind, interface, tuple(user), established, whole, source_port
    )


def _say(answer) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    die_with_parent()
    clone = None
    for line in sys.stdin:
        request = json.loads(line)
        started = time.monotonic()
        try:
            if clone is None:
                clone = Clone(request)
                answer = clone.hello()
            else:
                answer = getattr(clone, request["do"])(*request["with"])
        except CloneError as err:
            answer = {"cannot": str(err)}
        except HostError as err:
            answer = {"error": str(err)}
        else:
            answer = {"answer": answer, "milliseconds": 1000 * (time.monotonic() - started)}
        _say(answer)


if __name__ == "__main__":
    main()
