"""The stored file's parser: cases as data files (``stored/*.yaml``), and whatever bytes a disk may hold."""

from pathlib import Path
from unittest.mock import patch

import pytest
import yaml
from _iptlive_model import BUILTIN, HostError
from _iptlive_stored import LONGEST_LINE, _Reader, parse
from hypothesis import example, given
from hypothesis import strategies as st

PATH = "/rules"
CASES = {
    f"{file.stem}: {name}": case
    for file in sorted((Path(__file__).parent / "stored").glob("*.yaml"))
    for name, case in yaml.safe_load(file.read_text(encoding="utf-8")).items()
}
LINES = (
    [
        "*filter",
        "*nat",
        "*",
        ":INPUT ACCEPT [0:0]",
        ":MINE - [0:0]",
        ":MINE",
        "COMMIT",
        "",
        "# c",
        "#DELETE# ",
        "[1:2] ",
    ]
    + [
        "-A INPUT -j ACCEPT",
        "-A MINE -j RETURN",
        "-I INPUT 2 -j DROP",
        "-N MINE",
        "-P INPUT DROP",
        "-F",
        "-X",
        "-D INPUT",
    ]
    + ['-A INPUT -m comment --comment "a', "-A", "-I INPUT ", '"', "9" * 5000, "²", " ", "\t", "\\", "\r"]
)


def read(data):
    return parse("ipv4", PATH, data)


def shown(stored):
    """The parsed tables in the short form of the case files."""
    return {
        name: {
            "line": table.line,
            "chains": {name: f"{chain.policy or 'none'}, line {chain.line}" for name, chain in table.chains.items()},
            "rules": [_shown_rule(rule) for rule in table.rules],
        }
        for name, table in stored.tables.items()
    }


def _shown_rule(rule):
    mark = "#DELETE# " if rule.delete else ""
    command = "-A" if rule.insert_at is None else f"-I {rule.insert_at}"
    return f"line {rule.line}: {mark}{command} {rule.chain} {rule.spec}".rstrip()


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    case = CASES[name]
    if "error" in case:
        with pytest.raises(HostError) as refusal:
            read(case["text"].encode())
        assert str(refusal.value) == case["error"]
    else:
        stored = read(case["text"].encode())
        assert (shown(stored), list(stored.warnings)) == (case["tables"], case.get("warnings", []))


def test_longest_line():
    """One character more, and iptables-restore would take the rest for a line of its own."""
    start = "-A INPUT -j ACCEPT -m comment --comment "
    for length, accepted in ((LONGEST_LINE, True), (LONGEST_LINE + 1, False), (10_000_000, False)):
        data = ("*filter\n" + start + "x" * (length - len(start)) + "\nCOMMIT\n").encode()
        if accepted:
            assert len(read(data).tables["filter"].rules) == 1
        else:
            with pytest.raises(HostError, match=rf"^/rules, line 2: the line is {length} characters long; .*ipset$"):
                read(data)


def test_longest_line_in_bytes():
    start = "-A INPUT -j ACCEPT -m comment --comment "
    data = ("*filter\n" + start + "ü" * (LONGEST_LINE - len(start)) + "\nCOMMIT\n").encode()
    with pytest.raises(
        HostError, match=rf"^/rules, line 2: the line is {2 * LONGEST_LINE - len(start)} characters long"
    ):
        read(data)


def test_a_blank_that_iptables_does_not_know_is_no_blank():
    """Copied from a web page, mostly: iptables-restore would refuse the line at boot, so it must be tried with it."""
    stored = read("*filter\n-A INPUT -j ACCEPT\u00a0\n-A INPUT -i lo -I INPUT\u2003\nCOMMIT\n".encode())
    assert stored.tables["filter"].rules[0].spec == "-j ACCEPT\u00a0"
    with pytest.raises(HostError, match="malformed table header"):
        read("*filter\u00a0\nCOMMIT\n".encode())


@given(st.one_of(st.binary(), st.lists(st.sampled_from(LINES)).flatmap(
    lambda lines: st.sampled_from(["\n", "", "\r\n"]).map(lambda end: end.join(lines).encode())
)))  # fmt: skip
@example(b"*filter\n-I INPUT " + b"9" * 5000 + b" -j DROP\nCOMMIT\n")
@example("*filter\n-I INPUT ² -j DROP\nCOMMIT\n".encode())
def test_any_bytes_are_read_or_refused_with_their_place(data):
    try:
        stored = read(data)
    except HostError as err:
        assert str(err).startswith(PATH)
        return
    count = data.count(b"\n") + 1
    for name, table in stored.tables.items():
        for rule in table.rules:
            assert 0 < rule.line <= count
            assert rule.chain in table.chains or rule.chain in BUILTIN[name]


BLANKS = st.sampled_from([" ", " ", " ", "  ", "\t", ""])
RULE_LINES = st.tuples(
    st.sampled_from(["", "", "", " ", "[1:2] ", "[1:2]", "[1:2 ", "\t"]),
    st.sampled_from(["-A", "-A", "-A", "-I", "-AINPUT"]),
    BLANKS,
    st.sampled_from(["INPUT", "MINE", 'M""', 'M""', '"INPUT"', 'IN"PUT', "OTHER", ""]),
    BLANKS,
    st.lists(st.sampled_from(["-j DROP", "-i lo", '"', "\\", "[1:2]", " ", "²"]), max_size=4).map("".join),
    BLANKS,
).map("".join)


@given(st.lists(RULE_LINES, max_size=3))
def test_what_is_understood_at_a_glance_is_what_splitting_into_words_makes_of_it(lines):
    data = "\n".join(["*filter", ":MINE -", ':M"" -', ':IN"PUT -', *lines, "COMMIT", ""]).encode()
    with patch.object(_Reader, "read_plain", lambda *_: False):
        slowly = outcome(data)
    assert outcome(data) == slowly


def outcome(data):
    try:
        return read(data)
    except HostError as err:
        return str(err)


@given(st.lists(st.sampled_from(["-s 10.0.0.1", "-p tcp", "-m comment --comment [1:2]"]), max_size=8), st.data())
def test_marks_blanks_and_comments_change_no_rule(specs, data):
    """However a file is laid out, each rule keeps its text, its order and the number of its line."""
    lines, expected = ["*filter"], []
    for spec in specs:
        lines += data.draw(st.lists(st.sampled_from(["", "# -A INPUT -j DROP", "#DELETE -A INPUT"]), max_size=2))
        mark = data.draw(st.sampled_from(["", "#DELETE#", "#delete# ", "#Delete#\t"]))
        counters = data.draw(st.sampled_from(["", "[0:0] ", "[12:345]\t"]))
        lines.append(f"{mark}{counters}-A INPUT {spec} -j DROP")
        expected.append((f"{spec} -j DROP", len(lines), bool(mark)))
    text = data.draw(st.sampled_from(["\n", "\r\n"])).join(lines + ["COMMIT", ""])
    rules = read(text.encode()).tables["filter"].rules
    assert [(rule.spec, rule.line, rule.delete) for rule in rules] == expected
