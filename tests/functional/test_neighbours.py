"""Beside a real Docker, a real fail2ban and kube-proxy's rules: whose rule is whose, and theirs stay untouched."""

import pytest

from lab.host import SaltError
from lab.neighbours import Fail2ban, load_kube

STORED = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
-A INPUT -j REJECT --reject-with icmp-host-prohibited
-A FORWARD -j REJECT --reject-with icmp-host-prohibited
COMMIT
"""
NEW = "-A INPUT -p tcp -m tcp --dport 8000 -j ACCEPT\n"
FORWARDED = "-A FORWARD -p icmp -j ACCEPT\n"
PATH = "/etc/iptables/rules.v4"
BANNED = ("192.0.2.7", "192.0.2.8")


def load(host, text):
    """Append the stored rules behind what the neighbours have written."""
    host.run([f"iptables-{host.backend}-restore", "--noflush"], input=text)
    host.write(PATH, text)


def owners(listed):
    return {rule["owner"] for rules in listed.values() for rule in rules}


@pytest.mark.docker
def test_every_rule_of_docker_and_fail2ban_is_known_for_theirs(docker_host):
    host = docker_host.host
    with Fail2ban(host) as fail2ban:
        fail2ban.start()
        fail2ban.offend(*BANNED)
        fail2ban.wait_for(BANNED)
        load(host, STORED)
        listed = host.call("iptlive.foreign", families=["ipv4"]).value
        assert owners(listed) == {"docker", "fail2ban"}
        chains = {key for key, rules in listed.items() if rules[0]["owner"] == "docker"}
        assert {"IPv4/filter/DOCKER", "IPv4/nat/DOCKER", "IPv4/nat/POSTROUTING", "IPv4/filter/FORWARD"} <= chains
        assert sum(map(len, listed.values())) == host.save().count("\n-A ") - STORED.count("\n-A ")

        host.write(
            PATH,
            STORED.replace("-A INPUT -j", NEW + "-A INPUT -j").replace("-A FORWARD -j", FORWARDED + "-A FORWARD -j"),
        )
        refused = host.call("iptlive.plan", families=["ipv4"]).value
        (refusal,) = refused["refusals"]["IPv4/filter/FORWARD"]
        assert set(refusal["owners"]) == {"docker"}
        assert len(refusal["owners"]) == len(refusal["foreign"])

        plan = host.call("iptlive.plan", families=["ipv4"], placement="before").value
        assert plan["foreign"]["IPv4/filter/INPUT"] == {"fail2ban": 1}
        assert plan["warnings"] == []
        ((*context, insert, below),) = plan["neighbours"]["IPv4/filter/FORWARD"]
        assert {line.get("owner") or list(line["foreign"])[0] for line in context} == {"docker"}
        assert (insert["action"], below["line"]) == ("insert", 10)

        done = host.call("iptlive.apply", families=["ipv4"], placement="before").value
        assert done["applied"]
        assert done["neighbours"] == plan["neighbours"]
        assert docker_host.reachable(8080)
        assert fail2ban.rules() == set(BANNED)
        assert host.call("iptlive.foreign", families=["ipv4"]).value == {
            **listed,
            "IPv4/filter/INPUT": listed["IPv4/filter/INPUT"],
        }
        fail2ban.stop()


def test_thousands_of_kube_rules_are_kubernetes(host):
    load_kube(host, 500)
    load(host, STORED)
    listed = host.call("iptlive.foreign", families=["ipv4"]).value
    assert owners(listed) == {"kubernetes"}
    assert sum(map(len, listed.values())) > 4000
    plan = host.call("iptlive.plan", families=["ipv4"]).value
    assert plan["status"] == "in_sync"
    assert plan["foreign"]["IPv4/filter/INPUT"] == {"kubernetes": 2}


def test_a_stored_file_with_rules_of_others_is_warned_about(host):
    text = STORED.replace("-A INPUT -i", ":f2b-sshd - [0:0]\n-A INPUT -j f2b-sshd\n-A INPUT -i")
    host.restore(text)
    host.write(PATH, text)
    (warning,) = host.call("iptlive.plan", families=["ipv4"]).value["warnings"]
    assert warning.startswith(f"{PATH}: the file holds 1 of fail2ban's rules (line 6).")


def test_pillar_names_further_owners(host):
    host.restore("*filter\n:PORTAL-IN - [0:0]\n-A INPUT -j PORTAL-IN\nCOMMIT\n")
    host.write(PATH, STORED)
    pillar = {"iptlive": {"families": ["ipv4"], "owners": {"portal": {"chains": ["PORTAL-*"]}}}}
    assert owners(host.call("iptlive.foreign", pillar=pillar).value) == {"portal"}
    assert owners(host.call("iptlive.foreign", **pillar["iptlive"]).value) == {"portal"}
    assert owners(host.call("iptlive.foreign", families=["ipv4"]).value) == {"unknown"}


def test_wrong_owners_stop_an_update_before_it_begins(host):
    host.restore(STORED)
    host.write(PATH, STORED.replace("-A INPUT -j", NEW + "-A INPUT -j"))
    before = host.save()
    with pytest.raises(SaltError, match="owners") as error:
        host.call("iptlive.apply", families=["ipv4"], pillar={"iptlive": {"owners": {"portal": {"chain": "X"}}}})
    assert error.value.kind == "SaltInvocationError"
    assert host.save() == before
