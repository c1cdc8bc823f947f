"""
A network of throw-away hosts: a master, minions, and hosts that have only sshd and python3.

    with Fleet(minions=4, ssh_hosts=2) as fleet:
        fleet.minions["m1"].write("/etc/iptables/rules.v4", text)
        fleet.salt("*", "iptlive.plan").value
        fleet.salt_ssh("*", "state.apply", "iptlive", "test=True").value
        fleet.salt_run("iptlive.report", "*").value

Minion ``m1`` has the nft backend, ``m2`` the legacy one, and so on; ``s1`` is reached as root, ``s2`` as a user with
sudo. All are ports of one bridge in the master's namespace. Salt is the one that runs this program.
"""

import fnmatch
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from lab.host import BACKENDS, FILE_ROOTS, REPO, Host, minion_options, wire

PROGRAMS = Path(sys.executable).parent
BASE = "/run/lab/fleet"  # beside what Host.salt_call uses
KEY = "/run/lab/id_ed25519"
KNOWN_HOSTS = "/run/lab/known_hosts"
HOME = "/run/home"  # the machine's own home directories are not ours
LISTENING = ["ss", "--no-header", "--tcp", "dport = :4505"]
PATIENCE = 120  # seconds until a minion is given up: they cost nothing where all answer
SSHD = f"""\
HostKey {HOME}/ssh_host_ed25519_key
AuthorizedKeysFile {HOME}/authorized_keys
Subsystem sftp internal-sftp
StrictModes no
UsePAM no
PidFile none
"""


class Done(NamedTuple):
    """What a Salt program printed (``value``: its JSON, None where it printed none) and its exit status."""

    value: Any
    retcode: int
    stdout: str
    stderr: str


