"""The clone of a host: what it says of packets, before and after an update's edits. Cases in clone_cases.yaml."""

import pytest

from lab.host import BACKENDS, Host
from lab.truth import Cloner

from .clone_cases import CASES, loaded, packet, prepare, put, says


@pytest.fixture(scope="module", params=BACKENDS)
def cloner(request):
    with Host(request.param) as host:
        prepare(host)
        with Cloner(host) as cloner:
            yield cloner


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_case(cloner, case):
    answer = put(cloner, case)
    times = case["probe"].get("times", 1)
    for when in {"was", "says"} & case.keys():
        assert says(answer, case, when) == [case[when]] * times
    assert answer["packets"] >= times or case["says"]["verdict"] == "undecided"


def test_a_redirected_packet_leaves_the_next_one_alone(cloner):
    """To be tried it needs a server on the other port, and two attempts: each from a port of its own."""
    rules = ["-A INPUT -j ACCEPT", "*nat", "-A PREROUTING -p tcp -m tcp --dport 22 -j REDIRECT --to-ports 443"]
    cloner.host.restore(loaded(rules))
    ports = [22, 443, 22, 443]
    answers = cloner.prove([packet("ipv4", {"from": "192.0.2.7", "in": "eth0", "port": port}) for port in ports])["was"]
    assert [one["verdict"] for one in answers] == ["accept"] * 4
