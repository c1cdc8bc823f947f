"""Rules in iptables' nf_tables that iptables did not write: do they do what they are printed as?

iptables-nft prints such a rule as far as it understands it, and leaves out the rest without a word: a drop for the
addresses of a set reads as a drop for everybody. What consists only of the few expressions that every iptables-nft
writes, and reads, in one way is taken as it is printed. Anything else is loaded from its printed text into a
throw-away namespace and must come out as the same expressions.
"""

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from _iptlive_netlink import Rule, attributes, places, rule

_META_FIELDS = {6: "in", 7: "out", 16: "protocol"}
_NETWORK_FIELDS = {
    "ipv4": {9: ("protocol", 1), 12: ("source", 4), 16: ("destination", 4)},
    "ipv6": {8: ("source", 16), 24: ("destination", 16)},
}
_TRANSPORT_FIELDS = {0: ("sport", 2), 2: ("dport", 2), 13: ("flags", 1)}
_TCP, _UDP = 6, 17
_READS_TRANSPORT = (1, 8, 8)  # before this iptables-nft wrote these in another way, and did not understand this one
_LIMIT_UNITS = (1, 60, 3600, 86400)
_LIMIT_SCALE = 10000  # iptables keeps the time between two packets in this part of a second
_MOST_SHAPES = 100  # of one length; to look through more of them takes longer than to take the rule apart
_EQUAL, _UNEQUAL = 0, 1
_CONTINUE = 0xFFFFFFFF
_STATELESS = ("meta", "payload", "bitwise", "cmp", "range", "counter", "immediate", "target")
# Printed before all matches, whatever the order they stand in.
_FIRST = ("in", "out", "source", "destination", "protocol")
_PROTOCOL = (("meta", b"\x08\0\x02\0\0\0\0\x10\x08\0\x01\0\0\0\0\x01"),)


class _Field(NamedTuple):
    """What has been loaded to be compared, and whether under a mask."""

    name: str
    mask: Optional[int] = None


class Plain:
    """Tells whether each expression of a rule is one that iptables-nft writes and prints in full.

    What is found out for one rule holds for all that differ from it only in addresses, ports, interfaces, counters, the
    chain that is jumped to and what extensions keep inside: they are recognised by the bits that are left, without
    being taken apart.
    """

    def __init__(self, family: str, version: str):
        self._family = family
        self._version = version
        self._known: Dict[int, List[Tuple[int, int]]] = {}  # by length: which bits matter, and what they must be

    def holds(self, data: bytes) -> bool:
        number = int.from_bytes(data, "big")
        known = self._known.setdefault(len(data), [])
        for mattering, wanted in known:
            if number & mattering == wanted:
                return True
        reader = _Reader(self._family, self._version)
        if not reader.read(rule(data)):
            return False
        if len(known) < _MOST_SHAPES:
            mattering = ~_free_bits(data, reader.compared) & ((1 << 8 * len(data)) - 1)
            known.append((mattering, number & mattering))
        return True


def _free_bits(data: bytes, compared: Sequence[int]) -> int:
    """The bits of a plain rule that it stays plain without; ``compared`` are those of each comparison's value."""
    masks = iter(compared)
    free = 0
    for _, start, end in places(data, 0, len(data)):
        inner = {kind: (first, last) for kind, first, last in places(data, start, end)}
        name = data[slice(*inner[1])].rstrip(b"\0").decode()
        body = {kind: (first, last) for kind, first, last in places(data, *inner[2])} if 2 in inner else {}
        if name == "counter":
            free |= sum(_bits(data, place) for place in body.values())
        elif name in ("match", "target") and 3 in body:
            free |= _bits(data, body[3])
        elif name == "immediate":
            free |= _bits(data, _jumps_to(data, *body[2]))
        elif name == "cmp":
            (value,) = (place for kind, *place in places(data, *body[3]) if kind == 1)
            free |= _bits(data, value, next(masks))
    return free


def _jumps_to(data: bytes, start: int, end: int) -> Sequence[int]:
    """Where the name of the chain stands in what an immediate expression sets; an empty place where there is none."""
    ((_, *verdict),) = places(data, start, end)
    names = [place for kind, *place in places(data, *verdict) if kind == 2]
    return names[0] if names else (end, end)


def _bits(data: bytes, place: Sequence[int], mask: int = -1) -> int:
    """The bits of the bytes at that place, or those of them in a mask, in the number that all of the data is."""
    start, end = place
    return (mask & ((1 << 8 * (end - start)) - 1)) << 8 * (len(data) - end)


def same(one: Rule, other: Rule) -> bool:
    """The same but for counters, for the order of plain comparisons, and for what extensions keep inside."""
    parts = [[_comparison(part) or part for part in _parts(rule)] for rule in (one, other)]
    if all(name in _STATELESS for name, _ in one):
        parts = [sorted(listed, key=repr) for listed in parts]
    return parts[0] == parts[1]


def jumps(taken: Rule) -> List[str]:
    """The chains that a rule jumps or goes to."""
    verdicts = [_verdict(data) for name, data in taken if name == "immediate"]
    return [verdict[2].rstrip(b"\0").decode() for verdict in verdicts if 2 in verdict]


def _verdict(data: bytes) -> Dict[int, bytes]:
    return attributes(attributes(attributes(data).get(2, b"")).get(2, b""))


def _parts(rule: Rule) -> List[Rule]:
    """Each comparison with what it compares, and each other expression by itself."""
    parts: List[Rule] = []
    for name, data in rule:
        if name == "counter" or (name == "immediate" and _number(_verdict(data).get(1)) == _CONTINUE):
            continue  # neither decides over a packet
        # What an extension keeps inside, it prints itself.
        part = ((name, attributes(data)[1] if name in ("match", "target") else data),)
        if name in ("bitwise", "cmp", "range") and parts:
            parts[-1] += part
        else:
            parts.append(_PROTOCOL if _is_ipv4_protocol(name, data) else part)
    return parts


