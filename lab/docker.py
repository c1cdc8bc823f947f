"""
Docker in a throw-away host: a real daemon with a published port, or a stand-in where Docker is not installed.

Both have a peer, a second throw-away host on the other end of a wire, from which ``reachable`` makes a real request.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lab.host import ENVIRONMENT, SCRATCH, Host, until_ready, wire

HOST_ADDRESS = "198.51.100.1"
GREETING = "answered by the container"
# The client's and the daemon's own settings of this machine must not play a part.
CLIENT = ("docker", "--config", SCRATCH + "/docker/client", "--host", "unix:///run/docker.sock")
DAEMON = (
    "dockerd",
    "--config-file=" + SCRATCH + "/docker/daemon.json",
    "--host=unix:///run/docker.sock",
    "--pidfile=/run/docker.pid",
    "--exec-root=/run/docker",
    "--data-root=" + SCRATCH + "/docker/data",
    "--storage-driver=vfs",
    "--exec-opt=native.cgroupdriver=cgroupfs",
    # Otherwise a proxy process answers on the port when Docker's rules are gone, and reachable() proves nothing.
    "--userland-proxy=false",
)
REQUEST = """
import sys, urllib.request
print(urllib.request.urlopen("http://{}:{}/".format(*sys.argv[1:]), timeout=2).read().decode(), end="")
"""
# What Docker writes for one container with one published port.
FILTER_RULES = """\
*filter
:FORWARD DROP [0:0]
-N DOCKER
-N DOCKER-ISOLATION-STAGE-1
-N DOCKER-ISOLATION-STAGE-2
-N DOCKER-USER
-I FORWARD 1 -j DOCKER-USER
-I FORWARD 2 -j DOCKER-ISOLATION-STAGE-1
-I FORWARD 3 -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-I FORWARD 4 -o docker0 -j DOCKER
-I FORWARD 5 -i docker0 ! -o docker0 -j ACCEPT
-I FORWARD 6 -i docker0 -o docker0 -j ACCEPT
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
"""
NAT_RULES = """\
*nat
-N DOCKER
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A POSTROUTING -s 172.17.0.2/32 -d 172.17.0.2/32 -p tcp -m tcp --dport 80 -j MASQUERADE
-A DOCKER -i docker0 -j RETURN
-A DOCKER ! -i docker0 -p tcp -m tcp --dport {port} -j DNAT --to-destination 172.17.0.2:80
COMMIT
"""


def installed():
    """Whether this machine has what ``Docker`` needs."""
    return all(shutil.which(program, path=ENVIRONMENT["PATH"]) for program in ("dockerd", "docker", "busybox"))


class _WithPeer:
    """A host that serves a port to its peer."""

    real = False

    def __init__(self, host):
        self.host = host
        self.peer = Host(host.backend)
        wire(host, self.peer)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def close(self):
        """End the peer. What runs in ``host`` ends with it."""
        self.peer.close()

    def reachable(self, port):
        """Whether a request from the peer to the host's published port is answered by the container."""
        argv = [sys.executable, "-I", "-S", "-c", REQUEST, HOST_ADDRESS, port]
        return self.peer.run(argv, check=False).stdout == GREETING


