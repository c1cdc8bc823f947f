"""What loads a stored file at boot, read from the host's own files: units, what enables and orders them, scripts.

Nothing is asked of a running systemd, so the answer is the same in a container, in an image, and before a first boot.
"""

import glob
import os
import re
from collections import defaultdict
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Set

# The order in which systemd looks for a unit: the administrator's wins.
UNIT_FOLDERS = ("/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system",
                "/usr/lib/systemd/system", "/lib/systemd/system")  # fmt: skip
NETWORK, DOCKER = "network-pre.target", "docker.service"
# Units of distributions load these by a script of their own, which their text does not name.
_DISTRIBUTION = {
    "netfilter-persistent.service": ("/etc/iptables/rules.v4", "/etc/iptables/rules.v6"),
    "iptables.service": ("/etc/sysconfig/iptables", "/etc/iptables/iptables.rules"),
    "ip6tables.service": ("/etc/sysconfig/ip6tables", "/etc/iptables/ip6tables.rules"),
}
_PLUGINS = {
    "/etc/iptables/rules.v4": "/usr/share/netfilter-persistent/plugins.d/*ip4tables",
    "/etc/iptables/rules.v6": "/usr/share/netfilter-persistent/plugins.d/*ip6tables",
}
_SETS = {
    "/etc/iptables/ipsets": "netfilter-persistent.service",
    "/etc/sysconfig/ipset": "ipset.service",
}
_SETS_PLUGIN = "/usr/share/netfilter-persistent/plugins.d/*ipset"
_SCRIPTS = ("/etc/network/interfaces", "/etc/network/interfaces.d/*", "/etc/network/if-pre-up.d/*",
            "/etc/network/if-up.d/*", "/etc/rc.local", "/etc/rc.d/rc.local", "/etc/local.d/*.start", "/etc/crontab",
            "/etc/cron.d/*")  # fmt: skip
_SETTING = re.compile(r"^(Before|After|ExecStart\w*)[ \t]*=[ \t]*(.*(?:\\\n.*)*)", re.MULTILINE)
_PROGRAM = re.compile(r"(?:^|\s)[@:+!-]*(/\S+)")
_LARGEST = 1 << 20  # of a script that is looked into


class Loader(NamedTuple):
    """Something that loads a stored file at boot. ``before_docker`` is None where there is no Docker."""

    name: str
    enabled: bool
    before_network: bool
    before_docker: Optional[bool]


def loaders(path: str) -> List[Loader]:
    """Units and scripts that load the file, those that are enabled first."""
    units = Units()
    found = [units.loader(name) for name in units.names() if _loads(units, name, path)]
    found += [Loader(script, True, "if-pre-up" in script, None) for script in _scripts(path)]
    return sorted(found, key=lambda loader: (not loader.enabled, loader.name))


def _loads(units: "Units", name: str, path: str) -> bool:
    if path in _DISTRIBUTION.get(name, ()):
        return path not in _PLUGINS or bool(glob.glob(_PLUGINS[path]))
    started = " ".join(units.settings(name, "ExecStart"))
    return bool(started) and _mentions([started, *map(_text, _PROGRAM.findall(started))], path)


def restores_sets(path: str, loader: str) -> bool:
    """Whether the ipsets of that file are there when the loader runs."""
    units = Units()
    known = _SETS.get(path)
    if known and known == loader:
        return bool(glob.glob(_SETS_PLUGIN))
    makers = [name for name in units.names() if name == known or path in " ".join(units.settings(name, "ExecStart"))]
    return any(_is_enabled(name) and (name == loader or loader in units.behind(name)) for name in makers)


def _mentions(texts: Sequence[str], path: str) -> bool:
    return any(path in text and "tables-restore" in text for text in texts)


def _scripts(path: str) -> List[str]:
    return [name for pattern in _SCRIPTS for name in sorted(glob.glob(pattern)) if _mentions([_text(name)], path)]


def _text(path: str) -> str:
    """A file's text; nothing of one that is no script."""
    try:
        if not os.path.isfile(path) or os.path.getsize(path) > _LARGEST:
            return ""
        with open(path, encoding="utf-8", errors="replace") as file:
            return re.sub(r"^\s*#.*$", "", file.read(), flags=re.MULTILINE)
    except OSError:
        return ""


class Units:
    """The unit files of this host."""

    def __init__(self):
        self._texts: Dict[str, str] = {}
        self._later: Optional[Dict[str, Set[str]]] = None
        for folder in UNIT_FOLDERS:
            for path in glob.glob(os.path.join(folder, "*")):
                name = os.path.basename(path)
                if name not in self._texts and not os.path.isdir(path):
                    masked = os.path.realpath(path) == "/dev/null"
                    self._texts[name] = "" if masked else _text(path) + "".join(map(_text, _drop_ins(name)))

    def names(self) -> List[str]:
        return sorted(name for name, text in self._texts.items() if name.endswith(".service") and text)

    def settings(self, name: str, beginning: str) -> List[str]:
        return [value for key, value in _SETTING.findall(self._texts.get(name, "")) if key.startswith(beginning)]

    def loader(self, name: str) -> Loader:
        behind = self.behind(name)
        docker = DOCKER in behind if self._texts.get(DOCKER) else None
        return Loader(name, _is_enabled(name), NETWORK in behind, docker)

    def behind(self, name: str) -> Set[str]:
        """All units that are started only after this one, where both are."""
        found: Set[str] = set()
        waiting = [name]
        while waiting:
            new = self._order()[waiting.pop()] - found
            found |= new
            waiting += new
        return found

    def _order(self) -> Dict[str, Set[str]]:
        if self._later is None:
            self._later = defaultdict(set)
            for name in list(self._texts):
                for other in self._named(name, "Before"):
                    self._later[name].add(other)
                for other in self._named(name, "After"):
                    self._later[other].add(name)
        return self._later

    def _named(self, name: str, setting: str) -> Iterator[str]:
        for value in self.settings(name, setting):
            yield from value.replace("\\\n", " ").split()


def _drop_ins(name: str) -> List[str]:
    return [path for folder in UNIT_FOLDERS for path in sorted(glob.glob(os.path.join(folder, name + ".d", "*.conf")))]


def _is_enabled(name: str) -> bool:
    patterns = [os.path.join(folder, "*." + kind, name) for folder in UNIT_FOLDERS for kind in ("wants", "requires")]
    runlevels = glob.glob(f"/etc/rc[S2345].d/S*{name.partition('.')[0]}")
    return bool(runlevels) or any(glob.glob(pattern) for pattern in patterns)
