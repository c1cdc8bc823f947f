"""
Every command that README, docs/ and the docstrings show is run, as written, on hosts like those that it is meant for:
``salt-call`` on a host without a master, all others on the master of a network. It must succeed unless something else
is documented, print what is shown below it, and write into the kernel only where it says so.

Each block of commands begins with hosts that Docker runs on, and whose stored files have three rules more than their
kernels; or as ``SCENES`` say.
"""

import fnmatch
import json
import re
from typing import Callable, Dict, NamedTuple

import documented
import pytest

from lab.demo import AT_BOOT, EXTENDED, NEW_RULES, STORED_V6
from lab.docker import docker_rules
from lab.host import ENVIRONMENT, PROGRAMS, Host, minion_options
from lab.network import connect

RULES_V4, RULES_V6 = "/etc/iptables/rules.v4", "/etc/iptables/rules.v6"
# Connections between minions and master are older than the rules, and than the kernel's tracking.
FROM_MASTER = "-A INPUT -s 198.51.100.1/32 -j ACCEPT\n"
HOST_LIST = [
    {"name": "web1", "ip": "198.51.100.21", "user": "SRCUSER", "state": "on"},
    {"name": "web2", "ip": "198.51.100.22", "user": "admin", "state": "on"},
]
UNITS = "/etc/systemd/system"
LOADER = """[Unit]
Before=network-pre.target docker.service
[Service]
Type=oneshot
ExecStart=/usr/sbin/iptables-restore /etc/iptables/rules.v4
ExecStart=/usr/sbin/ip6tables-restore /etc/iptables/rules.v6
"""
BACKUP = "/var/lib/iptlive/backup/iptables-backup-20260714-061500"
UPDATE = "20260714-061500-123-4711"
WRITING = re.compile(r"iptlive\.apply|state\.(apply|single|highstate|orchestrate)")
# After these the hosts need not be made anew.
READING = re.compile(r"iptlive\.(plan|foreign|graph|drift|enabled|pending|report)\b|sys\.doc|saltutil|test=True")
# What differs from one run to the next.
VARYING = re.compile(
    r"\d{8}-\d{6}-\d+-\d+|\d+-\d+-\d+T[\d:]+Z|\d+:\d+:\d+\.\d+| *\d+(\.\d+)? m?s\b|(?<=_left: )\d+|\d+ sec\w+"
)


class Site(NamedTuple):
    """The network, and a host without a master."""

    fleet: object
    alone: Host
    prepared: Dict[str, Callable]  # how each host was left

    def run(self, text):
        """Run a command line as somebody would type it."""
        assert text.split()[0] in documented.RUN
        host = self.alone if text.startswith("salt-call") else self.fleet.master
        path = f"PATH={PROGRAMS}:{ENVIRONMENT['PATH']}"
        return host.run(["env", "--chdir=/run/lab", path, "sh", "-c", text], check=False, timeout=120)

    def targets(self, text) -> Dict[str, Host]:
        """The hosts that a command is about."""
        if text.startswith("salt-call"):
            return {"local": self.alone}
        by_ssh = over_ssh(text)
        hosts = self.fleet.ssh_hosts if by_ssh else self.fleet.minions
        named = re.search(r"(?<![\w-])[ms](\d|\*|\[\d-\d\])(?!\w)", text)
        return {name: host for name, host in hosts.items() if fnmatch.fnmatch(name, named.group() if named else "*")}


def over_ssh(text):
    return text.startswith("salt-ssh") or "ssh=True" in text or "relearn" in text


@pytest.fixture(scope="module")
def site(whole_fleet, hosts):
    """Salt's programs find their settings where they look for them by themselves."""
    alone = connect(hosts("nft"))
    for host in (alone, whole_fleet.master):
        host.run(["rm", "-rf", "/etc/salt"])
    alone.write("/etc/salt/minion", json.dumps(minion_options("/run/lab/salt")))
    whole_fleet.master.run(["ln", "-s", whole_fleet.config_dir, "/etc/salt"])
    whole_fleet.master.run(["mkdir", "-p", "/var/backups"])
    whole_fleet.master.write("/run/lab/host-list.json", json.dumps(HOST_LIST))
    whole_fleet.master.write("/run/lab/states/top.sls", json.dumps({"base": {"*": ["iptlive"]}}))
    whole_fleet.master.write("/run/lab/states/firewall/ports.jinja", "{% set ssh = 22 %}\n")
    whole_fleet.trust_hosts()
    site = Site(whole_fleet, alone, {})
    assert site.run("salt-call --local saltutil.sync_all").returncode == 0
    return site


def pillar(site, **options):
    site.fleet.pillar({"iptlive": options}, fleet=("control", {"iptlive": {"hosts": HOST_LIST}}))


def standard(site, hosts, kernel=AT_BOOT, stored=EXTENDED):
    for host in hosts.values():
        mine = (lambda text: text) if host is site.alone else reachable
        host.reset()
        host.run(["rm", "-rf", UNITS])
        host.restore(mine(kernel))
        host.restore(STORED_V6, "ipv6")
        docker_rules(host)
        host.write(RULES_V4, mine(stored))
        host.write(RULES_V6, STORED_V6)


