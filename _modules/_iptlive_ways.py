"""Which ways to take with this host's iptables programs: proved on them before they are trusted.

What was found is kept below ``/var/lib/iptlive``, and found anew for programs that have changed. Where no throw-away
namespace can be made, what is known of the version decides. What cannot work is refused here, before anything runs.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import sys
from typing import Any, Dict, NamedTuple, Optional, Tuple

import _iptlive_programs as programs
from _iptlive_family import FAMILIES, label
from _iptlive_model import FOLDER, HostError
from _iptlive_programs import Tools, Ways

log = logging.getLogger(__name__)

_TRIAL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "_iptlive_trial.py")  # run as a program
PLACE = os.path.join(FOLDER, "ways")
FORMAT = 1  # another one where more is tried than before

NAMESPACES = (
    ["unshare", "--net", "--mount", "--"],
    ["unshare", "--user", "--map-root-user", "--net", "--mount", "--"],
)

Version = Tuple[int, ...]


class Known(NamedTuple):
    """What holds from this version on."""

    since: Version
    ways: Optional[Ways]
    unfit: str = ""


_OLD_FORMAT = "it writes while it only reads, and iptlive could not verify an update before it is made"
_NAMED = "it makes tables while it only reads, and fails at random when it loads the rules of both families"
_PARSER = "it fails over files that iptables-restore must add to the rules (--noflush)"
_TOO_OLD = "its restore program does not list rules while it reads them"
_UNKNOWN = "this version is not known to iptlive, and there is no throw-away network namespace to try it in"
KNOWN = {
    "nft": (
        Known((0,), None, _OLD_FORMAT),
        Known((1, 8, 3), None, _NAMED),
        Known((1, 8, 4), None, _PARSER),
        Known((1, 8, 5), Ways(declares="policy")),
        Known((1, 8, 8), Ways()),
        Known((1, 8, 14), None, _UNKNOWN),
    ),
    "legacy": (
        Known((0,), None, _TOO_OLD),
        Known((1, 4, 21), Ways(locks=False, reading="none")),
        Known((1, 6, 2), Ways(reading="private")),
        Known((1, 8, 6), Ways()),
        Known((1, 8, 14), None, _UNKNOWN),
    ),
}
OLDEST = {"nft": "1.8.5", "legacy": "1.4.21"}
_COMPAT = "'iptables-compat' of iptables 1.6 writes rules of nf_tables in a form that later versions gave up"


def find_tools(family: str, backend: str) -> Tools:
    """The programs of ``backend``, and how to use them; raises HostError for those that cannot be used."""
    tools = programs.find_tools(family, backend)
    if "compat" in os.path.basename(os.path.realpath(tools.restore)):
        raise _refusal(tools, _COMPAT)
    known = _known(tools)
    if known and known.unfit and known.unfit != _UNKNOWN:
        raise _refusal(tools, known.unfit)
    found = _found(tools)
    if found is None:
        found = known or Known((0,), None, _UNKNOWN)
    if found.ways is None:
        raise _refusal(tools, found.unfit)
    return tools._replace(ways=found.ways)


def _known(tools: Tools) -> Optional[Known]:
    version = tuple(map(int, re.findall(r"\d+", tools.version)))
    return max((known for known in KNOWN[tools.backend] if known.since <= version), default=None) if version else None


def _refusal(tools: Tools, why: str) -> HostError:
    oldest = OLDEST[tools.backend]
    fix = f"Install iptables {oldest} or newer"
    if tools.backend == "nft" and shutil.which(f"{FAMILIES[tools.family].command}-legacy", path=programs.SEARCH_PATH):
        fix += ", or set 'backend: legacy', which is installed here"
    return HostError(
        f"{label(tools.family)}: '{tools.restore}' (iptables {tools.version}, {tools.backend}) cannot be used: {why}. "
        f"{fix}; nothing was changed"
    )


# --- what was found, and where it is kept ---------------------------------------------------------------------------


def _found(tools: Tools) -> Optional[Known]:
    """What a trial of these very programs has found, now or before; None where there is no place to try them."""
    path = os.path.join(PLACE, f"{tools.family}-{tools.backend}.json")
    identity = _identity(tools)
    record = _recorded(path, identity)
    if record is None:
        record = _tried(tools)
        if record is None:
            return None
        _keep(path, {"programs": identity, **record})
    return Known((0,), Ways(**record["ways"]) if record["ways"] else None, record["unfit"])


def _identity(tools: Tools) -> Dict[str, Any]:
    """What makes them other programs when it changes."""
    files = {}
    for program in (tools.command, tools.restore, tools.save):
        path = os.path.realpath(program)
        there = os.stat(path)
        files[program] = [path, there.st_size, there.st_mtime_ns, there.st_ino]
    return {"format": FORMAT, "files": files, "version": tools.version, "kernel": os.uname().release}


def _recorded(path: str, identity: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        with open(path, encoding="ascii") as file:
            record = json.load(file)
        return record if record["programs"] == identity else None
    return None


def _keep(path: str, record: Dict[str, Any]) -> None:
    """Whoever may not write there has them tried each time."""
    new = f"{path}.{os.getpid()}.new"
    try:
        os.makedirs(PLACE, mode=0o700, exist_ok=True)
        os.chmod(FOLDER, 0o700)
        with open(new, "w", encoding="ascii", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            json.dump(record, file)
        os.replace(new, path)
    except OSError as err:
        with contextlib.suppress(OSError):
            os.unlink(new)
        log.info("what was found about the iptables programs cannot be kept below %s: %s", PLACE, err.strerror)


def _tried(tools: Tools) -> Optional[Dict[str, Any]]:
    for namespace in NAMESPACES:
        done = programs.run([*namespace, sys.executable, "-s", "-E", _TRIAL, *tools[:6]])
        if not done.out and done.err.startswith("unshare:"):
            continue
        answer = json.loads(done.out) if done.out else {"failed": done.err.strip()[-500:]}
        if "failed" in answer:
            raise HostError(
                f"{label(tools.family)}: the iptables programs could not be tried: {answer['failed']}. See whether "
                f"this kernel has their tables ('{tools.command} -S'); nothing was changed"
            )
        return answer
    return None
