"""What became of each expectation: it holds, is broken or could not be decided; and whether the update did it."""

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import _iptlive_spans as spans
from _iptlive_cells import Cell
from _iptlive_expect import Arrival, Expectation
from _iptlive_family import label
from _iptlive_model import Refusal, chain_key
from _iptlive_shapes import shape
from _iptlive_trials import Trial

HOLDS, BROKEN, UNDECIDED = "holds", "broken", "undecided"
MOST_NAMED = 3  # peers that a note names
_WANTED = {"accept": ("accept",), "block": ("drop", "reject"), "drop": ("drop",), "reject": ("reject",)}
_DONE = {"accept": "accepted", "drop": "dropped", "reject": "rejected"}


class Place(NamedTuple):
    """Where the deciding rule comes from: a stored line, or whose it is; ``inserted`` by the update that is tried."""

    line: Optional[int] = None
    owner: Optional[str] = None
    inserted: bool = False


class Finding(NamedTuple):
    """One cell before and after, as the prover's answers have it."""

    cell: Cell
    was: str
    after: str
    before: Any
    answer: Any


class Result(NamedTuple):
    """One expectation in one family. ``finding`` is the packet that shows it best; there is none without a packet."""

    trial: Trial
    state: str
    was: str
    packets: int = 0
    finding: Optional[Finding] = None
    place: Place = Place()
    note: str = ""
    breaks: bool = False  # the update is what breaks it
    missing: str = ""


def judge(trial: Trial, before: Sequence[Any], after: Sequence[Any], whose) -> Result:
    """``before`` and ``after`` are the answers for the trial's cells, in order.

    ``whose`` tells of a rule where it comes from: ``whose(family, rule, after=True)`` is a Place.
    """
    one = trial.expectation
    if not trial.cells:
        return Result(trial, UNDECIDED, UNDECIDED, note=trial.note, missing=trial.missing)
    findings = [
        Finding(cell, state(one, was), state(one, now), was, now)
        for cell, was, now in zip(trial.cells, before, after)
    ]  # fmt: skip
    excused = _excused(trial, findings, whose)
    counted = [finding for finding in findings if finding not in excused]
    notes = [trial.note] if trial.note else []
    notes += [_but_not_for(trial, excused, whose)] if excused else []
    broken = [finding for finding in counted if finding.was == HOLDS and finding.after != HOLDS]
    shown = min(broken or counted, key=lambda finding: (HOLDS, UNDECIDED, BROKEN)[::-1].index(finding.after))
    notes += _unless(trial.family, one, counted)
    rule = shown.answer.rule
    return Result(
        trial,
        _worst(finding.after for finding in counted),
        _worst(finding.was for finding in counted),
        len(trial.cells),
        shown,
        whose(trial.family, rule) if rule else Place(),
        "; ".join(notes),
        bool(broken),
    )


def _worst(states) -> str:
    found = set(states)
    return next(one for one in (BROKEN, UNDECIDED, HOLDS) if one in found)


def state(one: Expectation, answer: Any) -> str:
    """Of an accept the quiet world counts: limits not used up, lists empty. A block must hold in all worlds."""
    if answer.verdict == UNDECIDED:
        return UNDECIDED
    wanted = _WANTED[one.verb]
    if one.verb == "accept":
        held = answer.verdict in wanted and (one.arrives is None or _arrives(one.arrives, answer.arrives))
        return HOLDS if held else BROKEN
    fits = {verdict in wanted for verdict in (answer.verdict, *answer.others)}
    return UNDECIDED if len(fits) == 2 else HOLDS if fits == {True} else BROKEN


def _arrives(wanted: Arrival, found: str) -> bool:
    address, port = _split(found)
    if not address or spans.family_of(address) != spans.family_of(wanted.address):
        return False
    same = spans.number(address) == spans.number(wanted.address)
    return same and wanted.port in (None, port)


