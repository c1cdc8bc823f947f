"""known_hosts under torture: a thousand entries of every form, kills in the middle, many runs at once."""

import base64
import hashlib
import hmac
import os
import random
import subprocess
import sys
from pathlib import Path

import _iptlive_known_hosts as known_hosts
import pytest

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
with room.alone(path) as real:
    lines, _ = room.learn(room.read(real), wanted, {room.Key("ssh-ed25519", blob)})
    room.replace(real, lines)
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
    known_hosts.replace(str(path), parsed)
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
    known_hosts.replace(str(path), lines)
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
        known_hosts.scan([(host, 22)], 1)


@pytest.mark.parametrize("host", ["web1", "192.0.2.1", "2001:db8::1", "a_b.example.com"])
def test_hosts(host):
    assert known_hosts.is_host(host)
