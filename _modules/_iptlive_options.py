"""The options: their names, types and defaults, the same in pillar, function and state."""

import re
from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple, Union

from _iptlive_expect import Expectation
from _iptlive_expect import parse as expectations
from _iptlive_family import FAMILIES, LABELS
from _iptlive_model import BUILTIN, Choices, InputError, chain_key

DEFAULT_FILES = {name: family.files for name, family in FAMILIES.items()}

_CHAIN_WORDS = {
    "placement": ("refuse", "after", "before"),
    "duplicates": ("refuse", "allow"),
    "policy": ("report", "enforce", "refuse"),
}
_CHAIN_OPTIONS = ("placement", "reorder", "duplicates", "policy")


class NewFile(NamedTuple):
    """A stored file that comes from the master: its source, its content, and where it goes."""

    source: str
    data: bytes
    path: str


class Options(NamedTuple):
    families: Tuple[str, ...] = ("ipv4", "ipv6")
    files: Mapping[str, Tuple[str, ...]] = DEFAULT_FILES
    backend: str = "auto"
    placement: str = "refuse"
    chains: Mapping[str, Mapping[str, Any]] = {}
    reorder: bool = False
    duplicates: str = "refuse"
    policy: str = "report"
    partial: bool = False
    wait: int = 10
    confirm: int = 0
    confirm_check: Union[str, Tuple[str, ...]] = "master"
    sources: Mapping[str, Tuple[str, ...]] = {}
    template: Optional[str] = None
    context: Mapping[str, Any] = {}
    defaults: Mapping[str, Any] = {}
    backup: str = ""
    boot: str = "report"
    owners: Mapping[str, Any] = {}
    expect: Tuple[Expectation, ...] = ()
    opens: str = "report"
    new_files: Mapping[str, NewFile] = {}  # what the sources became; no option

    def choices(self, family: str, table: str, chain: str) -> Choices:
        """What holds for one chain: its own settings over the general ones."""
        general = Choices(self.placement, self.reorder, self.duplicates, self.policy)
        own = self.chains.get(chain_key(family, table, chain)) if self.chains else None
        return general._replace(**own) if own else general


def parse(given: Mapping[str, Any]) -> Options:
    """Options from a mapping of names to values; raises InputError that names what is wrong."""
    for name in given:
        if name not in _READERS:
            raise InputError("unknown option '{}'; known are {}".format(name, ", ".join(sorted(_READERS))))
    return Options(**{name: _READERS[name](name, value) for name, value in given.items()})


def _wrong(name: str, value: Any, expected: str) -> InputError:
    return InputError(f"option '{name}': expected {expected}, got {value!r}")


def _word(*words: str):
    def read(name: str, value: Any) -> str:
        if value not in words:
            raise _wrong(name, value, "one of " + ", ".join(words))
        return value

    return read


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "true or false")
    return value


def _seconds(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _wrong(name, value, "a whole number of seconds, 0 or more")
    return value


def _families(name: str, value: Any) -> Tuple[str, ...]:
    named = [value] if isinstance(value, str) else value
    if not isinstance(named, (list, tuple)) or not named or any(family not in list(FAMILIES) for family in named):
        raise _wrong(name, value, "a list of ipv4 and ipv6")
    return tuple(family for family in FAMILIES if family in named)


def _files(name: str, value: Any) -> Dict[str, Tuple[str, ...]]:
    if not isinstance(value, Mapping) or any(family not in FAMILIES for family in value):
        raise _wrong(name, value, "a mapping of ipv4 and ipv6 to a path or a list of paths")
    return dict(DEFAULT_FILES, **{family: _paths(name, paths) for family, paths in value.items()})


def _sources(name: str, value: Any) -> Dict[str, Tuple[str, ...]]:
    if not isinstance(value, Mapping) or any(family not in FAMILIES for family in value):
        raise _wrong(name, value, "a mapping of ipv4 and ipv6 to a source or a list of them")
    named = {family: [names] if isinstance(names, str) else names for family, names in value.items()}
    for names in named.values():
        if not isinstance(names, (list, tuple)) or not names or not all(isinstance(one, str) for one in names):
            raise _wrong(name, value, "sources like salt://firewall/rules.v4")
    return {family: tuple(names) for family, names in named.items()}


def _name(name: str, value: Any) -> Any:
    if value is not None and (not isinstance(value, str) or not value):
        raise _wrong(name, value, "the name of a template engine, like jinja")
    return value


def _mapping(name: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise _wrong(name, value, "a mapping of names to values")
    return value


def _paths(name: str, value: Any) -> Tuple[str, ...]:
    paths = [value] if isinstance(value, str) else value
    if not isinstance(paths, (list, tuple)) or not paths:
        raise _wrong(name, value, "a path or a list of paths")
    if not all(isinstance(path, str) and path.startswith("/") for path in paths):
        raise _wrong(name, value, "absolute paths")
    return tuple(paths)


def _chains(name: str, value: Any) -> Dict[str, Dict[str, Any]]:
    if not isinstance(value, Mapping):
        raise _wrong(name, value, "a mapping like {'IPv4/filter/FORWARD': {'placement': 'before'}}")
    return {_key(name, key): _chain_options(name, key, settings) for key, settings in value.items()}


def _key(name: str, key: Any) -> str:
    parts = str(key).split("/")
    if len(parts) != 3 or parts[0] not in LABELS or parts[1] not in BUILTIN or not parts[2]:
        raise _wrong(name, key, "a chain written like IPv4/filter/FORWARD")
    return key


def _chain_options(name: str, key: str, settings: Any) -> Dict[str, Any]:
    if not isinstance(settings, Mapping) or any(option not in _CHAIN_OPTIONS for option in settings):
        raise _wrong(f"{name}: {key}", settings, "a mapping of " + ", ".join(_CHAIN_OPTIONS))
    return {option: _READERS[option](f"{name}: {key}: {option}", value) for option, value in settings.items()}


def _confirm_check(name: str, value: Any) -> Union[str, Tuple[str, ...]]:
    if value in ("master", "manual"):
        return value
    if not isinstance(value, (list, tuple)) or not value or not all(map(_is_endpoint, value)):
        raise _wrong(name, value, "master, manual, or a list of endpoints written host:port")
    return tuple(value)


def _is_endpoint(value: Any) -> bool:
    return isinstance(value, str) and bool(_ENDPOINT.match(value)) and 0 < int(value.rpartition(":")[2]) < 1 << 16


_ENDPOINT = re.compile(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:/]+):\d{1,5}\Z")

_READERS = {
    "families": _families,
    "files": _files,
    "backend": _word("auto", "nft", "legacy"),
    "chains": _chains,
    "reorder": _flag,
    "partial": _flag,
    "wait": _seconds,
    "sources": _sources,
    "template": _name,
    "context": _mapping,
    "defaults": _mapping,
    "backup": _word("", "minion", "master", "both"),
    "boot": _word("report", "refuse", "ignore"),
    "owners": _mapping,
    "confirm": _seconds,
    "confirm_check": _confirm_check,
    "expect": lambda name, value: expectations(value),
    "opens": _word("report", "refuse"),
}
_READERS.update({name: _word(*words) for name, words in _CHAIN_WORDS.items()})
