"""
iptlive for many hosts at once
==============================

What the scripts ``iptables-backup.py``, ``relearn-known-hosts.py`` and the check of ``iptables-liveupdate-driver.py``
did with a list of hosts, for Salt's targets: minions of this master, or with ``ssh=True`` hosts of salt-ssh's roster.

.. code-block:: bash

    salt-run saltutil.sync_all
    salt-run iptlive.report '*'
    salt-run iptlive.backup '*' dest=/var/backups

Each returns a mapping with ``retcode``, which becomes salt-run's exit status; wrong arguments, and what cannot be
done at all, are told in ``error``.
"""

import functools
import os
import re
import sys
import tempfile
import time

import _iptlive_answers as answers_room
import _iptlive_archive as archive
import _iptlive_fleet as fleet
import _iptlive_keyscan as keyscan
import _iptlive_known_hosts as known_hosts_room
import salt.roster
from _iptlive_printable import brief, printable_name
from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "iptlive"

TRUST_WARNING = (
    "WARNING: the keys were learnt from whoever answered. USING THIS WITHOUT UNDERSTANDING AND CONTROLLING ITS "
    "SECURITY IMPLICATIONS BREAKS SSH'S DETECTION OF A MAN IN THE MIDDLE. Compare the fingerprints, or give the "
    "ones you expect."
)
STATUSES = ("in_sync", "changes", "refused", "error", "no_answer")

_HOST_NAME = re.compile(r"[A-Za-z0-9_][\w.:@+-]{0,250}", re.ASCII)


def __virtual__():
    return __virtualname__


