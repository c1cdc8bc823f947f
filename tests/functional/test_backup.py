"""iptlive.backup on a host: what is in the folder, what it can be used for, what becomes of old and unfinished ones."""

import base64
import zlib

import pytest

from lab.host import SaltError

STORED = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp --dport 22 -j ACCEPT\nCOMMIT\n"
FOREIGN = '*nat\n-A PREROUTING -p tcp -m tcp --dport 80 -m comment --comment "not ours" -j REDIRECT\nCOMMIT\n'
DEST = "/var/lib/iptlive/backup"
TABLES = ("filter", "mangle", "nat", "raw", "security")


def expected_names():
    return {"debian-v4-rules", "centos-v6-rules"} | {f"in-kernel-{v}-rules-{t}" for v in ("v4", "v6") for t in TABLES}


def fill(host):
    host.write("/etc/iptables/rules.v4", STORED)
    host.write("/etc/sysconfig/ip6tables", b"# caf\xe9\n" + STORED.encode())
    host.restore(STORED)
    host.restore(FOREIGN)


def unpack(archive):
    """The files of a packed backup, by a reader that shares nothing with the writer."""
    rest, files = zlib.decompress(base64.b64decode(archive)), {}
    while rest:
        head, rest = rest.split(b"\n", 1)
        name, length = head.split()
        files[name.decode()], rest = rest[: int(length)], rest[int(length) :]
    return files


def read_files(host, folder):
    names = host.run(["ls", folder]).stdout.split()
    return {name: base64.b64decode(host.run(["base64", f"{folder}/{name}"]).stdout) for name in names}


def test_folder_holds_stored_files_and_every_table_for_root_only(host):
    fill(host)
    answer = host.call("iptlive.backup").value
    assert set(answer["files"]) == expected_names()
    listing = host.run(["find", DEST, "-printf", "%y %m %s %f\n"]).stdout.splitlines()
    assert {line.rsplit(" ", 1)[1] for line in listing if line.startswith("f 600 ")} == expected_names()
    assert [line.split()[:2] for line in listing if line.startswith("d")] == [["d", "700"]] * 2
    files = read_files(host, answer["path"])
    assert files["centos-v6-rules"] == b"# caf\xe9\n" + STORED.encode()
    assert {name: len(data) for name, data in files.items()} == answer["files"]
    assert b"not ours" in files["in-kernel-v4-rules-nat"]


def test_a_backup_is_compared_with_the_present_and_restored(host):
    fill(host)
    before = host.save()
    folder = host.call("iptlive.backup").value["path"]
    filter4 = {"ipv4": f"{folder}/in-kernel-v4-rules-filter"}
    assert host.call("iptlive.plan", families=["ipv4"], files=filter4).value["status"] == "in_sync"
    host.run(["iptables", "-D", "INPUT", "2"])
    (step,) = host.call("iptlive.plan", families=["ipv4"], files=filter4).value["changes"]["IPv4/filter/INPUT"]
    assert (step["action"], step["rule"]) == ("insert", "-p tcp -m tcp --dport 22 -j ACCEPT")
    for name in ("filter", "nat"):
        host.restore(host.read(f"{folder}/in-kernel-v4-rules-{name}"))
    assert set(before.splitlines()) <= set(host.save().splitlines())


def test_returned_writes_nothing(host):
    fill(host)
    texts = host.call("iptlive.backup", returned=True).value["files"]
    assert set(texts) == expected_names()
    assert texts["debian-v4-rules"] == STORED
    assert host.run(["test", "-e", DEST], check=False).returncode == 1


def test_fifty_thousand_rules_come_in_parts_that_fit_an_event(host):
    rules = "".join(
        f"-A INPUT -s 10.{n % 251}.{n // 251 % 251}.{n % 83} -m comment --comment {zlib.crc32(b'%d' % n):08x}"
        f"{zlib.crc32(b'x%d' % n):08x} -j ACCEPT\n"
        for n in range(50000)
    )
    host.write("/etc/iptables/rules.v4", f"*filter\n{rules}COMMIT\n")
    answer = host.call("iptlive.backup", returned="packed").value
    parts = [answer]
    while len(parts) < answer["parts"]:
        parts.append(host.call("iptlive.backup_part", answer["path"], part=len(parts)).value)
    assert len(parts) > 1
    assert max(len(part["archive"]) for part in parts) <= 512 * 1024
    assert unpack("".join(part["archive"] for part in parts)) == read_files(host, answer["path"])


def test_only_the_newest_are_kept_and_nothing_else_is_removed(host):
    fill(host)
    for name in ("iptables-backup-20010101-000000", "iptables-backup-20010101-000000-10", "keep-me"):
        host.write(f"{DEST}/{name}/file", "old")
    host.write(f"{DEST}/.iptables-backup-killed/file", "half")
    made = [host.call("iptlive.backup", retain=2) for _ in range(3)]
    assert sorted(made[0].value["pruned"]) == [f"{DEST}/iptables-backup-20010101-000000"]
    assert set(host.run(["ls", "-A", DEST]).stdout.split()) == {"keep-me"} | {
        reply.value["path"].rsplit("/", 1)[1] for reply in made[1:]
    }


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"dest": "here"}, "absolute path"),
        ({"retain": 0}, "1 or more"),
        ({"returned": "perhaps"}, "true, false or packed"),
        ({"colour": "red"}, "unknown option 'colour'"),
    ],
)
def test_wrong_arguments(host, arguments, message):
    with pytest.raises(SaltError, match=message) as caught:
        host.call("iptlive.backup", **arguments)
    assert caught.value.kind == "SaltInvocationError"
    assert host.run(["test", "-e", DEST], check=False).returncode == 1


def test_a_part_is_read_from_a_backup_only(host):
    host.write("/etc/secret/file", "secret")
    with pytest.raises(SaltError, match="backup's folder"):
        host.call("iptlive.backup_part", "/etc/secret")
    folder = host.call("iptlive.backup").value["path"]
    with pytest.raises(SaltError, match="number from 0 to 0"):
        host.call("iptlive.backup_part", folder, part=1)


def test_a_place_that_cannot_be_written(host):
    host.write("/etc/file", "")
    with pytest.raises(SaltError, match="cannot be written to /etc/file") as caught:
        host.call("iptlive.backup", dest="/etc/file")
    assert caught.value.kind == "CommandExecutionError"
