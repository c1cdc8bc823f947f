"""
A network of throw-away hosts: a master, minions, and hosts that have only sshd and python3.

    with Fleet(minions=4, ssh_hosts=2) as fleet:
        fleet.minions["m1"].write("/etc/iptables/rules.v4", text)
        fleet.salt("*", "iptlive.plan").value
        fleet.salt_ssh("*", "state.apply", "iptlive", "test=True").value
        fleet.salt_run("iptlive.report", "*").value

Minion ``m1`` has the nft backend, ``m2`` the legacy one, and so on; ``s1`` is reached as root, ``s2`` as a user with
sudo. All are ports of one bridge in the master's namespace. Salt is the one that runs this program; its daemons, its
programs and sshd are those of pytest-salt-factories, in ``daemons`` by name.
"""

import fnmatch
import json
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from saltfactories.cli.run import SaltRun
from saltfactories.cli.salt import Salt
from saltfactories.cli.ssh import SaltSsh
from saltfactories.daemons.master import SaltMaster
from saltfactories.daemons.minion import SaltMinion

from lab.factories import Factories, inside, sshd_inside
from lab.host import BACKENDS, ENVIRONMENT, FILE_ROOTS, REPO, Done, Host, wire

KNOWN_HOSTS = "/run/lab/known_hosts"
HOME = "/run/home"  # the machine's own home directories are not ours
ADDRESS = "198.51.100.1"
PATIENCE = 120  # seconds until a minion is given up: they cost nothing where all answer
COMMON = {
    "enable_fqdns_grains": False,
    "log_level_logfile": "warning",
    "fileserver_list_cache_time": 0,
    "state_output": "full",
}
SSHD = {
    "AuthorizedKeysFile": HOME + "/authorized_keys",
    "HostKeyAlgorithms": "ssh-ed25519",
    "Subsystem": "sftp internal-sftp",
    "StrictModes": "no",
    "UsePAM": "no",
}


