"""Whose a rule is: told by chains, comments and interfaces, from a small table that pillar can extend.

A name is only given where the evidence is the owner's own: the chain a rule stands in or jumps to, a comment that only
its program writes, or the exact shape of a rule that it writes on its interfaces. All else is ``unknown``.
"""

import fnmatch
import re
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Pattern, Sequence, Tuple

from _iptlive_model import BUILTIN, InputError, Table

UNKNOWN = "unknown"


class Owner(NamedTuple):
    """What gives a program's rules away.

    ``chains``, ``comments`` and ``interfaces`` are shell patterns. ``rules`` are regular expressions for a whole rule,
    written ``table/CHAIN rule``, in which ``{interface}`` stands for any of the owner's interfaces; an owner that has
    interfaces but no ``rules`` owns every rule that names one of them. ``yours`` are chains that the program makes for
    the administrator: the jump to them is the program's, what stands in them is not.
    """

    chains: Tuple[str, ...] = ()
    yours: Tuple[str, ...] = ()
    comments: Tuple[str, ...] = ()
    interfaces: Tuple[str, ...] = ()
    rules: Tuple[str, ...] = ()


_ZONES = ("public", "trusted", "home", "internal", "external", "work", "dmz", "drop", "block", "nm-shared", "docker")

# What a bridge's owner writes to let its guests out and answers in.
_BRIDGE = (
    "filter/FORWARD -i ({interface})( !)? -o \\1 -j (ACCEPT|DROP)",
    "filter/FORWARD -o {interface} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
)

