"""Chains in which a few rules repeat and stand in any order: what every plan keeps, under all options."""

from _iptlive_model import Chain, Choices, Line, StoredState
from _iptlive_plan import plan_chain
from chain_properties import check_refused, check_updated
from hypothesis import example, given, settings
from hypothesis import strategies as st

NAME = "IPv4/filter/INPUT"
STORED = st.lists(st.sampled_from("abcd"), max_size=12)
KERNEL = st.lists(st.sampled_from("abcdXY"), max_size=14)
DELETES = st.sets(st.sampled_from("deX"), max_size=2)
CHOICES = st.builds(
    Choices,
    placement=st.sampled_from(["refuse", "after", "before"]),
    reorder=st.booleans(),
    duplicates=st.sampled_from(["refuse", "allow", "allow"]),
)


def plan(stored, deletes, kernel, choices):
    lines = tuple(Line(rule, number) for number, rule in enumerate(stored, 3))
    gone = tuple(Line(rule, 99) for rule in sorted(deletes))
    return plan_chain(NAME, StoredState(lines, gone), Chain("ACCEPT", tuple(kernel)), choices)


def carried_out(edits, rules):
    rules = list(rules)
    for edit in edits:
        if edit.action == "delete":
            assert rules.pop(edit.position - 1) == edit.rule
        else:
            assert 1 <= edit.position <= len(rules) + 1
            rules.insert(edit.position - 1, edit.rule)
    return rules


@settings(max_examples=30 * settings.default.max_examples)
@given(STORED, DELETES, KERNEL, CHOICES)
@example(list("ab"), set(), list("bXa"), Choices("refuse", True, "allow"))
@example(list("aab"), set(), list("XaYb"), Choices("before", False, "allow"))
@example(list("abab"), set(), list("baXba"), Choices("after", True, "allow"))
def test_repeated_rules(stored, deletes, kernel, choices):
    made = plan(stored, deletes, kernel, choices)
    if made.refusals:
        reasons = [refusal.reason for refusal in made.refusals]
        check_refused(stored, deletes, kernel, reasons, choices.placement, choices.reorder, choices.duplicates)
        assert not made.edits
        return
    after = carried_out(made.edits, kernel)
    assert tuple(after) == made.result.rules
    check_updated(stored, deletes, kernel, after)
    assert plan(stored, deletes, after, choices) == made._replace(edits=())