def _split(end: str) -> Tuple[str, Optional[int]]:
    """``172.17.0.2:80``, ``[2001:db8::2]:80``, or an address alone."""
    if end.startswith("["):
        address, _, port = end[1:].partition("]:")
    elif end.count(":") == 1:
        address, _, port = end.partition(":")
    else:
        address, port = end, ""
    return address, int(port) if port else None


# --- bans ---


def _excused(trial: Trial, findings: List[Finding], whose) -> List[Finding]:
    """Peers that others keep out by a rule of their own that names them, before the update as after it: bans."""
    if trial.expectation.verb != "accept":
        return []
    found = [
        finding for finding in findings if finding.after == BROKEN == finding.was and _is_ban(trial, finding, whose)
    ]
    return found if len(found) < len(findings) else []


def _is_ban(trial: Trial, finding: Finding, whose) -> bool:
    rule, before, source = finding.answer.rule, finding.before.rule, finding.cell.source
    if rule is None or before is None or source is None or rule.number == 0:
        return False
    if (rule.table, rule.chain, rule.text) != (before.table, before.chain, before.text):
        return False
    if not shape(rule.text).names_sources() or whose(trial.family, rule).line is not None:
        return False
    named = [place.span for place in trial.expectation.sources or () if place.family == trial.family]
    return bool(spans.without(named or [spans.everything(trial.family)], [source.span]))


def _but_not_for(trial: Trial, excused: List[Finding], whose) -> str:
    peers = list(dict.fromkeys((finding.cell.source.span, finding.answer.rule) for finding in excused))
    named = []
    for span, rule in peers[:MOST_NAMED]:
        place = f"{chain_key(trial.family, rule.table, rule.chain)} {rule.number}"
        named.append(f"{spans.named(trial.family, span)} ({whose(trial.family, rule).owner}, {place})")
    more = f" and {len(peers) - MOST_NAMED} more" if len(peers) > MOST_NAMED else ""
    return "but not for " + ", ".join(named) + more


def _unless(family: str, one: Expectation, findings: List[Finding]) -> List[str]:
    """What an accept hangs on: a counter that is used up, a list that it is on."""
    if one.verb != "accept":
        return []
    hanging = [open_ for finding in findings if finding.after == HOLDS and finding.answer.others
               for open_ in finding.answer.hangs]  # fmt: skip
    named = [
        f"-m {one.match} of {chain_key(family, one.table, one.chain)} {one.number}" for one in dict.fromkeys(hanging)
    ]
    return [f"unless {' or '.join(named[:MOST_NAMED])} says otherwise"] if named else []


# --- words ---


def told(result: Result) -> Dict[str, Any]:
    """As results hold it."""
    finding = result.finding
    answer = finding.answer if finding else None
    rule = answer.rule if answer else None
    return {
        "expect": result.trial.expectation.text(),
        "family": label(result.trial.family),
        "state": result.state,
        "was": result.was,
        "packets": result.packets,
        "witness": finding.cell.witness() if finding else "",
        "leg": answer.leg if answer else "",
        "verdict": answer.verdict if answer else UNDECIDED,
        "rule": _rule_text(result.trial.family, rule) if rule else "",
        "line": result.place.line,
        "owner": result.place.owner,
        "note": "; ".join(part for part in (result.note, _why(result)) if part),
        "message": "" if result.state == HOLDS else sentence(result),
    }


def _rule_text(family: str, rule: Any) -> str:
    if not rule.number:
        return f"{_chain(family, rule)}: {rule.text}".rstrip(": ")
    return f"{_chain(family, rule)} {rule.number}: {rule.text}"


def _chain(family: str, rule: Any) -> str:
    if rule.backend == "native":
        return f"the nftables table {rule.table}" + (f", chain {rule.chain}" if rule.chain else "")
    return chain_key(family, rule.table, rule.chain)


def _why(result: Result) -> str:
    """Why it is undecided."""
    if result.state != UNDECIDED:
        return ""
    return result.missing or undecided(result.trial.family, result.finding.answer)


