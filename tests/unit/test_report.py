"""What ``apply`` and ``rollback`` return: only what was really done, whatever was planned."""

import json

import pytest
from _iptlive_journal import Entry, Step
from _iptlive_model import Chain, ChainPlan, Choices, Line, Refusal, StoredState
from _iptlive_options import parse
from _iptlive_plan import plan_chain
from _iptlive_programs import Tools
from _iptlive_report import applied, file_change, planned, rolled_back, update
from _iptlive_survey import FamilyView, Survey
from _iptlive_update import Applied, RolledBack
from hypothesis import given
from hypothesis import strategies as st

INPUT = "IPv4/filter/INPUT"
BEFORE = Chain("ACCEPT", ("-j LOG", "-j DROP"))
PLAN = plan_chain(INPUT, StoredState((Line("-j LOG", 2), Line("-j ACCEPT", 3), Line("-j DROP", 4))), BEFORE, Choices())
REFUSED = ChainPlan(refusals=(Refusal("no_anchor", "no place", "a fix", ("-j X",), (9,)),))
STEP = Step("ipv4", "nft", "filter", {"INPUT": BEFORE}, {"INPUT": PLAN}, "committed")
ENTRY = Entry("id", "pending", "boot", 1, "then", (STEP,), seconds=60, files={"/rules": "/waiting"})
CHANGES = {INPUT: [{"action": "insert", "position": 2, "rule": "-j ACCEPT", "line": 3}]}


def found(plans, **options):
    tools = Tools("ipv4", "nft", "1.8.9", "iptables", "restore", "save")
    view = FamilyView(tools, "/rules", {}, {}, {"filter": plans}, ("a warning", "a warning"), "namespace")
    return Survey(parse({"families": ["ipv4"], **options}), (view,))


@pytest.mark.parametrize(
    "state, changed, written",
    [
        (None, True, ["/now"]),
        ("pending", True, ["/now"]),
        ("done", True, ["/rules"]),
        ("rolled_back", False, ["/now"]),
        ("rolling_back", False, ["/now"]),
        ("continued", False, ["/now"]),
    ],
)
def test_an_update_is_made_unless_it_was_rolled_back(state, changed, written):
    result = Applied(found({"INPUT": PLAN}), ENTRY, written=("/now",))
    answer = applied(result, state and ENTRY._replace(state=state))
    assert (answer["applied"], answer["changes"]) == ((True, CHANGES) if changed else (False, {}))
    assert answer["written"] == written
    assert answer.get("confirm", {}).get("state") == ("confirmed" if state == "done" else state)
    assert json.loads(json.dumps(answer)) == answer


def test_a_chain_refused_meanwhile_leaves_what_was_committed_before_it():
    answer = applied(Applied(found({"INPUT": PLAN}), ENTRY, refused=("IPv4/nat/OUTPUT", REFUSED)), None)
    assert (answer["status"], answer["applied"], answer["changes"]) == ("refused", True, CHANGES)
    assert list(answer["refusals"]) == ["IPv4/nat/OUTPUT"]
    nothing = applied(Applied(found({"INPUT": PLAN}), ENTRY._replace(steps=()), refused=(INPUT, REFUSED)), None)
    assert (nothing["applied"], nothing["changes"]) == (False, {})


@pytest.mark.parametrize(
    "partial, plans, status, changes",
    [
        (False, {"INPUT": PLAN}, "changes", CHANGES),
        (False, {"INPUT": PLAN, "FORWARD": REFUSED}, "refused", {}),
        (True, {"INPUT": PLAN, "FORWARD": REFUSED}, "refused", CHANGES),
        (False, {"INPUT": ChainPlan()}, "in_sync", {}),
    ],
)
def test_one_refused_chain_stops_all_others_unless_partial(partial, plans, status, changes):
    answer = planned(found(plans, partial=partial))
    assert (answer["status"], answer["changes"], answer["warnings"]) == (status, changes, ["a warning"])


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("plan, status", [(PLAN, "changes"), (REFUSED, "refused"), (ChainPlan(), "in_sync")])
def test_a_rollback_is_applied_where_it_was_done_and_there_was_something_to_do(done, plan, status):
    answer = rolled_back(RolledBack(ENTRY, ((INPUT, plan),), done))
    assert answer["status"] == status
    assert answer["applied"] == (done and status == "changes")
    assert bool(answer["changes"]) == (status == "changes")
    assert bool(answer["refusals"]) == (status == "refused")


def test_a_refusal_says_how_many_are_in_the_way_and_shows_some():
    refusal = Refusal("foreign_between", "m", "h", ("a",), (1,), "above", None, tuple("f" * 50_000))
    shown = planned(found({"INPUT": ChainPlan(refusals=(refusal,))}))["refusals"][INPUT][0]
    assert 0 < len(shown.pop("foreign")) < 100
    assert shown == {
        "reason": "foreign_between",
        "rules": ["a"],
        "lines": [1],
        "message": "m",
        "hint": "h",
        "anchors": {"above": "above", "below": None},
        "foreign_count": 50_000,
    }


def test_a_step_says_what_it_is():
    """A move is two steps that say so, a policy says what it was; nothing else says either."""
    stored = StoredState((Line("b", 1), Line("a", 2), Line("N", 3)), policy="DROP", line=9)
    plan = plan_chain(INPUT, stored, Chain("ACCEPT", ("a", "b")), Choices(reorder=True, policy="enforce"))
    (steps,) = planned(found({"INPUT": plan}))["changes"].values()
    assert {(step["action"], step.get("moved"), step.get("was")) for step in steps} == {
        ("delete", True, None),
        ("insert", True, None),
        ("insert", None, None),
        ("policy", None, "ACCEPT"),
    }


def test_an_update_names_its_files_where_it_has_some():
    assert update(ENTRY)["files"] == ["/rules"]
    assert "files" not in update(ENTRY._replace(files={}))


@given(st.none() | st.binary(max_size=30), st.binary(max_size=30))
def test_a_change_of_a_file_is_never_told_as_nothing(old, new):
    change = file_change("salt://rules", "/rules", old, new)
    assert change["diff"]
    assert json.dumps(change)
    assert (change["diff"] == "new file") == (old is None)
