"""Addresses and ports as whole numbers: a span is the first and the last of a run, a set is some spans."""

import socket
from bisect import bisect_left, bisect_right
from typing import Iterable, List, Sequence, Tuple

Span = Tuple[int, int]

BITS = {"ipv4": 32, "ipv6": 128}
PORTS: Span = (0, 65535)
_SOCKET = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}


def everything(family: str) -> Span:
    return 0, (1 << BITS[family]) - 1


def family_of(text: str) -> str:
    return "ipv6" if ":" in text else "ipv4"


def number(address: str) -> int:
    """Raises ValueError where the text is no address."""
    try:
        return int.from_bytes(socket.inet_pton(_SOCKET[family_of(address)], address), "big")
    except OSError:
        raise ValueError(f"{address!r} is no address") from None


def show(family: str, value: int) -> str:
    return socket.inet_ntop(_SOCKET[family], value.to_bytes(BITS[family] // 8, "big"))


def span(text: str) -> Span:
    """``192.0.2.0/24``, also with a written mask, or one address. Raises ValueError."""
    address, _, length = text.partition("/")
    bits = BITS[family_of(address)]
    if not length:
        size = bits
    elif length.isdigit() and int(length) <= bits:
        size = int(length)
    else:
        size = _mask_length(number(length), bits)
    low = number(address) >> (bits - size) << (bits - size)
    return low, low + (1 << (bits - size)) - 1


def _mask_length(mask: int, bits: int) -> int:
    """A mask with holes cuts the space in more places than we could try: the prefix that it begins with counts."""
    return bits - ((1 << bits) - 1 - mask).bit_length()


def named(family: str, one: Span) -> str:
    """As a network where it is one, else as its ends."""
    low, high = one
    size = high - low + 1
    if size == 1:
        return show(family, low)
    if size & (size - 1) == 0 and low % size == 0:
        return f"{show(family, low)}/{BITS[family] - size.bit_length() + 1}"
    return f"{show(family, low)}-{show(family, high)}"


def ports_text(spans: Iterable[Span]) -> str:
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in spans)


def merged(spans: Iterable[Span]) -> List[Span]:
    """The same set in as few spans as possible, in order."""
    found: List[Span] = []
    for low, high in sorted(spans):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return found


def without(spans: Iterable[Span], holes: Iterable[Span]) -> List[Span]:
    left = merged(spans)
    for first, last in merged(holes):
        parts: List[Span] = []
        for low, high in left:
            if last < low or high < first:
                parts.append((low, high))
                continue
            if low < first:
                parts.append((low, first - 1))
            if last < high:
                parts.append((last + 1, high))
        left = parts
    return left


def common(spans: Iterable[Span], others: Sequence[Span]) -> List[Span]:
    found = []
    for low, high in spans:
        for first, last in others:
            if first <= high and low <= last:
                found.append((max(low, first), min(high, last)))
    return merged(found)


def holds(spans: Iterable[Span], value: int) -> bool:
    return any(low <= value <= high for low, high in spans)


def meet(spans: Iterable[Span], others: Sequence[Span]) -> bool:
    return any(first <= high and low <= last for low, high in spans for first, last in others)


def cut(spans: Iterable[Span], edges: Sequence[int]) -> List[Span]:
    """The spans cut at the edges (sorted; an edge is the first number of what lies behind it)."""
    pieces = []
    for low, high in merged(spans):
        start = low
        for edge in edges[bisect_right(edges, low) : bisect_left(edges, high + 1)]:
            pieces.append((start, edge - 1))
            start = edge
        pieces.append((start, high))
    return pieces


def edges(spans: Iterable[Span]) -> List[int]:
    """Where the space must be cut so that each piece lies inside or outside each of the spans."""
    return sorted({edge for low, high in spans for edge in (low, high + 1)})
