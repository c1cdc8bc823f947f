"""A short run of ``lab.truth``, whose long one is ``python3 -m lab.truth --comparisons 10000``."""

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lab.host import BACKENDS
from lab.truth import Truth, draw, show


@pytest.fixture(scope="module", params=BACKENDS)
def truth(request):
    with Truth(request.param) as truth:
        yield truth


@given(st.randoms(use_true_random=False))
@settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
def test_the_clone_says_what_real_sockets_find(truth, chance):
    different = truth.compare(draw(chance))
    assert not different, "\n".join(map(show, different))
