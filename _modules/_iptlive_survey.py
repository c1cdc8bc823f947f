"""Both sides of one host, read and planned: what is stored, what the kernel holds, what to do about it."""

import contextlib
import gc
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Dict, List, Mapping, NamedTuple, Optional, Set, Tuple

import _iptlive_blindspots as blindspots
import _iptlive_files as files
import _iptlive_freshboot as freshboot
import _iptlive_kernel as kernel
import _iptlive_programs as programs
import _iptlive_ways as ways
from _iptlive_canonical import canonical
from _iptlive_family import label
from _iptlive_model import BUILTIN, Chain, ChainPlan, Edit, Refusal, StoredState, Table, chain_key, is_builtin
from _iptlive_options import Options
from _iptlive_plan import plan_chain
from _iptlive_printable import printable
from _iptlive_rules import targets
from _iptlive_sandbox import OnDemand
from _iptlive_stored import StoredFile, parse

log = logging.getLogger(__name__)


class FamilyView(NamedTuple):
    """One family as it was read: the kernel's tables, the stored file in the kernel's spelling, and the plans."""

    tools: programs.Tools
    path: str
    live: Dict[str, Table]
    states: Dict[str, Dict[str, StoredState]]
    plans: Dict[str, Dict[str, ChainPlan]]
    warnings: Tuple[str, ...]
    scratch: str  # where stored rules were read: "namespace", "user namespace", "dry run", or "none" where none had to
    stored: StoredFile = StoredFile("", "", {}, ())


class Survey(NamedTuple):
    """What stands on the host against what is stored there."""

    options: Options
    families: Tuple[FamilyView, ...]

    def plans(self):
        """Every chain's plan with its key, in the order of the files."""
        for view in self.families:
            for table, plans in view.plans.items():
                for chain, plan in plans.items():
                    yield chain_key(view.tools.family, table, chain), plan

    def refused(self) -> bool:
        return any(plan.refusals for _, plan in self.plans())


class RefusedError(Exception):
    """A chain that was fit for its update when it was planned no longer is."""

    def __init__(self, key: str, plan: ChainPlan):
        super().__init__("; ".join(refusal.message for refusal in plan.refusals))
        self.key = key
        self.plan = plan


def survey(options: Options) -> Survey:
    """Read both sides and plan; nothing is written and no lock taken. Raises HostError."""
    kernel.check_rights()
    for family in options.families:
        kernel.check_family(family)
    files.check_all({family: options.files[family] for family in options.families if family not in options.new_files})
    workers = 2 * len(options.families)
    with no_collections(), contextlib.ExitStack() as stack, ThreadPoolExecutor(workers) as pool:
        sandbox = OnDemand(stack)
        # One family's programs run while the next one's file is read.
        tools = [pool.submit(ways.find_tools, family, options.backend) for family in options.families]
        views = [
            pool.submit(_view, options, sandbox, found, _stored(options, family))
            for family, found in zip(options.families, tools)
        ]
        return Survey(options, tuple(view.result() for view in views))


@contextlib.contextmanager
def no_collections():
    """Python looks for cycles again and again while many objects are made; ours are in none, and all are needed."""
    active = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if active:
            gc.enable()


def _stored(options: Options, family: str) -> StoredFile:
    """The stored file, or the one that is to be; problems of that one are told of its source."""
    if family not in options.new_files:
        return files.read(family, options.files[family])
    new = options.new_files[family]
    return parse(family, new.source, new.data)


def _path(options: Options, stored: StoredFile) -> str:
    new = options.new_files.get(stored.family)
    return new.path if new else stored.path


def _view(options: Options, sandbox: OnDemand, found: "Future[programs.Tools]", stored: StoredFile) -> FamilyView:
    tools = found.result()
    log.debug("%s: stored file %s, backend %s %s", label(tools.family), stored.path, tools.backend, tools.version)
    live = _live(tools, stored)
    doubts = blindspots.doubts(tools, live)
    read = canonical(sandbox, tools, stored, live, doubts.texts(live))
    states, misprints = blindspots.misprinted(sandbox, tools, live, read.states, doubts, stored)
    states, at_boot = freshboot.judged(options.boot, tools, stored, states)
    unknown = _unknown_chains(options, tools.family, states)
    warnings = stored.warnings + read.warnings + tuple(unknown + at_boot + misprints + blindspots.elsewhere(tools))
    plans = {
        table: _plans(options, tools.family, table, chains, live.get(table, {})) for table, chains in states.items()
    }
    return FamilyView(tools, _path(options, stored), live, states, plans, warnings, read.sandbox, stored)