class Docker(_WithPeer):
    """
    A real Docker daemon in ``host``; ``start`` it, ``publish`` a port.

    Data, sockets and settings are the host's own; the image is made here from busybox, so nothing is downloaded.
    """

    real = True

    def __init__(self, host):
        super().__init__(host)
        self._daemon = self._log = None

    def start(self):
        """Start the daemon and wait until it answers."""
        host = self.host
        if not host.run(["test", "-d", "/sys/kernel/security"], check=False).returncode:
            # The daemon would load its AppArmor profile into the machine's kernel.
            host.run(["mount", "--no-mtab", "-t", "tmpfs", "lab", "/sys/kernel/security"])
        host.write(SCRATCH + "/docker/daemon.json", "{}")
        self._log = tempfile.TemporaryFile("w+")
        daemon = [*DAEMON, "--cgroup-parent=/" + host.cgroup]
        self._daemon = host.popen(daemon, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT)
        self._wait(lambda: host.run([*CLIENT, "version"], check=False).returncode == 0)

    def publish(self, port, name="web"):
        """Run a container whose web server is published as ``port`` of the host."""
        if self.host.run([*CLIENT, "image", "inspect", "lab"], check=False).returncode:
            self._import_image()
        command = ["/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/www"]
        self.host.run(
            [
                *CLIENT,
                "run",
                "--detach",
                "--stop-signal=KILL",
                f"--name={name}",
                f"--publish={port}:80",
                "lab",
                *command,
            ]
        )
        self._wait(lambda: self.reachable(port))

    def remove(self, name="web"):
        """Stop the container and remove it: its rules go, the daemon's stay."""
        self.host.run([*CLIENT, "rm", "--force", name])

    def stop(self):
        """Stop the daemon in order: its containers end, its own rules stay."""
        self.host.run(["kill", self.host.read("/run/docker.pid").strip()])
        self._daemon.wait(timeout=60)
        self._log.close()

    def restart(self, port=8080, name="web"):
        """Restart a container that is published as this port: its address may be another one then."""
        self.host.run([*CLIENT, "restart", "--time=0", name])
        self._wait(lambda: self.reachable(port))

    def restart_daemon(self):
        """Its end ends the containers too."""
        self.stop()
        self.start()
        self.restart()

    def _import_image(self):
        root = SCRATCH + "/docker/image"
        for path in _with_libraries(shutil.which("busybox", path=ENVIRONMENT["PATH"])):
            target = "/bin/busybox" if path.endswith("/busybox") else path
            self.host.run(["install", "-D", path, root + target])
        self.host.write(root + "/www/index.html", GREETING)
        self.host.run(["tar", "--create", "--file", root + ".tar", "--directory", root, "."])
        self.host.run([*CLIENT, "import", root + ".tar", "lab"])

    def _wait(self, ready):
        until_ready("Docker", self._daemon, ready, self._said)

    def _said(self):
        self._log.seek(0)
        return self._log.read()[-4000:]


class StandIn(_WithPeer):
    """
    Docker's rules without Docker: the rules are loaded by hand, the container is a namespace behind a bridge.
    """

    def __init__(self, host):
        super().__init__(host)
        self.container = Host(host.backend)

    def close(self):
        self.container.close()
        super().close()

    def start(self):
        """Make the bridge."""
        self.host.run(["ip", "link", "add", "docker0", "type", "bridge"])
        self.host.run(["ip", "address", "add", "172.17.0.1/16", "dev", "docker0"])
        self.host.run(["ip", "link", "set", "docker0", "up"])
        self.host.run(["tee", "/proc/sys/net/ipv4/ip_forward"], input="1")

    def publish(self, port):
        """Load the rules for one published port, and serve it."""
        docker_rules(self.host, port)
        wire(self.host, self.container, interface="lab1", bridge="docker0", addresses=(None, "172.17.0.2/16"))
        self.container.run(["ip", "route", "add", "default", "via", "172.17.0.1"])
        self.container.write("/run/www/index.html", GREETING)
        server = [sys.executable, "-I", "-m", "http.server", "--directory", "/run/www", "80"]
        self.container.popen(server, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while not self.reachable(port):
            if time.monotonic() > end:
                raise RuntimeError("the stand-in for a container gives no answer")
            time.sleep(0.05)


def docker_rules(host, port=8080):
    """Load the rules that Docker writes for one published port, beside the rules that are there."""
    program = f"iptables-{host.backend}-restore"
    host.run([program, "--noflush"], input=FILTER_RULES + NAT_RULES.format(port=port))


def _with_libraries(program):
    """A program's path and those of the shared libraries it needs (none, when it is a static one)."""
    done = subprocess.run(["ldd", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False, text=True)
    words = (word for line in done.stdout.splitlines() for word in line.split() if word.startswith("/"))
    return [program] + [word for word in words if Path(word.rstrip(":")).is_file()]
