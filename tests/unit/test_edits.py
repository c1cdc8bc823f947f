"""The text of a transaction: what the kernel lacks is made first, each step stands as planned, policies come last."""

from _iptlive_edits import commands, removals
from _iptlive_model import BUILTIN, Chain, ChainPlan, Edit
from hypothesis import given
from hypothesis import strategies as st

CHAINS = [*BUILTIN["filter"], "MINE", "OTHER"]
ORDER = {"-D": 1, "-I": 1, "-P": 2}
EDITS = st.builds(Edit, st.sampled_from(["insert", "delete"]), st.integers(1, 99), st.sampled_from(["", "-j ACCEPT"]))


@st.composite
def updates(draw):
    """The kernel's chains, and plans for some: those for a user chain that is missing create it."""
    before = {chain: Chain(None, rules) for chain in draw(st.sets(st.sampled_from(CHAINS)))
              for rules in [draw(st.sampled_from([(), ("-j DROP",)]))]}  # fmt: skip
    plans = {}
    for chain in draw(st.lists(st.sampled_from(CHAINS), unique=True)):
        builtin = chain in BUILTIN["filter"]
        edits = [] if builtin or chain in before else [Edit("create_chain")]
        edits += draw(st.lists(EDITS, max_size=3))
        edits += draw(st.sampled_from([[], [Edit("policy", rule="DROP", was="ACCEPT")]])) if builtin else []
        plans[chain] = ChainPlan(tuple(edits))
    return before, plans


@given(updates())
def test_commands(update):
    before, plans = update
    lines = commands("filter", before, plans)
    # A built-in chain that the nft kernel lacks is listed as an empty one, and takes rules only where it is declared.
    declared = {line[1:].split()[0] for line in lines if line.startswith(":")}
    assert declared == {
        chain for chain in plans if chain in BUILTIN["filter"] and not (chain in before and before[chain].rules)
    }
    order = [ORDER.get(line[:2], 0) for line in lines]
    assert order == sorted(order)
    for chain, plan in plans.items():
        steps = [line for line in lines if line.split()[1:2] == [chain]]
        assert steps == [written(chain, edit) for edit in plan.edits]


def written(chain, edit):
    return {
        "create_chain": f"-N {chain}",
        "delete": f"-D {chain} {edit.position}",
        "insert": f"-I {chain} {edit.position} {edit.rule}".rstrip(),
        "policy": f"-P {chain} {edit.rule}",
    }[edit.action]


def test_a_chain_that_is_to_go_is_removed_by_a_line_of_its_own():
    plans = {"MINE": ChainPlan((Edit("delete", 1, "-j DROP"), Edit("delete_chain"))), "INPUT": ChainPlan()}
    assert commands("filter", {"MINE": Chain(None, ("-j DROP",))}, {"MINE": plans["MINE"]}) == ["-D MINE 1"]
    assert removals(plans) == ["-X MINE"]
