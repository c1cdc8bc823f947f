"""Rolling an update back: exactly what was done, and nothing that others have done since."""

import pytest
from _iptlive_model import Chain, Choices, Line, StoredState
from _iptlive_plan import plan_chain
from _iptlive_undo import LIKELY, MAYBE, NO, YES, is_renamed, plan_inverse, renamed
from _iptlive_undo import carried_out as whether
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from plan_model import carried_out, is_subsequence

NAME = "IPv4/filter/INPUT"
MADE = "IPv4/filter/MINE"  # by the update
RULES = st.lists(st.sampled_from("abcdef"), max_size=6)
DISTINCT = st.lists(st.sampled_from("abcdefghXYZ"), max_size=9, unique=True)
POLICY = st.sampled_from(["ACCEPT", "DROP"])


def carry_out(before, made):
    """The chain after the plain commands; None where it was removed."""
    edits = [edit for edit in made.edits if edit.action in ("insert", "delete")]
    rules = carried_out(before.rules if before else (), edits)
    policy = [edit.rule for edit in made.edits if edit.action == "policy"]
    if any(edit.action == "delete_chain" for edit in made.edits):
        assert rules == ()
        return None
    return Chain(policy[0] if policy else before.policy if before else None, rules)


@st.composite
def updates(draw, rules):
    """A chain, and a plan that changes it."""
    kernel = draw(st.one_of(st.none(), st.builds(Chain, POLICY, rules.map(tuple))))
    lines = [Line(rule, number) for number, rule in enumerate(draw(rules), 1)]
    deletes = [Line(rule, 50) for rule in draw(st.sets(st.sampled_from("abcX"))) if rule not in dict(lines)]
    stored = StoredState(tuple(lines), tuple(deletes), draw(POLICY) if kernel else None, 1)
    choices = Choices(draw(st.sampled_from(["refuse", "after", "before"])), draw(st.booleans()), "allow", "enforce")
    made = plan_chain(NAME, stored, kernel, choices)
    assume(made.edits)
    return kernel, made


@settings(max_examples=3 * settings.default.max_examples)
@given(updates(RULES))
def test_back_to_what_was_there(update):
    before, made = update
    now = carry_out(before, made)
    assert now == made.result
    inverse = plan_inverse(NAME if before else MADE, before, made, now)
    assert inverse.refusals == ()
    assert carry_out(now, inverse) == before


@settings(max_examples=3 * settings.default.max_examples)
@given(updates(DISTINCT), st.data())
def test_what_others_did_since_stays(update, data):
    """Others' new rules stay in their order, others' deletes stay deletes; our own rules go, the former come back."""
    before, made = update
    after = carry_out(before, made)
    was = before.rules if before else ()
    gone = data.draw(st.sets(st.sampled_from(after.rules or ("none",))))
    now = [rule for rule in after.rules if rule not in gone]
    for number in range(data.draw(st.integers(0, 3))):
        now.insert(data.draw(st.integers(0, len(now))), f"other{number}")
    placement = data.draw(st.sampled_from(["refuse", "after", "before"]))
    inverse = plan_inverse(NAME if before else MADE, before, made, after._replace(rules=tuple(now)), placement)
    if inverse.warnings:
        moved = {edit.rule for edit in made.edits if edit.moved}
        assert placement != "refuse" and not set(was) & set(now) - moved, "only where no former rule is left"
    if inverse.refusals:
        assert placement == "refuse"
        assert {refusal.reason for refusal in inverse.refusals} <= {"foreign_between", "no_anchor"}
        assert not inverse.edits
        assert any(rule.startswith("other") for rule in now) or set(after.rules) & gone
        return
    back = carry_out(after._replace(rules=tuple(now)), inverse)
    assert_taken_back(back, was, made, now, gone)


def assert_taken_back(back, was, made, now, gone):
    rules = back.rules if back else ()
    inserted = {edit.rule for edit in made.edits if edit.action == "insert"}
    # A rule that was only moved and then deleted by somebody else: the plan had deleted it too, so it may come back.
    moved = {edit.rule for edit in made.edits if edit.moved}
    expected = [rule for rule in was if rule not in gone or rule in moved]
    assert [rule for rule in rules if not rule.startswith("other")] == expected
    assert is_subsequence([rule for rule in now if rule not in inserted], rules)


@given(updates(DISTINCT))
def test_what_somebody_has_rolled_back_already_stays_as_it_is(update):
    before, made = update
    assume(before)
    inverse = plan_inverse(NAME, before, made, before, "after")
    assert inverse.refusals == ()
    assert carry_out(before, inverse) == before
    assert inverse.edits == ()


@pytest.mark.parametrize("now", ["abXc", "aXbc", "abXrc", "abc", "aXc"])
def test_what_somebody_has_restored_already_is_not_doubled(now):
    """before abc, stored aXc, now as given (r: a rival's)."""
    before = Chain("ACCEPT", tuple("abc"))
    stored = StoredState((Line("a", 1), Line("X", 2), Line("c", 3)), (Line("b", 4),))
    made = plan_chain(NAME, stored, before, Choices())
    assert made.result.rules == tuple("aXc")
    back = carry_out(Chain("ACCEPT", tuple(now)), plan_inverse(NAME, before, made, Chain("ACCEPT", tuple(now))))
    assert "".join(back.rules) == ("abrc" if "r" in now else "abc")


