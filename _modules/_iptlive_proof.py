"""Whether an update keeps what must stay, tried with packets in a clone of the host before anything is written.

The live rules are loaded in the clone and tried, then the update's own transactions, then the same packets again.
"""

import logging
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import _iptlive_edits as edits
import _iptlive_judge as judging
import _iptlive_kernel as kernel
import _iptlive_prover as prover
import _iptlive_trials as trials
import _iptlive_verdicts as verdicts
from _iptlive_cells import Cell, Ground
from _iptlive_expect import Expectation
from _iptlive_family import label
from _iptlive_journal import Step
from _iptlive_judge import BROKEN, HOLDS, UNDECIDED, Place, Result
from _iptlive_model import BUILTIN, COMMIT_ORDER, ChainPlan, HostError, Refusal, Table, chain_key
from _iptlive_owners import Owners
from _iptlive_plan import lines_of
from _iptlive_shapes import Ruleset
from _iptlive_survey import FamilyView, RefusedError, Survey
from _iptlive_verdicts import Change

log = logging.getLogger(__name__)

MOST_IDLE = 20  # inserted rules that are looked at again since nothing changes by them
PACKETS_EACH = 12  # for each of them
MOST_SAID = 3  # causes that one sentence names


class Proof(NamedTuple):
    """What the packets showed. Without a clone ``caveat`` says why there is none."""

    results: Tuple[Result, ...] = ()
    changes: Tuple[Change, ...] = ()
    refusals: Tuple[Tuple[str, Refusal], ...] = ()
    warnings: Tuple[str, ...] = ()
    packets: int = 0
    clone: Optional[str] = None
    not_cloned: Tuple[str, ...] = ()
    promise: Optional[Dict[str, Dict[str, Table]]] = None
    caveat: str = ""
    owners: Optional[Owners] = None

    def refused(self) -> bool:
        return bool(self.refusals)

    def asked(self) -> bool:
        return bool(self.results)

    def results_told(self) -> List[Dict[str, Any]]:
        """As results hold them; ``default`` marks what every update is to keep."""
        return [dict(judging.told(one), default=one.trial.expectation.own) for one in self.results]

    def changes_told(self) -> List[Dict[str, Any]]:
        return [verdicts.told(one) for one in self.changes]


NOTHING = Proof()
Prove = Callable[[Survey], Proof]
Record = Callable[[Optional[Step]], None]


class ChangedError(Exception):
    """Other programs changed the chains after the update was tried: it must be planned and tried again."""


def prove_nothing(found: Survey) -> Proof:
    """For those who ask for no proof."""
    del found
    return NOTHING


def prove(found: Survey, owners: Owners) -> Proof:
    """Try the expectations, and what the edits change. Raises HostError where the clone itself fails."""
    texts = _texts(found)
    asked = [one for one in found.options.expect if texts or not one.own]
    if not asked and not texts:
        return NOTHING
    try:
        return _Trial(found, owners, asked, texts).run()
    except prover.NoCloneError as err:
        return _unproved(found, asked, texts, str(err))
    except HostError as err:
        if any(not one.own for one in asked) or found.options.opens == "refuse":
            raise
        log.warning("The update could not be tried: %s", err)
        return _unproved(found, [], texts, str(err))


def check(found: Survey, proof: Proof) -> None:
    """After the last commit: what is there now is what was tried, or is tried now.

    Raises RefusedError for an expectation that held before the update, was to hold after it, and does not.
    """
    if not proof.asked() or proof.promise is None or _as_promised(found, proof.promise):
        return
    log.info("Other programs have changed rules since the update was tried; the expectations are tried again")
    try:
        now = _Trial(found, proof.owners, _asked(proof), {}, committed=True).run()
    except prover.NoCloneError as err:
        raise HostError(f"the rules are not what was tried, and they could not be tried again: {err}") from err
    held = {_name(result) for result in proof.results if result.was == HOLDS == result.state}
    for result in now.results:
        if result.state != HOLDS and _name(result) in held:
            message = f"{judging.sentence(result)}. Another program changed the rules while the update was made"
            refusal = Refusal("expectation", message, "try again, or take the expectation out")
            raise RefusedError(_key(found, result), ChainPlan(refusals=(refusal,)))