OWNERS: Dict[str, Owner] = {
    "docker": Owner(
        chains=("DOCKER", "DOCKER-ISOLATION*", "DOCKER-FORWARD", "DOCKER-BRIDGE", "DOCKER-CT", "DOCKER-INTERNAL")
        + ("DOCKER-INGRESS", "DOCKER-USER", "DOCKER_OUTPUT", "DOCKER_POSTROUTING"),
        yours=("DOCKER-USER",),
        interfaces=("docker0", "docker_gwbridge", "br-" + "[0-9a-f]" * 12),
        rules=_BRIDGE
        + (
            "filter/DOCKER-USER -j RETURN",
            "nat/POSTROUTING -s \\S+ ! -o {interface} -j MASQUERADE",
            "nat/POSTROUTING -o {interface} -m addrtype --src-type LOCAL -j MASQUERADE",
            "nat/POSTROUTING -s (172\\.\\S+)/32 -d \\1/32 -p (tcp|udp|sctp) -m \\2 --dport \\d+ -j MASQUERADE",
            "raw/PREROUTING -d \\S+ ! -i {interface}( .*)? -j DROP",
        ),
    ),
    "kubernetes": Owner(chains=("KUBE-*", "FLANNEL-*"), comments=("kubernetes *", "kube-router *", "flanneld *")),
    "calico": Owner(chains=("cali-*",), comments=("cali:*",)),
    "cilium": Owner(chains=("CILIUM_*", "OLD_CILIUM_*"), comments=("cilium: *", "cilium-feeder: *")),
    "fail2ban": Owner(chains=("f2b-*", "fail2ban-*")),
    "libvirt": Owner(
        chains=("LIBVIRT_*", "libvirt-*", "[FHIO][IOJ]-vnet*"),
        interfaces=("virbr*",),
        rules=_BRIDGE
        + (
            "filter/(INPUT|OUTPUT) -[io] {interface} -p (tcp|udp) -m (tcp|udp) --dport (53|67|68) -j ACCEPT",
            "filter/FORWARD -[sd] \\S+ -[io] {interface}( -m conntrack --ctstate RELATED,ESTABLISHED)? -j ACCEPT",
            "filter/FORWARD -[io] {interface} -j REJECT --reject-with \\S+",
            "mangle/POSTROUTING -o {interface} -p udp -m udp --dport 68 -j CHECKSUM --checksum-fill",
            "nat/POSTROUTING -s \\S+ -d (224\\.0\\.0\\.0/24|255\\.255\\.255\\.255/32) -j RETURN",
            "nat/POSTROUTING -s (\\S+) ! -d \\1 -p (tcp|udp) -j MASQUERADE --to-ports 1024-65535",
        ),
    ),
    "ufw": Owner(chains=("ufw-*", "ufw6-*")),
    "firewalld": Owner(
        chains=("*PUT_direct", "FORWARD_direct", "P*ROUTING_direct")
        + ("*PUT_ZONES*", "FORWARD_*_ZONES*", "P*ROUTING_ZONES*")
        + ("*PUT_POLICIES*", "FORWARD_POLICIES*", "P*ROUTING_POLICIES*")
        + tuple(f"{prefix}_{zone}*" for prefix in ("IN", "FWD[IO]", "PRE", "POST") for zone in _ZONES)
    ),
    "lxd": Owner(
        comments=("generated for LXD *", "managed by lxd-bridge"),
        interfaces=("lxcbr*",),
        rules=_BRIDGE + ("filter/(INPUT|FORWARD) -[io] {interface}( -p (tcp|udp) -m \\S+ --dport (53|67))? -j ACCEPT",),
    ),
    "incus": Owner(comments=("generated for Incus *",)),
    "podman": Owner(chains=("NETAVARK*",), comments=('name: "podman*',)),
    "cni": Owner(chains=("CNI-*",), comments=("CNI *",)),
    "weave": Owner(chains=("WEAVE", "WEAVE-*"), interfaces=("weave",), rules=_BRIDGE),
    "neutron": Owner(chains=("neutron-*",)),
    "istio": Owner(chains=("ISTIO_*",)),
    "tailscale": Owner(chains=("ts-input", "ts-forward", "ts-postrouting")),
    "sshguard": Owner(chains=("sshguard",)),
    "proxmox": Owner(chains=("PVEFW-*",)),
    "rancher": Owner(chains=("CATTLE_*",)),
    "netbird": Owner(chains=("NETBIRD-*", "netbird-*")),
    "wireguard": Owner(comments=("wg-quick(8) rule for *",)),
    "miniupnpd": Owner(chains=("MINIUPNPD", "MINIUPNPD-*")),
    "aws": Owner(chains=("AWS-SNAT-CHAIN-*", "AWS-CONNMARK-CHAIN-*"), comments=("AWS SNAT CHAIN*", "AWS, *")),
    "antrea": Owner(chains=("ANTREA-*",), comments=("Antrea: *",)),
    "crowdsec": Owner(chains=("CROWDSEC_CHAIN*",)),
}

# Who writes an nftables table of that name; iptables sees nothing of it.
NATIVE_TABLES = {
    "docker-bridges": "Docker with the firewall-backend nftables",
    "kube-proxy": "kube-proxy in its nftables mode",
    "firewalld": "firewalld",
    "f2b-table": "fail2ban",
    "libvirt_network": "libvirt",
    "netavark": "podman",
    "incus": "Incus",
    "lxd": "LXD",
}

_TARGET = re.compile(r"(?:^| )-[jg] (\S+)")
_JUMP, _GOTO = re.compile(r"-j (?=([^ \n]+))"), re.compile(r"-g (?=([^ \n]+))")  # also behind a name that ends so
_INTERFACE = re.compile(r"(?:^| )-[io] (\S+)")
_COMMENT = re.compile(r'(?:^| )--comment (?:"((?:[^"\\]|\\.)*)"|(\S+))', re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_GLOB = re.compile(r'[*?["\\]')
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)


