"""known_hosts under torture: entries of every form, kills in the middle, many runs at once, ssh that appends meanwhile.

And host keys: whatever a host calls itself, it is given no other host's name.
"""

import base64
import hashlib
import hmac
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import _iptlive_keyscan as keyscan
import _iptlive_known_hosts as known_hosts
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.host import until_ready

ROOM = Path(known_hosts.__file__)
RELEARN = """
import sys, os, signal
sys.path.insert(0, sys.argv[1])
import _iptlive_known_hosts as room
path, wanted, blob, die_at = sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])
calls = 0
def dying(function):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call
for name in ("fsync", "replace", "link", "fchown", "fchmod", "stat", "fdopen"):
    setattr(room.os, name, dying(getattr(room.os, name)))
room.rewrite(path, lambda lines: room.learn(lines, wanted, {room.Key("ssh-ed25519", blob)})[0])
print(calls)
"""


def blob(seed):
    kind = b"ssh-ed25519"
    body = hashlib.sha256(str(seed).encode()).digest()
    return base64.b64encode(len(kind).to_bytes(4, "big") + kind + (32).to_bytes(4, "big") + body).decode()


def hashed(name, seed):
    salt = hashlib.sha1(str(seed).encode()).digest()
    parts = (salt, hmac.new(salt, name.encode(), "sha1").digest())
    return "|1|" + "|".join(base64.b64encode(part).decode() for part in parts)


def torture_file(count=1000):
    """Lines of every form; host number n is called by one of many names, all of them in ``names(n)``."""
    pick = random.Random(7)
    lines = []
    for n in range(count):
        key = f"ssh-ed25519 {blob(n)}"
        form = pick.choice(FORMS)
        lines.append(form.format(n=n, key=key, hashed=hashed(f"h{n}", n), hashed_port=hashed(f"[h{n}]:2222", n)))
    return lines


BROKEN = {"not*base64"}  # ssh-keygen -F shows it, ssh does not take it
FORMS = [
    "h{n} {key}\n",
    "h{n},192.0.2.{n} {key} a comment behind it\n",
    "[h{n}]:2222 {key}\n",
    "{hashed} {key}\n",
    "{hashed_port} {key}\n",
    "@cert-authority h{n} {key}\n",
    "@revoked h{n} {key}\n",
    "*.h{n},!h{n} {key}\n",
    "# h{n} {key}\n",
    "\n",
    "  h{n}\t{key}\r\n",
    "# \x0b\u2028 no end of the line\n",
    "caf\xe9 \udcff h{n}\n",
    "h{n} ssh-ed25519 not*base64\n",
]


def write(path, lines):
    path.write_text("".join(lines), encoding="utf-8", errors="surrogateescape", newline="")


def keygen_finds(path, name):
    """The keys that OpenSSH itself finds for a host, without markers."""
    done = subprocess.run(
        ["ssh-keygen", "-F", name, "-f", str(path)], stdout=subprocess.PIPE, text=True, check=False, timeout=20
    )
    found = [line.split() for line in done.stdout.splitlines() if not line.startswith("#")]
    return {line[2] for line in found if not line[0].startswith("@")}


@pytest.mark.parametrize("port", [22, 2222])
def test_only_the_lines_of_the_host_change(tmp_path, port):
    path = tmp_path / "known_hosts"
    lines = torture_file()
    write(path, lines)
    targets = [known_hosts.place(f"h{n}", port) for n in range(0, 1000, 9)]
    parsed = known_hosts.read(str(path))
    had = {name: keygen_finds(path, name) for name in targets}
    for number, name in enumerate(targets):
        parsed, change = known_hosts.learn(parsed, name, {known_hosts.Key("ssh-ed25519", blob(f"new{number}"))})
        assert {key.blob for key in change.old} == had[name] - BROKEN
    known_hosts.rewrite(str(path), lambda _: parsed)
    for number, name in enumerate(targets):
        assert keygen_finds(path, name) - BROKEN == {blob(f"new{number}")}
    after = path.read_bytes().decode("utf-8", "surrogateescape")
    assert after.startswith("".join(expected_line(line, set(targets)) for line in lines))


def expected_line(line, targets):
    """What must become of a line, told by the test's own forms: host h3 is called h3, never hosts of others."""
    parsed = known_hosts.read_line(line)
    if not any(parsed.names(name) for name in targets):
        return line
    return line.split(",", 1)[1] if ",192.0.2." in line else ""


