"""Rules that are plainly iptables' own: recognised by their shape as surely as by taking them apart."""

import struct

from _iptlive_expressions import Plain
from hypothesis import given, settings
from hypothesis import strategies as st


def attribute(kind, value):
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def expression(name, *attributes):
    return attribute(1, attribute(1, name.encode() + b"\0") + attribute(2, b"".join(attributes)))


def number(kind, value, size=4):
    return attribute(kind, value.to_bytes(size, "big"))


def compare(value, operation=0):
    return expression("cmp", number(1, 1), number(2, operation), attribute(3, attribute(1, value)))


def payload(base, offset, length):
    return expression("payload", number(1, 1), number(2, base), number(3, offset), number(4, length))


def masked(mask):
    parts = [attribute(4, attribute(1, mask)), attribute(5, attribute(1, bytes(len(mask))))]
    return expression("bitwise", number(1, 1), number(2, 1), number(3, len(mask)), *parts)


def plain(source, port, packets):
    """-s 10.1.16.0/20 -p tcp -m tcp --dport 443 -m comment --comment some -j ACCEPT"""
    return b"".join([
        payload(1, 12, 4), masked(b"\xff\xff\xf0\0"), compare(source),
        expression("meta", number(2, 16), number(1, 1)), compare(b"\x06"),
        payload(2, 2, 2), compare(port),
        expression("match", attribute(1, b"comment\0"), number(2, 0), attribute(3, b"some".ljust(256, b"\0"))),
        expression("counter", number(1, packets * 60, 8), number(2, packets, 8)),
        expression("immediate", number(1, 0), attribute(2, attribute(2, number(1, 1)))),
    ])  # fmt: skip


KNOWN = plain(bytes([10, 1, 16, 0]), b"\x01\xbb", 0)


def answer(judge, data):
    """True or False; a broken message may also end in an error."""
    try:
        return judge.holds(data)
    except (KeyError, ValueError, struct.error):
        return "broken"


@settings(max_examples=10 * settings.default.max_examples)
@given(st.integers(0, len(KNOWN) - 1), st.integers(1, 255))
def test_a_byte_makes_the_same_difference_to_one_who_knows_the_shape(place, change):
    altered = bytearray(KNOWN)
    altered[place] ^= change
    knowing = Plain("ipv4", "1.8.9")
    assert knowing.holds(KNOWN)
    assert answer(knowing, bytes(altered)) == answer(Plain("ipv4", "1.8.9"), bytes(altered))


@given(st.binary(min_size=4, max_size=4), st.binary(min_size=2, max_size=2), st.integers(0, 1 << 40))
def test_so_do_values(source, port, packets):
    rule = plain(source, port, packets)
    knowing = Plain("ipv4", "1.8.9")
    assert knowing.holds(KNOWN)
    assert knowing.holds(rule) == Plain("ipv4", "1.8.9").holds(rule) == (source[2] & 15 == 0 == source[3])
