"""The picture of the tables: nothing lost by collapsing, and both languages well-formed."""

import re
import shutil
import subprocess

import _iptlive_graph as graph
import _iptlive_owners as owners
from _iptlive_model import Chain
from hypothesis import given
from hypothesis import strategies as st

KNOWN = owners.parse({})
NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9:;\"'\\[\](){}|<>%+.-]{0,9}([-_][A-Za-z0-9]{1,6}){0,3}", fullmatch=True)


@st.composite
def tables(draw):
    """A table of some chains that jump at random; and for each rule a stored line, or none."""
    own = draw(st.lists(NAMES, max_size=60, unique=True))
    chains = ["INPUT", "FORWARD", "OUTPUT"] + [name for name in own if name not in ("INPUT", "FORWARD", "OUTPUT")]
    content, lines = {}, {}
    for chain in chains:
        jumps = draw(st.lists(st.sampled_from(own or ["ACCEPT"]), max_size=3))
        rules = tuple("-j ACCEPT" if '"' in target else f"-p tcp -j {target}" for target in jumps)
        content[chain] = Chain("ACCEPT" if chain in chains[:3] else None, rules)
        lines[chain] = draw(st.lists(st.none() | st.integers(1, 99), min_size=len(rules), max_size=len(rules)))
    changes = dict.fromkeys(draw(st.lists(st.sampled_from(chains), max_size=3)), 2)
    refused = set(draw(st.lists(st.sampled_from(chains), max_size=2)))
    return graph.View("ipv4", "filter", content, lines, changes, refused)


@given(tables())
def test_collapsing_loses_no_chain_rule_or_jump(view):
    picture = graph.picture(view, KNOWN)
    names = {node.name for node in picture.nodes}
    assert len(names) == len(picture.nodes)
    idle = sum(not state.rules and not view.changes.get(chain) and chain not in view.refused
               for chain, state in view.content.items() if state.policy)  # fmt: skip
    assert sum(node.chains for node in picture.nodes) == len(view.content) - idle
    rules = [rule for state in view.content.values() for rule in state.rules]
    stored = sum(line is not None for lines in view.lines.values() for line in lines)
    assert sum(sum(node.numbers.values()) for node in picture.nodes) == len(rules)
    assert sum(node.numbers.get("stored", 0) for node in picture.nodes) == stored
    assert all({edge.source} <= names for edge in picture.edges)


@given(tables())
def test_every_line_of_mermaid_is_one_of_its_statements(view):
    statement = re.compile(
        r'flowchart LR|  subgraph t\d+\["IPv4/filter"\]|    t\d+n\d+[\[(][\[("]+[\w .,:;#()*/+<>-]+"[)\]]+'
        r"|    style t\d+n\d+ [\w#:,-]+|  end|  t\d+n\d+ (-- \d+x )?--> t\d+n\d+|  linkStyle \d+ stroke:#\w+"
    )
    for line in graph.mermaid([graph.picture(view, KNOWN)]).splitlines():
        assert statement.fullmatch(line), line


def test_a_host_with_hundreds_of_chains_stays_readable():
    content = {"PREROUTING": Chain("ACCEPT", ("-j KUBE-SERVICES",)), "KUBE-SERVICES": Chain(None, ())}
    for kind in ("SVC", "SEP"):
        content.update({f"KUBE-{kind}-{number:04}": Chain(None, ("-j KUBE-MARK",)) for number in range(100)})
    content["KUBE-MARK"] = Chain(None, ("-j MARK",))
    picture = graph.picture(graph.View("ipv4", "nat", content, {}, {}, ()), KNOWN)
    assert {(node.name, node.chains, node.owner) for node in picture.nodes} == {
        ("PREROUTING", 1, None),
        ("KUBE-SERVICES", 1, "kubernetes"),
        ("KUBE-MARK", 1, "kubernetes"),
        ("KUBE-SVC-*", 100, "kubernetes"),
        ("KUBE-SEP-*", 100, "kubernetes"),
    }
    assert graph.Edge("KUBE-SVC-*", "KUBE-MARK", 100, "kubernetes") in picture.edges


def boxes(picture):
    """The border of each box by its text."""
    return dict(re.findall(r'label="(.*?)", style=.*? color="(#\w+)"];', graph.dot([picture])))