def _unknown_chains(options: Options, family: str, states: Mapping[str, Mapping[str, StoredState]]) -> List[str]:
    known = {chain_key(family, table, chain) for table, chains in states.items() for chain in chains}
    return [
        f"option 'chains': '{key}' is no chain of the stored file, and has no effect"
        for key in options.chains
        if key.startswith(label(family) + "/") and key not in known
    ]


def _live(tools: programs.Tools, stored: StoredFile) -> Dict[str, Table]:
    """The chains that the file names."""
    wanted = {name: sorted(set(BUILTIN[name]).union(table.chains)) for name, table in stored.tables.items()}
    return kernel.read_chains(tools, wanted)


def _plans(options: Options, family: str, table: str, states: Dict[str, StoredState], live: Table):
    plans = {chain: _plan(options, family, table, chain, state, live) for chain, state in states.items()}
    return _without_targets(family, table, plans, live) if options.partial else plans


def _without_targets(family: str, table: str, plans: Dict[str, ChainPlan], live: Table) -> Dict[str, ChainPlan]:
    """The plans, where a refused chain that is not made keeps out the rules that jump to it, and their chains."""
    while True:
        missing = {chain for chain, plan in plans.items() if plan.refusals and _live_chain(table, chain, live) is None}
        jumps = {chain: _jumps(plan, missing) for chain, plan in plans.items()}
        stuck = {
            chain: _refuse_jump(chain_key(family, table, chain), edits[0], missing)
            for chain, edits in jumps.items()
            if edits
        }
        if not stuck:
            return plans
        plans = {**plans, **stuck}


def _jumps(plan: ChainPlan, missing: Set[str]) -> List[Edit]:
    return [edit for edit in plan.edits if edit.action == "insert" and missing.intersection(targets(edit.rule))]


def _refuse_jump(key: str, edit: Edit, missing: Set[str]) -> ChainPlan:
    target = next(name for name in targets(edit.rule) if name in missing)
    refusal = Refusal(
        "missing_reference",
        f"{key}: line {edit.line} jumps to '{target}', which is refused itself and does not exist yet",
        f"fix the refusal of '{target}' first",
        (edit.rule,),
        (edit.line,),
    )
    log.error("%s (%s)", printable(refusal.message), printable(refusal.hint))
    return ChainPlan(refusals=(refusal,))


def _plan(options: Options, family: str, table: str, chain: str, state: StoredState, live: Table) -> ChainPlan:
    key = chain_key(family, table, chain)
    plan = plan_chain(key, state, _live_chain(table, chain, live), options.choices(family, table, chain))
    _log_plan(key, state, plan)
    return plan


def _live_chain(table: str, chain: str, live: Table) -> Optional[Chain]:
    if chain not in live and is_builtin(table, chain):
        return Chain("ACCEPT")  # what the kernel does while nobody has asked for the table
    return live.get(chain)


def _log_plan(key: str, state: StoredState, plan: ChainPlan) -> None:
    for refusal in plan.refusals:
        log.error("%s (%s)", printable(refusal.message), printable(refusal.hint))
    for warning in plan.warnings:
        log.warning("%s", warning)
    if plan.edits:
        log.info("For chain %s, all deletes are performed first", key)
    for edit in plan.edits:
        log.info("For chain %s, %s at position %s: '%s'", key, edit.action, edit.position, printable(edit.rule))
    if not plan.edits and not plan.refusals:
        log.debug("For chain %s, all %d stored rules matched, no further checks needed", key, len(state.rules))


def decider(options: Options, view: FamilyView, table: str):
    """What a transaction asks with the table as it finds it: the plans of the chains that need one."""

    def decide(live: Table) -> Dict[str, ChainPlan]:
        plans = {}
        for chain, state in view.states[table].items():
            if live.get(chain) == view.live.get(table, {}).get(chain):
                plan = view.plans[table][chain]
            else:
                now = blindspots.refused_since(view.tools, table, chain, live.get(chain), state)
                plan = _plan(options, view.tools.family, table, chain, now, live)
            if plan.refusals and not options.partial:
                raise RefusedError(chain_key(view.tools.family, table, chain), plan)
            plans[chain] = plan
        if options.partial:
            plans = _without_targets(view.tools.family, table, plans, live)
        return {chain: plan for chain, plan in plans.items() if plan.edits}

    return decide