def test_a_hashed_entry_stays_hashed_and_a_known_key_stays_where_it_is(tmp_path):
    path = tmp_path / "known_hosts"
    write(path, [f"{hashed('h1', 1)} ssh-ed25519 {blob(1)}\n", f"h2 ssh-ed25519 {blob(2)}\n"])
    lines = known_hosts.read(str(path))
    known = known_hosts.Key("ssh-ed25519", blob(2))
    assert known_hosts.learn(lines, "h2", {known})[0] == lines
    lines, _ = known_hosts.learn(lines, "h1", {known_hosts.Key("ssh-ed25519", blob("new"))})
    assert lines[-1].text.startswith("|1|")
    known_hosts.rewrite(str(path), lambda _: lines)
    assert keygen_finds(path, "h1") == {blob("new")}


def relearn(path, name, key, die_at=0):
    return subprocess.Popen(
        [sys.executable, "-c", RELEARN, str(ROOM.parent), str(path), name, key, str(die_at)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_killed_at_every_step_no_entry_is_lost(tmp_path):
    path = tmp_path / "known_hosts"
    lines = torture_file()
    write(path, lines)
    before = path.read_bytes()
    path.chmod(0o640)
    os.chown(str(path), 12, 34)
    steps = int(relearn(tmp_path / "other", "x", blob("x")).communicate()[0])  # a new file: fewer steps
    whole = tmp_path / "whole"
    write(whole, lines)
    steps = max(steps, int(relearn(whole, "h1", blob("new")).communicate()[0]))
    assert steps >= 7
    states = set()
    for step in range(1, steps + 1):
        path.write_bytes(before)
        process = relearn(path, "h1", blob("new"), die_at=step)
        process.communicate()
        assert process.returncode == -9
        now = path.read_bytes()
        states.add(now)
        assert now in (before, whole.read_bytes())
        assert (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o777) == (12, 34, 0o640)
    assert len(states) == 2  # both sides of the replacement were reached
    relearn(path, "h2", blob("later")).communicate()
    assert sorted(os.listdir(str(tmp_path))) == ["known_hosts", "known_hosts.old", "other", "whole", "whole.old"]
    assert keygen_finds(path, "h1") == {blob("new")}
    assert keygen_finds(path, "h2") == {blob("later")}


def test_twenty_runs_at_once_all_have_their_effect(tmp_path):
    path = tmp_path / "known_hosts"
    lines = torture_file()
    write(path, lines)
    runs = [relearn(path, f"new{n}", blob(f"new{n}")) for n in range(20)]
    assert [run.wait(60) for run in runs] == [0] * 20
    for run in runs:
        run.stdout.close()
    for n in range(20):
        assert keygen_finds(path, f"new{n}") == {blob(f"new{n}")}
    assert path.read_bytes().startswith("".join(lines).encode("utf-8", "surrogateescape"))


@pytest.mark.parametrize(
    "host", ["-oProxyCommand=x", "a b", "a,b", "a\nb", "*", "a?", "", "../x", "|1|x", "#a", "é", None]
)
def test_what_is_no_host_is_never_asked(host):
    assert not known_hosts.is_host(host)
    with pytest.raises(ValueError):
        keyscan.scan([(host, 22)], 1)


@pytest.mark.parametrize("host", ["web1", "192.0.2.1", "2001:db8::1", "a_b.example.com"])
def test_hosts(host):
    assert known_hosts.is_host(host)


APPEND = """
import os, sys, time
path, name = sys.argv[1], sys.argv[2]
number = 0
while number < 100000 and not os.path.exists(path + ".stop"):
    with open(path, "a") as file:  # as ssh does it
        file.write(f"{name}-{number} ssh-ed25519 AAAA\\n")
    number += 1
    time.sleep(0.001)
print(number)
"""


def test_no_line_is_lost_that_others_append_meanwhile(tmp_path):
    path = tmp_path / "known_hosts"
    write(path, torture_file(50))
    appending = {
        name: subprocess.Popen([sys.executable, "-c", APPEND, str(path), name], stdout=subprocess.PIPE, text=True)
        for name in ("new0", "new1")
    }
    for run in range(60):
        key = known_hosts.Key("ssh-ed25519", blob(f"run{run}"))
        known_hosts.rewrite(str(path), lambda lines, key=key: known_hosts.learn(lines, "h1", {key})[0])
    (tmp_path / "known_hosts.stop").touch()
    appended = {f"{name}-{n}" for name, program in appending.items() for n in range(int(program.communicate()[0]))}
    there = [line.hosts[0] for line in known_hosts.read(str(path)) if line.hosts]
    assert len(appended) > 20
    assert sorted(name for name in there if name.startswith("new")) == sorted(appended)


def test_a_file_that_another_program_puts_in_place_meanwhile_is_the_one_that_is_changed(tmp_path):
    path = tmp_path / "known_hosts"
    write(path, [f"h1 ssh-ed25519 {blob(1)}\n"])
    other = [f"other{n} ssh-ed25519 {blob(n)}\n" for n in range(2)]

    def change(lines):
        if other:  # while we think, another program replaces the file
            write(tmp_path / "theirs", [line.text for line in lines] + [other.pop()])
            os.replace(str(tmp_path / "theirs"), str(path))
        return known_hosts.learn(lines, "h1", {known_hosts.Key("ssh-ed25519", blob("new"))})[0]

    known_hosts.rewrite(str(path), change)
    assert keygen_finds(path, "h1") == {blob("new")}
    assert keygen_finds(path, "other0") == {blob(0)}
    assert keygen_finds(path, "other1") == {blob(1)}
    path.unlink()
    other.append(f"late ssh-ed25519 {blob('late')}\n")
    known_hosts.rewrite(str(path), change)
    assert keygen_finds(path, "late") == {blob("late")}


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "known_hosts"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # it takes no room on the disk
    with pytest.raises(OSError, match="larger than"):
        known_hosts.rewrite(str(path), list)


# Where Python's splitlines() and blanks see more than OpenSSH does.
ODD = ["\x0b", "\x0c", "\r", "\x1c", "\x1e", "\x1f", "\x85", "\xa0", "\u2028", "\u2029", "\u3000"]
SCAN = """
import json, sys
sys.path.insert(0, sys.argv[1])
import _iptlive_keyscan as keyscan
found = keyscan.scan([(host, 22) for host in sys.argv[2:]], 5)
print(json.dumps({place: sorted(keys) for place, keys in found.items()}))
"""


def test_a_host_that_calls_itself_a_key_of_another_is_not_believed(hosts):
    """With a real sshd and ssh-keyscan; an old one says on stderr what those from OpenSSH 9.8 on say on stdout."""
    host = hosts()
    key, planted = "/run/ssh_host_ed25519_key", f"127.0.0.2 ssh-ed25519 {blob('evil')}"
    host.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key])
    host.run(["mkdir", "-p", "/run/sshd", "/run/programs"])
    banner = f"VersionAddendum x\x0c{planted}\u2028{planted}\n"
    host.write("/run/sshd_config", f"ListenAddress 127.0.0.1\nHostKey {key}\nUsePAM no\nPidFile none\n{banner}")
    real = host.run(["sh", "-c", "command -v ssh-keyscan"]).stdout.strip()
    host.write("/run/programs/ssh-keyscan", f'#!/bin/sh\nexec {real} "$@" 2>&1\n', mode="0755")
    path = "PATH=/run/programs:" + os.environ["PATH"]
    sshd = host.popen(["/usr/sbin/sshd", "-D", "-f", "/run/sshd_config"])

    def planting():
        return planted in host.run(["env", path, "ssh-keyscan", "127.0.0.1"], check=False).stdout

    until_ready("sshd", sshd, planting, lambda: "it ended")
    found = host.run(["env", path, sys.executable, "-c", SCAN, str(ROOM.parent), "127.0.0.1", "127.0.0.2"]).stdout
    own = host.read(key + ".pub").split()[:2]
    assert json.loads(found) == {"127.0.0.1": [own], "127.0.0.2": []}


