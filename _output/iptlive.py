"""
Show what iptlive found and did
===============================

.. code-block:: bash

    salt '*' iptlive.plan --out=iptlive
    salt-call iptlive.apply --out=iptlive
    salt '*' state.apply iptlive test=True --out=iptlive
    salt-run iptlive.report '*' --out=iptlive

Per chain the neighbourhood of each change is shown like a diff: what comes (``+``) and goes (``-``), the stored rules
around it, which are its anchors, and the foreign rules in between, dimmed and with their owner. The number in front of
a rule is its position in the chain as it will be. A refusal shows the rules in the way and what helps.

There are colours on a terminal only (``--no-color`` and ``--force-color`` are honoured), and lines are broken to fit
its width. Thousands of changes are summarised; ``--out=json`` has them all.

What hosts answer is held against its shape first: one that answers something else is told of in a line of its own.
"""

import shutil
import sys
import textwrap

import _iptlive_answers as answers
import salt.output
import salt.utils.color
from _iptlive_printable import brief, clean, printable

__virtualname__ = "iptlive"

MOST_STEPS = 20  # of one chain that are listed where its neighbourhoods are not given
MOST_FOREIGN = 6  # foreign rules of one refusal that are shown
LONGEST = 20_000  # characters of one text that are shown; a rule has 10,239 at most
NARROW = 30  # columns left for a rule: with fewer it gets lines of its own
SIGNS = {"insert": "+", "delete": "-"}
HEADLINES = {"in_sync": ("GREEN", "in sync"), "refused": ("LIGHT_RED", "refused; nothing is changed")}


def __virtual__():
    return __virtualname__


def output(data, **kwargs):  # pylint: disable=unused-argument
    """
    Display the results of iptlive's functions, states and report.

    data
        As every outputter gets it: a mapping of minions to what the function returned.

    CLI Example:

    .. code-block:: bash

        salt-call --local iptlive.plan --out=iptlive
    """
    page = Page(_colors(), _width())
    data = clean(data)
    if not isinstance(data, dict):
        return _other(data)
    if answers.fits(data, answers.REPORT):
        show_report(page, data)
        return page.text()
    for minion, result in data.items():
        show(page, minion, result)
    return page.text()


def _colors():
    wanted = __opts__.get("color", False)  # Salt has looked at the terminal and its options already
    # Dimmed, not "dark gray": that is black on many a terminal.
    return dict(salt.utils.color.get_colors(wanted, __opts__.get("color_theme")), DIM="\x1b[2m" if wanted else "")


def _width():
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _other(data):
    return salt.output.out_format(data, "nested", dict(__opts__, output="nested")).rstrip("\n")


def show(page, minion, result):
    """One minion's result, whatever it is."""
    if answers.fits(result, answers.PLAN):
        show_plan(page, minion, result)
    elif isinstance(result, dict) and {"status", "changes", "refusals"} <= set(result):
        page.line(f"{minion}: an answer that is no plan: {brief(result)}", color="LIGHT_RED")
    elif result and answers.fits(result, answers.STATES):
        show_states(page, minion, result)
    elif result and answers.fits(result, answers.FOREIGN):
        show_foreign(page, minion, result)
    elif isinstance(result, str):
        page.line(f"{minion}: {result}", color="LIGHT_RED")
    else:
        page.raw(_other({minion: result}))


class Page:
    """Lines that fit the terminal; ``colors`` are Salt's."""

    def __init__(self, colors, width):
        self._colors = colors
        self._width = width
        self._lines = []

    def text(self):
        return "\n".join(self._lines)

    def raw(self, text):
        self._lines += text.split("\n")

    def gap(self):
        if self._lines and self._lines[-1]:
            self._lines.append("")

    def line(self, text, color=None, indent=0):
        """A sentence; what does not fit goes on below it."""
        self._put(" " * indent, " " * (indent + 2), text, color)

    def rule(self, sign, position, whose, text, color=None):
        """One rule of a chain behind its columns; where little room is left, below them."""
        columns = f"  {sign} {position:>5}  {whose:<12} "
        if self._width and self._width - len(columns) < NARROW:
            self._put("", "", columns.rstrip(), color)
            self._put(" " * 6, " " * 8, text, color)
        else:
            self._put(columns, " " * len(columns), text, color)

    def _put(self, first, others, text, color):
        start, end = (self._colors[color], self._colors["ENDC"]) if color else ("", "")
        self._lines += [
            f"{start}{line.rstrip()}{end}" for line in self._broken(first, others, printable(text[:LONGEST]))
        ]

    def _broken(self, first, others, text):
        if not self._width or len(first) + len(text) <= self._width:
            return [first + text]
        room = max(self._width, len(others) + 10)
        return textwrap.wrap(
            text, room, initial_indent=first, subsequent_indent=others, break_on_hyphens=False, drop_whitespace=True
        )


