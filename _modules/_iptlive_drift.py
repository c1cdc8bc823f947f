"""Cheap evidence that neither the stored files nor the kernel's rules have changed since the last look.

No throw-away namespace is made for it, and on nft no program is run: the kernel counts the generations of its ruleset.
Legacy has no such count; there the rules are listed and hashed, and only where tables are loaded at all.
"""

import hashlib
import os
import re
import shutil
import socket
import struct
from typing import Any, Dict, Iterable, List, Mapping, Optional

import _iptlive_kernel as kernel
from _iptlive_model import HostError
from _iptlive_options import Options

NETLINK_NETFILTER = 12
GET_GENERATION = (10 << 8) | 16  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN
NLM_F_REQUEST = 1
GENERATION_ID = 1  # NFTA_GEN_ID
ANSWER_WAIT = 5  # seconds

_COUNTERS = re.compile(r"^(?:#.*|(:\S+ \S+) \[\d+:\d+\])$", re.MULTILINE)


def fingerprint(options: Options) -> str:
    """A text that is another one whenever a file, the ruleset, the options or the iptables programs have changed."""
    evidence: List[Any] = [sorted(options._asdict().items(), key=repr)]
    evidence += [_file(path) for family in options.families for path in options.files[family]]
    programs = {family: os.path.realpath(_program(kernel.COMMANDS[family])) for family in options.families}
    evidence.append(sorted(programs.items()))
    if any(_may_be(options, "nft", path) for path in programs.values()):
        evidence.append(generation())
    evidence += [_legacy(family) for family, path in programs.items() if _may_be(options, "legacy", path)]
    return hashlib.sha256(repr(evidence).encode("utf-8", "surrogateescape")).hexdigest()


def _file(path: str) -> Optional[tuple]:
    try:
        found = os.stat(path)
    except OSError as err:
        return (path, err.errno)
    return (path, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _program(name: str) -> str:
    return shutil.which(name, path=kernel.SEARCH_PATH) or ""


def _may_be(options: Options, backend: str, path: str) -> bool:
    """Told by the program behind the plain command; one that does not say so in its name may be either."""
    if options.backend != "auto":
        return options.backend == backend
    other = "legacy" if backend == "nft" else "nft"
    return other not in os.path.basename(path)


def generation() -> Optional[int]:
    """How many times this network namespace's nft ruleset was changed; None where the kernel has no nft."""
    request = struct.pack("=IHHIIBBH", 20, GET_GENERATION, NLM_F_REQUEST, 1, 0, 0, 0, 0)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as asked:
            asked.settimeout(ANSWER_WAIT)
            asked.send(request)
            answer = asked.recv(4096)
    except OSError:
        return None
    return _generation_in(answer)


def _generation_in(answer: bytes) -> Optional[int]:
    at = 20  # behind the netlink and the netfilter header
    while at + 8 <= len(answer):
        length, kind = struct.unpack_from("=HH", answer, at)
        if kind & 0x3FFF == GENERATION_ID:
            return struct.unpack_from(">I", answer, at + 4)[0]
        at += max(4, (length + 3) & ~3)
    return None


def _legacy(family: str) -> str:
    """A hash of the listed rules without their counters; empty where no legacy table is loaded."""
    try:
        with open(kernel.LEGACY_TABLES[family], encoding="ascii") as names:
            loaded = names.read().split()
    except OSError:
        loaded = []
    if not loaded:
        return ""
    plain = kernel.COMMANDS[family]
    program = _program(f"{plain}-legacy-save") or f"{plain}-save"
    listed = kernel.run([program])
    if listed.status:
        raise HostError(f"{program}: {kernel.message(listed.err)}")
    rules = _COUNTERS.sub(r"\1", listed.out)
    return hashlib.sha256(rules.encode("utf-8", "surrogateescape")).hexdigest()


def summary(answer: Mapping[str, Any]) -> Dict[str, Any]:
    """A plan's result in few words."""
    return {
        "status": answer["status"],
        "changes": {chain: len(steps) for chain, steps in answer["changes"].items()},
        "refusals": {chain: _reasons(refusals) for chain, refusals in answer["refusals"].items()},
        "warnings": list(answer["warnings"]),
    }


def _reasons(refusals: Iterable[Mapping[str, Any]]) -> List[str]:
    return sorted({refusal["reason"] for refusal in refusals})
