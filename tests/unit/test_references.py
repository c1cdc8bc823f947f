"""Stored rules that name what this host lacks are refused by their line, before anything is loaded."""

import pytest
from _iptlive_model import Chain, HostError
from _iptlive_references import KNOWN_TARGETS, Host, check, undeclared
from _iptlive_stored import parse
from hypothesis import given
from hypothesis import strategies as st

LIVE = {"filter": {"INPUT": Chain("ACCEPT"), "DOCKER": Chain(None)}, "nat": {"ELSEWHERE": Chain(None)}}
HOST = Host(lambda: {"there"}, lambda name: name in ("NEWTARGET", "TTL"))


def never(*_):
    raise AssertionError("asked the host")


def checked(*lines, family="ipv4", host=HOST):
    stored = parse(family, "/rules", "\n".join(["*filter", ":MINE -", *lines, "COMMIT", ""]).encode())
    return stored, check(stored, LIVE, undeclared(stored), host)


@pytest.mark.parametrize(
    "line, message",
    [
        ("-A INPUT -j NOSUCH", "IPv4/filter/INPUT: line 3 jumps to 'NOSUCH', which is neither"),
        ("-A MINE -g NOSUCH", "IPv4/filter/MINE: line 3 jumps to 'NOSUCH'"),
        ("-A INPUT -j ELSEWHERE", "IPv4/filter/INPUT: line 3 jumps to 'ELSEWHERE'"),  # a chain of another table
        ("-A INPUT -m set --match-set gone src -j DROP", "IPv4/filter/INPUT: line 3 names the ipset 'gone'"),
        ("-A INPUT -j SET --add-set gone src", "IPv4/filter/INPUT: line 3 names the ipset 'gone'"),
        ("-A INPUT -m set --match-set there src -m set ! --match-set gone dst", "line 3 names the ipset 'gone'"),
    ],
)
def test_refused(line, message):
    stored, found = checked(line, "-A INPUT -j DROP")
    assert list(found.refusals) == [3]
    refusal = found.refusals[3]
    assert (refusal.reason, refusal.lines) == ("missing_reference", (3,))
    assert message in refusal.message
    assert refusal.hint
    assert [rule.line for rule in found.usable.tables["filter"].rules] == [4]


@pytest.mark.parametrize(
    "line",
    ["-A INPUT -j MINE", "-A INPUT -j DOCKER", "-A INPUT -j NEWTARGET", "-A INPUT -j LOG", "-A INPUT",
     "-A INPUT -m set --match-set there src", '-A INPUT -m comment --comment "-j NOSUCH" -j DROP'],
)  # fmt: skip
def test_what_is_there_is_left_as_it_is(line):
    stored, found = checked(line, "#DELETE# -A INPUT -j MINE")
    assert (found.usable, found.refusals) == (stored, {})
    assert found.sets == ({"there"} if "there" in line else set())


def test_a_host_is_asked_only_about_what_cannot_be_known():
    stored, found = checked("-A INPUT -j MINE", "-A INPUT -j ACCEPT", "-A MINE -j DOCKER", host=Host(never, never))
    assert found.usable == stored


def test_what_cannot_be_in_the_kernel_need_not_be_deleted():
    _, found = checked(
        "#DELETE# -A INPUT -j NOSUCH", "#DELETE# -A INPUT -m set --match-set gone src", "-A INPUT -j MINE"
    )
    assert found.refusals == {}
    assert [rule.line for rule in found.usable.tables["filter"].rules] == [5]


@pytest.mark.parametrize(
    "family, own, other", [("ipv4", "-4", "-6"), ("ipv6", "-6", "-4"), ("ipv6", "--ipv6", "--ipv4")]
)
def test_lines_for_the_other_family_are_not_looked_at(family, own, other):
    _, found = checked(f"-A INPUT {other} -j NOSUCH", f"-A INPUT {own} -j NOSUCH", family=family)
    assert list(found.refusals) == [4]
    assert [rule.line for rule in found.usable.tables["filter"].rules] == [3]


@pytest.mark.parametrize("name, refused", [("TTL", True), ("ULOG", False), ("MINE2", False)])
def test_no_chain_is_called_like_a_target_of_the_host(name, refused):
    """``ULOG`` is a known one, which this host has no longer."""
    if refused:
        with pytest.raises(HostError, match=f"^/rules, line 3: the chain '{name}' is called like a target"):
            checked(f":{name} -", f"-A INPUT -j {name}")
    else:
        stored, found = checked(f":{name} -", f"-A INPUT -j {name}")
        assert found.usable == stored


@given(st.lists(st.tuples(
    st.sampled_from(["", "#DELETE# "]),
    st.sampled_from(["-j DROP", "-j MINE", "-j NOSUCH", "-g LOST", "-m set --match-set gone src", "-6 -j NOSUCH"]),
), max_size=8))  # fmt: skip
def test_every_line_is_usable_or_refused_or_need_not_be_deleted(rules):
    lines = [f"{mark}-A INPUT {spec}" for mark, spec in rules]
    stored, found = checked(*lines)
    usable = {rule.line for rule in found.usable.tables["filter"].rules}
    for rule in stored.tables["filter"].rules:
        lacking = "-6" not in rule.spec and any(name in rule.spec for name in ("NOSUCH", "LOST", "gone"))
        assert (rule.line in usable) == (not lacking)
        assert (rule.line in found.refusals) == (lacking and not rule.delete)


def test_known_targets_are_not_taken_for_chains():
    stored = parse("ipv4", "/rules", b"*filter\n-A INPUT -j REJECT\n-A INPUT -j F2B\n-A FORWARD -j OUTPUT\nCOMMIT\n")
    assert undeclared(stored) == {"filter": {"F2B"}}
    assert "REJECT" in KNOWN_TARGETS
