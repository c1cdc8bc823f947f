"""What is read back after a commit: whether somebody's rule slipped in at its very moment."""

import pytest
from _iptlive_model import Chain, Choices, Line, StoredState
from _iptlive_plan import plan_chain
from _iptlive_transaction import _slipped


def planned(before, stored):
    lines = tuple(Line(rule, number) for number, rule in enumerate(stored, 1))
    return plan_chain("IPv4/filter/INPUT", StoredState(lines), Chain("ACCEPT", tuple(before)), Choices("after"))


# before, stored (upper case: new), now (r: a rival's), slipped
MOMENTS = [
    ("ab", "abX", "abrX", True),
    ("ab", "abX", "abXr", False),
    ("ab", "abXY", "abXrY", True),
    ("ab", "Xab", "Xrab", True),
    ("ab", "Xab", "rXab", False),
    ("ab", "XYab", "XrYab", True),
    ("ab", "aXb", "arXb", False),
    ("ab", "aXb", "aXrb", False),
    ("", "XY", "XrY", True),
    ("", "XY", "rXY", False),
    ("ab", "abX", "ab", False),
    ("ab", "abX", "aXr", False),
]


@pytest.mark.parametrize("before, stored, now, slipped", MOMENTS)
def test_slipped(before, stored, now, slipped):
    assert _slipped(planned(before, stored), Chain("ACCEPT", tuple(now))) is slipped
