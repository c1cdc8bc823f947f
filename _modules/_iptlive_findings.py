"""Verdicts: what became of each probe, which rule decided, and whether it hangs on what cannot be known."""

from typing import Dict, FrozenSet, List, NamedTuple, Optional, Sequence, Tuple

from _iptlive_conversation import Conversations
from _iptlive_packets import endpoint, show
from _iptlive_probe import NEIGHBOUR, REQUEST, Outcome, Probe, Session
from _iptlive_rehearsal import QUIET, Ruleset, Stage
from _iptlive_rules import targets
from _iptlive_tracer import NATIVE, Event

MOST_WORLDS = 16
_DENYING = ("DROP", "REJECT", "TARPIT", "STEAL")
_NO_ROUTE = ("InNoRoutes", "OutNoRoutes", "Ip6InNoRoutes", "Ip6OutNoRoutes")


class Rule(NamedTuple):
    backend: str
    table: str
    chain: str
    number: int  # 0: the chain's policy
    text: str


class Finding(NamedTuple):
    """In one world."""

    outcome: Outcome
    rule: Optional[Rule] = None
    path: Tuple[Rule, ...] = ()
    reached: FrozenSet[int] = frozenset()  # the open rules whose other matches were met

    def signature(self) -> tuple:
        return (self.outcome.verdict, *self.place())

    def place(self) -> Tuple[str, str]:
        """Where the packet got, after address translation: its destination, and the interface that it left by."""
        if self.outcome.arrival is None:
            return "", ""
        packet = self.outcome.arrival.packet
        return endpoint(show(packet.destination), packet.port), self.outcome.arrival.interface


