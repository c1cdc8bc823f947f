"""
Runs inside a throw-away host for the tests of the clone: opens one for each request, and tells what became of packets.

    {"edits": {"ipv4": "*filter ..."}, "probes": [[family, source, destination, protocol, port ...]], "worlds": true}
    {"was": [...], "after": [...], "saved": {...}, "live": {...}, "packets": 24, "kind": "namespace", "not_cloned": []}
    {"error": "..."} or {"cannot": "..."}
"""

import json
import sys

sys.path.insert(0, sys.argv[1])

import _iptlive_prover as prover
from _iptlive_model import HostError
from _iptlive_programs import find_tools


def prove(tools, request):
    probes = [prover.Probe(*one) for one in request["probes"]]
    with prover.open_clone(tools, request.get("stand_ins", ())) as clone:
        was = after = clone.probe(probes, request.get("worlds", True))
        if any(request["edits"].values()):
            clone.load_edits({family: [text] for family, text in request["edits"].items()})
            after = clone.probe(probes, request.get("worlds", True))
        return {
            "was": [one._asdict() for one in was],
            "after": [one._asdict() for one in after],
            "live": clone.live,
            "saved": clone.saved(),
            "packets": clone.packets,
            "kind": clone.kind,
            "not_cloned": clone.not_cloned,
            "facts": clone.facts,
            "milliseconds": clone.milliseconds,
        }


def main():
    tools = [find_tools(family, "auto") for family in ("ipv4", "ipv6")]
    for line in sys.stdin:
        try:
            answer = prove(tools, json.loads(line))
        except prover.NoCloneError as err:
            answer = {"cannot": str(err)}
        except HostError as err:
            answer = {"error": str(err)}
        print(json.dumps(answer), flush=True)


main()
