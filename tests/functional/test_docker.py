"""A real Docker daemon that is restarted, or whose container is, between a plan and its update."""

import pytest

PATH = "/etc/iptables/rules.v4"
STORED = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
-A INPUT -i lo -j ACCEPT
-A FORWARD -s 192.0.2.1 -j DROP
-A FORWARD -j REJECT --reject-with icmp-host-prohibited
COMMIT
"""
OPTIONS = {"families": ["ipv4"], "placement": "before"}


def counted(host):
    """The foreign rules, all of them Docker's, by chain: a container's address may change."""
    listed = host.call("iptlive.foreign", **OPTIONS).value
    assert {rule["owner"] for rules in listed.values() for rule in rules} == {"docker"}
    return {chain: len(rules) for chain, rules in listed.items()}


@pytest.mark.docker
def test_docker_is_restarted_between_plan_and_apply(docker_host):
    """It writes its rules anew, above those that were just planned."""
    host = docker_host.host
    host.run([f"iptables-{host.backend}-restore", "--noflush"], input=STORED)
    host.write(PATH, STORED)
    before = counted(host)
    for number, restart in enumerate((docker_host.restart, docker_host.restart_daemon), 2):
        added = f"-A FORWARD -s 192.0.2.{number} -j DROP\n"
        text = STORED.replace("-A FORWARD -j", added + "-A FORWARD -j")
        host.write(PATH, text)
        planned = host.call("iptlive.plan", **OPTIONS).value["changes"]
        restart()
        done = host.call("iptlive.apply", **OPTIONS).value
        assert done["applied"] and list(done["changes"]) == list(planned) == ["IPv4/filter/FORWARD"]
        restart()
        assert host.call("iptlive.plan", **OPTIONS).value["status"] == "in_sync"
        host.write(PATH, text.replace(added, "#DELETE# " + added))
        assert host.call("iptlive.apply", **OPTIONS).value["applied"]
        assert docker_host.reachable(8080)
        assert counted(host) == before