class Owners:
    """Names the owners of chains and rules, and remembers what it found out about a chain."""

    def __init__(self, table: Mapping[str, Owner]):
        self._names = [(name, _any(owner.chains)) for name, owner in table.items() if owner.chains]
        self._found: Dict[str, Optional[str]] = {}
        self._yours = _any([pattern for owner in table.values() for pattern in owner.yours])
        # Most rules are nobody's: what none of these stands in needs no closer look.
        self._telling = _any_beginning('--comment "?', [glob for owner in table.values() for glob in owner.comments])
        self._comments = [(name, _any(owner.comments, ".*")) for name, owner in table.items() if owner.comments]
        self._shapes = _Shapes(table)

    def of_chain(self, chain: str) -> Optional[str]:
        """The owner of a chain, None for the user's and the kernel's own."""
        if chain not in self._found:
            self._found[chain] = self._find(chain)
        return self._found[chain]

    def _find(self, chain: str) -> Optional[str]:
        if any(chain in chains for chains in BUILTIN.values()):
            return None
        return next((name for name, fits in self._names if fits.match(chain)), None)

    def is_yours(self, chain: str) -> bool:
        """Whether an owner makes the chain for the administrator to fill."""
        return self._yours.match(chain) is not None

    def of_rule(self, table: str, chain: str, rule: str) -> str:
        """The owner of a rule in the kernel's spelling."""
        owner = self.of_chain(chain)
        if owner and not self.is_yours(chain):
            return owner
        target = _target(rule)
        owner = target and self.of_chain(target)
        return owner or self._of_comment(rule) or self._shapes.owner(table, chain, rule) or UNKNOWN

    def of_rules(self, table: str, chain: str, rules: Sequence[str]) -> List[str]:
        """The owners of a chain's rules."""
        if self._may_own(table, chain, rules):
            return [self.of_rule(table, chain, rule) for rule in rules]
        return [UNKNOWN] * len(rules)

    def _may_own(self, table: str, chain: str, rules: Sequence[str]) -> bool:
        """Whether it is worth while to ask of each rule: nearly always all are nobody's, which all in one text tell."""
        text = "\n".join(rules)
        return (
            self.of_chain(chain) is not None
            or any(map(self.of_chain, {*_JUMP.findall(text), *_GOTO.findall(text)}))
            or self._telling.search(text) is not None
            or self._shapes.may_own(table, chain, text)
        )

    def _of_comment(self, rule: str) -> Optional[str]:
        if not self._telling.search(rule):
            return None
        comments = [_ESCAPE.sub(r"\1", quoted) or bare for quoted, bare in _COMMENT.findall(rule)]
        return next((name for name, fits in self._comments if any(map(fits.match, comments))), None)

    def count(self, table: str, content: Table) -> Dict[str, int]:
        """How many of a table's rules each owner has."""
        found: Dict[str, int] = {}
        for chain, state in content.items():
            add(found, self.of_rules(table, chain, state.rules))
        return found


class _Shape(NamedTuple):
    """A regular expression for an owner's rule; ``bound``: it has one of the interfaces right behind -i or -o."""

    owner: str
    pattern: Pattern
    bound: bool


