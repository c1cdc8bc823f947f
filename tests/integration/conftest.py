"""One network of hosts for all integration tests: a master, four minions, two hosts with nothing but sshd."""

import pytest
import salt._logging

from lab.fleet import Fleet

salt._logging.shutdown_temp_handler()  # it would keep what the tests log, and write it to a closed stderr


@pytest.fixture(scope="session")
def whole_fleet():
    with Fleet(minions=4, ssh_hosts=2) as fleet:
        # Packs what salt-ssh ships. Some tests run it twice at once: as the first, one could take half an archive.
        assert fleet.salt_ssh("*", "test.ping").value == {"s1": True, "s2": True}
        yield fleet


@pytest.fixture
def fleet(whole_fleet):
    """The network, its hosts as if new, with no pillar but the family."""
    for host in whole_fleet.hosts().values():
        host.reset()
    whole_fleet.master.run(["sh", "-c", "rm -rf /run/lab/iptables-backup-* /run/lab/known_hosts.old"])
    whole_fleet.trust_hosts()
    whole_fleet.pillar({"iptlive": {"families": ["ipv4"]}})
    return whole_fleet
