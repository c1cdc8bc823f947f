"""Matching and planning against an independent model, and what holds for every plan however large the chain."""

from collections import Counter

import _iptlive_align
import plan_model as model
from _iptlive_align import align
from _iptlive_model import Chain, Choices, Line, StoredState
from _iptlive_plan import plan_chain
from hypothesis import example, given, settings
from hypothesis import strategies as st

NAME = "IPv4/filter/INPUT"
FEW = st.lists(st.sampled_from("abcd"), max_size=5)
FEW_IN_KERNEL = st.lists(st.sampled_from("abcdX"), max_size=6)
FEW_UNLIKE = st.lists(st.sampled_from("abcdef"), max_size=5, unique=True)
MANY = st.lists(st.one_of(st.integers(0, 6), st.integers(0, 60)).map(str), max_size=60)
PLACEMENTS = st.sampled_from(["refuse", "after", "before"])


def state(rules, deletes=(), policy=None):
    lines = [Line(rule, number) for number, rule in enumerate(rules, 10)]
    return StoredState(tuple(lines), tuple(Line(rule, number) for number, rule in enumerate(deletes, 90)), policy, 2)


def plan(stored, kernel, deletes=(), **choices):
    return plan_chain(NAME, state(stored, deletes), Chain("ACCEPT", tuple(kernel)), Choices(**choices))


def pairs(matched):
    return tuple((index, at) for index, at in enumerate(matched) if at is not None)


@settings(max_examples=5 * settings.default.max_examples)
@given(FEW, FEW_IN_KERNEL)
def test_matching_is_the_best_of_all_longest(stored, kernel):
    found = pairs(align(stored, kernel))
    best = model.longest_matchings(tuple(stored), tuple(kernel))
    assert found in best
    least = min(model.unsafe_groups(matching, stored, kernel) for matching in best)
    assert model.unsafe_groups(found, stored, kernel) == least
    equals = [matching for matching in best if model.unsafe_groups(matching, stored, kernel) == least]
    assert model.neighbours(found, stored, kernel) == max(
        model.neighbours(matching, stored, kernel) for matching in equals
    )


@given(MANY, MANY, st.sampled_from([_iptlive_align.MOST_PAIRS, 40]))
@example(["1"] * 30, ["1"] * 3, 40)
def test_matching_of_long_chains(stored, kernel, most_pairs):
    """With few pairs allowed only copies near each other are paired: it may match less, but never wrongly."""
    usual, _iptlive_align.MOST_PAIRS = _iptlive_align.MOST_PAIRS, most_pairs
    try:
        found = pairs(align(stored, kernel))
    finally:
        _iptlive_align.MOST_PAIRS = usual
    assert all(stored[index] == kernel[at] for index, at in found)
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in zip(found, found[1:]))
    if most_pairs == usual:
        assert len(found) == model.longest(stored, kernel)
    else:
        assert len(found) <= model.longest(stored, kernel)


@given(st.lists(st.integers(1, 6), max_size=7).flatmap(lambda lengths: st.permutations(list(enumerate(lengths)))))
def test_matching_of_runs_that_were_moved(runs):
    """A run counts as all of its rules, however it is found."""
    stored, kernel = (
        [f"{run}.{at}" for run, length in order for at in range(length)] for order in (sorted(runs), runs)
    )
    assert len(pairs(align(stored, kernel))) == model.longest(stored, kernel)


@settings(max_examples=5 * settings.default.max_examples)
@given(FEW, FEW_IN_KERNEL, st.sets(st.sampled_from("efX")))
@example(list("ab"), list("aXb"), set())
@example(list("abc"), list("aXc"), {"X"})
@example([], list("XX"), {"X"})
def test_refused_only_where_no_longest_matching_is_safe(stored, kernel, deletes):
    made = plan(stored, kernel, deletes, duplicates="allow")
    left = [rule for rule in kernel if rule not in deletes]
    in_both = sum((Counter(stored) & Counter(left)).values())
    reasons = {refusal.reason for refusal in made.refusals}
    assert ("out_of_order" in reasons) == (in_both > model.longest(stored, left))
    if "out_of_order" in reasons:
        return
    best = model.longest_matchings(tuple(stored), tuple(left))
    unsafe = min(model.unsafe_groups(matching, stored, left) for matching in best)
    assert len(made.refusals) == unsafe
    assert reasons <= ({"foreign_between"} if in_both else {"no_anchor"})


