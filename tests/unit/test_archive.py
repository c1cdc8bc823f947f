"""What the master unpacks of a backup that a host sent: all of it or nothing, in linear time, within bounds."""

import base64
import re
import sys
import zlib

import _iptlive_archive as archive
import _iptlive_backup as backup_room
import pytest
from hypothesis import given
from hypothesis import strategies as st

NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,30}", fullmatch=True)


def sent(data):
    return base64.b64encode(zlib.compress(data)).decode("ascii")


@given(st.dictionaries(NAMES, st.binary(max_size=200), max_size=20))
def test_what_our_hosts_send_comes_back(files):
    assert archive.unpacked(backup_room.packed(files)["archive"]) == files


HEADS = st.sampled_from(
    [b"a 1\nx", b"b 0\n", b"a 0\n", b"../x 1\nx", b"c 99\n", b"d -1\n", b"e \n", b"\xff 1\nx", b"f 1_0\n"]
)


@given(st.lists(HEADS | st.binary(max_size=9), max_size=6).map(b"".join))
def test_what_others_send_is_files_with_harmless_names_or_an_error(data):
    try:
        files = archive.unpacked(sent(data))
    except ValueError:
        return
    assert all(re.fullmatch(r"[a-z0-9-]+", name) for name in files)
    assert b"".join(b"%s %d\n%s" % (name.encode(), len(text), text) for name, text in files.items()) == data


@given(st.text() | st.binary().map(lambda data: base64.b64encode(data).decode()))
def test_what_is_no_archive_is_an_error(text):
    with pytest.raises(ValueError):
        archive.unpacked(text)


@pytest.mark.parametrize(
    "data",
    [
        bytes(20_000_001),
        b"".join(b"n%d 0\n" % number for number in range(archive.MOST_FILES + 1)),
        b"a 0\n" * 1_000_000,
        b"a" * 10_000_000,
    ],
    ids=["a bomb", "many files", "one file many times", "an endless name"],
)
def test_what_is_too_much_is_an_error(monkeypatch, data):
    monkeypatch.setattr(archive, "LARGEST", 20_000_000)
    with pytest.raises(ValueError):
        archive.unpacked(sent(data))


def steps(data):
    """How many calls unpacking takes, and how many bytes it copies."""
    count = 0

    def called(frame, event, arg):
        nonlocal count
        count += 1

    sys.setprofile(called)
    try:
        files = archive.unpacked(sent(data))
    finally:
        sys.setprofile(None)
    assert sum(map(len, files.values())) <= len(data)
    return count


def test_twice_the_files_are_twice_the_work():
    one, two, four = (steps(b"".join(b"n%d 9\n123456789" % n for n in range(count))) for count in (20, 40, 80))
    assert four - two <= 2.2 * (two - one)