def test_what_happens_to_one_of_a_family_is_seen():
    content = {
        f"{zone}-{number:04}": Chain(None, ()) for zone in ("CHANGED", "REFUSED", "QUIET") for number in range(30)
    }
    view = graph.View("ipv4", "filter", content, {}, {"CHANGED-0004": 3}, {"REFUSED-0004"}, ["NEW"])
    assert boxes(graph.picture(view, KNOWN)) == {
        "CHANGED-* (30 chains)\\nempty\\n3 changes": "#e08000",
        "REFUSED-* (30 chains)\\nempty\\nrefused": "#cc0000",
        "QUIET-* (30 chains)\\nempty": "#444444",
        "NEW\\nempty\\nto be created": "#e08000",
    }


def test_a_jump_is_somebodys_only_where_all_its_rules_are():
    content = {
        "INPUT": Chain(
            "ACCEPT",
            ('-m comment --comment "cali:7" -j MINE', "-p udp -j MINE", "-j f2b-sshd", "-j OTHER", "-j STORED"),
        ),
        **{chain: Chain(None, ()) for chain in ("MINE", "f2b-sshd", "OTHER", "STORED")},
    }
    picture = graph.picture(
        graph.View("ipv4", "filter", content, {"INPUT": [None, None, None, None, 1]}, {}, ()), KNOWN
    )
    assert set(picture.edges) == {
        graph.Edge("INPUT", "MINE", 2, graph.NO_OWNER),
        graph.Edge("INPUT", "f2b-sshd", 1, "fail2ban"),
        graph.Edge("INPUT", "OTHER", 1, owners.UNKNOWN),
        graph.Edge("INPUT", "STORED", 1, graph.NO_OWNER),
    }
    colours = re.findall("linkStyle . stroke:(.*)", graph.mermaid([picture]))
    assert colours[0] == "#222222"
    assert colours[1] in graph.LINES[:-1]
    assert colours[2] == graph.LINES[-1]


def test_chains_of_a_program_collapse_by_their_beginnings():
    content = [f"ufw-{when}-{what}" for when in "abcdefghijkl" for what in ("input", "output", "forward")]
    assert {name[:4] for name in graph.collapsed("filter", content, KNOWN).values()} == {"ufw-"}


def test_zones_collapse_by_what_they_have_in_common():
    content = {f"{zone}_{what}": Chain(None, ()) for zone in "abcdefghijkl" for what in ("fwd", "in", "out")}
    drawn = graph.collapsed("filter", content, KNOWN)
    assert {drawn[chain] for chain in content if chain.endswith("_out")} == {"*_out"}
    assert len(set(drawn.values())) <= graph.MOST_NODES


@given(tables())
def test_graphviz_can_read_it(view):
    text = graph.dot([graph.picture(view, KNOWN)])
    program = shutil.which("dot")
    if program:
        subprocess.run([program, "-Tcanon"], input=text, text=True, check=True, stdout=subprocess.DEVNULL)
    assert text.count("{") >= 2


def test_chains_that_have_nothing_in_common_stay_apart():
    content = [f"zone{number}" for number in range(graph.MOST_NODES + 9)]
    assert graph.collapsed("filter", content, KNOWN) == {chain: chain for chain in content}


def test_built_in_chains_are_square_and_the_others_round():
    content = {"INPUT": Chain("DROP", ("-j MINE",)), "MINE": Chain(None, ())}
    text = graph.mermaid([graph.picture(graph.View("ipv4", "filter", content, {}, {}, ()), KNOWN)])
    assert re.findall(r'^    \w+([\[(])"(\w+)', text, re.MULTILINE) == [("[", "INPUT"), ("(", "MINE")]


def test_the_legend_names_each_colour_once():
    content = {
        "INPUT": Chain("ACCEPT", ("-j MINE", "-j f2b-sshd")),
        "MINE": Chain(None, ()),
        "f2b-sshd": Chain(None, ()),
    }
    known = owners.parse({"<R&D>": {"chains": ["MINE"]}})
    text = graph.dot([graph.picture(graph.View("ipv4", "filter", content, {}, {}, ()), known)] * 2)
    legend = re.search(r"label=<(<table.*</table>)>;", text).group(1)
    assert re.findall(r">([^<>]+)</td>", legend) == ["fail2ban", "&lt;R&amp;D&gt;", "changes", "refused"]


def test_a_name_may_end_in_what_ends_a_quotation():
    content = {"INPUT": Chain("ACCEPT", ("-j odd\\",)), "odd\\": Chain(None, ())}
    text = graph.dot([graph.picture(graph.View("ipv4", "filter", content, {}, {}, ()), KNOWN)])
    assert '[label="odd\\\\\\nempty",' in text
