"""What is read back after a commit: whether it stands, and whether somebody's rule slipped in at its very moment."""

import pytest
from _iptlive_journal import Step
from _iptlive_model import Chain, Choices, Line, StoredState
from _iptlive_plan import plan_chain
from _iptlive_transaction import _slipped, stands


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


@pytest.mark.parametrize(
    "before, stored, now, state, standing",
    [
        ("ab", "aXb", "aXb", "sent", True),
        ("ab", "aXb", "ab", "sent", False),
        ("ab", "aXb", "ab", "committed", False),
        ("ab", "aXbY", "raXbrr", "committed", True),
        ("ab", "aXbY", "raXbrr", "sent", False),
        ("ab", "aXb", "rrrraXbrrrr", "sent", True),
        ("ab", "aXb", "rrrrabrrrr", "sent", False),
    ],
)
def test_stands(before, stored, now, state, standing):
    """The nearer state decides; in between, what the journal has last said."""
    plan = planned(before, stored)
    step = Step("ipv4", "nft", "filter", {"INPUT": Chain("ACCEPT", tuple(before))}, {"INPUT": plan}, state)
    assert stands(step, {"INPUT": Chain("ACCEPT", tuple(now))}) is standing


@pytest.mark.parametrize("now, standing", [("DROP", True), ("ACCEPT", False)])
def test_a_policy_alone_tells_whether_it_stands(now, standing):
    before = Chain("ACCEPT", ("a",))
    stored = StoredState((Line("a", 1),), policy="DROP", line=2)
    plan = plan_chain("IPv4/filter/INPUT", stored, before, Choices(policy="enforce"))
    step = Step("ipv4", "nft", "filter", {"INPUT": before}, {"INPUT": plan})
    assert stands(step, {"INPUT": Chain(now, ("a",))}) is standing


@pytest.mark.parametrize("now, standing", [(None, False), (Chain(None), True), (Chain(None, ("r", "r")), True)])
def test_a_chain_that_was_to_be_created_tells_whether_it_stands(now, standing):
    plan = plan_chain("IPv4/filter/MINE", StoredState((), line=2), None, Choices())
    step = Step("ipv4", "nft", "filter", {}, {"MINE": plan})
    assert stands(step, {"MINE": now} if now else {}) is standing
