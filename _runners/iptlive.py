"""
iptlive for many hosts at once
==============================

What the scripts ``iptables-backup.py``, ``relearn-known-hosts.py`` and the check of ``iptables-liveupdate-driver.py``
did with a list of hosts, for Salt's targets: minions of this master, or with ``ssh=True`` hosts of salt-ssh's roster.

.. code-block:: bash

    salt-run saltutil.sync_all
    salt-run iptlive.report '*'
    salt-run iptlive.backup '*' dest=/srv/backup
"""

import base64
import os
import re
import sys
import tempfile
import time
import zlib

import _iptlive_fleet as fleet
from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "iptlive"

LARGEST = 1 << 30  # what a host may make us unpack

_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,100}")
_HOST_NAME = re.compile(r"[A-Za-z0-9_][\w.:@+-]{0,250}", re.ASCII)


def __virtual__():
    return __virtualname__


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
        salt-run iptlive.backup '*' ssh=True dest=/srv/backup
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
            failed[answer.host] = str(err)
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
    parts = [answer.value]
    while len(parts) < _number(answer.value, "parts"):
        one = targets._replace(tgt=[answer.host], tgt_type="list", batch=None)
        (more,) = fleet.ask(__opts__, one, "iptlive.backup_part", path=answer.value.get("path"), part=len(parts)) or (
            None,
        )
        if more.error:
            raise _FailedError(more.error)
        parts.append(more.value)
    return _unpacked("".join(str(part.get("archive")) for part in parts))


def _number(value, key):
    number = value.get(key)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 < number < 10000:
        raise _FailedError(f"an answer that is no backup: {str(value)[:200]}")
    return number


def _unpacked(archive):
    """Files by name; a host may have sent anything."""
    try:
        unpacker = zlib.decompressobj()
        rest = unpacker.decompress(base64.b64decode(archive, validate=True), LARGEST)
        if not unpacker.eof:
            raise ValueError("not complete")
        files = {}
        while rest:
            head, _, rest = rest.partition(b"\n")
            name, length = head.decode("ascii").split(" ")
            if not _FILE_NAME.fullmatch(name) or not 0 <= int(length) <= len(rest):
                raise ValueError(f"a file {name!a} of {length} bytes")
            files[name], rest = rest[: int(length)], rest[int(length) :]
    except (ValueError, zlib.error) as err:
        raise _FailedError(f"the backup that came is damaged: {err}") from err
    return files


def _write(folder, host, files):
    """The host's folder appears whole or not at all."""
    unfinished = tempfile.mkdtemp(prefix=".", dir=folder)
    for name, data in files.items():
        handle = os.open(os.path.join(unfinished, name), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
    os.rename(unfinished, os.path.join(folder, host))