def only_as_tried(proof: Proof, view: FamilyView, table: str, record: Record) -> Record:
    """The record of a transaction that must not be sent over other chains than those that the update was tried on."""
    if not proof.asked():
        return record

    def recorded(step: Optional[Step]) -> None:
        known = view.live.get(table, {})
        before = step.before if step else {}  # nothing was sent
        changed = [chain for chain, state in before.items() if state != known.get(chain, state)]
        if changed:
            key = chain_key(step.family, table, changed[0])
            raise ChangedError(f"{key}: other programs changed the chain after the update was tried")
        record(step)

    return recorded


def _asked(proof: Proof) -> List[Expectation]:
    return list(dict.fromkeys(result.trial.expectation for result in proof.results))


def _name(result: Result) -> Tuple[Expectation, str]:
    return result.trial.expectation, result.trial.family


def _as_promised(found: Survey, promise: Dict[str, Dict[str, Table]]) -> bool:
    """Whether all chains that the clone held whole are in the kernel as they were in the clone."""
    for view in found.families:
        wanted = promise.get(view.tools.family, {})
        now = kernel.read_tables(view.tools, BUILTIN)
        for table, chains in wanted.items():
            there = now.get(table, {})
            if any(there.get(chain) != state for chain, state in chains.items() if state.rules or chain in there):
                return False
    return True


def _texts(found: Survey) -> Dict[str, List[str]]:
    """The transactions that the update would make, by family."""
    texts: Dict[str, List[str]] = {}
    for view in found.families:
        for table in sorted(view.plans, key=COMMIT_ORDER.index):
            plans = {chain: plan for chain, plan in view.plans[table].items() if plan.edits}
            if plans:
                lines = edits.commands(table, view.live.get(table, {}), plans)
                text = "\n".join(["*" + table] + lines + edits.removals(plans) + ["COMMIT", ""])
                texts.setdefault(view.tools.family, []).append(text)
    return texts


def _unproved(found: Survey, asked: Sequence[Expectation], texts, caveat: str) -> Proof:
    """Nothing was tried. An update is refused where somebody asked for a proof."""
    results = [
        Result(trials.Trial(one, family), UNDECIDED, UNDECIDED, missing=caveat)
        for one in asked
        for family in one.families()
        if family in found.options.families and not one.own
    ]
    refusals: List[Tuple[str, Refusal]] = []
    warnings: List[str] = []
    if texts and (results or found.options.opens == "refuse"):
        message = f"{_first_key(found)}: what must stay reachable could not be tried: {caveat}"
        hint = "give the host what the clone needs, or take 'expect' and 'opens' out"
        refusals.append((_first_key(found), Refusal("expectation" if results else "opens", message, hint)))
    elif texts:
        warnings.append(f"what the update opens and closes could not be tried: {caveat}")
    return Proof(tuple(results), (), tuple(refusals), tuple(warnings), caveat=caveat)


def _first_key(found: Survey) -> str:
    """A refusal that is about no chain in particular is told of the first one that changes."""
    plans = list(found.plans())
    return next((key for key, plan in plans if plan.edits), plans[0][0] if plans else "IPv4/filter/INPUT")


def _key(found: Survey, result: Result) -> str:
    rule = result.finding.answer.rule if result.finding else None
    if rule is not None and rule.backend != "native":
        return chain_key(result.trial.family, rule.table, rule.chain)
    return _first_key(found)


class Whose:
    """Where a rule comes from: the stored line, or its owner."""

    def __init__(self, found: Survey, owners: Owners, live: Dict[str, Dict[str, Table]]):
        self._views = {view.tools.family: view for view in found.families}
        self._owners = owners
        self._live = live
        self._lines: Dict[Tuple, List[Optional[int]]] = {}

    def __call__(self, family: str, rule: Any, after: bool = True) -> Place:
        view = self._views.get(family)
        if rule is None or view is None or not rule.number:
            return Place()
        if rule.backend != view.tools.backend:
            return Place(owner=f"the {rule.backend} backend")
        lines = self._lines_of(view, rule.table, rule.chain, after)
        line = lines[rule.number - 1] if rule.number <= len(lines) else None
        if line is None:
            return Place(owner=self._owners.of_rule(rule.table, rule.chain, rule.text))
        return Place(line, None, after and rule.number in _inserted(view, rule.table, rule.chain))

    def _lines_of(self, view: FamilyView, table: str, chain: str, after: bool) -> List[Optional[int]]:
        key = (view.tools.family, table, chain, after)
        if key not in self._lines:
            plan = view.plans.get(table, {}).get(chain)
            state = self._live.get(view.tools.family, {}).get(table, {}).get(chain)
            if after and plan is not None and plan.edits:
                state = plan.result
            stored = view.states.get(table, {}).get(chain)
            rules = state.rules if state else ()
            self._lines[key] = lines_of(stored, rules) if stored else [None] * len(rules)
        return self._lines[key]


