"""
Neighbours for a throw-away host: a real fail2ban with a jail, and the rules that kube-proxy writes.

    with Host("nft") as host, Fail2ban(host) as fail2ban:
        fail2ban.start()
        fail2ban.offend("192.0.2.7")
        fail2ban.wait_for({"192.0.2.7"})
"""

import hashlib
import shutil
import subprocess
import time

from lab.host import ENVIRONMENT, SCRATCH, until_ready

FOLDER = SCRATCH + "/fail2ban"
SOCKET = FOLDER + "/socket"
LOG = FOLDER + "/door.log"
JAIL = f"""\
[DEFAULT]
allowipv6 = auto

[door]
enabled = true
filter = door
backend = polling
logpath = {LOG}
port = 8022
maxretry = 1
findtime = 600
bantime = 600
ignoreself = false
banaction = iptables-multiport
"""
FILTER = "[Definition]\nfailregex = refused a visitor from <HOST>$\n"

KUBE_FILTER = """\
*filter
:KUBE-FORWARD - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
COMMIT
"""
KUBE_NAT_CHAINS = ("KUBE-SERVICES", "KUBE-POSTROUTING", "KUBE-MARK-MASQ", "KUBE-NODEPORTS")
KUBE_NAT_RULES = (
    '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
    '-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
    '-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING',
    "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000",
    "-A KUBE-POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE",
)


def installed():
    """Whether this machine has what ``Fail2ban`` needs."""
    return shutil.which("fail2ban-server", path=ENVIRONMENT["PATH"]) is not None


class Fail2ban:
    """A real fail2ban in ``host``, its jail ``door`` watching a log that ``offend`` writes."""

    def __init__(self, host):
        self.host = host
        self._server = None

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def close(self):
        """Kill the server where it still runs; its rules stay."""
        if self._server and self._server.poll() is None:
            self.host.run(["kill", "-KILL", self.host.read(FOLDER + "/pid").strip()])
            self._server.wait(timeout=60)

    def start(self):
        """Start the server and wait until its jail stands."""
        host = self.host
        host.write("/etc/fail2ban/fail2ban.d/zz-lab.local", "[Definition]\ndbfile = None\n")
        host.write("/etc/fail2ban/jail.d/zz-lab.local", "[sshd]\nenabled = false\n\n" + JAIL)
        host.write("/etc/fail2ban/filter.d/door.conf", FILTER)
        host.write(LOG, "")
        command = ["fail2ban-server", "-f", "-s", SOCKET, "-p", FOLDER + "/pid"]
        command += ["--logtarget", FOLDER + "/log", "start"]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._server = host.popen(command, **quiet)
        self._wait(lambda: self._client("status", "door").returncode == 0)

    def stop(self):
        """Stop the server in order: it takes its rules with it."""
        self._client("stop")
        self._server.wait(timeout=60)

    def offend(self, *addresses):
        """Write to the log what gets the addresses banned, as soon as the server reads it."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        lines = "".join(f"{now} refused a visitor from {address}\n" for address in addresses)
        self.host.run(["tee", "--append", LOG], input=lines)

    def pardon(self, *addresses):
        """Unban."""
        self._client("set", "door", "unbanip", *addresses)

    def banned(self):
        """The banned addresses, as fail2ban knows them."""
        listed = self._client("get", "door", "banip").stdout.split()
        return set(listed)

    def rules(self):
        """The addresses that the kernel rejects in fail2ban's chain."""
        program = f"iptables-{self.host.backend}"
        listed = self.host.run([program, "-S", "f2b-door"], check=False).stdout.splitlines()
        return {line.split()[3].partition("/")[0] for line in listed if line.startswith("-A f2b-door -s ")}

    def wait_for(self, addresses):
        """Wait until exactly these addresses are banned, in fail2ban and in the kernel."""
        self._wait(lambda: self.banned() == self.rules() == set(addresses))

    def _client(self, *words):
        return self.host.run(["fail2ban-client", "-s", SOCKET, *words], check=False)

    def _wait(self, ready):
        until_ready("fail2ban", self._server, ready, self._said)

    def _said(self):
        return self.host.run(["tail", "-c", "4000", FOLDER + "/log"], check=False).stdout


def kube_rules(services, endpoints=2):
    """What kube-proxy writes for so many services, as input for ``iptables-restore --noflush``."""
    chains, rules = list(KUBE_NAT_CHAINS), list(KUBE_NAT_RULES)
    for number in range(services):
        chains_of_one, rules_of_one = _service(number, endpoints)
        chains += chains_of_one
        rules += rules_of_one
    rules.append('-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports" -j KUBE-NODEPORTS')
    nat = ["*nat"] + [f":{chain} - [0:0]" for chain in chains] + rules + ["COMMIT", ""]
    return KUBE_FILTER + "\n".join(nat)


def _service(number, endpoints):
    service, address = _chain("KUBE-SVC-", number), f"10.96.{number >> 8 & 255}.{number & 255}"
    comment = f'-m comment --comment "shop{number % 50}/web{number}:http'
    to_service = f'-d {address}/32 -p tcp {comment} cluster IP" -m tcp --dport 80'
    chains = [service]
    rules = [
        f"-A KUBE-SERVICES {to_service} -j {service}",
        f"-A {service} ! -s 10.244.0.0/16 {to_service} -j KUBE-MARK-MASQ",
    ]
    for index in range(endpoints):
        endpoint, pod = _chain("KUBE-SEP-", number, index), f"10.244.{number & 255}.{index + 2}"
        left = endpoints - index
        chance = f"-m statistic --mode random --probability {1 / left:.11f} " if left > 1 else ""
        chains.append(endpoint)
        rules += [
            f'-A {service} {comment} -> {pod}:8080" {chance}-j {endpoint}',
            f'-A {endpoint} -s {pod}/32 {comment}" -j KUBE-MARK-MASQ',
            f'-A {endpoint} -p tcp {comment}" -m tcp -j DNAT --to-destination {pod}:8080',
        ]
    return chains, rules


def _chain(prefix, *numbers):
    return prefix + hashlib.sha256(repr(numbers).encode()).hexdigest()[:16].upper()


def load_kube(host, services, endpoints=2):
    """Load kube-proxy's rules beside the rules that are there."""
    host.run([f"iptables-{host.backend}-restore", "--noflush"], input=kube_rules(services, endpoints), timeout=120)