class Fleet:
    """A master, with ``master_options``, and its hosts; use it as a context manager, or ``close()`` it."""

    def __init__(self, minions=2, ssh_hosts=2, **master_options):
        self.minions = {}
        self.ssh_hosts = {}
        self._pillar = None
        self.master = Host("nft")
        try:
            self._start_master(master_options)
            for number in range(1, minions + 1):
                self._start_minion(f"m{number}", f"198.51.100.{10 + number}", BACKENDS[(number - 1) % 2])
            for number in range(1, ssh_hosts + 1):
                self._start_ssh_host(f"s{number}", f"198.51.100.{20 + number}", BACKENDS[(number - 1) % 2])
            self.trust_hosts()
            self.wait_for_minions()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def close(self):
        for host in [*self.minions.values(), *self.ssh_hosts.values(), self.master]:
            host.close()

    def hosts(self):
        return {**self.minions, **self.ssh_hosts}

    # --- Salt's programs, on the master --------------------------------------------------------------------------

    def salt(self, target, *args, patience=PATIENCE, **options):
        """Call a function on minions, by glob or as a list; raises RuntimeError unless all of them answer."""
        names = [name for pattern in target.split(",") for name in fnmatch.filter(self.minions, pattern)]
        done = self._answers(target, *args, patience=patience, **options)
        silent = [name for name in names if name not in (done.value or {})]
        if silent:
            raise RuntimeError(f"no answer from {', '.join(silent)} to {args}: {done}\n{self._logs(silent)}")
        return done

    def salt_to_some(self, target, *args, patience=5, **options):
        """As ``salt``, for minions of which some cannot answer: ``value`` holds the answers there are."""
        return self._answers(target, *args, patience=patience, **options)

    def _answers(self, target, *args, patience, **options):
        done = self._program("salt", f"--timeout={patience}", target, *args, **options)
        answers = {name: said for name, said in (done.value or {}).items() if not _is_silence(said)}
        return done._replace(value=answers)

    def salt_ssh(self, target, *args, **options):
        return self._program("salt-ssh", "--static", target, *args, **options)

    def salt_run(self, *args, **options):
        return self._program("salt-run", *args, **options)

    def _program(self, name, *args, out="json", timeout=300, cwd="/run/lab"):
        argv = [PROGRAMS / name, "--config-dir", BASE, f"--out={out}", *args]
        done = self.master.run(["env", "--chdir", cwd, *argv], check=False, timeout=timeout)
        return Done(_json(done.stdout), done.returncode, done.stdout, done.stderr)

    def pillar(self, data, **files):
        """Give every host this pillar; ``files`` are further pillar files, by target of the top file."""
        if (data, files) == self._pillar:
            return
        self._pillar = (data, files)
        top = {"*": ["lab"], **{target: [name] for name, (target, _) in files.items()}}
        self.master.write("/run/lab/pillar/top.sls", json.dumps({"base": top}))
        self.master.write("/run/lab/pillar/lab.sls", json.dumps(data))
        for name, (_, content) in files.items():
            self.master.write(f"/run/lab/pillar/{name}.sls", json.dumps(content))
        self.salt("*", "saltutil.refresh_pillar", "wait=True")

    # --- making the hosts ----------------------------------------------------------------------------------------

    def _start_master(self, more):
        host = self.master
        host.run(["ip", "link", "add", "br0", "type", "bridge"])
        host.run(["ip", "address", "add", "198.51.100.1/24", "dev", "br0"])
        host.run(["ip", "link", "set", "br0", "up"])
        host.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", KEY])
        options = minion_options(BASE)
        options.update(
            id="control",
            interface="198.51.100.1",
            pillar_roots={"base": ["/run/lab/pillar"]},
            file_roots={"base": [*FILE_ROOTS, "/run/lab/states"]},
            pidfile=BASE + "/master.pid",
            auto_accept=True,
            worker_threads=2,
            timeout=PATIENCE,  # what the runners wait for
            gather_job_timeout=15,
            known_hosts_file=KNOWN_HOSTS,
            wrapper_dirs=[str(REPO / "wrapper")],
            ssh_minion_opts={"wrapper_dirs": [str(REPO / "wrapper")]},
            roster_file=BASE + "/roster",
            roster_defaults={"priv": KEY, "timeout": 10},
        )
        options.update(more)
        for minions_only in ("extension_modules", "file_client"):
            options.pop(minions_only)
        host.write(BASE + "/master", json.dumps(options))
        host.write(BASE + "/Saltfile", "")
        host.write("/run/lab/states/.keep", "")
        host.write("/run/lab/pillar/top.sls", "{}")
        self._daemon(host, "salt-master")
        self.salt_run("saltutil.sync_all")

    def _start_minion(self, name, address, backend):
        host = self.minions[name] = self._connected(name, address, backend)
        options = minion_options(BASE)
        for masterless in ("file_client", "file_roots", "pillar_roots"):
            options.pop(masterless)
        options.update(id=name, master="198.51.100.1", random_startup_delay=0, acceptance_wait_time=1)
        host.write(BASE + "/minion", json.dumps(options))
        self.start_minion(host)

    def start_minion(self, host):
        """Start the minion, for the first time or again after it was killed."""
        self._daemon(host, "salt-minion")

    def wait_for_minions(self, *names):
        """Until these minions, or all, answer with our modules; raises RuntimeError that names those that don't."""
        waiting = list(names or self.minions)
        hosts = {name: self.minions[name] for name in waiting}

        def listen():
            # A job that is published before they listen is lost, and costs the whole patience.
            return all(host.run(LISTENING).stdout.count("ESTAB") for host in hosts.values())

        if not (_until(listen) and _until(lambda: not self._sync(waiting))):
            raise RuntimeError(f"not up: {', '.join(waiting)}\n{self._logs(hosts)}")

    def _sync(self, waiting):
        """Take the minions that have the modules out of the list, and return it."""
        if waiting:
            self.salt_to_some(",".join(waiting), "--list", "saltutil.sync_all", patience=20)
            there = self.salt_to_some(",".join(waiting), "--list", "iptlive.enabled", patience=20).value
            waiting[:] = [name for name in waiting if not isinstance(there.get(name), bool)]
        return waiting

    def _start_ssh_host(self, name, address, backend):
        host = self.ssh_hosts[name] = self._connected(name, address, backend)
        host.run(["sed", "-i", f"s,:/root:,:{HOME}:,", "/etc/passwd"])
        host.run(["useradd", "--home-dir", HOME + "/admin", "--create-home", "--password", "*", "admin"])
        host.write("/etc/sudoers.d/admin", "admin ALL=(ALL) NOPASSWD: ALL\n", mode="0440")
        host.write(HOME + "/authorized_keys", self.master.read(KEY + ".pub"))
        host.write(HOME + "/sshd_config", SSHD)
        host.run(["mkdir", "-p", "/run/sshd"])
        self.new_host_key(name)
        users = {"s1": {"user": "root"}, "s2": {"user": "admin", "sudo": True}}
        roster = {
            known: {"host": f"198.51.100.{20 + int(known[1:])}", **users.get(known, {"user": "root"})}
            for known in self.ssh_hosts
        }
        self.master.write(BASE + "/roster", json.dumps(roster))

    def new_host_key(self, name):
        """Give an ssh host a new key, as if it had been installed anew; returns its fingerprint."""
        host, key = self.ssh_hosts[name], HOME + "/ssh_host_ed25519_key"
        host.run(["pkill", "-o", "-x", "sshd"], check=False)
        host.run(["rm", "-f", key, key + ".pub"])
        host.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key])
        new = host.read(key + ".pub").split()[1]

        command = ["/usr/sbin/sshd", "-D", "-f", HOME + "/sshd_config"]
        sshd = host.popen(command)

        def answers():
            nonlocal sshd
            if sshd.poll() is not None:  # the old one had not let go of the port yet
                sshd = host.popen(command)
            return new in host.run(["ssh-keyscan", "-T", "2", "127.0.0.1"], check=False).stdout

        if not _until(answers):
            raise RuntimeError(f"sshd of {name} does not answer")
        return host.run(["ssh-keygen", "-l", "-f", key + ".pub"]).stdout.split()[1]

    def trust_hosts(self):
        """Write the master's known_hosts from the hosts' own key files."""
        lines = []
        for number, host in enumerate(self.ssh_hosts.values(), 1):
            kind, key = host.read(HOME + "/ssh_host_ed25519_key.pub").split()[:2]
            lines.append(f"198.51.100.{20 + number} {kind} {key}\n")
        self.master.write(KNOWN_HOSTS, "".join(lines), mode="0600")

    def _connected(self, name, address, backend):
        host = Host(backend)
        wire(self.master, host, name, (None, address + "/24"), bridge="br0")
        return host

    def _daemon(self, host, program):
        with open("/dev/null", "r+b") as null:
            host.popen([PROGRAMS / program, "--config-dir", BASE], stdin=null, stdout=null, stderr=null)

    def _logs(self, minions):
        hosts = {"the master": self.master, **{name: self.minions[name] for name in minions}}
        logs = {name: host.run(["tail", "-n", "30", BASE + "/log"], check=False).stdout for name, host in hosts.items()}
        return "".join(f"--- log of {name}\n{text}" for name, text in logs.items())


def _until(true, seconds=240):
    """Whether it became true in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def _is_silence(said):
    # What the program `salt` puts in the place of an answer; in JSON some releases say false.
    return isinstance(said, str) and said.startswith("Minion did not return")


def _json(text):
    """The JSON a program printed, None where it printed none; `salt` prints a mapping for each minion."""
    decoder, found, rest = json.JSONDecoder(), [], text.strip()
    try:
        while rest:
            value, end = decoder.raw_decode(rest)
            found.append(value)
            rest = rest[end:].lstrip()
    except ValueError:
        return None
    if len(found) > 1:
        return {name: said for one in found for name, said in one.items()}
    return found[0] if found else None
