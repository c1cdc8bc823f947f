"""What cannot be done is said with its place and fix, and the kernel stays as it was, in both families."""

import contextlib
import os
import sys
from pathlib import Path

import pytest

from lab.host import SCRATCH, SaltError

V4, V6 = "/etc/iptables/rules.v4", "/etc/iptables/rules.v6"
LIVE = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -j DROP\nCOMMIT\n"
# With something to do, so that a family that is updated too early shows.
GOOD = "*filter\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp --dport 22 -j ACCEPT\n-A INPUT -j DROP\nCOMMIT\n"
START = "*filter\n-A INPUT -i lo -j ACCEPT\n"
NOT_LOADED = "nothing was changed"
# name: (what the IPv6 file holds, the error's beginning, its end)
FILES = {
    "empty": ("", f"{V6}: the file is empty", "take the family out of 'families'"),
    "binary": (os.urandom(4096) + b"\0\n", f"{V6}, line ", ""),
    "10 MB line": (
        b"*filter\n-A INPUT -j ACCEPT " + b"x" * 10_000_000 + b"\nCOMMIT\n",
        f"{V6}, line 2: the line is 10000019 characters long",
        "put its addresses into an ipset",
    ),
    "unknown table": ("*broute\nCOMMIT\n", f"{V6}, line 1: unknown table 'broute'", "nat, mangle, raw, security"),
    "undeclared chain": (
        START + "-A MINE -j DROP\nCOMMIT\n",
        f"{V6}, line 3: chain 'MINE' of table 'filter' is not declared",
        "Add ':MINE - [0:0]' below '*filter'",
    ),
    "long chain name": (
        f"*filter\n:{'a' * 29} - [0:0]\nCOMMIT\n",
        f"{V6}, line 2: the chain name '{'a' * 29}' has 29 characters",
        "the kernel takes at most 28",
    ),
    "chain named like an option": (
        "*filter\n:-MINE - [0:0]\nCOMMIT\n",
        f"{V6}, line 2: the chain name '-MINE' starts with '-'",
        "which iptables takes for an option",
    ),
    "chain named like a target": (
        "*filter\n:REJECT - [0:0]\n-A REJECT -j DROP\nCOMMIT\n",
        f"{V6}, line 2: the chain 'REJECT' is called like a target",
        f"Give it another name; {NOT_LOADED}",
    ),
    "unknown match": (
        START + "-A INPUT -m nosuch -j ACCEPT\nCOMMIT\n",
        f"{V6}, line 3: ip6tables-restore refuses the rule '-A INPUT -m nosuch -j ACCEPT': ",
        NOT_LOADED,
    ),
    "wrong family": (START + "-A INPUT -s 10.0.0.1 -j DROP\nCOMMIT\n", f"{V6}, line 3: ", NOT_LOADED),
    # Programs accept the line; the kernel does not. The legacy one then blames the line of COMMIT.
    "refused by the kernel": (
        START + "-A INPUT -p udp -j REJECT --reject-with tcp-reset\n-A INPUT -j DROP\nCOMMIT\n",
        f"{V6}, line 3: ip6tables-restore refuses the rule '-A INPUT -p udp -j REJECT --reject-with tcp-reset': ",
        NOT_LOADED,
    ),
    "refused by the kernel, marked": (
        START + "#DELETE# -A INPUT -j MASQUERADE\nCOMMIT\n",
        f"{V6}, line 3: ip6tables-restore refuses the rule '-A INPUT -j MASQUERADE': ",
        NOT_LOADED,
    ),
    "position beyond the end": (
        START + "-I INPUT 3 -j DROP\nCOMMIT\n",
        f"{V6}, line 3: '-I INPUT 3' is beyond the chain's end",
        "1 rules are stored above it",
    ),
}


@pytest.fixture
def live(host):
    """A host with the same few rules in both families, and a good file for IPv4."""
    for family in ("ipv4", "ipv6"):
        host.restore(LIVE, family)
    host.write(V4, GOOD)
    return host


@contextlib.contextmanager
def replaced(host, program, by):
    link = f"/etc/alternatives/{program}"
    target = host.run(["readlink", link]).stdout.strip()
    host.run(["ln", "-sfn", by, link])
    try:
        yield
    finally:
        host.run(["ln", "-sfn", target, link])


def kernel(host):
    return [host.save(family, counters=True) for family in ("ipv4", "ipv6")] + [
        host.run(["nft", "list", "ruleset"]).stdout
    ]


def assert_refused(host, start, end="", **options):
    """plan, apply and the state say so, set a return code, and write nothing."""
    before = kernel(host)
    for fun in ("iptlive.plan", "iptlive.apply"):
        with pytest.raises(SaltError) as error:
            host.call(fun, **options)
        assert error.value.kind == "CommandExecutionError"
        assert error.value.message.startswith(start) and error.value.message.endswith(end)
    state = host.state(**options).value
    assert (state["result"], state["changes"], state["comment"]) == (False, {}, error.value.message)
    assert kernel(host) == before
    return error.value.message


@pytest.mark.parametrize("name", FILES)
def test_wrong_ipv6_file_stops_ipv4_too(live, name):
    content, start, end = FILES[name]
    live.write(V6, content)
    assert_refused(live, start, end)


