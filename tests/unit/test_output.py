"""The outputter: whatever the result and the width, lines fit and nothing of a rule is lost."""

import importlib.util
import re
from pathlib import Path

import pytest
import salt.utils.color
from _iptlive_printable import printable
from hypothesis import given
from hypothesis import strategies as st

SOURCE = Path(__file__).resolve().parents[2] / "_output" / "iptlive.py"
SPEC = importlib.util.spec_from_file_location("iptlive_output", SOURCE)
outputter = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(outputter)

ANSI = re.compile(r"\x1b\[[0-9;]*m")
INPUT = "IPv4/filter/INPUT"

rules = st.text(st.characters(codec="ascii", exclude_characters="'\\"), min_size=1, max_size=90)
lines = st.one_of(
    st.fixed_dictionaries({"position": st.integers(1, 99999), "rule": rules, "line": st.integers(1, 99999)}),
    st.fixed_dictionaries({"position": st.integers(1, 99), "rule": rules, "owner": st.sampled_from(["docker", "me"])}),
    st.fixed_dictionaries(
        {"action": st.sampled_from(["insert", "delete"]), "position": st.just(3), "rule": rules, "line": st.just(7)}
    ),
    st.fixed_dictionaries({"foreign": st.just({"docker": 2, "unknown": 1})}),
)


def shown(result, color=False, width=None):
    page = outputter.Page(dict(salt.utils.color.get_colors(color), DIM="\x1b[2m" if color else ""), width)
    outputter.show(page, "web1", result)
    return page.text()


def plan(**parts):
    empty = {"status": "changes", "families": {}, "changes": {}, "refusals": {}, "warnings": []}
    return dict(empty, **parts)


def step(action, position=1, rule="-j ACCEPT", line=5, **more):
    return dict({"action": action, "position": position, "rule": rule, "line": line}, **more)


def squeezed(text):
    return re.sub(r"\s", "", text)


@given(st.lists(lines, min_size=1, max_size=8), st.integers(24, 160), st.booleans())
def test_every_rule_is_there_and_every_line_fits(hunk, width, color):
    changes = [line for line in hunk if "action" in line] or [step("insert")]
    text = shown(plan(changes={INPUT: changes}, neighbours={INPUT: [hunk]}), color, width)
    plain = ANSI.sub("", text)
    assert (text != plain) == color
    assert max(map(len, plain.split("\n"))) <= width
    for line in hunk:
        if "rule" in line:
            assert squeezed(printable(line["rule"])) in squeezed(plain)


def test_numbers_are_of_the_chain_as_it_will_be_where_what_goes_has_none():
    kept = {"position": 6, "rule": "-j KEPT", "line": 9}
    hunk = [kept, step("delete", 6, "-j GONE", 10), step("insert", 7, "-j NEW", 11)]
    text = shown(plan(changes={INPUT: [line for line in hunk if "action" in line]}, neighbours={INPUT: [hunk]}))
    assert re.findall(r"(\d+)?  line \d+ +-j (\w+)", text) == [("6", "KEPT"), ("", "GONE"), ("7", "NEW")]


def test_only_what_a_page_is_not_about_is_dimmed():
    rules = [{"position": 1, "rule": "-j DOCKER", "owner": "docker"}]
    assert "\x1b[2m" not in shown({INPUT: rules}, color=True)
    assert "\x1b[2m" in shown(plan(changes={INPUT: [step("insert")]}, neighbours={INPUT: [rules]}), color=True)


def test_what_a_terminal_would_obey_is_shown_and_not_sent():
    rule = '-m comment --comment "\x1b[2Jgone\x07" -j DROP'
    text = shown(plan(changes={INPUT: [step("insert", rule=rule)]}))
    assert "\x1b" not in text
    assert "\\x1b[2Jgone\\x07" in text


