"""Host names to addresses: a stored line that names a host, as iptables itself would read it.

iptables asks the resolver while it loads a line. A throw-away network namespace has no network to ask over, so the
names are looked up here, in the live one, and their addresses are loaded in their place.
"""

import ipaddress
import re
import socket
from typing import Dict, FrozenSet, List, NamedTuple, Optional, Set

from _iptlive_family import FAMILIES
from _iptlive_model import HostError
from _iptlive_rules import Option, options, other_family
from _iptlive_stored import StoredFile, StoredRule

# These take a list of addresses, each of which becomes a rule of its own ...
_LISTS = ("-s", "-d", "--source", "--src", "--destination", "--dst")
# ... and these take one.
_SINGLE = ("--ctorigsrc", "--ctorigdst", "--ctreplsrc", "--ctrepldst", "--tunnel-src", "--tunnel-dst",
           "--gateway", "--on-ip")  # fmt: skip
# The values of these options, but for one IPv4 address, and what looks like one of IPv6.
_VALUES = re.compile(
    r"(?:^|[ \t\"])-(?:[sd]|-(?:{})(?![\w-]))[ \t=\"]*".format(
        "|".join(name[2:] for name in _LISTS + _SINGLE if name[2:])
    )
    + r"(?!(?:[0-9./]*|[0-9a-fA-F.]*:[0-9a-fA-F.:/]*)\"?(?:[ \t\n]|\Z))([^ \t\n]+)",
    re.MULTILINE,
)
_LETTER = re.compile(r"[A-Za-z_]")
_NUMERIC = re.compile(r"[\d.]*\Z|.*:", re.DOTALL)  # of either family: iptables tells what is wrong with them
_NO_MASK = re.compile(r"0+(?:\.0+)*\Z")
NETWORKS = "/etc/networks"


class Resolved(NamedTuple):
    """The stored file with addresses for names; ``lines`` are those that named a host."""

    stored: StoredFile
    lines: FrozenSet[int]
    warnings: List[str]


def resolve(stored: StoredFile) -> Resolved:
    """Raises HostError naming the line and the name that no address is known for."""
    if not may_name_hosts("\n".join(stored.texts())):
        return Resolved(stored, frozenset(), [])
    reader = _Resolver(stored)
    tables = {
        name: table._replace(rules=tuple(reader.rule(rule) for rule in table.rules))
        for name, table in stored.tables.items()
    }
    return Resolved(stored._replace(tables=tables), frozenset(reader.lines), reader.warnings)


def addresses(name: str) -> List[str]:
    """Those of a host, of either family; none where it has none."""
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_RAW)
    except (socket.gaierror, UnicodeError):
        return []
    return sorted({answer[4][0].partition("%")[0] for answer in answers})


def may_name_hosts(text: str) -> bool:
    """Whether it is worth while to look at each of the rules in this text."""
    values = (found.group(1) for found in _VALUES.finditer(text))
    names = (part.partition("/")[0] for value in values for part in value.split(","))
    return any(":" not in name and _LETTER.search(name) for name in names)


def _network(address: str, mask: str) -> str:
    try:
        return str(ipaddress.ip_network(f"{address}/{mask}", strict=False))
    except ValueError:
        return f"{address}/{mask}"  # a mask with holes, or none at all: iptables will tell


class _Resolver:
    """Looks each name up once."""

    def __init__(self, stored: StoredFile):
        self._path = stored.path
        self._family = stored.family
        self._number = FAMILIES[stored.family].number
        self._known: Dict[str, List[str]] = {}
        self._networks: Optional[Set[str]] = None
        self.lines: Set[int] = set()
        self.warnings: List[str] = []

    def rule(self, rule: StoredRule) -> StoredRule:
        if not may_name_hosts(rule.spec) or other_family(rule.spec, self._family):
            return rule
        spec = rule.spec
        for option in reversed(list(options(rule.spec, _LISTS + _SINGLE))):
            names = [part for part in option.value.split(",") if self._is_name(part)]
            if names:
                parts = [
                    part if part not in names else self._addresses(rule.line, option, part)
                    for part in option.value.split(",")
                ]
                self.lines.add(rule.line)
                spec = spec[: option.value_start] + ",".join(parts) + spec[option.end :]
        return rule._replace(spec=spec)

    def _is_name(self, part: str) -> bool:
        name, slash, mask = part.partition("/")
        if not name or _NUMERIC.match(name) or (slash and _NO_MASK.match(mask)):
            return False  # iptables ignores a name with an empty mask, as in any/0
        return name not in self._network_names()

    def _network_names(self) -> Set[str]:
        """iptables itself knows the names of networks: they come from a file."""
        if self._networks is None:
            self._networks = set()
            try:
                with open(NETWORKS, encoding="utf-8", errors="surrogateescape", newline="\n") as listing:
                    for line in listing:
                        names = re.findall(r"[^ \t\n]+", line.partition("#")[0])
                        self._networks.update(names[:1] + names[2:])
            except FileNotFoundError:
                pass
        return self._networks

    def _addresses(self, line: int, option: Option, part: str) -> str:
        name, slash, mask = part.partition("/")
        found = self._look_up(line, name)
        if len(found) > 1 and option.name in _SINGLE:
            raise HostError(
                f"{self._path}, line {line}: '{option.name}' takes one address, and the host name '{name}' has "
                f"several: {', '.join(found)}. Write the one that is meant; nothing was changed"
            )
        self.warnings.append(
            f"{self._path}, line {line}: the host name '{name}' stands for {' and '.join(found)} now; it may change, "
            "and rules for its former addresses then stay in the kernel. Write addresses, or use an ipset"
        )
        if not slash:
            return ",".join(found)
        # Addresses of one network are one rule, not several identical ones.
        return ",".join(dict.fromkeys(_network(address, mask) for address in found))

    def _look_up(self, line: int, name: str) -> List[str]:
        if name not in self._known:
            try:
                # The very question that iptables asks.
                answers = socket.getaddrinfo(name.encode(), None, self._number, socket.SOCK_RAW)
            except (socket.gaierror, UnicodeError) as err:
                why = err.strerror if isinstance(err, socket.gaierror) else "no host can have such a name"
                raise HostError(
                    f"{self._path}, line {line}: the host name '{name}' has no address here ({why}). Correct it, "
                    "write the address, or put the name into /etc/hosts; nothing was changed"
                ) from err
            # The resolver may turn the order at each question; the rules of one line must not move for that.
            packed = {socket.inet_pton(self._number, answer[4][0].partition("%")[0]) for answer in answers}
            self._known[name] = [socket.inet_ntop(self._number, address) for address in sorted(packed)]
        return self._known[name]