@given(st.lists(st.sampled_from([*ODD, "victim", " ", "ssh-ed25519", blob("evil"), "#", "@revoked", "\t"])))
def test_no_line_of_a_scan_gives_another_host_a_key(pieces):
    said = "".join(pieces)
    printed = f"# evil:22 SSH-2.0-{said}\nevil ssh-ed25519 {blob(1)}\n{said}\n".encode()
    assert known_hosts.Key("ssh-ed25519", blob(1)) in keyscan.offered(printed, "evil")
    own_line = said.lstrip(" \t").startswith("victim")  # a host cannot say that: its words come behind a number sign
    assert own_line or not keyscan.offered(printed, "victim")


BLANKS = st.sampled_from([" ", "\t", "  ", *ODD])
FIELDS = st.tuples(
    BLANKS | st.just(""),
    st.sampled_from(["h1", "H1", "x,h1", "h1,x", "#h1", "@revoked h1"]),
    BLANKS,
    st.just("ssh-ed25519"),
    BLANKS,
    st.just(blob(1)),
    st.sampled_from(["", " ", "\t", " \x85", "\r", "\x0b", "\x0c", "\0", "\0x", " \0"]),
)


@settings(max_examples=80)
@given(FIELDS)
def test_a_line_is_about_the_hosts_that_openssh_finds_in_it(tmp_path_factory, fields):
    path = tmp_path_factory.mktemp("known") / "known_hosts"
    write(path, ["".join(fields) + "\n"])
    (line,) = known_hosts.read(str(path))
    assert line.text == "".join(fields) + "\n"
    done = subprocess.run(["ssh-keygen", "-F", "h1", "-f", str(path)], stdout=subprocess.PIPE, check=False, timeout=20)
    assert line.names("h1") == (b" found: line 1 \n" in done.stdout)  # a marker would stand behind the number
