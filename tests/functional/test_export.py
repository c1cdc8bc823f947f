"""A stored file out of the live kernel: in sync at once, loadable, and without the rules of others."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.docker import docker_rules
from lab.host import SaltError
from lab.neighbours import load_kube

PATH = "/etc/iptables/rules.v4"
MINE = """\
*filter
:INPUT DROP [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:OFFICE - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -s 192.0.2.0/24 -m comment --comment "the office and its \\"inner\\" net" -j OFFICE
-A INPUT -j LOG
-A INPUT -p icmp -j ACCEPT
-A INPUT -j LOG
-A FORWARD -d 10.0.0.0/8 -i docker0 -j DROP
-A OFFICE -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
"""
RULES = [
    "INPUT -i lo -j ACCEPT",
    "INPUT -s 192.0.2.0/24 -j OFFICE",
    'INPUT -p tcp -m comment --comment "x \\"y\\" z" -j ACCEPT',
    "INPUT -p tcp -j f2b-door",
    "INPUT -j KUBE-FIREWALL",
    "OFFICE -j RETURN",
    "OFFICE -p udp -j DOCKER",
    "DOCKER-USER -s 198.51.100.0/24 -j DROP",
    "DOCKER-USER -j RETURN",
    "FORWARD -j DOCKER-USER",
    "FORWARD -i docker0 ! -o docker0 -j ACCEPT",
    "FORWARD -o docker0 -p tcp -j LOG",
    "f2b-door -s 192.0.2.7/32 -j REJECT --reject-with icmp-port-unreachable",
]
CHAINS = ("OFFICE", "DOCKER", "DOCKER-USER", "f2b-door", "KUBE-FIREWALL")


def export(host, **options):
    return host.call("iptlive.export", families=["ipv4"], **options).value["IPv4"]


def plan(host):
    return host.call("iptlive.plan", families=["ipv4"]).value


def owners_in(host, text):
    """Who has rules in this file, once it is the only thing in the kernel."""
    host.reset()
    host.restore(text)
    host.write(PATH, "*filter\nCOMMIT\n")
    listed = host.call("iptlive.foreign", families=["ipv4"]).value
    return {rule["owner"] for rules in listed.values() for rule in rules}


def test_only_what_is_mine_is_exported(host):
    host.restore(MINE)
    docker_rules(host)
    load_kube(host, 3)
    host.run([f"iptables-{host.backend}", "-I", "DOCKER-USER", "-s", "203.0.113.0/24", "-j", "DROP"])
    before = host.save()
    looked_at = export(host, test=True)
    assert host.run(["test", "-e", PATH], check=False).returncode
    done = export(host)
    text = host.read(PATH)
    assert host.save() == before
    assert plan(host)["status"] == "in_sync"
    assert text == looked_at["text"]
    mine = [line for line in MINE.splitlines() if line.startswith("-A ")]
    mine.remove("-A INPUT -j LOG")
    mine.append("-A DOCKER-USER -s 203.0.113.0/24 -j DROP")
    assert sorted(re.findall("^-A .*", text, re.MULTILINE)) == sorted(mine)
    assert set(re.findall(r"^[*:](\S+)", text, re.MULTILINE)) == {
        *("filter", "INPUT", "FORWARD", "OUTPUT", "OFFICE", "DOCKER-USER")
    }
    assert done["left_out"]["docker"] > 10
    assert {":INPUT DROP [0:0]", ":FORWARD DROP [0:0]", ":OUTPUT ACCEPT [0:0]"} <= set(text.splitlines())
    (told,) = [warning for warning in done["warnings"] if "FORWARD" in warning]
    assert re.search("the policy DROP was exported; see whether it is yours or was set by .*docker", told)


def test_a_file_that_is_there_is_replaced_only_on_request(host):
    host.restore(MINE)
    docker_rules(host)
    saved = host.save()
    host.write(PATH, saved, mode="0640")
    assert any("docker" in warning for warning in plan(host)["warnings"])
    with pytest.raises(SaltError, match=f"{PATH} is there already; nothing was written"):
        export(host)
    assert host.read(PATH) == saved
    export(host, overwrite=True)
    assert host.read(PATH + ".before-export") == saved
    assert host.run(["stat", "--format=%a", PATH]).stdout == "640\n"
    after = plan(host)
    assert after["status"] == "in_sync"
    assert not any("docker" in warning for warning in after["warnings"])


def test_a_file_that_is_a_link_stays_one(host):
    host.restore(MINE)
    host.write("/etc/firewall/rules.v4", "# old\n", mode="0640")
    host.run(["mkdir", "-p", "/etc/iptables"])
    host.run(["ln", "-s", "/etc/firewall/rules.v4", PATH])
    export(host, overwrite=True)
    assert host.run(["readlink", PATH]).stdout == "/etc/firewall/rules.v4\n"
    assert plan(host)["status"] == "in_sync"
    assert host.read("/etc/firewall/rules.v4.before-export") == "# old\n"
    host.run(["rm", "-r", "/etc/firewall"])


def test_copies_are_kept_where_they_are_allowed(host):
    host.restore(MINE)
    (warning,) = export(host, test=True)["warnings"]
    assert warning.startswith("IPv4/filter/INPUT: a second copy was left out")
    allowed = export(host, test=True, duplicates="allow")
    assert allowed["warnings"] == []
    assert allowed["text"].count("-A INPUT -j LOG") == 2


def test_a_comment_with_a_line_break_cannot_be_stored(host):
    host.restore(MINE)
    program = f"iptables-{host.backend}"
    host.run([program, "-A", "OUTPUT", "-m", "comment", "--comment", "two\nlines", "-j", "ACCEPT"])
    (warning,) = [warning for warning in export(host)["warnings"] if "OUTPUT" in warning]
    assert "no stored file can hold it" in warning
    assert plan(host)["status"] == "in_sync"


def test_what_would_not_be_in_sync_is_not_written(hosts):
    """A rule that iptables prints as another one: to store what is printed would be wrong."""
    host = hosts("nft")
    host.reset()
    host.restore(MINE)
    host.run(["nft", "add", "rule", "ip", "filter", "INPUT", "tcp", "dport", "{ 80, 443 }", "counter", "accept"])
    for arguments in ({}, {"test": True}):
        with pytest.raises(SaltError, match="nothing was written: .* do not plan as in sync .*IPv4/filter/INPUT"):
            export(host, **arguments)
    assert host.run(["test", "-e", PATH], check=False).returncode


@settings(max_examples=25)
@given(picked=st.lists(st.sampled_from(RULES), max_size=16))
def test_any_mixture_exports_in_sync_and_clean(host, picked):
    host.reset()
    chains = "".join(f":{chain} - [0:0]\n" for chain in CHAINS)
    host.restore("*filter\n" + chains + "".join(f"-A {rule}\n" for rule in picked) + "COMMIT\n")
    export(host)
    assert plan(host)["status"] == "in_sync"
    assert owners_in(host, host.read(PATH)) <= {"unknown"}