def _inserted(view: FamilyView, table: str, chain: str) -> List[int]:
    plan = view.plans.get(table, {}).get(chain)
    return [edit.position for edit in plan.edits if edit.action == "insert"] if plan else []


class _Trial:
    """One proof in one clone. With ``committed`` the edits are in the kernel already."""

    def __init__(
        self, found: Survey, owners: Owners, asked: Sequence[Expectation], texts, committed: bool = False
    ):  # fmt: skip
        self._found = found
        self._owners = owners
        self._asked = asked
        self._texts = texts
        self._committed = committed

    def run(self) -> Proof:
        named = sorted({one.inside for one in self._asked if one.inside})
        with prover.open_clone([view.tools for view in self._found.families], stand_ins=named) as clone:
            return self._in(clone)

    def _in(self, clone: Any) -> Proof:
        self._whose = Whose(self._found, self._owners, clone.live)
        grounds, rulesets = self._ground(clone)
        tried = self._trials(rulesets, grounds)
        scopes = [] if self._committed else self._scopes(rulesets, grounds)
        cells = [cell for scope in scopes for cell in scope.chains]
        before = self._ask(clone, tried, cells)
        after, extra = before, ()
        if self._texts:
            clone.load_edits(self._texts)
            after = self._ask(clone, tried, cells)
            extra = self._idle(clone, scopes, before, after)
        results = self._judged(tried, before, after)
        changes = [change for scope in scopes for change in verdicts.changes(scope, before[1], after[1])]
        return Proof(
            tuple(results),
            tuple(changes),
            tuple(self._refusals(results, changes, scopes)),
            tuple(extra) + tuple(_own_broken(results)),
            clone.packets,
            clone.kind,
            tuple(clone.not_cloned),
            clone.saved() if results and self._texts else None,
            owners=self._owners,
        )

    def _ground(self, clone: Any):
        grounds, rulesets = {}, {}
        for view in self._found.families:
            family = view.tools.family
            grounds[family] = Ground(family, clone.facts, clone.routes)
            after = {
                table: {chain: plan.result for chain, plan in plans.items() if plan.edits}
                for table, plans in view.plans.items()
            }
            rulesets[family] = Ruleset(clone.live.get(family, {}), after, clone.facts["sets"])
        return grounds, rulesets

    def _trials(self, rulesets, grounds) -> List[trials.Trial]:
        most = trials.budget(len(self._asked))
        return [
            trials.trials(one, family, rulesets[family], grounds[family], most)
            for one in self._asked
            for family in trials.families(one, self._found.options.families, grounds)
            if not (one.own and one.to.span[0] in grounds[family].own)  # the master is this very host
        ]

    def _scopes(self, rulesets, grounds) -> List[verdicts.Scope]:
        return [
            verdicts.scope(view.plans, rulesets[view.tools.family], grounds[view.tools.family])
            for view in self._found.families
            if view.tools.family in self._texts
        ]

    def _ask(self, clone: Any, tried: Sequence[trials.Trial], cells: Sequence[Cell]):
        """The answers for the trials' cells, in order; and those of the cells that edits may change."""
        probes = [_probe(cell, trial.expectation) for trial in tried for cell in trial.cells]
        answers = clone.probe(probes) if probes else []
        quick = clone.probe([prover.Probe(**cell.packet(whole=False)) for cell in cells], worlds=False, trace=False)
        return answers, dict(zip(cells, quick))

    def _judged(self, tried: Sequence[trials.Trial], before, after) -> List[Result]:
        results, at = [], 0
        for trial in tried:
            end = at + len(trial.cells)
            results.append(judging.judge(trial, before[0][at:end], after[0][at:end], self._whose))
            at = end
        return results

    def _refusals(
        self, results: Sequence[Result], changes: Sequence[Change], scopes: Sequence[verdicts.Scope]
    ) -> Iterable[Tuple[str, Refusal]]:
        for result in results:
            if result.breaks:
                yield _key(self._found, result), judging.refusal(result, self._whose)
        if self._found.options.opens == "refuse":
            yield from _opened(self._found, changes, scopes)

    def _idle(self, clone: Any, scopes: Sequence[verdicts.Scope], before, after) -> List[str]:
        """Inserted rules that take no packet, and which rules do."""
        sentences = []
        for scope in scopes:
            for table, chain, edit in verdicts.idle(scope, before[1], after[1])[:MOST_IDLE]:
                cells = scope.inserted[table, chain, edit][:PACKETS_EACH]
                answers = clone.probe([prover.Probe(**cell.packet(whole=False)) for cell in cells], worlds=False)
                mine = {one[1:] for answer in answers for one in answer.path}
                takers = [answer.rule for answer in answers if answer.rule is not None]
                if takers and (table, chain, edit.position) not in mine:
                    names = [_taker(scope.family, rule, self._whose(scope.family, rule)) for rule in takers]
                    key = chain_key(scope.family, table, chain)
                    sentences.append(f"{key}: line {edit.line} decides nothing: {_joined(names)} its packets")
        return sentences


