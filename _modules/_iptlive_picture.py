"""What is drawn of a host: its tables as the graph's views, and a Graphviz text as an image (runs ``dot``)."""

from typing import Iterable

import _iptlive_kernel as kernel
from _iptlive_graph import View
from _iptlive_model import BUILTIN, HostError, is_builtin
from _iptlive_plan import lines_of
from _iptlive_programs import message, run
from _iptlive_survey import Survey


def views(found: Survey) -> Iterable[View]:
    """What a picture is drawn from: every table that holds something or is stored; all tables are read."""
    for view in found.families:
        content = kernel.read_tables(view.tools, BUILTIN)
        for table in BUILTIN:
            plans, chains = view.plans.get(table, {}), content.get(table, {})
            if plans or any(state.rules for state in chains.values()):
                yield View(
                    view.tools.family,
                    table,
                    chains,
                    {
                        chain: lines_of(state, chains[chain].rules)
                        for chain, state in view.states.get(table, {}).items()
                        if chain in chains
                    },
                    {chain: len(plan.edits) for chain, plan in plans.items()},
                    {chain for chain, plan in plans.items() if plan.refusals},
                    [chain for chain in plans if chain not in chains and not is_builtin(table, chain)],
                )


def svg(text: str) -> str:
    """A Graphviz graph as a picture."""
    done = run(["dot", "-Tsvg"], text)
    if done.status:
        raise HostError(f"dot: {message(done.err)}")
    return done.out