def _comparison(part: Rule):
    """What is compared, in one form: there are several ways to load a part of a header, or a name."""
    names = [name for name, _ in part]
    if names not in (["meta", "cmp"], ["payload", "cmp"], ["payload", "bitwise", "cmp"]):
        return None
    steps = [attributes(data) for _, data in part]
    loaded, compared = steps[0], steps[-1]
    value = attributes(compared[3]).get(1, b"")
    if names[0] == "meta":
        return _interface(_number(loaded.get(2)), _number(compared.get(2)), value)
    length = _number(loaded.get(4))
    mask = b"\xff" * length  # where it is a whole number of bytes, iptables loads only these
    if len(steps) == 3:
        mask, xor = (attributes(steps[1].get(kind, b"")).get(1, b"") for kind in (4, 5))
        if any(xor):
            return None
    place = _number(loaded.get(2)), _number(loaded.get(3))
    return ("compare", *place, _number(compared.get(2)), value.rstrip(b"\0"), mask.rstrip(b"\0"))


def _interface(key: int, operation: int, value: bytes):
    if _META_FIELDS.get(key) not in ("in", "out"):
        return None
    # A whole name is compared with its end, one with a plus without.
    return ("interface", key, operation, value.partition(b"\0")[:2])


def _is_ipv4_protocol(name: str, data: bytes) -> bool:
    """There are two ways to ask for it."""
    found = attributes(data) if name == "payload" else {}
    return name == "payload" and [_number(found.get(kind)) for kind in (2, 3, 4)] == [1, 9, 1]


class _Reader:
    """Takes the expressions of one rule in turn."""

    def __init__(self, family: str, version: str):
        self._network = _NETWORK_FIELDS[family]
        self._transport = tuple(int(part) for part in version.split(".") if part.isdigit()) >= _READS_TRANSPORT
        self._loaded: Optional[_Field] = None
        self._seen: Dict[str, Optional[int]] = {}
        self._matched = False
        self._counted = False
        self._ended = False
        self.compared: List[int] = []

    def read(self, rule: Rule) -> bool:
        for name, data in rule:
            reader = getattr(self, "_read_" + name, None)
            if self._ended or reader is None or not reader(attributes(data)):
                return False
        return self._counted and self._loaded is None

    def _load(self, name: Optional[str]) -> bool:
        if self._loaded or self._counted or name is None or name in self._seen:
            return False
        if self._matched and name in _FIRST:
            return False  # a match that counts packets would count others
        self._loaded = _Field(name)
        return True

    def _read_meta(self, data) -> bool:
        return 1 in data and self._load(_META_FIELDS.get(_number(data.get(2))))

    def _read_payload(self, data) -> bool:
        base, offset, length = (_number(data.get(kind)) for kind in (2, 3, 4))
        if base == 1 and offset in self._network:
            name, whole = self._network[offset]
            return length <= whole and self._load(name)
        if base == 2 and offset in _TRANSPORT_FIELDS and self._transport:
            name, whole = _TRANSPORT_FIELDS[offset]
            protocols = (_TCP,) if name == "flags" else (_TCP, _UDP)
            return length == whole and self._seen.get("protocol") in protocols and self._load(name)
        return False

    def _read_bitwise(self, data) -> bool:
        if not self._loaded or self._loaded.name not in ("source", "destination", "flags") or self._loaded.mask:
            return False
        mask, xor = (_number(attributes(data.get(kind, b"")).get(1)) for kind in (4, 5))
        self._loaded = self._loaded._replace(mask=mask)
        return xor == 0 and mask > 0

    def _read_cmp(self, data) -> bool:
        field, self._loaded = self._loaded, None
        operation, value = _number(data.get(2)), _number(attributes(data.get(3, b"")).get(1))
        if field is None or operation not in (_EQUAL, _UNEQUAL):
            return False
        self._seen[field.name] = value if operation == _EQUAL else None
        self.compared.append(0 if field.name in ("protocol", "flags") else -1 if field.mask is None else field.mask)
        if field.mask is None:
            return field.name != "flags"
        return value & ~field.mask == 0

    def _read_range(self, data) -> bool:
        field, self._loaded = self._loaded, None
        self._seen[field.name if field else ""] = None
        return field is not None and field.name in ("sport", "dport") and field.mask is None

    def _read_limit(self, data) -> bool:
        rate, unit, kind, flags = (_number(data.get(number)) for number in (1, 2, 4, 5))
        if self._counted or self._loaded or "limit" in self._seen or kind != 0 or flags != 0:
            return False
        self._seen["limit"], self._matched = None, True
        period = _LIMIT_SCALE * unit // rate if rate > 0 else 0
        return unit in _LIMIT_UNITS and period > 0 and _LIMIT_SCALE * unit // period == rate

    def _read_match(self, data) -> bool:
        self._matched = True
        return not self._counted and self._loaded is None

    def _read_counter(self, data) -> bool:
        if self._counted or self._loaded:
            return False
        self._counted = True
        return True

    def _read_target(self, data) -> bool:
        self._ended = True
        return self._counted

    def _read_immediate(self, data) -> bool:
        self._ended = True
        return self._counted and _number(data.get(1)) == 0 and 2 in attributes(data.get(2, b""))


def _number(data: Optional[bytes]) -> int:
    return int.from_bytes(data, "big") if data else -1 if data is None else 0