class Judge:
    """``blind``: why nothing of a family can be decided; ``unsure_natives``: what a table of nftables hangs on."""

    def __init__(
        self,
        conversations: Conversations,
        stage: Stage,
        sessions: Dict[Probe, Session],
        blind: Dict[str, str],
        unsure_natives: Dict[str, str],
    ):
        self._conversations = conversations
        self._stage = stage
        self._rulesets = {(ruleset.family, ruleset.backend): ruleset for ruleset in stage.rulesets}
        self._blind = blind
        self._unsure_natives = unsure_natives
        self._sessions = sessions

    def judge(self, probes: Sequence[Probe], worlds: bool) -> List[dict]:
        for family in {probe.family for probe in probes}:
            self._stage.enter(family, QUIET)
        quiet = [self._find(probe) for probe in probes]
        others = self._in_worlds(probes, quiet) if worlds else [{} for _ in probes]
        for family in {probe.family for probe in probes}:
            self._stage.enter(family, QUIET)
        return [self._answer(*one) for one in zip(probes, quiet, others)]

    # --- worlds --------------------------------------------------------------------------------------------------

    def _in_worlds(self, probes: Sequence[Probe], quiet: Sequence[Finding]) -> List[Dict[FrozenSet[int], Finding]]:
        """What each probe meets in the worlds that matter to it: those of the open rules that it reaches in another."""
        found: List[Dict[FrozenSet[int], Finding]] = [{} for _ in probes]
        for family in sorted({probe.family for probe in probes}):
            marks = self._marks(family)
            if not marks:
                continue
            todo: Dict[FrozenSet[int], List[int]] = {
                frozenset(): [
                    at
                    for at, probe in enumerate(probes)
                    if probe.family == family and quiet[at].outcome.verdict != "undecided"
                ]
            }
            while todo:
                world, members = todo.popitem()
                self._stage.enter(family, world)
                for at in members:
                    for further in self._try_in(world, probes[at], found[at], marks):
                        todo.setdefault(further, []).append(at)
        return found

    def _try_in(self, world: FrozenSet[int], probe: Probe, found, marks) -> List[FrozenSet[int]]:
        """The further worlds to be tried."""
        if world in found or len(found) > MOST_WORLDS:
            return []
        found[world] = self._find(probe)
        return [world | {mark} for mark in found[world].reached if mark in marks and mark not in world]

    def _marks(self, family: str) -> Dict[int, Ruleset]:
        """The open rules of the family on which a verdict may hang."""
        return {
            mark: ruleset
            for (name, _), ruleset in self._rulesets.items()
            if name == family
            for mark in ruleset.deciding()
        }

    # --- one probe in one world ----------------------------------------------------------------------------------

    def _find(self, probe: Probe) -> Finding:
        if probe.family in self._blind:
            return Finding(Outcome("undecided", REQUEST, why=self._blind[probe.family]))
        outcome = self._carry_out(probe)
        legs = self._conversations.legs
        rules = {leg.name: self._rules(probe.family, leg.events) for leg in legs}
        everything = [event for leg in legs for event in leg.events]
        reached = frozenset(
            mark for mark in (self._mark(probe.family, event) for event in everything) if mark is not None
        )
        why = self._unknowable(probe.family, everything, reached, outcome)
        if why:
            outcome = outcome._replace(verdict="undecided", why=why)
        events = next((leg.events for leg in reversed(legs) if leg.name == (outcome.leg or REQUEST)), [])
        rule = self._decider(probe.family, outcome, events)
        if rule is None and outcome.verdict in ("drop", "reject") and outcome.leg != NEIGHBOUR:
            outcome = self._explained(probe, outcome)
        return Finding(outcome, rule, tuple(rules.get(REQUEST, ())), reached)

    def _carry_out(self, probe: Probe) -> Outcome:
        if not probe.established:
            return self._conversations.hold(probe)
        if probe not in self._sessions:
            failed = self._establish(probe)
            if failed:
                return failed
        return self._conversations.go_on(self._sessions[probe])

    def _establish(self, probe: Probe) -> Optional[Outcome]:
        """Open the session through the live rules, or past them where they let no new one in."""
        outcome, session = self._conversations.open(probe)
        if session is None:
            self._stage.door(probe.family, True)
            outcome, session = self._conversations.open(probe)
            self._stage.door(probe.family, False)
        if session is None:
            why = outcome.why or "no session could be opened in the clone that could be established now"
            return Outcome("undecided", REQUEST, "", why)
        self._sessions[probe] = session
        return None

    def _unknowable(self, family: str, events: Sequence[Event], reached: FrozenSet[int], outcome: Outcome) -> str:
        for event in events:
            if event.backend == NATIVE and event.table in self._unsure_natives:
                word = self._unsure_natives[event.table]
                return f"the nftables table '{event.table}' hangs on '{word}', which no clone can know"
        for mark in sorted(reached):
            rule = self._open(family, mark)
            # A copy that TEE sends out could be taken for the packet itself.
            copies = rule.blind == "'-j TEE'" and not (outcome.arrival and outcome.arrival.interface)
            if rule.blind and not copies:
                return f"reaches {rule.blind}"
        return ""

    def _explained(self, probe: Probe, outcome: Outcome) -> Outcome:
        """No rule did it: the kernel's own counters tell, when it is tried once more."""
        before = _counters()
        self._carry_out(probe)
        counted = {name for name, value in _counters().items() if value != before.get(name, 0)}
        if "IPReversePathFilter" in counted:
            return outcome._replace(detail="reverse path filter")
        if counted.intersection(_NO_ROUTE):
            return outcome._replace(verdict="undecided", why=f"no route to {probe.destination}, or none back")
        if counted & {"InAddrErrors", "Ip6InAddrErrors"}:
            return outcome._replace(detail=outcome.detail or "this host does not take or forward such packets")
        return outcome

    # --- rules ---------------------------------------------------------------------------------------------------

    def _ruleset(self, family: str, event: Event) -> Optional[Ruleset]:
        return self._rulesets.get((family, event.backend))

    def _open(self, family: str, mark: int):
        return next(
            ruleset.open[mark]
            for (name, _), ruleset in self._rulesets.items()
            if name == family and mark in ruleset.open
        )

    def _is_rule(self, family: str, event: Event) -> bool:
        """The legacy trace calls a rule without matches what the end of a chain is called; its number tells."""
        if event.kind == "rule" or event.backend != "legacy":
            return event.kind == "rule"
        ruleset = self._ruleset(family, event)
        return ruleset is not None and 0 < event.number <= ruleset.length(event.table, event.chain)

    def _mark(self, family: str, event: Event) -> Optional[int]:
        ruleset = self._ruleset(family, event)
        if ruleset is None or not self._is_rule(family, event):
            return None
        return ruleset.at(event.table, event.chain, event.number)

    def _rule(self, family: str, event: Event) -> Rule:
        ruleset = self._ruleset(family, event)
        if event.backend == NATIVE or ruleset is None:
            return Rule(event.backend, event.table, event.chain, 0, "")
        if self._is_rule(family, event):
            text = ruleset.rule(event.table, event.chain, event.number)
            number = ruleset.number(event.table, event.chain, event.number)
            return Rule(event.backend, event.table, event.chain, number, text)
        policy = ruleset.policy(event.table, event.chain)
        return Rule(event.backend, event.table, event.chain, 0, f"policy {policy}")

    def _rules(self, family: str, events: Sequence[Event]) -> List[Rule]:
        return [self._rule(family, event) for event in events if self._is_rule(family, event)]

    def _decider(self, family: str, outcome: Outcome, events: Sequence[Event]) -> Optional[Rule]:
        if outcome.verdict == "accept":
            ends = [event for event in events if event.kind != "return" or self._is_rule(family, event)]
            filtering = [event for event in ends if event.table == "filter"]
            return self._rule(family, (filtering or ends)[-1]) if ends else None
        denying = [event for event in events if self._denies(family, event)]
        return self._rule(family, denying[-1]) if denying else None

    def _denies(self, family: str, event: Event) -> bool:
        if event.backend != "legacy":
            return event.verdict == "drop"
        rule = self._rule(family, event)
        if not rule.number:
            return event.kind == "policy" and rule.text == "policy DROP"
        return any(target in _DENYING for target in targets(rule.text))

    # --- the answer ----------------------------------------------------------------------------------------------

    def _answer(self, probe: Probe, quiet: Finding, worlds: Dict[FrozenSet[int], Finding]) -> dict:
        outcome = quiet.outcome
        arrives, out = quiet.place()
        answer = {
            "verdict": outcome.verdict,
            "leg": outcome.leg,
            "detail": outcome.detail,
            "rule": quiet.rule,
            "arrives": arrives,
            "out": out,
            "others": [],
            "hangs": [],
            "path": [(rule.backend, rule.table, rule.chain, rule.number) for rule in quiet.path],
            "why": outcome.why,
        }
        if outcome.verdict == "undecided":
            return answer
        unsure = [mark for mark in quiet.reached if self._has_no_quiet_form(probe.family, mark)]
        if len(worlds) > MOST_WORLDS:
            return {**answer, "verdict": "undecided", "why": f"it hangs on more than {MOST_WORLDS} ways"}
        if unsure and not worlds:
            return self._unsure(answer, probe, unsure)
        different = {found.signature() for found in worlds.values()} - {quiet.signature()}
        if not different:
            return answer
        hangs = self._hangs(worlds)
        answer["hangs"] = [self._place(probe.family, mark) for mark in hangs]
        verdicts = {verdict for verdict, _, _ in different} - {outcome.verdict}
        if not unsure:
            return {**answer, "others": sorted(verdicts)}
        if verdicts:
            return {**self._unsure(answer, probe, unsure), "others": sorted(verdicts | {outcome.verdict})}
        # It gets somewhere in any case, and only where hangs on what cannot be known.
        return {**answer, "arrives": " or ".join(sorted({place for _, place, _ in different} | {arrives}))}

    def _unsure(self, answer: dict, probe: Probe, marks: Sequence[int]) -> dict:
        names = ", ".join(sorted({name for mark in marks for name in self._open(probe.family, mark).matches}))
        return {**answer, "verdict": "undecided", "why": f"it hangs on '-m {names}', which no clone can know"}

    def _has_no_quiet_form(self, family: str, mark: int) -> bool:
        rule = self._open(family, mark)
        return rule.quiet is None and rule.decides

    def _hangs(self, worlds: Dict[FrozenSet[int], Finding]) -> List[int]:
        """The open rules that make a difference where all others stay the same."""
        found = {
            mark
            for world, finding in worlds.items()
            for mark in finding.reached
            if world | {mark} in worlds and worlds[world | {mark}].signature() != finding.signature()
        }
        return sorted(found)

    def _place(self, family: str, mark: int) -> list:
        for (name, backend), ruleset in self._rulesets.items():
            for place, other in ruleset.places.items():
                if name == family and other == mark:
                    rule = ruleset.open[mark]
                    number = ruleset.number(*place)
                    return [backend, place.table, place.chain, number, rule.text, ",".join(rule.matches)]
        raise KeyError(mark)


def _counters() -> Dict[str, int]:
    found: Dict[str, int] = {}
    for name in ("netstat", "snmp"):
        with open(f"/proc/net/{name}", encoding="ascii") as source:
            lines = source.read().splitlines()
        for names, values in zip(lines[::2], lines[1::2]):
            found.update(zip(names.split()[1:], map(int, values.split()[1:])))
    try:
        with open("/proc/net/snmp6", encoding="ascii") as source:
            found.update((name, int(value)) for name, value in (line.split() for line in source))
    except OSError:
        pass
    return found
