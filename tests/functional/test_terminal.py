"""The outputter under the real salt-call: colours on a terminal and nowhere else, lines as wide as the terminal."""

import re

import pytest

from lab.terminal import SALT_CALL, on_terminal

ANSI = re.compile(r"\x1b\[[0-9;]*m")
STORED = """\
*filter
:INPUT ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m tcp --dport 8000 -m comment --comment "a comment that is rather longer than others are" -j ACCEPT
-A INPUT -j REJECT --reject-with icmp-host-prohibited
COMMIT
"""
CALL = [*SALT_CALL, "--out=iptlive", "iptlive.plan", "families=[ipv4]"]


@pytest.fixture(scope="module")
def terminal_host(hosts):
    host = hosts("nft")
    host.restore("".join(line for line in STORED.splitlines(True) if "8000" not in line))
    host.write("/etc/iptables/rules.v4", STORED)
    host.salt_call("saltutil.sync_all")
    return host


@pytest.mark.parametrize("columns", [40, 100])
def test_on_a_terminal(terminal_host, columns):
    printed = on_terminal(terminal_host, CALL, columns)
    assert ANSI.search(printed)
    plain = ANSI.sub("", printed)
    assert max(map(len, plain.split("\n"))) <= columns
    assert "--dport 8000" in plain
    assert ANSI.sub("", on_terminal(terminal_host, [*CALL, "--no-color"], columns)) == plain
    assert not ANSI.search(on_terminal(terminal_host, [*CALL, "--no-color"], columns))


def test_into_a_pipe(terminal_host):
    printed = terminal_host.run(CALL).stdout
    assert not ANSI.search(printed)
    assert '"a comment that is rather longer than others are" -j ACCEPT\n' in printed
