"""What must hold between a chain before and after an update, told without looking at any plan."""

from collections import Counter


def is_subsequence(part, whole):
    rest = iter(whole)
    return all(rule in rest for rule in part)


def check_updated(stored, deletes, before, after):
    """``after`` is what ``before`` should have become, whatever steps led there."""
    left = [rule for rule in before if rule not in deletes]
    assert is_subsequence(stored, after), "the stored rules stand in stored order"
    assert not set(after) & set(deletes), "deletes are gone"
    ours = set(stored)
    foreign = [rule for rule in left if rule not in ours]
    assert [rule for rule in after if rule not in ours] == foreign, "the foreign rules are the same sequence as before"
    in_file, had, has = Counter(stored), Counter(left), Counter(after)
    assert all(has[rule] == max(in_file[rule], had[rule]) for rule in ours), "no copy too many, none lost"


def check_refused(stored, deletes, before, reasons, placement, reorder, duplicates):
    """A chain is refused only for a reason that can be seen from outside."""
    left = [rule for rule in before if rule not in deletes]
    seen = set()
    if set(stored) & set(deletes):
        seen.add("contradiction")
    if duplicates == "refuse" and len(set(stored)) < len(stored):
        seen.add("duplicate")
    if not seen:
        seen = _reasons_of_place(stored, left, placement, reorder)
    assert set(reasons) <= seen, (reasons, seen)


def _reasons_of_place(stored, left, placement, reorder):
    common = Counter(stored) & Counter(left)
    if not common:
        return {"no_anchor"} if left else set()
    seen = set()
    if not reorder and not is_subsequence(stored, left):
        seen.add("out_of_order")
    if placement == "refuse":
        seen.add("foreign_between")
    return seen
