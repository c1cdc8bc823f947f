"""A short run of ``lab.truth``, whose long one is ``python3 -m lab.truth --comparisons 10000``."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.host import BACKENDS
from lab.truth import Truth, draw, show

from .clone_cases import mutated


@pytest.fixture(
    scope="module", params=[(backend, kind) for backend in BACKENDS for kind in ("few", "many")], ids="-".join
)
def truth(request, tmp_path_factory):
    """Also as if there were very many rules, so that only what may matter is loaded."""
    backend, kind = request.param
    many = "_MANY = 0  #" if kind == "many" else "_MANY = 2000  #"
    with Truth(backend, mutated(tmp_path_factory.mktemp(kind), "prover", "_MANY = 2000  #", many)) as truth:
        yield truth


@given(st.randoms(use_true_random=False))
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_clone_says_what_real_sockets_find(truth, chance):
    different = truth.compare(draw(chance))
    assert not different, "\n".join(map(show, different))