def _errors_answered(function):
    """salt-run ends with status 0 after one of Salt's own two errors, or shows a traceback: make it an answer."""

    @functools.wraps(function)
    def answered(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except (SaltInvocationError, CommandExecutionError) as err:
            return _answer(True, error=str(err))

    return answered


@_errors_answered
def backup(tgt, tgt_type="glob", ssh=False, dest=".", batch=None, timeout=None):
    """
    Collect a backup of all targeted hosts in ``DEST/iptables-backup-YYYYmmdd-HHMMSS/HOST/``.

    Each host's folder holds its stored files and kernel tables under the names of the original script. The host keeps
    a copy of its own, see the function ``iptlive.backup`` of the execution module. Progress is shown on stderr. When
    a host failed, the exit status is not 0.

    tgt
        Which hosts.
    tgt_type
        How ``tgt`` is meant, as for ``salt -G`` and so on: ``glob``, ``grain``, ``compound``, ``list`` ...
    ssh
        ``True``: hosts of salt-ssh's roster instead of minions.
    dest
        The folder in which the new one is made. Default: the current one.
    batch
        How many hosts at a time, like ``10`` or ``25%``. Default: all at once.
    timeout
        Seconds to wait for a host; Salt's own timeout if left out.

    Returns ``path``; per host in ``saved`` how many files and bytes there are; in ``failed`` why there are none, and
    in ``warnings`` what is missing; and ``retcode``.

    CLI Example:

    .. code-block:: bash

        salt-run iptlive.backup '*'
        salt-run iptlive.backup '*' ssh=True dest=/var/backups
    """
    targets = _targets(tgt, tgt_type, ssh, batch, timeout)
    folder = _new_folder(dest)
    _say(f"Target directory for backup is {folder} ...")
    saved, failed, warnings = {}, {}, {}
    for answer in fleet.ask(__opts__, targets, "iptlive.backup", returned="packed"):
        try:
            files = _files(targets, answer)
            _write(folder, answer.host, files)
        except (_FailedError, OSError) as err:
            failed[printable_name(answer.host)] = str(err)
            _say(f"{answer.host!a}: failed: {err}")
            continue
        saved[answer.host] = {"files": len(files), "bytes": sum(map(len, files.values()))}
        if answer.value.get("warnings"):
            warnings[answer.host] = answer.value["warnings"]
        _say("{}: {files} files, {bytes} bytes".format(answer.host, **saved[answer.host]))
    if not saved and not failed:
        _say("No host matched the target.")
    return _answer(bool(failed or not saved), path=folder, saved=saved, failed=failed, warnings=warnings)


def _answer(bad, **results):
    """salt-run takes its exit status from the answer, an orchestration whether it succeeded from the context."""
    retcode = 1 if bad else 0
    __context__["retcode"] = retcode
    return dict(results, retcode=retcode)


@_errors_answered
def report(tgt, tgt_type="glob", ssh=False, batch=None, timeout=None, changes_ok=False):
    """
    Plan on all targeted hosts at once, and tell which of them are in sync. Nothing is changed anywhere. When a host
    is not in sync, the exit status is not 0.

    The options are those of each host's pillar. Shown by the outputter ``iptlive``; ``--out=json`` is for scripts.

    tgt
        Which hosts.
    tgt_type
        How ``tgt`` is meant, as for :py:func:`backup`.
    ssh
        ``True``: hosts of salt-ssh's roster instead of minions.
    batch
        How many hosts at a time, like ``10`` or ``25%``. Default: all at once.
    timeout
        Seconds to wait for a host; Salt's own timeout if left out.
    changes_ok
        ``True``: hosts that only have changes to make are no reason for a bad exit status, as before a rollout.

    Returns ``summary``, how many hosts there are of each status; ``retcode``; and for each of ``hosts`` its ``status``
    (``in_sync``, ``changes``, ``refused``, ``error``, ``no_answer``), with ``changes``, their number; ``chains``, those
    that would change or are refused; ``refusals``, a list of ``chain``, ``reason``, ``message`` and ``hint``;
    ``warnings``; or with ``error``, the message.

    CLI Example:

    .. code-block:: bash

        salt-run iptlive.report '*'
        salt-run iptlive.report 'web*' ssh=True --out=json
    """
    targets = _targets(tgt, tgt_type, ssh, batch, timeout)
    hosts = {printable_name(answer.host): _reported(answer) for answer in fleet.ask(__opts__, targets, "iptlive.plan")}
    found = [host["status"] for host in hosts.values()]
    summary = {status: found.count(status) for status in STATUSES if status in found}
    good = {"in_sync", "changes"} if changes_ok else {"in_sync"}
    # salt-run takes the outputter from the answer, unless --out names another.
    return _answer(not found or bool(set(found) - good), summary=summary, hosts=hosts, outputter="iptlive")


def _reported(answer):
    if answer.error:
        return {"status": "no_answer" if answer.silent else "error", "error": answer.error}
    plan = answer.value
    if not answers_room.fits(plan, answers_room.PLAN):
        return {"status": "error", "error": f"an answer that is no plan: {brief(plan)}"}
    refusals = [
        {"chain": chain, **{key: refusal.get(key, "") for key in ("reason", "message", "hint")}}
        for chain, chain_refusals in plan["refusals"].items()
        for refusal in chain_refusals
    ]
    return {
        "status": plan["status"],
        "changes": sum(map(len, plan["changes"].values())),
        "chains": sorted({*plan["changes"], *plan["refusals"]}),
        "refusals": refusals,
        "warnings": plan.get("warnings", []),
    }


@_errors_answered
def relearn_known_hosts(
    tgt, tgt_type="glob", timeout=5, test=False, expected=None, known_hosts=None, roster=None, roster_file=None
):
    """
    Forget and learn anew the SSH host keys of salt-ssh's hosts, by address and by name.

    .. warning::

        USING THIS WITHOUT UNDERSTANDING AND CONTROLLING ITS SECURITY IMPLICATIONS BREAKS SSH'S DETECTION OF A MAN IN
        THE MIDDLE: whoever answers at a host's address is believed. It is for networks that are trusted, where hosts
        are often made anew. Give the fingerprints that you expect, and it is safe.

    The keys are asked for first. A host that cannot be reached keeps what the file says of it. Then the file is
    replaced at once, with its owner and mode; its last version is kept with ``.old`` behind its name. All other
    entries, comments and markers stay as they are, hashed entries stay hashed. A key that is ``@revoked`` is never
    learnt.

    tgt
        Which hosts of the roster.
    tgt_type
        How ``tgt`` is meant: ``glob``, ``list`` or ``pcre``.
    timeout
        Seconds to wait for a connection, 1 to 60.
    test
        ``True``: write nothing, and show what would change.
    expected
        The fingerprints (``SHA256:...``) of all hosts, or a mapping of hosts to theirs: only these keys are learnt,
        and a host that offers none of them is refused. What is not given is taken from pillar
        ``iptlive:fingerprints`` of the master itself.
    known_hosts
        The file. Default: ``known_hosts_file`` of the master's configuration, else the one of the user who runs this.
    roster
        Which roster, as ``salt-ssh --roster``. Default: that of the master's configuration.
    roster_file
        Its file, as ``salt-ssh --roster-file``.

    Returns ``file``; ``kept``, its last version; ``warning`` where no fingerprints were expected; ``retcode``; and for
    each of ``hosts`` its ``status`` (``unchanged``, ``changed``, ``unreachable``, ``refused``), ``message``, and per
    address and name the ``old`` and ``new`` fingerprints.

    CLI Example:

    .. code-block:: bash

        salt-run iptlive.relearn_known_hosts '*' test=True
        salt-run iptlive.relearn_known_hosts 'web*' expected='{web1: [SHA256:...]}'
    """
    if isinstance(timeout, bool) or not isinstance(timeout, int) or not 1 <= timeout <= 60:
        raise SaltInvocationError(f"timeout: expected a whole number of seconds from 1 to 60, got {timeout!r}")
    options = dict(__opts__, **({"roster_file": roster_file} if roster_file else {}))
    targets = salt.roster.Roster(options, roster or options.get("roster") or "flat").targets(tgt, tgt_type)
    expected = _expected(expected)
    path = os.path.expanduser(known_hosts or __opts__.get("known_hosts_file") or "~/.ssh/known_hosts")
    answers = {host: {} for host in targets}
    asked = {host: _places(host, entry, answers[host]) for host, entry in targets.items()}
    try:
        offered = keyscan.scan({pair for places in asked.values() for pair in places}, timeout)
        kept = known_hosts_room.rewrite(path, functools.partial(_relearnt, asked, offered, expected, answers), test)
    except OSError as err:
        raise CommandExecutionError(f"{err.filename or path}: {err.strerror}; nothing was changed") from err
    bad = not answers or any(answer["status"] in ("unreachable", "refused") for answer in answers.values())
    results = {"file": path, "kept": kept, "hosts": answers}
    if expected is None:
        results["warning"] = TRUST_WARNING
        _say(TRUST_WARNING)
    return _answer(bad, **results)


def _places(host, entry, answer):
    """Address and name of a roster entry, each with the port; none where they cannot be any."""
    port = entry.get("port", __opts__.get("ssh_port", 22))
    names = [entry.get("host", host), host]
    if not str(port).isdigit() or not 0 < int(port) < 65536:
        answer.update(status="refused", message=f"port {port!a} is none")
    elif not all(map(known_hosts_room.is_host, names)):
        answer.update(status="refused", message="neither an address nor a host name: {!a}, {!a}".format(*names))
    else:
        return [(name, int(port)) for name in dict.fromkeys(names)]
    return []


def _relearnt(asked, offered, expected, answers, lines):
    """The lines with the keys that the hosts offer; what became of each host goes into its answer."""
    revoked = known_hosts_room.revoked(lines)
    for host, places in asked.items():
        if places:
            lines = _learn_host(lines, places, offered, _allowed(expected, host, revoked), answers[host])
    return lines


def _allowed(expected, host, revoked):
    """Which keys of a host may be learnt."""
    wanted = expected.get(host, ()) if isinstance(expected, dict) else expected
    return lambda key: key not in revoked and (wanted is None or key.fingerprint() in wanted)


def _learn_host(lines, places, offered, allowed, answer):
    old, new, refused, learnt = {}, {}, set(), set()
    for name, port in places:
        place = known_hosts_room.place(name, port)
        keys = set(filter(allowed, offered[place]))
        refused |= offered[place] - keys
        after, change = known_hosts_room.learn(lines, place, keys)
        old[place] = new[place] = _fingerprints(change.old)
        if keys:
            lines, new[place] = after, _fingerprints(keys)
            learnt.add(name)
    answer.update(old=old, new=new, refused=_fingerprints(refused))
    answer.update(_verdict([name for name, _ in places], learnt, refused, old != new))
    return lines


def _fingerprints(keys):
    return sorted({key.fingerprint() for key in keys})


def _verdict(names, learnt, refused, changed):
    """The address is the first of the names: without it the host is not reached."""
    if names[0] not in learnt:
        if refused:
            return {"status": "refused", "message": "no key offered is one that is expected; the known ones are kept"}
        return {"status": "unreachable", "message": "no key was offered; the known ones are kept"}
    notes = [f"{name} cannot be reached by this name." for name in names if name not in learnt]
    notes += ["Keys that are not expected were left out."] if refused else []
    return {"status": "changed" if changed else "unchanged", "message": " ".join(notes)}


def _expected(given):
    """Fingerprints as a list or by host; None where none are expected."""
    if given is None:
        settings = __salt__["pillar.show_pillar"](__opts__["id"]).get("iptlive") or {}
        given = settings.get("fingerprints")
    if given is None:
        return None
    lists = list(given.values()) if isinstance(given, dict) else [given]
    for names in lists:
        if not isinstance(names, list) or not all(re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}", str(n)) for n in names):
            raise SaltInvocationError(f"expected: wanted lists of fingerprints like SHA256:..., got {names!r}")
    return given


class _FailedError(Exception):
    """Why there is no backup of a host."""


def _targets(tgt, tgt_type, ssh, batch, timeout):
    if not isinstance(ssh, bool):
        raise SaltInvocationError(f"ssh: expected true or false, got {ssh!r}")
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 1):
        raise SaltInvocationError(f"timeout: expected a whole number of seconds, 1 or more, got {timeout!r}")
    try:
        fleet.batch_size(batch or 1, 1)
    except ValueError as err:
        raise SaltInvocationError(f"batch: expected a number of hosts or a percentage, got {batch!r}") from err
    return fleet.Targets(tgt, tgt_type, ssh, batch, timeout)


