"""Which kernel rules are foreign, and what is shown around a change, for any pair of chains."""

from collections import Counter

import _iptlive_owners as owners
from _iptlive_excerpt import MOST_LINES, Changed, around
from _iptlive_model import Chain, Choices, Line, StoredState
from _iptlive_plan import lines_of, plan_chain
from hypothesis import given
from hypothesis import strategies as st

KNOWN = owners.parse({})
RULES = st.lists(st.sampled_from(["-j A", "-j B", "-j C", "-j D", "-j DOCKER", "-j f2b-x"]), max_size=12)
DELETES = st.sets(st.sampled_from(["-j E", "-j f2b-x", "-j DOCKER"]))
ANY = Choices("before", reorder=True, duplicates="allow")


def stored_state(stored, deletes=()):
    return StoredState(
        tuple(Line(rule, number) for number, rule in enumerate(stored, 1)),
        tuple(Line(rule, 100) for rule in deletes),
    )


def pictures(stored, deletes, kernel):
    """The chain's plan, and what is shown around it."""
    state = stored_state(stored, deletes)
    plan = plan_chain("IPv4/filter/FORWARD", state, Chain("DROP", tuple(kernel)), ANY)
    part = Changed("ipv4", "filter", "FORWARD", state, plan)
    return plan, around([part], KNOWN).get("IPv4/filter/FORWARD", [])


@given(RULES, RULES, DELETES)
def test_a_rule_is_foreign_when_no_stored_line_is_left_for_it(stored, kernel, deletes):
    stored = [rule for rule in stored if rule not in deletes]
    lines = lines_of(stored_state(stored, deletes), kernel)
    foreign = Counter(kernel) - Counter(stored)
    for rule in deletes:
        foreign.pop(rule, None)
    assert Counter(rule for rule, line in zip(kernel, lines) if line is None) == foreign
    for rule, line in zip(kernel, lines):
        assert line is None or (rule in deletes if line == 100 else rule == stored[line - 1])


@given(RULES, RULES, DELETES)
def test_the_picture_shows_every_change_from_anchor_to_anchor(stored, kernel, deletes):
    stored = [rule for rule in stored if rule not in deletes]
    plan, hunks = pictures(stored, deletes, kernel)
    lines = [line for hunk in hunks for line in hunk]
    steps = [(step.action, step.position, step.rule, step.line) for step in plan.edits]
    shown = [(line["action"], line["position"], line["rule"], line["line"]) for line in lines if "action" in line]
    assert sorted(shown) == sorted(steps)
    for line in lines:
        if "position" in line and line.get("action") != "delete":
            assert plan.result.rules[line["position"] - 1] == line["rule"]
    for hunk in hunks:
        changes = [at for at, line in enumerate(hunk) if "action" in line]
        anchors = [at for at, line in enumerate(hunk) if "line" in line and "action" not in line]
        assert sum(at < changes[0] for at in anchors) <= 1
        assert sum(at > changes[-1] for at in anchors) <= 1


def test_a_long_run_of_foreign_rules_is_counted():
    kernel = ["-j A"] + ["-j f2b-x"] * 20 + ["-s 192.0.2.1/32 -j Z"] * 10 + ["-j B"]
    _, (hunk,) = pictures(["-j A", "-j NEW", "-j B"], (), kernel)
    assert [line.get("foreign") or line["rule"] for line in hunk] == [
        "-j A",
        {"fail2ban": 20, "unknown": 8},
        "-s 192.0.2.1/32 -j Z",
        "-s 192.0.2.1/32 -j Z",
        "-j NEW",
        "-j B",
    ]


def test_thousands_of_changes_are_cut_to_a_hundred_lines():
    stored = [f"-j S{number}" for number in range(5000)]
    _, hunks = pictures(stored, (), stored[::2])
    assert 90 < sum(map(len, hunks)) <= MOST_LINES
