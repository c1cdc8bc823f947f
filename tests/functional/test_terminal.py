"""The outputter under the real salt-call: colours on a terminal and nowhere else, lines as wide as the terminal."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

ANSI = re.compile(r"\x1b\[[0-9;]*m")
STORED = """\
*filter
:INPUT ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m tcp --dport 8000 -m comment --comment "a comment that is rather longer than others are" -j ACCEPT
-A INPUT -j REJECT --reject-with icmp-host-prohibited
COMMIT
"""
CALL = [
    Path(sys.executable).parent / "salt-call",
    *("--local", "--config-dir=/run/lab/salt", "--out=iptlive", "iptlive.plan", "families=[ipv4]"),
]


@pytest.fixture(scope="module")
def terminal_host(hosts):
    host = hosts("nft")
    host.restore("".join(line for line in STORED.splitlines(True) if "8000" not in line))
    host.write("/etc/iptables/rules.v4", STORED)
    host.salt_call("saltutil.sync_all")
    return host


def on_terminal(host, columns, *options):
    """What salt-call prints on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = host.popen([*CALL, *options], stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL)
    os.close(theirs)
    got = b""
    try:
        while True:
            got += os.read(ours, 4096)
    except OSError:  # a terminal ends with an error when its last writer is gone
        process.wait(timeout=60)
    os.close(ours)
    return got.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [40, 100])
def test_on_a_terminal(terminal_host, columns):
    printed = on_terminal(terminal_host, columns)
    assert ANSI.search(printed)
    plain = ANSI.sub("", printed)
    assert max(map(len, plain.split("\n"))) <= columns
    assert "--dport 8000" in plain
    assert ANSI.sub("", on_terminal(terminal_host, columns, "--no-color")) == plain
    assert not ANSI.search(on_terminal(terminal_host, columns, "--no-color"))


def test_into_a_pipe(terminal_host):
    printed = terminal_host.run(CALL).stdout
    assert not ANSI.search(printed)
    assert '"a comment that is rather longer than others are" -j ACCEPT\n' in printed
