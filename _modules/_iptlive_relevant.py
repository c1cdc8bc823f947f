"""Which of very many rules can matter to the packets that are tried. Pure.

A rule is left out where no packet with these addresses and ports can meet it, or where no rule that is left jumps to
its chain. What addresses and ports there are grows with the translations of the rules that are left, until it no longer
does: so nothing is left out that a packet could meet, whatever becomes of it on the way.
"""

import re
import socket
from bisect import bisect_left
from typing import Dict, Iterable, List, NamedTuple, Sequence, Set, Tuple

from _iptlive_model import BUILTIN, Table
from _iptlive_rules import targets

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_MATCHED = re.compile(r"(?<!! )(?:(?<= )|^)-[sd] ([0-9a-fA-F.:]+)(?:/(\d+))?(?= |$)")
_PORT = re.compile(r"(?<!! )--dport (\d+)(?::(\d+))?(?= |$)")
_TRANSLATED = re.compile(r"--(?:to-destination|to-source|to|on-ip) (\S+)")
_TRANSLATED_PORT = re.compile(r"--(?:to-ports|on-port) (\d+)(?:-(\d+))?")
_BITS = {"ipv4": 32, "ipv6": 128}
_FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
# The neighbours of IPv6 ask and are asked by these.
_ALWAYS = {"ipv4": (), "ipv6": (("fe80::", 10), ("ff00::", 8))}
_ANY_PORT = range(65536)

Span = Tuple[int, int]
Numbers = Dict[Tuple[str, str], List[int]]  # by table and chain: the numbers of the rules that are left


class Reduced(NamedTuple):
    text: str  # in iptables-save syntax
    numbers: Numbers  # of the chains that are not whole


class _Spans:
    """Whole numbers, single ones and ranges of them."""

    def __init__(self) -> None:
        self._single: Set[int] = set()
        self._sorted: List[int] = []
        self._ranges: Set[Span] = set()

    def add(self, spans: Iterable[Span]) -> bool:
        """Whether any was new."""
        before = len(self._single), len(self._ranges)
        for first, last in spans:
            if first == last:
                self._single.add(first)
            else:
                self._ranges.add((first, last))
        self._sorted = sorted(self._single)
        return (len(self._single), len(self._ranges)) != before

    def meets(self, span: Span) -> bool:
        at = bisect_left(self._sorted, span[0])
        if at < len(self._sorted) and self._sorted[at] <= span[1]:
            return True
        return any(first <= span[1] and span[0] <= last for first, last in self._ranges)


class _Packets:
    """What addresses and ports the packets may come to have."""

    def __init__(self, family: str, addresses: Iterable[str], ports: Iterable[int], own_ports: range):
        self._family = family
        self._addresses, self._ports = _Spans(), _Spans()
        self._addresses.add(_net(family, one, _BITS[family]) for one in addresses)
        self._addresses.add(_net(family, one, bits) for one, bits in _ALWAYS[family])
        self._ports.add([(own_ports.start, own_ports.stop - 1)])
        self._ports.add((port, port) for port in ports)

    def may_meet(self, rule: str) -> bool:
        if '"' in rule:
            rule = _QUOTED.sub('""', rule)
        nets = (_net(self._family, address, bits) for address, bits in _MATCHED.findall(rule))
        if not all(map(self._addresses.meets, nets)):
            return False
        return all(self._ports.meets((int(low), int(high or low))) for low, high in _PORT.findall(rule))

    def learn(self, rule: str) -> bool:
        """From what a rule makes of those it meets; whether that is anything new."""
        if " -j " not in rule or not ("--to" in rule or "--on-" in rule or "--random" in rule):
            return False
        ports = [(int(low), int(high or low)) for low, high in _TRANSLATED_PORT.findall(rule)]
        if "--random" in rule:
            ports.append((_ANY_PORT.start, _ANY_PORT.stop - 1))
        found = [_translation(self._family, text) for text in _TRANSLATED.findall(rule)]
        new = self._addresses.add(span for span, _ in found if span)
        return self._ports.add([*ports, *(span for _, span in found if span)]) or new


