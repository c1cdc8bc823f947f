"""Plans to the plain dictionaries that leave the module: stable keys, safe for JSON."""

import difflib
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, Mapping, Optional, Tuple

from _iptlive_family import label
from _iptlive_journal import Entry, Step, since_boot
from _iptlive_model import ChainPlan, Edit, Refusal, chain_key
from _iptlive_printable import printable, printable_text
from _iptlive_survey import Survey

if TYPE_CHECKING:  # a plan does without these rooms
    from _iptlive_proof import Proof
    from _iptlive_update import Applied, RolledBack

MOST_FOREIGN = 20  # rules in the way that one refusal lists: a chain may hold 50,000 of them


def planned(found: Survey, proof: "Optional[Proof]" = None) -> Dict[str, Any]:
    """The result of ``plan``, and of ``apply`` where nothing was written."""
    plans = list(found.plans())
    warnings = [warning for view in found.families for warning in view.warnings]
    warnings += [warning for _, plan in plans for warning in plan.warnings] + list(proof.warnings if proof else ())
    refusals = refused(plans)
    for key, refusal in proof.refusals if proof else ():
        refusals.setdefault(key, []).append(_refusal(refusal))
    unproved = proof is not None and proof.refused()
    changes = {} if refusals and (unproved or not found.options.partial) else changed(plans)
    return {
        "status": "refused" if refusals else "changes" if changes else "in_sync",
        "families": {
            label(view.tools.family): {
                "file": view.path,
                "backend": view.tools.backend,
                "version": view.tools.version,
                "scratch": view.scratch,
            }
            for view in found.families
        },
        "changes": changes,
        "refusals": refusals,
        "warnings": [printable(warning) for warning in dict.fromkeys(warnings)],
        **_proved(proof),
    }


def _proved(proof: "Optional[Proof]") -> Dict[str, Any]:
    """``proof`` is None where nothing was tried, since nothing changes and nothing is expected."""
    results = proof.results_told() if proof else []
    return {
        "expect": [_shown(one) for one in results],
        "verdicts": [_shown(one) for one in proof.changes_told()] if proof else [],
        "proof": {
            "packets": proof.packets if proof else 0,
            "clone": proof.clone if proof else None,
            "undecided": sum(one["state"] == "undecided" for one in results),
            "not_cloned": [printable(text) for text in proof.not_cloned] if proof else [],
        },
    }


def _shown(told: Mapping[str, Any]) -> Dict[str, Any]:
    return {key: printable(value) if isinstance(value, str) else value for key, value in told.items()}


def unmet(answer: Mapping[str, Any]) -> bool:
    """Whether something that somebody expects does not hold, or cannot be told to."""
    return any(one["state"] != "holds" and not one["default"] for one in answer.get("expect", ()))


def changed(plans: Iterable[Tuple[str, ChainPlan]]) -> Dict[str, List[Dict[str, Any]]]:
    """The steps per chain; a chain that several plans change has the steps of all, in their order."""
    steps: Dict[str, List[Dict[str, Any]]] = {}
    for key, plan in plans:
        if plan.edits:
            steps.setdefault(key, []).extend(_edit(edit) for edit in plan.edits)
    return steps


def refused(plans: Iterable[Tuple[str, ChainPlan]]) -> Dict[str, List[Dict[str, Any]]]:
    return {key: [_refusal(refusal) for refusal in plan.refusals] for key, plan in plans if plan.refusals}


def done(steps: Iterable[Step]) -> Dict[str, List[Dict[str, Any]]]:
    """What was really carried out, in the order of the transactions."""
    return changed(
        (chain_key(step.family, step.table, chain), plan) for step in steps for chain, plan in step.plans.items()
    )