def test_thousands_of_changes_are_summarised():
    steps = [step("delete", number) for number in range(1000)] + [step("insert", number) for number in range(4000)]
    text = shown(plan(changes={INPUT: steps}))
    assert text.count("\n") < 40
    assert "... 4980 more; in all 4000 inserts, 1000 deletes (all of them with --out=json)" in text


@pytest.mark.parametrize(("listed", "count"), [(9, 9), (20, 50000)])
def test_a_refusal_shows_what_is_in_the_way_and_the_cure(listed, count):
    refusal = {
        "reason": "foreign_between",
        "rules": ["-p icmp -j ACCEPT"],
        "lines": [9],
        "message": f"{INPUT}: the rule of line 9 has no safe place",
        "hint": "set 'placement: before'",
        "anchors": {"above": "-i lo -j ACCEPT", "below": None},
        "foreign": [f"-s 192.0.2.{number}/32 -j DROP" for number in range(listed)],
        "owners": ["fail2ban"] * listed,
        "foreign_count": count,
    }
    found = shown(plan(status="refused", refusals={INPUT: [refusal]}, foreign={INPUT: {"fail2ban": count}}))
    assert found.split("\n") == [
        "web1: refused; nothing is changed",
        "",
        f"  IPv4/filter/INPUT   refused: foreign_between; beside {count} fail2ban",
        "           anchor       -i lo -j ACCEPT",
        "  ?        line 9       -p icmp -j ACCEPT",
        *[f"           fail2ban     -s 192.0.2.{number}/32 -j DROP" for number in range(6)],
        f"                        ... {count - 6} more foreign rules ...",
        "    the rule of line 9 has no safe place",
        "    fix: set 'placement: before'",
    ]


@pytest.mark.parametrize(
    ("parts", "headline"),
    [
        ({"status": "in_sync"}, "in sync"),
        ({"changes": {INPUT: [step("insert")]}}, "1 change to make"),
        ({"changes": {INPUT: [step("insert")] * 2}, "applied": True}, "2 changes made"),
        (
            {
                "changes": {INPUT: [step("insert")]},
                "applied": True,
                "id": "7-1",
                "confirm": {"state": "pending", "seconds_left": 42},
            },
            "1 change made; to be confirmed within 42 seconds (iptlive.confirm 7-1)",
        ),
        ({"confirm": {"state": "rolled_back", "reason": "the master did not answer"}}, "rolled back: the master did"),
    ],
)
def test_headlines(parts, headline):
    assert shown(plan(**parts)).split("\n")[0].startswith(f"web1: {headline}")


def test_states_of_others_are_named_only():
    states = {
        "pkg_|-tools_|-iptables_|-installed": {"result": True, "changes": {}, "comment": "long", "name": "iptables"},
        "iptlive_|-fw_|-fw_|-managed": {
            "result": None,
            "changes": {INPUT: ["insert 4: -i lo -j ACCEPT (line 9)", "move: delete 2: -j DROP (line 3)"]},
            "comment": "2 changes to make.",
            "name": "fw",
            "__run_num__": 1,
        },
    }
    assert shown(states).split("\n") == [
        "web1: 2 states",
        "  ok  pkg.installed iptables",
        "  to do  iptlive.managed fw",
        "    2 changes to make.",
        "",
        "    IPv4/filter/INPUT",
        "      + insert 4: -i lo -j ACCEPT (line 9)",
        "      - move: delete 2: -j DROP (line 3)",
    ]


def test_a_states_refusals_come_from_its_data_and_not_from_its_prose():
    refusal = {"message": f"{INPUT}: line 9 says ' Fix: ' in a comment", "hint": "set 'placement: before'"}
    data = {"summary": "Refused.", "changes": {}, "refusals": {INPUT: [refusal]}, "warnings": ["a warning"]}
    state = {"result": False, "changes": {}, "comment": "not shown", "name": "fw", "data": data}
    assert shown({"iptlive_|-fw_|-fw_|-managed": state}).split("\n")[2:] == [
        "    Refused.",
        "    a warning",
        f"    {refusal['message']}",
        "      fix: set 'placement: before'",
    ]