def reachable(text):
    return text.replace("-A INPUT -p icmp", FROM_MASTER + "-A INPUT -p icmp")


def in_sync(site, hosts):
    standard(site, hosts, kernel=EXTENDED)


def updated(site, hosts):
    """Returns the name of the first host's update, which stands where the documents have one."""
    standard(site, hosts)
    done = site.fleet.salt(",".join(hosts), "--list", "iptlive.apply").value
    return done[next(iter(hosts))]["id"]


def waiting(site, hosts):
    standard(site, hosts)
    if "local" in hosts:
        assert site.run("salt-call --local iptlive.apply families=[ipv4] confirm=60").returncode == 0
    else:
        assert site.fleet.salt_ssh(",".join(hosts), "--list", "iptlive.apply", "confirm=60").retcode == 0


def backed_up(site, hosts):
    in_sync(site, hosts)
    done = site.fleet.salt(",".join(hosts), "--list", "iptlive.backup").value
    for name, host in hosts.items():
        host.run(["mv", done[name]["path"], BACKUP])


def without_files(site, hosts):
    standard(site, hosts)
    for host in hosts.values():
        host.run(["rm", RULES_V4, RULES_V6])


def loaded_at_boot(site, hosts):
    """Elsewhere nothing loads the files, which is a problem that ``iptlive.boot`` has to report."""
    standard(site, hosts)
    for host in hosts.values():
        host.write(f"{UNITS}/fw.service", LOADER)
        host.run(["mkdir", "-p", f"{UNITS}/multi-user.target.wants"])
        host.run(["ln", "-s", "../fw.service", f"{UNITS}/multi-user.target.wants"])


def cutting_off(site, hosts):
    """With the pillar of the page, but less time to wait."""
    standard(site, hosts, stored=EXTENDED.replace("COMMIT", "-A OUTPUT -p tcp -m tcp --dport 4506 -j DROP\nCOMMIT"))
    pillar(site, families=["ipv4"], confirm=4, expect=[{"drop": "4506/tcp", "to": "master"}])


class Scene(NamedTuple):
    """How the hosts are before a block of which one command matches, and the exit status of that command."""

    pattern: str
    prepare: Callable
    status: int = 0


SCENES = [
    Scene(r"iptlive\.report|iptlive\.orch", in_sync),
    Scene(r"iptlive\.(rollback|outcome)", updated),
    Scene(r"salt-ssh web1 iptlive\.confirm", waiting),
    Scene(r"iptables-backup-20260714", backed_up),
    Scene(r"iptlive\.plan expect=", standard, 1),
    Scene(r"^salt(-call| '\*') iptlive\.boot$", loaded_at_boot),
    Scene(r"iptlive\.export$", without_files),
    Scene(r"^salt web1 state\.apply iptlive$", cutting_off, 1),
    Scene(r"^salt-call --local iptlive\.apply families=\[ipv4\]$", waiting, 1),
]


def scene(*texts):
    """Of one command or of a block."""
    return next((scene for scene in SCENES for text in texts if re.search(scene.pattern, text)), Scene("", standard))


def filled_in(text, site, update):
    """The documents' names for hosts, updates and fingerprints are stand-ins for those of this network."""
    ours = "s" if over_ssh(text) else "m"
    if "--roster-file" not in text:
        text = re.sub(r"\bweb(?=[\d*])", ours, text)
    if "SHA256:..." in text:
        text = text.replace("SHA256:...", f'"{site.fleet.fingerprint("s1")}"').replace("'s*'", "s1")
    return text.replace(UPDATE, update or "")


def shown(lines):
    """A pattern for output, in which a line with an ellipsis stands for any lines."""
    return "".join(r"(.*\n)*?" if line.strip() == "..." else re.escape(plain(line)) + "\n" for line in lines)


def plain(text):
    return "\n".join(VARYING.sub("#", line).rstrip() for line in text.splitlines()).strip("\n")


def kernels(hosts):
    return {name: host.save() for name, host in hosts.items()}


@pytest.mark.parametrize("block", documented.blocks(), ids=lambda block: block.place)
def test_commands(site, block):
    hosts = {}
    for command in block.commands:
        hosts.update(site.targets(filled_in(command.text, site, UPDATE)))
    pillar(site)
    texts = [command.text for command in block.commands]
    prepare = scene(*texts).prepare
    update = prepare(site, {name: host for name, host in hosts.items() if site.prepared.pop(name, None) != prepare})
    for command in block.commands:
        text = filled_in(command.text, site, update)
        before = kernels(hosts)
        done = site.run(text)
        said = f"{text}: exit status {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        assert done.returncode == scene(command.text).status, said
        assert "Traceback" not in done.stdout + done.stderr, said
        if command.output:
            printed = plain((done.stdout or done.stderr).replace("m1", "web1")) + "\n"
            assert re.fullmatch(shown(command.output), printed), said
        if not WRITING.search(text) or "test=True" in text or done.returncode:
            assert "rollback" in text or kernels(hosts) == before, said
        else:
            assert all(set(NEW_RULES) <= set(rules.splitlines()) for rules in kernels(hosts).values()), said
    if prepare in (standard, in_sync) and all(map(READING.search, texts)):
        site.prepared.update(dict.fromkeys(hosts, prepare))
