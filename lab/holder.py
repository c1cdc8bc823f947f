"""
Keeps the namespaces of a throw-away host alive until stdin ends.

Two processes.  The inner one is process 1 of the host's PID namespace: it prepares the mounts, prints its process id
as the machine sees it, and waits.  When its stdin is closed, or the program that started it dies, which closes it too,
it exits; the kernel then kills everything that runs in the host and frees its mounts and its network with all rules.
The outer one makes the directory that the host shares with the machine, waits for that end, and removes what the
kernel does not: this directory, and the control groups of a Docker daemon.
"""

import glob
import os
import shutil
import signal
import subprocess
import sys

SCRATCH = "/run/lab"
CHECKOUT = SCRATCH + "/checkout"
REPO = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
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


def share_checkout():
    """
    What Salt takes from the checkout, and nothing else: listing the virtual environments beside it takes it seconds.
    """
    for name in [*(name for name in os.listdir(REPO) if name.startswith("_")), "salt", "file_root"]:
        target = os.path.join(CHECKOUT, name)
        os.makedirs(target)
        subprocess.run(["mount", "--no-mtab", "--bind", os.path.join(REPO, name), target], check=True)


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


def inside(backend):
    pid = os.readlink("/proc/self")  # still the machine's /proc: the id that the machine knows us by
    mount("tmpfs", "/run", "mode=0755")
    for directory in ("/etc", "/var"):
        overlay(directory)
    mount("proc", "/proc")
    share_checkout()
    choose_backend(backend)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # process 1 inherits orphans: let the kernel reap them
    print(pid, flush=True)
    sys.stdin.read()


def remove_cgroups(name):
    for top in glob.glob("/sys/fs/cgroup/" + name) + glob.glob("/sys/fs/cgroup/*/" + name):
        for directory, _, _ in os.walk(top, topdown=False):
            os.rmdir(directory)


def main(backend):
    namespaces = ["--net", "--mount", "--pid", "--fork", "--kill-child"]
    host = [sys.executable, "-I", "-S", __file__, "inside", backend]
    name = f"iptlive-lab-{os.getpid()}"
    os.mkdir("/tmp/" + name)
    try:
        done = subprocess.run(["unshare", *namespaces, "--", *host], check=False)
        remove_cgroups(name)
    finally:
        shutil.rmtree("/tmp/" + name)
    sys.exit(done.returncode)


if __name__ == "__main__":
    inside(sys.argv[2]) if sys.argv[1] == "inside" else main(sys.argv[1])