# --- plan, apply, rollback ---


def show_plan(page, minion, plan):
    """What plan, apply and rollback return."""
    page.gap()
    color, headline = _headline(plan)
    page.line(f"{minion}: {headline}", color=color)
    for family, read in plan.get("families", {}).items():
        page.line("{}: {file} ({backend}, iptables {version})".format(family, **read), indent=2)
    for chain in list(plan["refusals"]) + [chain for chain in plan["changes"] if chain not in plan["refusals"]]:
        page.gap()
        _chain_head(page, chain, plan)
        for refusal in plan["refusals"].get(chain, ()):
            _show_refusal(page, chain, refusal)
        _show_changes(page, plan["changes"].get(chain, []), plan.get("neighbours", {}).get(chain, []))
    _show_quiet_chains(page, plan)
    _show_proof(page, plan)
    for warning in plan.get("warnings", ()):
        page.line("! " + warning, color="YELLOW", indent=2)


def _show_proof(page, plan, indent=2):
    """What does not hold first, then how much does; and what the update opens and closes."""
    expected, verdicts = plan.get("expect", ()), plan.get("verdicts", ())
    if expected or verdicts:
        page.gap()
    told = {refusal.get("expect") for refusals in plan["refusals"].values() for refusal in refusals}
    for one in sorted(expected, key=lambda one: one["state"] != "broken"):
        if one["state"] != "holds":
            _show_unmet(page, one, one["expect"] in told, indent)
    if expected:
        held = [one for one in expected if one["state"] == "holds"]
        packets = _number(plan["proof"]["packets"], "packet")
        color = "GREEN" if len(held) == len(expected) else "YELLOW"
        page.line(f"proved  {len(held)} of {_number(len(expected), 'expectation')}, {packets}", color, indent)
        for one in held:
            if one["note"]:
                page.line(f"{one['expect']}: {one['note']}", indent=indent + 2)
    for change in verdicts[:MOST_STEPS]:
        page.line(change["words"], "YELLOW" if change["change"] == "opens" else None, indent)
    if len(verdicts) > MOST_STEPS:
        page.line(f"... {len(verdicts) - MOST_STEPS} more verdicts change", indent=indent + 2)


def _show_unmet(page, one, is_told, indent):
    color = "LIGHT_RED" if one["state"] == "broken" else "YELLOW"
    page.line(f"{one['state']}  {one['expect']} ({one['family']}; before: {one['was']})", color, indent)
    if one["message"] and not is_told:
        page.line(one["message"], indent=indent + 2)


def _headline(plan):
    steps = sum(map(len, plan["changes"].values()))
    if plan.get("confirm"):
        return _confirm_headline(plan, steps)
    if plan.get("applied"):
        return "GREEN", f"{_number(steps, 'change')} made"
    if plan["status"] == "changes" or plan["changes"]:
        left_out = f", {_number(len(plan['refusals']), 'chain')} refused" if plan["refusals"] else ""
        return "YELLOW", f"{_number(steps, 'change')} to make{left_out}"
    return HEADLINES.get(plan["status"], ("YELLOW", plan["status"]))


def _confirm_headline(plan, steps):
    confirm = plan["confirm"]
    if confirm["state"] == "rolled_back":
        return "LIGHT_RED", "rolled back: {}".format(confirm.get("reason") or "it was not confirmed")
    if confirm["state"] == "pending":
        left = confirm.get("seconds_left")
        until = f" within {left:.0f} seconds" if isinstance(left, (int, float)) else ""
        return "YELLOW", f"{_number(steps, 'change')} made; to be confirmed{until} (iptlive.confirm {plan.get('id')})"
    return "GREEN", f"{_number(steps, 'change')} made and {confirm['state']}"