@pytest.mark.parametrize("rule", ["-j NOSUCH", "-g NOSUCH", "-m set --match-set nosuch src -j DROP"])
def test_rule_that_names_what_is_not_there(live, rule):
    """It may come to be there any time, so it is a refusal and no error; nothing is done in either family."""
    live.write(V6, START + f"-A INPUT {rule}\nCOMMIT\n")
    before = kernel(live)
    for fun in ("iptlive.plan", "iptlive.apply"):
        answer = live.call(fun)
        assert (answer.retcode, answer.value["status"], answer.value["changes"]) == (1, "refused", {})
        (refusal,) = answer.value["refusals"]["IPv6/filter/INPUT"]
        assert (refusal["reason"], refusal["lines"]) == ("missing_reference", [3])
        assert "nosuch" in refusal["message"].lower() and refusal["hint"]
    state = live.state().value
    assert (state["result"], state["changes"]) == (False, {})
    assert refusal["message"] in state["comment"] and refusal["hint"] in state["comment"]
    assert kernel(live) == before


def test_no_file(live):
    assert_refused(
        live, f"IPv6: no stored file: expected exactly one of {V6}, /etc/sysconfig/ip6tables", "out of 'families'"
    )
    live.run(["ln", "-s", "/nowhere", V6])
    assert_refused(live, "IPv6: no stored file")


def test_two_files(live):
    live.write(V6, GOOD)
    live.write("/etc/sysconfig/ip6tables", GOOD)
    assert_refused(live, f"IPv6: 2 stored files, expected exactly one: {V6}, /etc/sysconfig/ip6tables")


@pytest.mark.parametrize("make", ["mkdir", "mkfifo"])
def test_not_a_file(live, make):
    live.run([make, V6])
    assert_refused(live, f"{V6}: is not a file. Name the stored file in 'files'")


@pytest.mark.parametrize("missing", ["ip6tables", "ip6tables-restore"])
def test_iptables_not_installed(live, missing):
    """The alternatives' link leads nowhere in this host, as after the package was removed."""
    live.write(V6, GOOD)
    with replaced(live, missing, "/nowhere"):
        assert "installed" in assert_refused(live, "IPv6: 'ip6tables'")
    assert live.call("iptlive.plan").value["status"] == "changes"


@pytest.mark.parametrize("program", ["ip6tables-restore", "ip6tables-save"])
def test_programs_of_two_backends(live, program):
    """Somebody turned one of the links: what is read must not be another backend than what is written."""
    live.write(V6, GOOD)
    other = {"nft": "legacy", "legacy": "nft"}[live.backend]
    with replaced(live, program, f"/usr/sbin/{program.replace('-', f'-{other}-')}"):
        message = assert_refused(live, "IPv6: '/usr/sbin/ip6tables' is of the", "see update-alternatives")
        assert f"'/usr/sbin/{program}' is not" in message


def test_no_ipv6_in_the_kernel(live):
    """A kernel without IPv6 has no /proc/net/if_inet6; the agent sees none when its /proc/net is covered."""
    live.write(V6, GOOD)
    live.call("test.ping")
    (agent,) = live.run(["pgrep", "-f", "lab/agent.py"]).stdout.split()
    live.run(["mount", "-t", "tmpfs", "none", f"/proc/{agent}/net"])
    try:
        assert_refused(
            live, "IPv6: this host's kernel runs without IPv6", "Take ipv6 out of its 'families': 'families: [ipv4]'"
        )
    finally:
        live.run(["umount", f"/proc/{agent}/net"])


def test_kernel_without_the_table(live):
    """A fake says what the legacy program says on a kernel that was built without the table."""
    live.write(V6, GOOD)
    live.write(
        "/run/no-table/ip6tables-restore",
        f'#!/bin/sh\n[ "$1" != -V ] || exec /usr/sbin/ip6tables-{live.backend}-restore -V\n'
        "echo \"ip6tables-restore v1.8.9 (legacy): unable to initialize table 'filter'\n\" >&2\n"
        "echo 'Error occurred at line: 1' >&2\nexit 3\n",
        mode="0755",
    )
    with replaced(live, "ip6tables-restore", "/run/no-table/ip6tables-restore"):
        assert_refused(
            live,
            "IPv6: the iptables programs could not be tried: /usr/sbin/ip6tables-restore cannot load a rule: "
            "ip6tables-restore v1.8.9 (legacy): unable to initialize table 'filter'",
            "See whether this kernel has their tables ('/usr/sbin/ip6tables -S'); nothing was changed",
        )


def test_not_root(live):
    """Root's capabilities are what counts: a container's root may lack them."""
    live.write(V6, GOOD)
    before = kernel(live)
    live.salt_call("saltutil.sync_modules", check=True)
    program = Path(sys.executable).parent / "salt-call"
    drop = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    for fun in ("iptlive.plan", "iptlive.apply"):
        done = live.run(
            [*drop, program, "--local", "--retcode-passthrough", "--config-dir", SCRATCH + "/salt", fun], check=False
        )
        assert done.returncode != 0
        assert "iptables needs root (the capability CAP_NET_ADMIN)" in done.stdout + done.stderr
    assert kernel(live) == before


def test_a_file_larger_than_memory_is_not_read(host):
    """A sparse file takes no room on the disk."""
    host.run(["mkdir", "-p", "/etc/iptables"])
    host.run(["truncate", "-s", "1T", "/etc/iptables/rules.v4"])
    for call in (("iptlive.plan", {}), ("iptlive.backup", {"returned": True})):
        with pytest.raises(SaltError) as caught:
            host.call(call[0], families=["ipv4"], **call[1])
        assert caught.value.kind == "CommandExecutionError"
        assert "/etc/iptables/rules.v4: cannot be read: is larger than the 64 MiB that are read" in caught.value.message
