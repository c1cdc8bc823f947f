"""
A real systemd in a throw-away host: process 1 of a process namespace of its own, in the host's network.

It knows no unit but its default target and those that are made with ``systemd-run``. What it runs sees the host's
``/run``, ``/etc`` and ``/var``.

    with Systemd(host) as systemd:
        systemd.run(["systemd-run", "--unit=service", "sleep", "600"])
"""

import subprocess
import tempfile

from lab.host import SCRATCH, until_ready

UNITS = SCRATCH + "/units"
TARGET = "[Unit]\nDefaultDependencies=no\n"
# It must neither set the machine's clock and kernel settings nor see the units and control groups of the machine.
START = """\
group=$(findmnt --noheadings --first-only --types cgroup2 --output TARGET)/$1
mkdir -p "$group"
echo 0 >"$group/cgroup.procs"
exec unshare --pid --fork --kill-child --mount --cgroup --uts --ipc --mount-proc sh -euc '
mount -t cgroup2 lab /sys/fs/cgroup
mount --bind -o ro /proc/sys /proc/sys
exec env container=lab SYSTEMD_UNIT_PATH="$0" SYSTEMD_LOG_TARGET=console \\
    setpriv --bounding-set -sys_boot,-sys_module,-sys_time /lib/systemd/systemd --system --show-status=no
' "$2"
"""


class Systemd:
    """systemd in ``host``; use it as a context manager. It ends with the host at the latest."""

    def __init__(self, host):
        self._host = host
        for name in ("default", "basic", "sysinit", "shutdown"):
            host.write(f"{UNITS}/{name}.target", TARGET)
        self._log = tempfile.TemporaryFile("w+")
        start = ["sh", "-euc", START, "sh", host.cgroup, UNITS]
        self._process = host.popen(start, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)

    def __enter__(self):
        until_ready("systemd", self._process, self._is_running, self._said)
        return self

    def __exit__(self, *exc_info):
        self._host.run(["pkill", "-KILL", "-x", "systemd"])
        self._process.wait(timeout=60)
        self._log.close()

    def run(self, argv, check=True):
        """Run a program in its namespaces, as ``Host.run`` does."""
        pid = self._host.run(["pgrep", "-x", "systemd"], check=check).stdout.strip()
        enter = ["nsenter", "--target", pid, "--mount", "--pid", "--cgroup", "--root", "--wd", "--"]
        return self._host.run([*enter, *argv], check=check)

    def _is_running(self):
        return self.run(["systemctl", "is-system-running"], check=False).stdout == "running\n"

    def _said(self):
        self._log.seek(0)
        return self._log.read()[-4000:]
