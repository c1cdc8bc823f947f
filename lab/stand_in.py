"""
Stand-ins for iptables programs that no package has any more: the real ones, with one behaviour of an old version.

This is fault injection.  It shows that a behaviour is found, and that the way taken for it is right; not that the old
program has no other ones.

    stand_in(host, "no_wait")   # from here on the host's iptables-restore and ip6tables-restore are such ones
"""

import fcntl
import os
import re
import shlex
import subprocess
import sys

PLACE = "/var/lib/lab"
PLAIN = ("iptables", "ip6tables")


def stand_in(host, behaviour, programs=("-restore",)):
    """``programs``: the endings of those that are replaced, the command itself being ""."""
    for plain in PLAIN:
        for ending in programs:
            words = [sys.executable, "-I", "-S", __file__, behaviour, f"/usr/sbin/{plain}-{host.backend}{ending}"]
            path = f"{PLACE}/{plain}{ending}"
            host.write(path, f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', mode="0755")
            host.run(["ln", "-sfn", path, f"/etc/alternatives/{plain}{ending}"])


def real_again(host):
    for plain in PLAIN:
        for ending in ("", "-restore", "-save"):
            host.run(["ln", "-sfn", f"/usr/sbin/{plain}-{host.backend}{ending}", f"/etc/alternatives/{plain}{ending}"])


# --- what stands in for the program ---------------------------------------------------------------------------------


def become(argv):
    os.execv(argv[0], argv)


def run(argv, text):
    """What it prints goes where ours goes, so that it has to wait for whoever reads it."""
    return subprocess.run(argv, input=text.encode(), check=False).returncode


def no_wait(argv):
    """1.4.21 to 1.6.1: the restore program takes no lock, and does not know the option."""
    if "-w" in argv:
        sys.exit(f"{argv[0]}: invalid option -- 'w'")
    os.environ["XTABLES_LOCKFILE"] = "/proc/self/fd/0"
    become(argv)


def ignores_lockfile(argv):
    """Before 1.8.6."""
    os.environ.pop("XTABLES_LOCKFILE", None)
    become(argv)


def blanks(argv):
    """Before 1.8.8: blanks behind a comment without quotes that ends a line.  It is handed on as it comes."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, 1031, 4096)  # F_SETPIPE_SZ
    with subprocess.Popen(argv, stdout=writer) as process:
        os.close(writer)
        line = b""
        while True:
            part = os.read(reader, 256)
            *whole, line = (line + part).split(b"\n")
            for each in whole:
                os.write(1, re.sub(rb"(--comment [^ \"]+)$", rb"\1  ", each) + b"\n")
            if not part:
                break
    sys.exit(process.returncode)


def makes_tables(argv):
    """nft before 1.8.6: a table comes to be by being named and committed."""
    text = sys.stdin.read()
    family = "ip6" if "ip6tables" in argv[0] else "ip"
    status = run(argv, text)
    for table in re.findall(r"^\*(\w+)", text, re.MULTILINE) if not status else ():
        subprocess.run(["nft", "add", "table", family, table], check=True)
    sys.exit(status)


def sends_at_list(argv):
    """nft 1.8.2: a listing sends what stands above it."""
    table, above = "", []
    for line in sys.stdin.read().split("\n"):
        if line.startswith("*"):
            table, above = line, []
        elif line.startswith(("-S", "COMMIT")):
            listed = [line] if line.startswith("-S") else []
            status = run(argv, "\n".join([table, *above, *listed, "COMMIT", ""]))
            if status:
                sys.exit(status)
            above = []
        else:
            above.append(line)


def needs_policy(argv):
    """nft 1.8.5: a built-in chain that is declared without its policy fails."""
    text = sys.stdin.read()
    if re.search(r"^:(INPUT|FORWARD|OUTPUT|PREROUTING|POSTROUTING) - ", text, re.MULTILINE):
        sys.exit("line 2: RULE failed")
    sys.exit(run(argv, text))


def lists_no_commit(argv):
    """nft 1.8.3: one program does not load, commit and list."""
    text = sys.stdin.read()
    before, _, after = text.rpartition("\nCOMMIT\n*")
    loads = re.search("^-[ADINPX]", before, re.MULTILINE)
    lists = loads and re.search("^-S", after, re.MULTILINE)
    status = run(argv, f"{before}\nCOMMIT\n" if lists else text)
    sys.exit("line 9 failed" if lists else status)


def commits_first(argv):
    """One that lists only after it has sent: nothing could be verified."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=False)
    os.write(1, done.stdout)
    sys.exit(done.returncode)


def version(argv, shown):
    if "-V" in argv:
        print(f"{os.path.basename(argv[0])} {shown}")
        sys.exit()
    become(argv)


BEHAVIOURS = {
    function.__name__: function
    for function in (
        no_wait, ignores_lockfile, blanks, makes_tables, sends_at_list, needs_policy, lists_no_commit, commits_first,
    )
}  # fmt: skip


def main(behaviour, *argv):
    if behaviour.startswith("v"):
        version(list(argv), behaviour.replace("=", " "))
    if "-V" in argv:
        become(list(argv))
    BEHAVIOURS[behaviour](list(argv))


if __name__ == "__main__":
    main(*sys.argv[1:])
