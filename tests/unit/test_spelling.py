"""What stored lines become on their way through the throw-away namespace, and which of them may share a marker."""

from _iptlive_model import BUILTIN
from _iptlive_rules import options, quotes_closed, words
from _iptlive_spelling import became, becomes_one, to_commit, to_discard
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


# A rule's text, and what the kernel lists for it.
SPECS = {
    "-p tcp -j ACCEPT": ["-p tcp -j ACCEPT"],
    "": [""],
    "-i lo -j MINE": ["-i lo -j MINE"],
    "-s 10.0.0.1,10.0.0.2 -j DROP": ["-s 10.0.0.1 -j DROP", "-s 10.0.0.2 -j DROP"],
    "-d 10.0.0.1,10.0.0.2 -g MINE": ["-d 10.0.0.1 -g MINE", "-d 10.0.0.2 -g MINE"],
    "-6 -j DROP": [],
}
# Without the jump to a chain, where that is cut off.
CUT = {
    spec.rpartition(" -")[0]: [rule.rpartition(" -")[0] for rule in rules]
    for spec, rules in SPECS.items()
    if spec.endswith("MINE")
}
MARK, CHAIN = st.sampled_from(["", "#DELETE# "]), st.sampled_from(["INPUT", "MINE"])
RULES = st.lists(st.tuples(MARK, CHAIN, st.sampled_from(sorted(SPECS))), max_size=6)


def played(text):
    """The listings that the programs give for this input: a chain by -S, or all that were committed."""
    committed, listed, chains = {}, [], None
    for line in text.splitlines():
        command, _, rest = line.partition(" ")
        chain, _, spec = rest.partition(" ")
        if line.startswith("*"):
            assert chains is None
            table, chains = line[1:], {chain: [] for chain in BUILTIN[line[1:]]}
        elif line.startswith(":") or command == "-N":
            chains[line[1:].split()[0] if line[0] == ":" else chain] = []
        elif command == "-A":
            chains[chain] += {**CUT, **SPECS}.get(spec, [spec])
        elif command == "-S":
            listed.append(chains[chain])
        elif command == "-D":
            return listed  # the program fails, and takes it all back
        else:
            assert line == "COMMIT"
            committed.update({(table, chain): rules for chain, rules in chains.items()})
            chains = None
    return committed


@given(st.dictionaries(st.sampled_from(["filter", "nat"]), RULES, min_size=1))
def test_each_line_is_what_came_of_it_by_either_way(tables):
    lines = []
    for table, rules in tables.items():
        written = [f"{mark}-A {chain} {spec}".rstrip() for mark, chain, spec in rules]
        lines += ["*" + table, ":MINE -", *written, "COMMIT"]
    stored = parse("ipv4", "/rules", "\n".join([*lines, ""]).encode())
    expected = {rule.line: tuple(SPECS[rule.spec]) for table in stored.tables.values() for rule in table.rules}
    load = to_commit(stored, {})
    committed = played(load.text)
    assert became(load, [committed[table, chain] for table in load.chains for chain in load.chains[table]]) == expected
    discarded = to_discard("filter", stored, {})
    assert became(discarded, played(discarded.text)) == expected
    for text, origin in ((load.text, load.origin), (discarded.text, discarded.origin)):
        assert {rule.line for rule in origin.values()} == set(expected)
        assert all(text.splitlines()[number - 1].startswith("-A ") for number in origin)


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
