"""
pytest-salt-factories in throw-away hosts: the programs that it starts run in a host, all the rest of it does not.

What it writes is below ``Host.shared``, a directory that has the same name within a host and outside.
"""

import ctypes
import logging
from pathlib import Path

from saltfactories.daemons.sshd import Sshd
from saltfactories.manager import FactoriesManager
from saltfactories.plugins.event_listener import EventListener

from lab.host import ENVIRONMENT, PROGRAMS, SCRATCH

# They tell of each step, in hundreds of lines; what goes wrong they raise.
for name in ("saltfactories", "pytestshellutils"):
    logging.getLogger(name).setLevel(logging.ERROR)


def inside(factory, host):
    """The class ``factory``, with its program in ``host``."""

    class Inside(factory):
        def cmdline(self, *args, **kwargs):
            # A session of its own: Ctrl-C must reach us, not the host, which dies in order when we close it.
            program = ["env", "--chdir", SCRATCH, *super().cmdline(*args, **kwargs)]
            return ["setsid", *host.argv(program)]

    return Inside


def sshd_inside(host):
    """The class of an sshd in ``host``."""

    class Inside(inside(Sshd, host)):
        def _check_listening_ports(self, timeout_at):
            return bool(host.run(["ss", "-Hltn", f"sport = :{self.listen_port}"]).stdout)

        def _terminate_processes_matching_listen_ports(self):
            """Nothing: the other hosts' sshd listen on this port too, and maybe the machine's own."""

    return Inside


class Factories(FactoriesManager):
    """Makes daemons; those of Salt say when they are up, and it is heard in the network of ``host``, the master's."""

    def __init__(self, host):
        super().__init__(
            root_dir=host.shared,
            scripts_dir=PROGRAMS,
            environ=dict(ENVIRONMENT),
            cwd=Path("/"),
            slow_stop=False,
            start_timeout=240,  # seconds; they cost nothing where a daemon starts
            event_listener=Listener(host),
            log_server_host=None,
            log_server_port=None,
            log_server_level=None,
        )

    def final_master_config_tweaks(self, config):
        """Log into a file only: the tests' own log server is in another network."""
        super().final_master_config_tweaks(config)
        config["pytest-master"]["log"]["disabled"] = True

    def final_minion_config_tweaks(self, config):
        """Nothing: it is the master who says that a minion is up, so that minions are what they are anywhere else."""


class Listener(EventListener):
    """Listens in the network of a host."""

    def __init__(self, host):
        super().__init__()
        self.network = Path("/proc", host.pid, "ns", "net")

    def _run_loop_in_thread(self):
        with self.network.open() as network:
            if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), 0):  # this thread only
                raise OSError(ctypes.get_errno(), "setns")
        super()._run_loop_in_thread()
