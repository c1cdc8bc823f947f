"""Which stored lines may share a marker on their way through the throw-away namespace."""

from _iptlive_rules import options, quotes_closed, words
from _iptlive_spelling import became, becomes_one, to_commit
from _iptlive_stored import parse
from hypothesis import given
from hypothesis import strategies as st

PIECES = ["-s", "-d", "--source", "--dst=", "--destination", "10.0.0.1", ",10.0.0.2", ",", "-4", "-6", "--ipv6"] + [
    "--dports 1,2",
    "--state NEW,RELATED",
    "--comment",
    "--log-prefix",
    "-m",
    "-j X",
    '"',
    "\\",
    " ",
    "\t",
    "a b",
]
ADDRESSES = ("-s", "-d", "--source", "--src", "--destination", "--dst")


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join).filter(quotes_closed))
def test_a_line_that_may_become_several_rules_or_none_has_a_marker_of_its_own(spec):
    several = any("," in option.value for option in options(spec, ADDRESSES))
    other_family = any(word.value.startswith(("-4", "-6", "--ip")) for word in words(spec))
    if several or other_family:
        assert not becomes_one(spec)


def test_a_stored_line_is_never_taken_for_a_marker():
    lines = ["*filter", ":A -", ":B -", ":C -", "-A A -m comment --comment iptlive-line-6", "-A B -j DROP"]
    lines += ['-A C -m comment --comment "iptlive\\-line-x-6"', "COMMIT", ""]
    load = to_commit(parse("ipv4", "/rules", "\n".join(lines).encode()), {})
    rules = [line.split(" ", 2)[1:] for line in load.text.splitlines() if line.startswith("-A")]
    listed = [[rule.replace('"', "").replace("\\", "") for name, rule in rules if name == chain] for chain in "BAC"]
    assert became(load, listed) == {
        5: ("-m comment --comment iptlive-line-6",),
        6: ("-j DROP",),
        7: ("-m comment --comment iptlive-line-x-6",),
    }


def test_lines_as_most_are_written_share_one():
    for spec in (
        "-s 10.0.0.1 -p tcp --dport 22 -j ACCEPT",
        "-p tcp -m multiport --dports 80,443 -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT",
        '-p tcp --tcp-flags SYN,RST SYN -m comment --comment "one, two -6 three" -j LOG --log-prefix "a,b "',
    ):
        assert becomes_one(spec), spec
