"""
Keep the live iptables rules in line with the stored rules file
===============================================================

.. code-block:: yaml

    firewall:
      iptlive.managed:
        - families: [ipv4]
        - placement: before

Foreign rules (Docker's, Kubernetes', fail2ban's: all that no stored line accounts for) are left alone; nothing is
flushed, and a rule that is there already is not written again. All options of the execution module may be given;
those that are not are taken from pillar ``iptlive``.
"""

from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "iptlive"

DISABLED = "iptlive is disabled on this host (pillar iptlive:enabled is false): nothing was read or changed."

DATA = ("changes", "refusals", "expect", "verdicts", "proof", "warnings")  # for the outputter
MOST_VERDICTS = 20  # that one comment tells

# What Salt's state compiler hands to a state function beside its own arguments.
_COMPILER_WORDS = ("fun", "state", "order", "saltenv", "sfun")


def __virtual__():
    if "iptlive.apply" in __salt__:
        return __virtualname__
    return False, "the execution module iptlive is not available"


def managed(name, **options):
    """
    Bring the kernel's rules in line with the stored files.

    name
        A label; it has no influence.
    options
        Those of the execution module ``iptlive``, under the same names.

    With ``sources`` the stored files come from the master, and ``changes`` tells of the files too, by path:

    .. code-block:: yaml

        firewall:
          iptlive.managed:
            - families: [ipv4]
            - sources: {ipv4: ["salt://firewall/{{ grains.id }}.v4", "salt://firewall/rules.v4"]}
            - template: jinja
            - context: {admin: 192.0.2.0/24}

    A file is planned against before it is written, and written only when the kernel has accepted it.

    With ``confirm`` the state waits for the outcome; an update that was not confirmed is a failure that says so.

    For programs, ``data`` has what ``comment`` says in prose: ``summary``, and the ``changes``, ``refusals`` and
    ``warnings`` that the execution module returned.

    ``result`` is ``True`` when all was in sync or the update was applied and verified, ``None`` in test mode when
    there are changes to make, ``False`` when the update was refused or failed. ``changes`` holds per chain what was
    (in test mode: what would be) done. Refusals and their hints are in ``comment``.

    CLI Example:

    .. code-block:: bash

        salt '*' state.single iptlive.managed firewall test=True
    """
    ret = {"name": name, "result": True, "changes": {}, "comment": ""}
    given = {
        word: value for word, value in options.items() if not word.startswith("__") and word not in _COMPILER_WORDS
    }
    if "test" in given:
        ret.update(result=False, comment="'test' is no option of this state: it follows the run it is part of.")
        return ret
    try:
        if not __salt__["iptlive.enabled"]():
            ret["comment"] = DISABLED
            return ret
        answer = __salt__["iptlive.apply"](test=__opts__["test"], saltenv=__env__, **given)
        if answer.get("confirm", {}).get("state") == "pending":
            answer["confirm"] = __salt__["iptlive.outcome"](answer["id"])
            answer["written"] = answer["confirm"].get("files", ())
    except (CommandExecutionError, SaltInvocationError) as err:
        ret.update(result=False, comment=str(err))
        return ret
    if "confirm" in answer and answer["confirm"]["state"] != "confirmed":
        ret.update(result=False, comment="rolled back: {reason} (update {id}).".format(**answer["confirm"]))
        return ret
    ret["changes"] = {chain: [_step(step) for step in steps] for chain, steps in answer["changes"].items()}
    files = answer.get("files", {}) if __opts__["test"] else answer.get("written", ())
    ret["changes"].update({path: {"diff": answer["files"][path]["diff"]} for path in files})
    said = _refusals(answer) + _unmet(answer) + _verdicts(answer) + answer["warnings"]
    ret["comment"] = "\n".join([_summary(answer)] + said)
    ret["data"] = dict({key: answer[key] for key in DATA}, summary=_summary(answer))
    if answer["status"] == "refused" or _not_held(answer):
        ret["result"] = False
    elif ret["changes"] and __opts__["test"]:
        ret["result"] = None
    return ret


mod_watch = managed  # watch and listen run it when something changed, such as a stored file


def _step(step):
    if step["action"] == "create_chain":
        return "create the chain (line {})".format(step["line"])
    if step["action"] == "policy":
        return "policy {}, was {} (line {})".format(step["rule"], step["was"], step["line"])
    what = "move: " if step.get("moved") else ""
    return "{}{} {}: {} (line {})".format(what, step["action"], step["position"], step["rule"], step["line"])


def _summary(answer):
    count = sum(len(steps) for steps in answer["changes"].values())
    files = " and ".join(family["file"] for family in answer["families"].values())
    refused = answer["status"] == "refused"
    if answer["applied"]:
        rest = "the other chains are refused" if refused else f"the kernel is in sync with {files}"
        return f"{_changes(count)} made; {rest}."
    if count:
        rest = "; the other chains are refused" if refused else f" to bring the kernel in sync with {files}"
        return f"{_changes(count)} to make{rest}."
    return "Refused; nothing was changed." if refused else f"The kernel is in sync with {files}."


def _changes(count):
    return "{} change{}".format(count, "" if count == 1 else "s")


def _refusals(answer):
    return [
        "{}. Fix: {}.".format(refusal["message"], refusal["hint"])
        for refusals in answer["refusals"].values()
        for refusal in refusals
    ]


def _unmet(answer):
    """The expectations that do not hold, or cannot be told to."""
    refused = {refusal.get("expect") for refusals in answer["refusals"].values() for refusal in refusals}
    return [f"{one['message']}." for one in _not_held(answer) if one["expect"] not in refused]


def _not_held(answer):
    return [one for one in answer["expect"] if one["state"] != "holds" and not one["default"]]


def _verdicts(answer):
    more = len(answer["verdicts"]) - MOST_VERDICTS
    said = [f"{change['words']}." for change in answer["verdicts"][:MOST_VERDICTS]]
    return said + ([f"... {more} more verdicts change."] if more > 0 else [])