def _chain_head(page, chain, plan):
    kinds = {}
    for step in plan["changes"].get(chain, ()):
        kinds[step["action"]] = kinds.get(step["action"], 0) + 1
    parts = [_number(count, action.replace("_", " ")) for action, count in kinds.items()]
    if chain in plan["refusals"]:
        parts.insert(0, "refused: " + ", ".join(sorted({refusal["reason"] for refusal in plan["refusals"][chain]})))
    beside = plan.get("foreign", {}).get(chain)
    if beside:
        parts.append("beside " + _owners(beside))
    page.line(f"{chain}   {'; '.join(parts)}", color="LIGHT_RED" if chain in plan["refusals"] else "CYAN", indent=2)


def _show_quiet_chains(page, plan):
    """The foreign rules of chains in which nothing happens, in one line."""
    total = {}
    for chain, numbers in plan.get("foreign", {}).items():
        if chain not in plan["changes"] and chain not in plan["refusals"]:
            for owner, count in numbers.items():
                total[owner] = total.get(owner, 0) + count
    if total:
        page.gap()
        page.line(f"foreign rules in the chains that stay as they are: {_owners(total)}", color="DIM", indent=2)


def _show_changes(page, steps, hunks):
    moves = [step for step in steps if step["action"] in SIGNS]
    for step in steps:
        if step["action"] not in SIGNS:
            page.rule("*", "", _line(step), _whole_chain_step(step), color="YELLOW")
    if not hunks:
        for step in moves[:MOST_STEPS]:
            _show_own(page, step, step["position"])
    for index, hunk in enumerate(hunks):
        if index:
            page.line("    :", color="DIM")
        for line in hunk:
            _show_line(page, line)
    shown = sum("action" in line for hunk in hunks for line in hunk) if hunks else min(len(moves), MOST_STEPS)
    if shown < len(moves):
        kinds = [step["action"] for step in moves]
        made_of = ", ".join(_number(kinds.count(action), action) for action in SIGNS if action in kinds)
        page.line(f"... {len(moves) - shown} more; in all {made_of} (all of them with --out=json)", indent=4)


def _whole_chain_step(step):
    if step["action"] == "policy":
        return "policy {}, was {}".format(step["rule"], step.get("was"))
    return step["action"].replace("_", " ")


def _show_line(page, line):
    if "foreign" in line:
        page.rule(" ", ".", "", f"... {_owners(line['foreign'])} ...", color="DIM")
    elif "owner" in line:
        page.rule(" ", line["position"], line["owner"], line["rule"], color="DIM")
    else:
        # What goes has no place in the chain as it will be, which the other numbers are of.
        _show_own(page, line, "" if line.get("action") == "delete" else line["position"])


def _show_own(page, line, position):
    sign = SIGNS.get(line.get("action"), " ")
    page.rule(sign, position, _line(line), line["rule"], color={"+": "GREEN", "-": "RED"}.get(sign))


def _show_refusal(page, chain, refusal):
    anchors, foreign = refusal.get("anchors", {}), refusal.get("foreign", [])
    if anchors.get("above"):
        page.rule(" ", "", "anchor", anchors["above"])
    for rule, line in zip(refusal["rules"], refusal["lines"]):
        page.rule("?", "", f"line {line}", rule, color="LIGHT_RED")
    for rule, owner in list(zip(foreign, refusal.get("owners") or ["foreign"] * len(foreign)))[:MOST_FOREIGN]:
        page.rule(" ", "", owner, rule, color="DIM")
    hidden = refusal.get("foreign_count", len(foreign)) - MOST_FOREIGN
    if hidden > 0:
        page.rule(" ", "", "", f"... {_number(hidden, 'more foreign rule')} ...", color="DIM")
    if anchors.get("below"):
        page.rule(" ", "", "anchor", anchors["below"])
    message = refusal["message"]
    page.line(message[len(chain) + 2 :] if message.startswith(chain + ": ") else message, indent=4)
    page.line("fix: " + refusal["hint"], color="LIGHT_CYAN", indent=4)


# --- states, foreign rules, the fleet's report ---