def test_no_former_rule_left():
    """Where the first of the update's own rules stood; and at the end, where the former ones overrule nobody."""
    made = plan_chain(
        NAME,
        StoredState((Line("c", 3), Line("d", 4)), (Line("a", 1), Line("b", 2))),
        Chain("DROP", ("a", "b")),
        Choices(),
    )
    for now, back in (
        (("x", "c", "y"), ("x", "a", "b", "y")),
        (("x", "y"), ("x", "y", "a", "b")),
        (("c",), ("a", "b")),
        (("x", "c", "y", "d", "z"), ("x", "a", "b", "y", "z")),
    ):
        inverse = plan_inverse(NAME, Chain("DROP", ("a", "b")), made, Chain("DROP", now), "after")
        assert carry_out(Chain("DROP", now), inverse).rules == inverse.result.rules == back
        assert bool(inverse.warnings) == ("x" in now)


def test_a_moved_copy_of_a_foreign_rule():
    before = Chain("ACCEPT", ("b", "a", "a"))
    made = plan_chain(NAME, StoredState((Line("a", 3), Line("b", 4))), before, Choices(reorder=True))
    assert made.result.rules == ("a", "b", "a")
    assert carry_out(made.result, plan_inverse(NAME, before, made, made.result)) == before


def test_a_chain_that_vanished_is_left_alone():
    made = plan_chain(NAME, StoredState((Line("a", 3),)), Chain("ACCEPT"), Choices())
    assert plan_inverse(NAME, Chain("ACCEPT"), made, None).edits == ()


def test_a_policy_that_others_changed_is_left_alone():
    stored = StoredState((), policy="DROP", line=2)
    made = plan_chain(NAME, stored, Chain("ACCEPT"), Choices(policy="enforce"))
    assert [edit.action for edit in made.edits] == ["policy"]
    assert plan_inverse(NAME, Chain("ACCEPT"), made, Chain("ACCEPT")).edits == ()


def test_a_created_chain_that_others_use_stays():
    made = plan_chain(NAME, StoredState((Line("a", 3),)), None, Choices())
    inverse = plan_inverse(MADE, None, made, Chain(None, ("a", "other")))
    assert [(edit.action, edit.position) for edit in inverse.edits] == [("delete", 1)]


def test_a_built_in_chain_is_never_removed():
    made = plan_chain(
        NAME, StoredState((Line("a", 3),), policy="DROP", line=2), Chain("ACCEPT"), Choices(policy="enforce")
    )
    inverse = plan_inverse(NAME, None, made, Chain("DROP", ("a",)))
    assert [edit.action for edit in inverse.edits] == ["delete", "policy"]
    assert inverse.result == Chain("ACCEPT", ())


# before, after (upper case: inserted), now (r: a rival's), whether the plan was carried out
EVIDENCE = [
    ("ab", "aXb", "aXb", YES),
    ("ab", "aXb", "ab", NO),
    ("ab", "aXb", "", NO),
    ("ab", "aXb", "rrabrr", NO),
    ("ab", "aXbYZUV", "raXbrr", YES),  # one is enough, however many others have gone
    ("ab", "aXbYZUV", "X", YES),
    ("adb", "ab", "ab", YES),
    ("adb", "ab", "rab", LIKELY),
    ("adbe", "ab", "radb", MAYBE),  # somebody else may have deleted it
    ("adb", "aXb", "rab", MAYBE),
    ("adb", "ab", "radb", NO),
    ("adb", "ab", "r", NO),  # whoever emptied the chain has
    ("d", "", "r", LIKELY),
    ("ab", "aaXb".replace("X", "a"), "abr", NO),  # a copy of what was there is no proof
    ("Mab", "abM", "Mabr", NO),
    ("Mab", "abM", "rabM", YES),
]


@pytest.mark.parametrize("before, after, now, wanted", EVIDENCE)
def test_whether_a_plan_was_carried_out(before, after, now, wanted):
    assert whether(Chain("ACCEPT", tuple(before)), plan_between(before, after), Chain("ACCEPT", tuple(now))) == wanted


def plan_between(before, after):
    """The plan of an update that deletes and inserts what the two differ in."""
    lines = [Line(rule, number) for number, rule in enumerate(after, 1)]
    deletes = tuple(Line(rule, 50) for rule in before if rule not in after)
    stored = StoredState(tuple(lines), deletes, None, 1)
    return plan_chain(NAME, stored, Chain("ACCEPT", tuple(before)), Choices("after", True, "allow"))


def test_a_renamed_chain_is_known_by_what_was_put_into_it():
    plan = plan_between("ab", "aXb")
    before = Chain("ACCEPT", tuple("ab"))
    assert is_renamed(before, plan, Chain(None, tuple("rX")), replaced=True)
    assert not is_renamed(before, plan, Chain(None, tuple("ab")), replaced=False)
    assert is_renamed(
        Chain("ACCEPT", tuple("adb")), plan_between("adb", "ab"), Chain(None, tuple("ab")), replaced=False
    )
    jumps = Chain(None, ("-p tcp -j OLD", "-g OLD", "-j OLDER", '-m comment --comment "-j OLD" -j LOG'))
    assert renamed(jumps, {"OLD": "NEW"}).rules == ("-p tcp -j NEW", "-g NEW", *jumps.rules[2:])
