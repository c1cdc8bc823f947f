"""The clone of a host: what it says of packets, before and after an update's edits. Cases in clone_cases.yaml."""

import pytest

from lab.host import BACKENDS, Host
from lab.truth import Cloner

from .clone_cases import CASES, prepare, put, says


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
