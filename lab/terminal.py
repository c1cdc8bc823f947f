"""
A program on a terminal of a throw-away host, and what it printed as a picture.

    python3 -m lab.terminal docs/images      makes the pictures of the documentation anew
"""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

from rich.console import CONSOLE_SVG_FORMAT, Console
from rich.text import Text

from lab.docker import Docker, docker_rules
from lab.fleet import Fleet
from lab.host import PROGRAMS, Host
from lab.neighbours import Fail2ban, load_kube

SALT_CALL = [PROGRAMS / "salt-call", "--local", "--config-dir=/run/lab/salt", "--log-level=quiet"]
PATH = "/etc/iptables/rules.v4"
# Rich's own, but for a font from elsewhere.
FRAME = re.sub(r"@font-face {{.*?}}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)

MANUAL = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p icmp -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -p udp -m state --state NEW -m udp --dport 53 -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 22 -j ACCEPT
#DELETE# -A INPUT -p tcp -m state --state NEW -m tcp --dport 443 -j ACCEPT
-A INPUT -p tcp -m state --state NEW -m tcp --dport 8000 -j ACCEPT
-A INPUT -j REJECT --reject-with icmp-host-prohibited
-A FORWARD -s 192.0.2.0/24 -j ACCEPT
-A FORWARD -j REJECT --reject-with icmp-host-prohibited
COMMIT
"""
NEW = ("--dport 53", "--dport 8000", "192.0.2.0/24")


def on_terminal(host, argv, columns):
    """What a program prints on a terminal of so many columns; its exit status is not looked at."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = host.popen(argv, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL)
    os.close(theirs)
    got = b""
    try:
        while True:
            got += os.read(ours, 4096)
    except OSError:  # a terminal ends with an error when its last writer is gone
        process.wait(timeout=60)
    os.close(ours)
    return got.decode().replace("\r\n", "\n")


def svg(text, command):
    """A terminal's content as a picture; ``command`` is what was typed."""
    shown = Text.from_ansi(text.rstrip())
    # In a style of its own what a line begins with is not drawn, but skipped; some who draw SVG would drop it.
    shown.highlight_regex("(?m)^ +", "bold")
    console = Console(record=True, width=max(map(len, shown.plain.splitlines())), file=io.StringIO())
    console.print(shown)
    return console.export_svg(title=f"$ {command}", code_format=FRAME)


def screens(folder):
    """The pictures of a Docker host with fail2ban, in the documentation's folder."""
    with Host("nft") as host, Docker(host) as docker, Fail2ban(host) as fail2ban:
        docker.start()
        docker.publish(8080)
        fail2ban.start()
        load(host, _before(MANUAL))
        fail2ban.offend("203.0.113.7", "203.0.113.8")
        fail2ban.wait_for({"203.0.113.7", "203.0.113.8"})
        host.write(PATH, MANUAL)
        host.salt_call("saltutil.sync_all")
        _screen(host, folder / "refusal.svg", "iptlive.plan")
        (folder / "graph.svg").write_text(graph(host))
        _screen(host, folder / "plan.svg", "iptlive.plan", "placement=before")
        _screen(host, folder / "narrow.svg", "iptlive.plan", "placement=before", columns=60)
        _screen(host, folder / "state.svg", "state.single", "iptlive.managed", "firewall", "placement=before",
                "families=[ipv4]", "test=True")  # fmt: skip
        _screen(host, folder / "apply.svg", "iptlive.apply", "placement=before")
        _screen(host, folder / "in-sync.svg", "iptlive.plan")
        _screen(host, folder / "foreign.svg", "iptlive.foreign")
        load_kube(host, 300)
        (folder / "graph-kubernetes.svg").write_text(graph(host))


def report_screen(folder):
    """The report of four minions: in sync, with changes, refused, with a broken file."""
    # The minions' connections are older than these rules and their tracking.
    stored = MANUAL.replace("-A INPUT -p icmp", "-A INPUT -s 198.51.100.1/32 -j ACCEPT\n-A INPUT -p icmp")
    wanted = [
        stored.replace("#DELETE# ", ""),
        stored.replace("-A FORWARD -s 192.0.2.0/24 -j ACCEPT\n", ""),
        stored,
        stored.replace("*filter", "*filters"),
    ]
    with Fleet(minions=len(wanted), ssh_hosts=0, timeout=60) as fleet:
        for host, text in zip(fleet.minions.values(), wanted):
            host.restore(_before(text) if text != wanted[0] else text)
            host.write(PATH, text)
        docker_rules(fleet.minions["m3"])
        fleet.pillar({"iptlive": {"families": ["ipv4"]}})
        report = [PROGRAMS / "salt-run", "--config-dir", fleet.config_dir, "--log-level=quiet", "iptlive.report", "*"]
        printed = on_terminal(fleet.master, report, 110)
        (folder / "report.svg").write_text(svg(printed, "salt-run iptlive.report '*'"))


def _before(text):
    """The kernel's rules before what is new in a stored file."""
    text = text.replace("*filters", "*filter")
    return "".join(line.replace("#DELETE# ", "") for line in text.splitlines(True) if not _is_new(line))


def load(host, text):
    """Append rules behind those that are there."""
    host.run([f"iptables-{host.backend}-restore", "--noflush"], input=text)


def graph(host):
    return host.call("iptlive.graph", "svg", families=["ipv4"]).value


def _is_new(line):
    return any(text in line for text in NEW)


def _screen(host, path, *args, columns=110):
    words = [*args] if "families=[ipv4]" in args else [*args, "families=[ipv4]"]
    printed = on_terminal(host, [*SALT_CALL, "--out=iptlive", *words], columns)
    shown = " ".join(word for word in words if word != "families=[ipv4]")
    path.write_text(svg(printed, f"salt-call {shown} --out=iptlive"))


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    screens(target)
    report_screen(target)