def _taker(family: str, rule: Any, place: Place) -> str:
    if place.line is not None:
        return f"line {place.line}"
    key = chain_key(family, rule.table, rule.chain) if rule.backend != "native" else f"the nftables table {rule.table}"
    return f"{place.owner}'s rule {rule.number} of {key}" if rule.number else f"the policy of {key}"


def _joined(names: Iterable[str]) -> str:
    different = list(dict.fromkeys(names))
    more = [f"{len(different) - MOST_SAID} more"] if len(different) > MOST_SAID else []
    return " and ".join(different[:MOST_SAID] + more) + (" takes" if len(different) == 1 else " take")


def _probe(cell: Cell, one: Expectation) -> Any:
    packet = cell.packet(whole=one.verb == "accept")
    return prover.Probe(**packet, user=_identity(one)) if one.user else prover.Probe(**packet)


def _identity(one: Expectation) -> Tuple[int, int]:
    """The user's number and that of its group."""
    import pwd  # where there is no such database, nobody is asked for either

    try:
        entry = pwd.getpwuid(int(one.user)) if one.user.isdigit() else pwd.getpwnam(one.user)
    except KeyError:
        if one.user.isdigit():
            return int(one.user), int(one.user)
        raise HostError(f"{one.entry}: there is no user '{one.user}' on this host") from None
    return entry.pw_uid, entry.pw_gid


def _own_broken(results: Iterable[Result]) -> List[str]:
    """What nobody asked for, and did not hold before either, is only told."""
    return [judging.sentence(result) for result in results
            if result.trial.expectation.own and result.state == BROKEN and not result.breaks]  # fmt: skip


def _opened(
    found: Survey, changes: Sequence[Change], scopes: Sequence[verdicts.Scope]
) -> Iterable[Tuple[str, Refusal]]:
    """What an update lets in that no ``accept`` names."""
    accepts = [one for one in found.options.expect if one.verb == "accept"]
    chains = {cell: (scope.family,) + chain for scope in scopes for cell, chain in scope.chains.items()}
    for change in changes:
        if not change.lets_in():
            continue
        loose = [cell for cell in change.cells if not any(trials.covers(one, cell) for one in accepts)]
        if loose:
            key = chain_key(*chains[loose[0]])
            words = verdicts.told(change)["words"]
            message = f"{key}: the update {words} (for one: {loose[0].witness()})"
            hint = "name it in 'expect' as an accept, or set 'opens: report'"
            yield key, Refusal("opens", message, hint, witness=loose[0].witness())
    for scope in scopes:
        if not scope.complete:
            message = f"{label(scope.family)}: the rules make too many cells to try all that the update may open"
            yield _first_key(found), Refusal("opens", message, "update in smaller steps, or set 'opens: report'")