def undecided(family: str, answer: Any) -> str:
    if answer.why:
        return answer.why
    named = [f"-m {one.match} of {chain_key(family, one.table, one.chain)} {one.number}" for one in answer.hangs]
    return f"it hangs on {' and '.join(named[:MOST_NAMED])}" if named else "the worlds differ"


def sentence(result: Result) -> str:
    """What is the matter with one that does not hold, and with which packet."""
    family, one = result.trial.family, result.trial.expectation
    what = f"{one.name} ({one.words()})" if one.name else one.what()
    where = (
        _chain(family, result.finding.answer.rule) if result.finding and result.finding.answer.rule else label(family)
    )
    if result.state == UNDECIDED:
        return f"{where}: {what} could not be decided: {_why(result)}"
    wish = {"accept": "accepted", "block": "blocked", "drop": "dropped", "reject": "rejected"}[one.verb]
    verb = "would no longer be" if result.breaks else "is not"
    return f"{where}: {what} {verb} {wish}: {_packet(result)}"


def _packet(result: Result) -> str:
    finding, family = result.finding, result.trial.family
    answer, one = finding.answer, result.trial.expectation
    packet = finding.cell.witness()
    if answer.verdict == "accept" and one.arrives:
        return f"{packet} arrives at {answer.arrives or 'this host'}"
    leg = {"answer": "the answer to ", "follow-up": "what follows ", "neighbour": "the neighbour discovery before "}
    by = f" by {decider(family, answer, result.place)}" if answer.rule or answer.detail else ""
    return f"{leg.get(answer.leg, '')}{packet} is {_DONE[answer.verdict]}{by}"


def decider(family: str, answer: Any, place: Place) -> str:
    rule = answer.rule
    if rule is None:
        return f"the host ({answer.detail})"
    if rule.backend == "native":
        return _chain(family, rule)
    key = chain_key(family, rule.table, rule.chain)
    if not rule.number:
        return f"the policy of {key}"
    if place.line is not None:
        put = f", put at position {rule.number}" if place.inserted else ""
        return f"line {place.line}, '{rule.text}'{put}"
    owner = f"{place.owner}'s rule" if place.owner not in (None, "unknown") else "the foreign rule"
    return f"{owner} {rule.number} of {key}, '{rule.text}'"


def refusal(result: Result, whose) -> Refusal:
    """Why the update is refused."""
    return Refusal(
        "expectation",
        sentence(result),
        _fix(result, whose),
        (result.finding.answer.rule.text,) if result.finding.answer.rule else (),
        (result.place.line,) if result.place.line is not None else (),
        expect=result.trial.expectation.text(),
        witness=result.finding.cell.witness(),
    )


def _fix(result: Result, whose) -> str:
    """The smallest thing that helps."""
    answer, family = result.finding.answer, result.trial.family
    otherwise = "or take the expectation out"
    if answer.leg in ("answer", "follow-up") and answer.rule is not None:
        return f"accept ESTABLISHED in {answer.rule.chain}, {otherwise}"
    if result.state == UNDECIDED:
        return f"make it independent of that rule, {otherwise}"
    before = finding_line(family, result.finding.before, whose)
    place = result.place
    if place.inserted and before is not None:
        return f"move line {place.line} below line {before}, {otherwise}"
    if place.inserted:
        return f"narrow line {place.line}, {otherwise}"
    if before is not None:
        return f"keep the rule of line {before}, {otherwise}"
    return f"add a rule that has it {_WANTED_WORD[result.trial.expectation.verb]}, {otherwise}"


_WANTED_WORD = {"accept": "accepted", "block": "dropped", "drop": "dropped", "reject": "rejected"}


def finding_line(family: str, before: Any, whose) -> Optional[int]:
    """The stored line that decided before the update."""
    return whose(family, before.rule, after=False).line if before.rule is not None and before.rule.number else None
