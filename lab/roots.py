"""
Other Debian releases to run the tests in: ``./dev test --on debian-11``.

The root file system of a release is made once with debootstrap, from where this machine's apt gets its packages, and
kept.  A command runs in it with mount and process namespaces of its own, the checkout read-only at the same place in
each, and the machine's network, which the installation of packages needs.  The root is entered with pivot_root: the
kernel lets nobody make a user namespace in a chroot.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
CACHE = Path("/var/cache/iptlive/roots")
SUITES = {"debian-11": "bullseye", "debian-12": "bookworm", "debian-13": "trixie", "debian-unstable": "sid"}
CHECKOUT = "/srv/iptlive"  # in the root
VENVS = "/var/lib/iptlive-venvs"
PACKAGES = "ca-certificates,python3"  # with what else they need, tests see to it themselves
AUTHORITIES = "usr/local/share/ca-certificates"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# How this machine fetches packages; the rest of its settings are its own.
APT_SETTINGS = ("Acquire::Check-", "Acquire::http")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
PASSED_ON = ("CI", "TERM", "http_proxy", "https_proxy", "no_proxy")
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "IPTLIVE_VENVS": VENVS,
    "PIP_CERT": "/etc/ssl/certs/ca-certificates.crt",
    "PYTHONDONTWRITEBYTECODE": "1",
    "HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis",
    "PYTEST_ADDOPTS": "-o cache_dir=/tmp/pytest",
}


@contextlib.contextmanager
def root_of(release):
    """The root file system of a release, made if it is not there yet; nobody else uses it meanwhile."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{release}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        root = CACHE / release
        if not root.exists():
            make(SUITES[release], root)
        yield root


def make(suite, root):
    print(f"roots: making {root}; this takes a minute", file=sys.stderr, flush=True)
    unfinished = root.with_name(root.name + ".new")
    if unfinished.exists():
        shutil.rmtree(str(unfinished))
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", f"--keyring={KEYRING}", suite]
    log = root.with_name(root.name + ".log")
    with open(log, "w") as said:
        done = subprocess.run([*command, unfinished, *mirror()], stdout=said, stderr=said, check=False)
    if done.returncode:
        sys.exit(f"roots: debootstrap failed, see {log}")
    install(unfinished, "usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)  # no service starts on installation
    install(unfinished, "etc/apt/apt.conf.d/99machine", "".join(apt_settings()))
    if Path("/", AUTHORITIES).is_dir():
        shutil.copytree(f"/{AUTHORITIES}", str(unfinished / AUTHORITIES), dirs_exist_ok=True)
        subprocess.run(["chroot", unfinished, "update-ca-certificates"], stdout=subprocess.DEVNULL, check=True)
    unfinished.rename(root)


def install(root, path, text, mode=0o644):
    target = root / path
    target.write_text(text)
    target.chmod(mode)


def mirror():
    """Where apt gets Debian's packages from; nothing where it is no Debian's apt: debootstrap makes its own choice."""
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian"]
    found = subprocess.run(asked, stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    return [uri for uri in found if "security" not in uri][:1]


def apt_settings():
    shown = subprocess.run(["apt-config", "dump"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return [line for line in shown.splitlines(keepends=True) if line.startswith(APT_SETTINGS)]


def run(release, command):
    """The exit status of a command, run in the checkout in the root of that release."""
    for program in ("debootstrap", "unshare"):
        if not shutil.which(program):
            sys.exit(f"roots: '{program}' is not installed")
    if not KEYRING.exists():
        sys.exit("roots: the package debian-archive-keyring is not installed")
    with root_of(release) as root:
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--"]
        inside = [sys.executable, "-I", "-S", __file__, "--inside", str(root), *command]
        return subprocess.run(namespaces + inside, check=False).returncode


# --- process 1 of the namespaces ------------------------------------------------------------------------------------


def mount(*words):
    subprocess.run(["mount", "--no-mtab", *map(str, words)], check=True)


def enter(root):
    """Make the root file system ours, with the machine's devices and the checkout in it."""
    mount("--make-rprivate", "/")
    mount("--bind", root, root)
    mount("-t", "proc", "proc", root / "proc")
    mount("--rbind", "/sys", root / "sys")
    for directory, mode in (("run", "0755"), ("tmp", "1777"), ("dev", "0755"), ("dev/shm", "1777")):
        (root / directory).mkdir(exist_ok=True)
        mount("-t", "tmpfs", "-o", f"mode={mode}", directory, root / directory)
    devices(root / "dev")
    for name in ("resolv.conf", "hosts"):
        shutil.copyfile(f"/etc/{name}", str(root / "etc" / name))
    place = root / CHECKOUT.lstrip("/")
    place.mkdir(exist_ok=True)
    mount("--bind", REPO, place)
    mount("-o", "remount,bind,ro", place)
    before = root / "mnt"
    subprocess.run(["pivot_root", root, before], check=True)
    os.chdir(CHECKOUT)
    subprocess.run(["umount", "--lazy", "/mnt"], check=True)


def devices(place):
    """A few of the machine's, each by itself: nobody can remove one of them for the machine."""
    for name in DEVICES:
        (place / name).touch()
        mount("--bind", f"/dev/{name}", place / name)
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        (place / name).symlink_to(target)
    (place / "pts").mkdir()
    mount("-t", "devpts", "-o", "newinstance,ptmxmode=0666,mode=0620", "devpts", place / "pts")
    (place / "ptmx").symlink_to("pts/ptmx")


def reap(child):
    """Process 1 inherits orphans; the exit status of the child, as a shell tells it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the child, whose end is ours
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def inside(root, command):
    enter(Path(root))
    passed_on = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment = {**passed_on, **ENVIRONMENT}
    # A run that was killed may have left packages half done.
    subprocess.run(["dpkg", "--configure", "-a"], env=environment, check=True)
    child = os.fork()
    if not child:
        os.execvpe(command[0], command, environment)
    sys.exit(reap(child))


if __name__ == "__main__":
    if sys.argv[1] == "--inside":
        inside(sys.argv[2], sys.argv[3:])
    sys.exit(run(sys.argv[1], sys.argv[2:]))