def applied(result: "Applied", settled: Optional[Entry]) -> Dict[str, Any]:
    """The result of ``apply``; ``settled`` is the update after waiting for its confirmation, where it needs one."""
    answer = dict(planned(result.found, result.proof), applied=False)
    answer["warnings"] += [printable(note) for note in result.notes]
    written: Iterable[str] = result.written
    if result.refused:
        answer.update(status="refused", changes={}, refusals=refused([result.refused]))
    if result.entry:
        steps = result.entry.steps
        answer.update(applied=bool(steps), changes=done(steps), id=result.entry.id)
    if settled:
        answer["confirm"] = update(settled)
        if settled.state == "done":
            written = settled.files
    if lost(answer):
        answer.update(applied=False, changes={})
    return dict(answer, written=sorted(written)) if written else answer


def lost(answer: Mapping[str, Any]) -> bool:
    """Whether an update that had to be confirmed was not."""
    return answer.get("confirm", {"state": "confirmed"})["state"] not in ("confirmed", "pending")


def rolled_back(result: "RolledBack") -> Dict[str, Any]:
    """The result of ``rollback``."""
    refusals = refused(result.plans)
    changes = {} if refusals else changed(result.plans)
    return {
        "id": result.entry.id,
        "status": "refused" if refusals else "changes" if changes else "in_sync",
        "applied": result.done and bool(changes),
        "changes": changes,
        "refusals": refusals,
        "warnings": [printable(warning) for _, plan in result.plans for warning in plan.warnings],
    }


def history(entries: Iterable[Entry]) -> List[Dict[str, Any]]:
    """The updates of a journal, the newest first."""
    return [
        {"id": entry.id, "started": entry.started, "state": entry.state, "reason": printable(entry.reason)}
        for entry in sorted(entries, key=lambda entry: entry.id, reverse=True)
    ]


def update(entry: Entry) -> Dict[str, Any]:
    """An update of the journal, for those who wait for its outcome."""
    left = 0 if entry.deadline is None else max(0, int(entry.deadline - since_boot()))
    told = {
        "id": entry.id,
        "state": "confirmed" if entry.state == "done" else entry.state,
        "started": entry.started,
        "reason": printable(entry.reason),
        "seconds": entry.seconds,
        "seconds_left": left,
        "checks": list(entry.checks),
    }
    return dict(told, files=sorted(entry.files)) if entry.files else told


def _edit(edit: Edit) -> Dict[str, Any]:
    entry = {"action": edit.action, "position": edit.position, "rule": printable(edit.rule), "line": edit.line}
    if edit.moved:
        entry["moved"] = True
    if edit.was is not None:
        entry["was"] = edit.was
    return entry


def _refusal(refusal: Refusal) -> Dict[str, Any]:
    entry = {
        "reason": refusal.reason,
        "rules": [printable(rule) for rule in refusal.rules],
        "lines": list(refusal.lines),
        "message": printable(refusal.message),
        "hint": printable(refusal.hint),
    }
    if refusal.reason in ("expectation", "opens"):
        entry.update(expect=printable(refusal.expect), witness=refusal.witness)
    if refusal.reason in ("foreign_between", "no_anchor"):
        entry["anchors"] = {"above": _anchor(refusal.above), "below": _anchor(refusal.below)}
        entry["foreign"] = [printable(rule) for rule in refusal.foreign[:MOST_FOREIGN]]
        entry["foreign_count"] = len(refusal.foreign)
    return entry


def _anchor(rule) -> Any:
    return None if rule is None else printable(rule)


def file_change(source: str, path: str, old: Optional[bytes], new: bytes) -> Dict[str, str]:
    """A stored file that is to be written, or was."""
    lines = [_lines(old or b""), _lines(new)]
    diff = "\n".join(difflib.unified_diff(*lines, fromfile=path, tofile=source, lineterm=""))
    return {"source": source, "diff": diff or "only line ends differ" if old is not None else "new file"}


def _lines(data: bytes) -> List[str]:
    text = data.decode("utf-8", "surrogateescape").replace("\r\n", "\n")
    return printable_text(text[:-1] if text.endswith("\n") else text).split("\n")