def _say(text):
    # To stderr: what --out=json prints must stay JSON.
    print(text, file=sys.stderr, flush=True)


def _new_folder(dest):
    base = folder = os.path.join(os.path.abspath(dest), time.strftime("iptables-backup-%Y%m%d-%H%M%S"))
    for count in range(2, 100):
        try:
            os.mkdir(folder, 0o700)
            return folder
        except FileExistsError:
            folder = f"{base}-{count}"
        except OSError as err:
            raise CommandExecutionError(f"{folder}: cannot be made: {err.strerror}") from err
    raise CommandExecutionError(f"{base}: there are too many of that name")


def _files(targets, answer):
    """The files of a host, all parts fetched."""
    if answer.error:
        raise _FailedError(answer.error)
    # Asked by its own name, which also is what its folder will be called: it must be one.
    if not _HOST_NAME.fullmatch(answer.host):
        raise _FailedError("the host's name cannot be the name of a folder")
    if not answers_room.fits(answer.value, answers_room.BACKUP):
        raise _FailedError(f"an answer that is no backup: {brief(answer.value)}")
    number = answer.value["parts"]
    if not 0 < number <= archive.MOST_PARTS:
        raise _FailedError(f"a backup of {number} parts; {archive.MOST_PARTS} are taken at most")
    parts = [_archive(answer.value, number, 0)]
    while len(parts) < number:
        one = targets._replace(tgt=[answer.host], tgt_type="list", batch=None)
        asked = fleet.ask(__opts__, one, "iptlive.backup_part", path=answer.value["path"], part=len(parts))
        more = next((found for found in [*asked] if found.host == answer.host), fleet.silence(answer.host))
        if more.error:
            raise _FailedError(more.error)
        parts.append(_archive(more.value, number, len(parts)))
    try:
        return archive.unpacked("".join(parts))
    except ValueError as err:
        raise _FailedError(f"the backup that came is damaged: {err}") from err


def _archive(part, parts, number):
    """The text of one part."""
    fits = answers_room.fits(part, answers_room.BACKUP_PART) and (part["parts"], part["part"]) == (parts, number)
    if not fits or len(part["archive"]) > archive.LONGEST_PART:
        raise _FailedError(f"an answer that is no part of a backup: {brief(part)}")
    return part["archive"]


def _write(folder, host, files):
    """The host's folder appears whole or not at all."""
    unfinished = tempfile.mkdtemp(prefix=".", dir=folder)
    for name, data in files.items():
        handle = os.open(os.path.join(unfinished, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
    os.rename(unfinished, os.path.join(folder, host))
