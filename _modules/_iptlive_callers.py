"""What a caller who is not root may give as an argument: only what pillar says, or allows.

Salt tells a function which user a job was published by; nobody else can set that word. Who may call nothing but
``iptlive.plan`` must not read files of the host by it, nor have the host render a template of their choice.
"""

import fnmatch
from typing import Any, List, Mapping, Optional

from _iptlive_model import InputError
from _iptlive_options import DEFAULT_FILES

PUBLISHER = "__pub_user"
_PATHS = ("files", "sources", "path", "dest")
_RENDERING = ("template", "context", "defaults", "saltenv")


def is_root(user: Optional[str]) -> bool:
    """Whether nothing is withheld: root of the master (with sudo too), of this host, and what states hand over."""
    return user is None or user == "root" or user.startswith("sudo_")


def check(user: Optional[str], given: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises InputError that names the argument; ``settings`` are pillar's."""
    if is_root(user):
        return
    allowed = _allowed(settings)
    known = {"files": _leaves([DEFAULT_FILES, settings.get("files")]), "sources": _leaves(settings.get("sources"))}
    for name in _PATHS:
        for path in _leaves(given.get(name)):
            if path not in known.get(name, ()) and not _matches(path, allowed):
                raise InputError(
                    f"{name}: {path!r} is not one that user {user!r} may name on this host: add it to pillar "
                    "iptlive:allow, or leave it to pillar"
                )
    for name in _RENDERING:
        if name in given and given[name] != settings.get(name):
            raise InputError(f"{name}: user {user!r} may not choose how sources are rendered: pillar says it")


def _allowed(settings: Mapping[str, Any]) -> List[str]:
    patterns = settings.get("allow", [])
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        raise InputError(f"pillar iptlive:allow: expected a list of paths or patterns, got {patterns!r}")
    return patterns


def _leaves(value: Any) -> List[Any]:
    """The paths in a path, a list or a mapping of them."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _leaves(item)]
    return [] if value is None else [value]


def _matches(path: Any, patterns: List[str]) -> bool:
    if not isinstance(path, str) or ".." in path.split("/"):
        return False
    return path.startswith(("/", "salt://")) and any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