class Fleet:
    """A master, with ``master_options``, and its hosts; use it as a context manager, or ``close()`` it."""

    def __init__(self, minions=2, ssh_hosts=2, **master_options):
        self.minions = {}
        self.ssh_hosts = {}
        self.daemons = {}
        self._pillar = None
        self.master = Host("nft")
        self._factories = Factories(self.master)
        try:
            self._factories.event_listener.start()
            self._make_bridge()
            for number in range(1, ssh_hosts + 1):
                self._start_ssh_host(f"s{number}", f"198.51.100.{20 + number}", BACKENDS[(number - 1) % 2])
            self._start_master(master_options)
            for number in range(1, minions + 1):
                self._make_minion(f"m{number}", f"198.51.100.{10 + number}", BACKENDS[(number - 1) % 2])
            self.trust_hosts()
            self.start(*self.minions)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def close(self):
        for host in [*self.hosts().values(), self.master]:
            host.close()
        for daemon in self.daemons.values():
            daemon.terminate()
        self._factories.event_listener.stop()

    def hosts(self):
        return {**self.minions, **self.ssh_hosts}

    # --- Salt's programs, on the master --------------------------------------------------------------------------

    def salt(self, target, *args, patience=PATIENCE, **options):
        """Call a function on minions, by glob or as a list; raises RuntimeError unless all of them answer."""
        names = [name for pattern in target.split(",") for name in fnmatch.filter(self.minions, pattern)]
        done = self.salt_to_some(target, *args, patience=patience, **options)
        silent = [name for name in names if name not in (done.value or {})]
        if silent:
            raise RuntimeError(f"no answer from {', '.join(silent)} to {args}: {done}\n{self._logs(silent)}")
        return done

    def salt_to_some(self, target, *args, patience=5, **options):
        """As ``salt``, for minions of which some cannot answer: ``value`` holds the answers there are."""
        done = self._run(self.daemons["master"].salt_cli, Salt, f"--timeout={patience}", target, *args, **options)
        answers = {name: said for name, said in (done.value or {}).items() if not _is_silence(said)}
        return done._replace(value=answers)

    def salt_ssh(self, target, *args, **options):
        return self._run(self.daemons["master"].salt_ssh_cli, SaltSsh, "--static", target, *args, **options)

    def salt_run(self, *args, **options):
        return self._run(self.daemons["master"].salt_run_cli, SaltRun, *args, **options)

    def _run(self, make, program, *args, out="json"):
        run = make(factory_class=inside(program, self.master), environ=dict(ENVIRONMENT)).run
        # Without a target of its own it leaves the answers under the names of their hosts.
        done = run(f"--out={out}", "--log-level=warning", *args, minion_tgt="")
        return Done(done.data, done.returncode, done.stdout, done.stderr)

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

    @property
    def config_dir(self):
        """The directory of the master's configuration, and of its roster."""
        return self.daemons["master"].config_dir

    def _make_bridge(self):
        for words in ("link add br0 type bridge", f"address add {ADDRESS}/24 dev br0", "link set br0 up"):
            self.master.run(["ip", *words.split()])

    def _start_master(self, more):
        options = {
            **COMMON,
            "id": "control",
            "interface": ADDRESS,
            "publish_port": 4505,
            "ret_port": 4506,
            "pillar_roots": {"base": ["/run/lab/pillar"]},
            "file_roots": {"base": [*FILE_ROOTS, "/run/lab/states"]},
            "auto_accept": True,
            "worker_threads": 3,
            "timeout": PATIENCE,  # what the runners wait for
            "gather_job_timeout": 15,
            "known_hosts_file": KNOWN_HOSTS,
            "wrapper_dirs": [str(REPO / "wrapper")],
            "ssh_minion_opts": {"wrapper_dirs": [str(REPO / "wrapper")]},
            "roster_defaults": {"timeout": 10},
            **more,
        }
        if self.ssh_hosts:
            options["roster_defaults"]["priv"] = str(self.daemons["s1"].client_key)
        self.master.write("/run/lab/states/.keep", "")
        self.master.write("/run/lab/pillar/top.sls", "{}")
        make = self._factories.salt_master_daemon
        self.daemons["master"] = make("control", overrides=options, factory_class=inside(SaltMaster, self.master))
        self.daemons["master"].start()
        self._write_roster()
        self.salt_run("saltutil.sync_all")

    def _make_minion(self, name, address, backend):
        host = self.minions[name] = self._connected(name, address, backend)
        options = {**COMMON, "master": ADDRESS, "loop_interval": 1, "random_startup_delay": 0}
        make, place = self.daemons["master"].salt_minion_daemon, {"root_dir": str(host.shared)}
        self.daemons[name] = make(name, defaults=place, overrides=options, factory_class=inside(SaltMinion, host))

    def start(self, *names):
        """Start minions, for the first time or again; when this returns they have our modules."""
        with ThreadPoolExecutor(len(names)) as pool:
            list(pool.map(lambda name: self.daemons[name].start(), names))
        self.salt(",".join(names), "--list", "saltutil.sync_all")

    def _start_ssh_host(self, name, address, backend):
        host = self.ssh_hosts[name] = self._connected(name, address, backend)
        host.run(["sed", "-i", f"s,:/root:,:{HOME}:,", "/etc/passwd"])
        host.run(["useradd", "--home-dir", HOME + "/admin", "--create-home", "--password", "*", "admin"])
        host.write("/etc/sudoers.d/admin", "admin ALL=(ALL) NOPASSWD: ALL\n", mode="0440")
        host.run(["mkdir", "-p", "/run/sshd"])
        self.new_host_key(name)
        client_key = self.daemons["s1"].client_key
        host.write(HOME + "/authorized_keys", client_key.with_suffix(".pub").read_text())

    def _write_roster(self):
        users = {"s1": {"user": "root"}, "s2": {"user": "admin", "sudo": True}}
        roster = {
            name: {"host": f"198.51.100.{20 + int(name[1:])}", **users.get(name, {"user": "root"})}
            for name in self.ssh_hosts
        }
        Path(self.config_dir, "roster").write_text(json.dumps(roster))

    def new_host_key(self, name):
        """Give an ssh host a new key, as if it had been installed anew; returns its fingerprint."""
        if name in self.daemons:
            self.daemons[name].terminate()
        host = self.ssh_hosts[name]
        self.daemons[name] = self._factories.get_sshd_daemon(
            tempfile.mkdtemp(dir=host.shared),
            script_name="/usr/sbin/sshd",
            listen_address="0.0.0.0",
            listen_port=22,
            sshd_config_dict=SSHD,
            factory_class=sshd_inside(host),
        )
        self.daemons[name].start()
        return self.fingerprint(name)

    def fingerprint(self, name):
        """Of an ssh host's key."""
        return self.master.run(["ssh-keygen", "-l", "-f", self._host_key(name)]).stdout.split()[1]

    def _host_key(self, name):
        return self.daemons[name].config_dir / "ssh_host_ed25519_key.pub"

    def trust_hosts(self):
        """Write the master's known_hosts from the hosts' own key files."""
        lines = []
        for number, name in enumerate(self.ssh_hosts, 1):
            kind, key = self._host_key(name).read_text().split()[:2]
            lines.append(f"198.51.100.{20 + number} {kind} {key}\n")
        self.master.write(KNOWN_HOSTS, "".join(lines), mode="0600")

    def _connected(self, name, address, backend):
        host = Host(backend)
        wire(self.master, host, name, (None, address + "/24"), bridge="br0")
        return host

    def _logs(self, minions):
        logs = {name: Path(self.daemons[name].config["log_file"]) for name in ("master", *minions)}
        return "".join(f"--- log of {name}\n{log.read_text()[-3000:]}" for name, log in logs.items() if log.exists())


def _is_silence(said):
    # What the program `salt` puts in the place of an answer; in JSON some releases say false.
    return isinstance(said, str) and said.startswith("Minion did not return")
