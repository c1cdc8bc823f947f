"""A backup that came from a host, unpacked: in linear time, within bounds, and only files whose names lead nowhere."""

import base64
import re
import zlib
from typing import Dict

MOST_PARTS = 128
LONGEST_PART = 1 << 20  # Salt sends no more in one answer
LARGEST = 1 << 28  # bytes of one host's files: fifty times those of 50,000 rules
MOST_FILES = 100

# The line before each file's bytes: its name and their number.
_HEAD = re.compile(rb"([a-z0-9][a-z0-9-]{0,100}) ([0-9]{1,9})\n")


def unpacked(archive: str) -> Dict[str, bytes]:
    """Files by name. Raises ValueError; a host may have sent anything."""
    data = _inflated(archive)
    files: Dict[str, bytes] = {}
    start = 0
    while start < len(data):
        head = _HEAD.match(data, start)
        if not head:
            raise ValueError(f"no file where one should begin: {data[start : start + 40]!r}")
        name, length = head.group(1).decode("ascii"), int(head.group(2))
        start = head.end() + length
        if name in files or len(files) == MOST_FILES or start > len(data):
            raise ValueError(f"a file too many or too long: {name}, {length} bytes")
        files[name] = data[head.end() : start]
    return files


def _inflated(archive: str) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(base64.b64decode(archive, validate=True), LARGEST)
    except zlib.error as err:
        raise ValueError(str(err)) from err
    if not unpacker.eof:
        raise ValueError("not complete, or too large")
    return data