def show_states(page, minion, states):
    """A state run: iptlive's states in full, the others by name."""
    page.gap()
    failed = [state for state in states.values() if state["result"] is False]
    count = f"{len(failed)} of {_number(len(states), 'state')} failed" if failed else _number(len(states), "state")
    page.line(f"{minion}: {count}", color="LIGHT_RED" if failed else "GREEN")
    for key, state in sorted(states.items(), key=lambda item: item[1].get("__run_num__", 0)):
        module, function = key.split("_|-")[0], key.split("_|-")[-1]
        color, word = _verdict(state)
        page.line(f"{word}  {module}.{function} {state.get('name', '')}", color=color, indent=2)
        if module == "iptlive":
            _show_state(page, state)


def _verdict(state):
    if state["result"] is None:
        return "YELLOW", "to do"
    if state["result"] is False:
        return "LIGHT_RED", "failed"
    return ("CYAN", "changed") if state["changes"] else ("GREEN", "ok")


def _show_state(page, state):
    data = state.get("data")
    for line in _sentences(data) if data else str(state["comment"]).split("\n"):
        page.line(line, indent=4)
    for refusal in _refusals(data) if data else ():
        page.line(refusal["message"], indent=4)
        page.line("fix: " + refusal["hint"], color="LIGHT_CYAN", indent=6)
    if data:
        _show_proof(page, data, indent=4)
    for chain, steps in state["changes"].items():
        page.gap()
        page.line(chain, color="CYAN", indent=4)
        for step in map(str, steps[:MOST_STEPS] if isinstance(steps, list) else [steps]):
            sign = next((sign for action, sign in SIGNS.items() if f"{action} " in step[:14]), "*")
            color = {"+": "GREEN", "-": "RED"}.get(sign, "YELLOW")
            page.line(f"{sign} {step}", color=color, indent=6)
        if isinstance(steps, list) and len(steps) > MOST_STEPS:
            page.line(f"... {len(steps) - MOST_STEPS} more", indent=6)


def _sentences(data):
    return [data["summary"], *data["warnings"]]


def _refusals(data):
    return [refusal for refusals in data["refusals"].values() for refusal in refusals]


def show_foreign(page, minion, chains):
    """What iptlive.foreign returns."""
    page.gap()
    total = {}
    for rules in chains.values():
        for rule in rules:
            total[rule["owner"]] = total.get(rule["owner"], 0) + 1
    page.line(f"{minion}: foreign rules: {_owners(total)}")
    for chain, rules in chains.items():
        page.gap()
        page.line(f"{chain}   {_number(len(rules), 'rule')}", color="CYAN", indent=2)
        for rule in rules[:MOST_STEPS]:
            color = "YELLOW" if rule["owner"] == "unknown" else None
            page.rule(" ", rule["position"], rule["owner"], rule["rule"], color=color)
        if len(rules) > MOST_STEPS:
            page.line(f"... {len(rules) - MOST_STEPS} more", indent=4)


def show_report(page, report):
    """What the runner iptlive.report returns: a line per host, what is wrong and what to do about it, and the sum."""
    width = max([len(host) for host in report["hosts"]] + [4])
    for host, found in sorted(report["hosts"].items()):
        color = HEADLINES.get(found["status"], ("YELLOW", ""))[0]
        page.line("{:<{}}  {}".format(host, width, _reported(found)), color=color)
        for refusal in found.get("refusals", ()):
            page.line(refusal["message"], indent=4)
            page.line("fix: " + refusal["hint"], indent=6)
    page.gap()
    counts = ("{} {}".format(count, status.replace("_", " ")) for status, count in report["summary"].items())
    page.line("{}: {}".format(_number(len(report["hosts"]), "host"), ", ".join(counts) or "none matched"))


def _reported(found):
    status = found["status"].replace("_", " ")
    if found.get("error"):
        return "{:<9}  {}".format(status, found["error"])
    return "{:<9}  {}".format(status, _number(found["changes"], "change")) if found.get("changes") else status


def _owners(numbers):
    ordered = sorted(numbers.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {owner}" for owner, count in ordered)


def _line(entry):
    return "" if entry.get("line") is None else "line {}".format(entry["line"])


def _number(count, what):
    return "{} {}{}".format(count, what, "" if count == 1 else "s")