class _Shapes:
    """Rules known by their shape; sorted by table and chain, because most rules fit none."""

    def __init__(self, table: Mapping[str, Owner]):
        self._compiled: List[_Shape] = []
        self._interfaces: List[Tuple[str, Pattern]] = []
        for name, owner in table.items():
            interface = _any(owner.interfaces).pattern if owner.interfaces else "(?!)"
            own = OWNERS.get(name, Owner()).rules  # of the others nobody knows where they have it
            self._compiled += [
                _Shape(name, _compiled(name, rule, interface), rule in own and "{interface}" in rule)
                for rule in owner.rules
            ]
            if owner.interfaces and not owner.rules:
                self._interfaces.append((name, _any(owner.interfaces)))
        interfaces = [glob for owner in table.values() for glob in owner.interfaces]
        self._telling = [_any_beginning(option, interfaces) for option in ("-i ", "-o ")]
        self._by_chain: Dict[str, List[_Shape]] = {}

    def may_own(self, table: str, chain: str, text: str) -> bool:
        """Whether one of the rules in this text may have a known shape."""
        anyhow = not all(shape.bound for shape in self._at(f"{table}/{chain}"))
        return anyhow or any(telling.search(text) for telling in self._telling)

    def owner(self, table: str, chain: str, rule: str) -> Optional[str]:
        place = f"{table}/{chain}"
        text = f"{place} {rule}"
        found = next((shape.owner for shape in self._at(place) if shape.pattern.match(text)), None)
        if found is None and self._interfaces:
            used = _INTERFACE.findall(_unquoted(rule))
            found = next((name for name, fits in self._interfaces if any(map(fits.match, used))), None)
        return found

    def _at(self, place: str) -> List[_Shape]:
        if place not in self._by_chain:
            beginning = re.compile(r"[\w/-]+ ")
            starts = [(beginning.match(shape.pattern.pattern), shape) for shape in self._compiled]
            self._by_chain[place] = [shape for start, shape in starts if start is None or start.group() == place + " "]
        return self._by_chain[place]


def _target(rule: str) -> Optional[str]:
    """The chain or target that the rule jumps to; it mostly stands behind the last quoted text."""
    found = _TARGET.search(rule, rule.rfind('"') + 1) or _TARGET.search(_unquoted(rule))
    return found.group(1) if found else None


def _unquoted(rule: str) -> str:
    """Without quoted texts: a comment may say anything."""
    return _QUOTED.sub('""', rule) if '"' in rule else rule


def _any_beginning(before: str, patterns: Sequence[str]) -> Pattern:
    """What must stand in a text for any of these shell patterns to be in it, behind something that is found fast."""
    beginnings = sorted({_GLOB.split(pattern)[0] for pattern in patterns})
    return re.compile(f"{before}(?:{'|'.join(map(re.escape, beginnings))})" if beginnings else "(?!)")


def _compiled(name: str, rule: str, interface: str) -> Pattern:
    try:
        return re.compile(rule.replace("{interface}", interface) + r"\Z")
    except re.error as err:
        raise InputError(f"owners: {name}: rules: {rule!r} is no regular expression: {err}") from err


def _any(patterns: Iterable[str], star: str = r"\S*") -> Pattern:
    """A regular expression for any of some shell patterns; ``star`` is what their ``*`` stands for."""
    each = [fnmatch.translate(pattern)[:-2].replace(".*", star) for pattern in patterns]  # [:-2]: not its "\Z"
    return re.compile("(?:" + "|".join(each) + r")(?!\S)" if each else "(?!)")


def add(found: Dict[str, int], owners) -> None:
    for owner in owners:
        found[owner] = found.get(owner, 0) + 1


def parse(given: Any) -> Owners:
    """The table, extended by pillar: a known owner's entries are added to, a new name is a new owner."""
    if not isinstance(given, Mapping):
        raise InputError(f"option 'owners': expected a mapping of names to patterns, got {given!r}")
    table = dict(OWNERS)
    for name, patterns in given.items():
        known = table.pop(name, Owner())
        added = _patterns(name, patterns)
        table[name] = Owner(**{field: getattr(known, field) + added.get(field, ()) for field in Owner._fields})
    # What the user says comes first, new names above all: it may be more precise than what we know.
    first = sorted(given, key=OWNERS.__contains__)
    return Owners(dict([(name, table[name]) for name in first] + list(table.items())))


def _patterns(name: Any, given: Any) -> Dict[str, Tuple[str, ...]]:
    if not isinstance(given, Mapping) or any(field not in Owner._fields for field in given):
        raise InputError(
            "option 'owners': {}: expected a mapping of {}, got {!r}".format(name, ", ".join(Owner._fields), given)
        )
    found = {}
    for field, value in given.items():
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"option 'owners': {name}: {field}: expected a list of patterns, got {value!r}")
        found[field] = tuple(texts)
    return found