@settings(max_examples=5 * settings.default.max_examples)
@given(FEW_UNLIKE, FEW_IN_KERNEL, st.sets(st.sampled_from("abefX"), max_size=2), PLACEMENTS, st.booleans())
@example(list("abc"), list("aXbYc"), set(), "after", False)
@example(list("abc"), list("aXc"), set(), "refuse", False)
@example(list("cab"), list("aXbc"), set(), "refuse", True)
def test_what_a_plan_leads_to(stored, kernel, deletes, placement, reorder):
    made = plan(stored, kernel, deletes, placement=placement, reorder=reorder)
    if set(stored) & deletes:
        assert {refusal.reason for refusal in made.refusals} == {"contradiction"}
    if made.refusals:
        assert made.edits == ()
        reasons = {refusal.reason for refusal in made.refusals}
        assert placement == "refuse" or "foreign_between" not in reasons
        assert not reorder or "out_of_order" not in reasons
        assert all(refusal.message.startswith(NAME) and refusal.hint for refusal in made.refusals)
        return
    result = made.result.rules
    assert model.carried_out(kernel, made.edits) == result
    assert model.is_subsequence(stored, result)
    assert not deletes & set(result)
    check_steps(made, stored, kernel, deletes)
    check_places(made, stored, placement)
    assert plan(stored, result, deletes, placement=placement).edits == ()


def test_a_refused_chain_warns_of_its_policy_too():
    refused = plan_chain(NAME, state("abc", policy="DROP"), Chain("ACCEPT", tuple("aXc")), Choices())
    in_sync = plan_chain(NAME, state("ac", policy="DROP"), Chain("ACCEPT", tuple("aXc")), Choices())
    assert refused.refusals and not in_sync.refusals
    assert refused.warnings == in_sync.warnings != ()


def check_steps(made, stored, kernel, deletes):
    """Deletes first; of the kernel's rules only marked and moved ones go, and no more is written than is missing."""
    actions = [edit.action for edit in made.edits]
    assert actions == sorted(actions)
    moved = Counter(edit.rule for edit in made.edits if edit.moved and edit.action == "delete")
    assert moved == Counter(edit.rule for edit in made.edits if edit.moved and edit.action == "insert")
    left = [rule for rule in kernel if rule not in deletes]
    inserts = [edit for edit in made.edits if edit.action == "insert"]
    assert len(inserts) == len(stored) - model.longest(stored, left)
    assert actions.count("delete") == len(kernel) - len(left) + sum(moved.values())
    assert all(edit.line == 10 + stored.index(edit.rule) for edit in inserts)
    assert Counter(made.result.rules) == Counter(left) + Counter(edit.rule for edit in inserts) - moved


def check_places(made, stored, placement):
    """Each run of inserted rules stands next to the anchors that its placement asks for."""
    result = made.result.rules
    written = {edit.position - 1 for edit in made.edits if edit.action == "insert"}
    new = {result[at] for at in written}
    for first in (at for at in written if at - 1 not in written):
        last = next(at for at in range(first, len(result)) if at + 1 not in written)
        start, end = stored.index(result[first]), stored.index(result[last])
        above = next((rule for rule in reversed(stored[:start]) if rule not in new), None)
        below = next((rule for rule in stored[end + 1 :] if rule not in new), None)
        behind = (result[first - 1] if first else None) == above
        front = (result[last + 1] if last + 1 < len(result) else None) == below
        after = behind if above is not None else front
        before = front if below is not None else behind
        assert {"refuse": behind and front, "after": after, "before": before}[placement]


@given(FEW, FEW_IN_KERNEL)
def test_in_sync_is_stored_order_in_the_kernel(stored, kernel):
    made = plan(stored, kernel, duplicates="allow")
    assert (not made.edits and not made.refusals) == model.is_subsequence(stored, kernel)


@given(FEW)
def test_duplicates(stored):
    made = plan(stored, stored)
    twice = {rule for rule, count in Counter(stored).items() if count > 1}
    assert {refusal.reason for refusal in made.refusals} <= {"duplicate"}
    assert {rule for refusal in made.refusals for rule in refusal.rules} == twice
    for refusal in made.refusals:
        assert refusal.lines == tuple(10 + at for at, rule in enumerate(stored) if rule == refusal.rules[0])


@given(FEW_UNLIKE)
def test_missing_chain_is_made_and_filled(stored):
    made = plan_chain(NAME, state(stored), None, Choices())
    assert [edit.action for edit in made.edits] == ["create_chain"] + ["insert"] * len(stored)
    assert made.result == Chain(None, tuple(stored))
    assert model.carried_out((), made.edits) == tuple(stored)


def test_manual_examples():
    """The positions that the manual prints: 4, 5 and 9 to insert, 4, 4 and 7 to delete."""
    stored = "established icmp lo dns ntp ssh http https alt8000 alt8080 reject".split()
    new = ["dns", "ntp", "alt8000"]
    old = [rule for rule in stored if rule not in new]
    inserted, deleted = plan(stored, old), plan(old, stored, deletes=new)
    assert [(edit.action, edit.position, edit.rule) for edit in inserted.edits] == [
        ("insert", 4, "dns"), ("insert", 5, "ntp"), ("insert", 9, "alt8000"),
    ]  # fmt: skip
    assert [(edit.action, edit.position, edit.rule) for edit in deleted.edits] == [
        ("delete", 4, "dns"), ("delete", 4, "ntp"), ("delete", 7, "alt8000"),
    ]  # fmt: skip
