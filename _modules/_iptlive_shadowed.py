"""Rules that never match, since others take their packets: looked for with packets, in a clone of the host."""

import itertools
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import _iptlive_prover as prover
from _iptlive_cells import Cell, Ground
from _iptlive_model import HostError, chain_key
from _iptlive_owners import Owners
from _iptlive_printable import printable
from _iptlive_proof import Whose
from _iptlive_regions import Surveyor
from _iptlive_shapes import Ruleset
from _iptlive_survey import Survey

WITNESSES = 6  # for each rule that meets the one that is looked at
MOST_EACH = 40
MOST_TAKERS = 3


class Candidate(NamedTuple):
    """A rule, and the packets that should come to it."""

    family: str
    table: str
    chain: str
    number: int
    rule: str
    cells: Tuple[Cell, ...]
    complete: bool  # whether these stand for all packets that could come to it


def shadowed(found: Survey, owners: Owners) -> Dict[str, Any]:
    """Raises HostError where no clone can be made."""
    try:
        with prover.open_clone([view.tools for view in found.families]) as clone:
            return _Search(found, owners, clone).run()
    except prover.NoCloneError as err:
        raise HostError(f"which rules are never reached cannot be tried here: {err}") from err


class _Search:
    def __init__(self, found: Survey, owners: Owners, clone: Any):
        self._found = found
        self._clone = clone
        self._whose = Whose(found, owners, clone.live)
        self._backends = {view.tools.family: view.tools.backend for view in found.families}

    def run(self) -> Dict[str, Any]:
        """All candidates at once; of those that no packet came to, which rules took them."""
        candidates = [one for view in self._found.families for one in self._candidates(view.tools)]
        tried = [one for one in candidates if one.cells]
        probes = [prover.Probe(**cell.packet(whole=False)) for one in tried for cell in one.cells]
        answers = iter(self._clone.probe(probes, worlds=False) if probes else ())
        by_rule = {one: list(itertools.islice(answers, len(one.cells))) for one in tried}
        reached = {(one.family, *key) for one, given in by_rule.items() for answer in given for key in answer.path}
        never: Dict[str, List[Dict[str, Any]]] = {}
        untried: Dict[str, List[int]] = {}
        for one in candidates:
            given = by_rule.get(one, ())
            if (one.family, self._backends[one.family], one.table, one.chain, one.number) in reached:
                continue
            if any(answer.rule for answer in given):
                never.setdefault(chain_key(*one[:3]), []).append(self._told(one, given))
            else:
                untried.setdefault(chain_key(*one[:3]), []).append(one.number)
        return {"shadowed": never, "not_tried": untried, "rules": len(candidates), "packets": self._clone.packets}

    def _candidates(self, tools) -> Iterator[Candidate]:
        tables = self._clone.live[tools.family]
        ruleset = Ruleset(tables, {}, self._clone.facts["sets"])
        surveyor = Surveyor(ruleset, Ground(tools.family, self._clone.facts, self._clone.routes))
        for chain, state in tables.get("filter", {}).items():
            for number, rule in enumerate(state.rules, 1):
                axes = surveyor.axes("filter", chain, rule)
                complete = sum(one.count() for one, _ in axes) <= MOST_EACH
                some = (one.cells() if complete else one.witnesses(met.forth, WITNESSES) for one, met in axes)
                cells = tuple(itertools.islice(itertools.chain.from_iterable(some), MOST_EACH))
                yield Candidate(tools.family, "filter", chain, number, rule, cells, complete)

    def _told(self, one: Candidate, answers: List[Any]) -> Dict[str, Any]:
        takers = dict.fromkeys(answer.rule for answer in answers if answer.rule is not None)
        return {
            "position": one.number,
            "rule": printable(one.rule),
            "complete": one.complete,
            **self._place(one.family, one.table, one.chain, one.number, one.rule),
            "taken_by": [
                {
                    "chain": chain_key(one.family, rule.table, rule.chain),
                    "position": rule.number,
                    "rule": printable(rule.text),
                    **self._place(one.family, rule.table, rule.chain, rule.number, rule.text, rule.backend),
                }
                for rule in itertools.islice(takers, MOST_TAKERS)
            ],
        }

    def _place(self, family: str, table: str, chain: str, number: int, text: str, backend: Optional[str] = None):
        rule = prover.Rule(backend or self._backends[family], table, chain, number, text)
        place = self._whose(family, rule, after=False)
        return {"line": place.line} if place.line is not None else {"owner": place.owner} if place.owner else {}
