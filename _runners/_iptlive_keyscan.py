"""The SSH host keys that hosts offer, as ssh-keyscan prints them.

Each host is asked by a run of its own. OpenSSH 9.8 and later print what a host calls itself on the same output as
keys, so whatever one host says must never be read as a key of another's.
"""

import concurrent.futures
import os
import subprocess
from typing import Dict, FrozenSet, Iterable, Tuple

from _iptlive_known_hosts import Key, is_host, place, read_line, split

# A run asks for six kinds of key at the same time: what an unprivileged process may have open allows for this many.
AT_ONCE = 40


def scan(hosts: Iterable[Tuple[str, int]], timeout: int) -> Dict[str, FrozenSet[Key]]:
    """The keys that hosts offer, by place; a host that cannot be reached offers none. Raises OSError, ValueError."""
    asked = sorted(set(hosts), key=str)
    for host, _ in asked:
        if not is_host(host):
            raise ValueError(host)
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        printed = pool.map(lambda pair: _keyscan(*pair, timeout), asked)
        return {place(*pair): offered(text, place(*pair)) for pair, text in zip(asked, printed)}


def offered(printed: bytes, wanted: str) -> FrozenSet[Key]:
    """The keys in what ssh-keyscan printed, of lines that name this host and no other."""
    lines = (read_line(text) for text in split(printed))
    return frozenset(line.key for line in lines if line.key and not line.marker and _names(line, wanted))


def _names(line, wanted: str) -> bool:
    return [host.lower() for host in line.hosts] == [wanted]


def _keyscan(host: str, port: int, timeout: int) -> bytes:
    try:
        done = subprocess.run(
            # The name comes on stdin, where nothing can be an option.
            ["ssh-keyscan", "-T", str(timeout), "-p", str(port), "-f", "-"],
            input=host.encode("ascii") + b"\n",
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(os.environ, LC_ALL="C"),
            timeout=(timeout + 1) * 6,  # should it ask for one kind of key after the other
            check=False,
        )
    except subprocess.TimeoutExpired:
        return b""  # a resolver that does not answer, for one: this host's trouble, and no other's
    return done.stdout