def reduce(
    family: str,
    rulesets: Sequence[Dict[str, Table]],
    edits: Sequence[str],
    addresses: Iterable[str],
    ports: Iterable[int],
    own_ports: range,
) -> List[Reduced]:
    """Each of a family's rulesets without what cannot matter; what ``edits`` touch stays whole.

    ``addresses``: all those of this host as well; ``own_ports``: those that packets are sent from.
    """
    packets = _Packets(family, addresses, ports, own_ports)
    edited = [line for text in edits for line in text.split("\n") if line.startswith("-")]
    whole = {word for line in edited for word in line.split(" ")[1:2]}
    wanted = {target for line in edited for target in targets(line)}
    for line in edited:
        packets.learn(line)
    scans = [_Scan(tables, whole, wanted) for tables in rulesets]
    while any(scan.grow(packets) for scan in scans):
        pass
    return [scan.reduced() for scan in scans]


class _Scan:
    """The chains of one ruleset that are reached, and the rules in them that may be met."""

    def __init__(self, tables: Dict[str, Table], whole: Set[str], wanted: Set[str]):
        self._tables = tables
        self._whole = whole
        self._kept: Dict[Tuple[str, str], Set[int]] = {}
        self._todo: List[Tuple[str, str]] = [
            (name, chain) for name, table in tables.items() for chain in table if self._starts(name, chain, wanted)
        ]

    def _starts(self, table: str, chain: str, wanted: Set[str]) -> bool:
        return chain in BUILTIN.get(table, ()) or chain in self._whole or chain in wanted

    def grow(self, packets: _Packets) -> bool:
        """One more look at all that is left out; whether anything more is kept, or learnt."""
        before = sum(map(len, self._kept.values()))
        learnt = False
        todo = [*self._kept, *self._todo]
        self._todo = []
        while todo:
            place = todo.pop()
            kept = self._kept.setdefault(place, set())
            for number, rule in enumerate(self._tables[place[0]][place[1]].rules):
                if number in kept or not (place[1] in self._whole or packets.may_meet(rule)):
                    continue
                kept.add(number)
                learnt = packets.learn(rule) or learnt
                todo += [(place[0], one) for one in targets(rule) if self._is_new(place[0], one)]
        return learnt or sum(map(len, self._kept.values())) != before

    def _is_new(self, table: str, chain: str) -> bool:
        return chain in self._tables[table] and (table, chain) not in self._kept

    def reduced(self) -> Reduced:
        lines: List[str] = []
        numbers: Numbers = {}
        for name, table in self._tables.items():
            there = {chain: state for chain, state in table.items() if (name, chain) in self._kept}
            lines += [f"*{name}", *(f":{chain} {state.policy or '-'} [0:0]" for chain, state in there.items())]
            for chain, state in there.items():
                kept = sorted(self._kept[name, chain])
                lines += [f"-A {chain} {state.rules[number]}".rstrip(" ") for number in kept]
                if len(kept) != len(state.rules):
                    numbers[name, chain] = [number + 1 for number in kept]
            numbers.update({(name, chain): [] for chain in table if chain not in there})
            lines.append("COMMIT")
        return Reduced("\n".join([*lines, ""]), numbers)


def size(tables: Dict[str, Table]) -> int:
    return sum(len(chain.rules) for table in tables.values() for chain in table.values())


def _net(family: str, address: str, bits) -> Span:
    try:
        number = int.from_bytes(socket.inet_pton(_FAMILIES[family], address), "big")
    except OSError:
        return 0, (1 << _BITS[family]) - 1  # nothing that could be told apart
    free = _BITS[family] - int(bits or _BITS[family])
    first = number >> free << free
    return first, first | ((1 << free) - 1)


def _translation(family: str, text: str) -> Tuple[Tuple[int, int], Tuple[int, int]]:
    """The addresses and the ports that a packet is given: ``10.0.0.1-10.0.0.9:80-90``, ``[2001:db8::1]:80``."""
    if "/" in text:
        address, _, bits = text.partition("/")
        return _net(family, address, bits), ()
    bare = text.replace("[", "").replace("]", "")
    ports = ()
    found = re.search(r"\]:(\d+)(?:-(\d+))?$" if "[" in text else r"^[^:]*:(\d+)(?:-(\d+))?(?:/\d+)?$", text)
    if found:
        ports = int(found.group(1)), int(found.group(2) or found.group(1))
        bare = text[: found.start(1) - 1].replace("[", "").replace("]", "")
    first, _, last = bare.partition("-")
    if not first:
        return (), ports
    ends = [_net(family, one, _BITS[family]) for one in (first, last or first)]
    return (ends[0][0], ends[1][1]), ports
