"""
First process of a throw-away host: prepares its mounts, then keeps its namespaces alive until stdin ends.

Started by ``lab.host`` under ``unshare``.  It is process 1 of its PID namespace: when its stdin is closed (or the
program that started it dies, which closes it too) it exits, and the kernel kills everything that runs in the host,
frees the mounts and the network with all rules.  Prints its process id, as the machine sees it, when it is ready.
"""

import os
import signal
import subprocess
import sys

SCRATCH = "/run/lab"
PROGRAMS = ("iptables", "iptables-restore", "iptables-save", "ip6tables", "ip6tables-restore", "ip6tables-save")


def mount(kind, target, options="rw"):
    subprocess.run(["mount", "--no-mtab", "-t", kind, "-o", options, "lab", target], check=True)


def overlay(directory):
    """
    Writes below ``directory`` land in a tmpfs: it need not exist on the machine, nor be made there.
    """
    upper, work = (os.path.join(SCRATCH, part, directory.strip("/")) for part in ("upper", "work"))
    os.makedirs(upper)
    os.makedirs(work)
    mount("overlay", directory, f"lowerdir={directory},upperdir={upper},workdir={work}")


def choose_backend(backend):
    """
    Make ``iptables`` and its siblings the programs of one backend, for every process of this host.
    """
    for program in PROGRAMS:
        family, dash, action = program.partition("-")
        link = os.path.join("/etc/alternatives", program)
        # Debian's own mechanism, so that it holds for any PATH: /usr/sbin/iptables -> /etc/alternatives/iptables
        os.replace(_symlink(f"/usr/sbin/{family}-{backend}{dash}{action}", link + ".lab"), link)


def _symlink(target, link):
    if not os.path.exists(target):
        sys.exit(f"{target} is missing")
    os.symlink(target, link)
    return link


def main(backend):
    pid = os.readlink("/proc/self")  # still the machine's /proc: the id that the machine knows us by
    mount("tmpfs", "/run", "mode=0755")
    for directory in ("/etc", "/var"):
        overlay(directory)
    mount("proc", "/proc")
    choose_backend(backend)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # process 1 inherits orphans: let the kernel reap them
    print(pid, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1])
