"""A stored file survives the reboot: what a plan says of it is what a fresh kernel makes of it; and who loads it."""

import random

import pytest

from lab import reboot
from lab.host import SaltError

FILE = "/etc/iptables/rules.v4"
FINE = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n"
DYNAMIC = FINE.replace("COMMIT", "-A INPUT -j DYN\nCOMMIT")
SET = FINE.replace("COMMIT", "-A INPUT -m set --match-set good src -j ACCEPT\nCOMMIT")
UNIT = "[Unit]\nBefore={}\n[Service]\nExecStart=/usr/sbin/iptables-restore {}\n"
LOADED = {"/etc/systemd/system/fw.service": UNIT.format("network-pre.target docker.service", FILE)}
DOCKER = {"/etc/systemd/system/docker.service": "[Unit]\nAfter=network-online.target\n[Service]\nExecStart=/x\n"}


def plan(host, **options):
    return host.call("iptlive.plan", families=["ipv4"], **options).value


def said(answer):
    return [warning for warning in answer["warnings"] if "would not come up at boot" in warning]


@pytest.mark.parametrize("number", range(6))
def test_what_a_plan_says_is_what_a_fresh_kernel_does(host, number):
    """A few; 'python3 -m lab.reboot' tries a thousand, and a folder of dumps."""
    told, survives = reboot.trial(host, reboot.draw(random.Random(number)))
    assert reboot.agree(told, survives), (told, survives)


@pytest.mark.parametrize("backend", reboot.BACKENDS)
def test_loaded_as_something_else_than_planned(hosts, backend):
    """nft passes over '-F'; legacy obeys it, as a plan does."""
    host = hosts(backend)
    text = FINE.replace("COMMIT", "-F\n-A INPUT -s 192.0.2.1 -j DROP\nCOMMIT")
    host.write(FILE, text)
    found = said(plan(host))
    assert bool(found) is (backend == "nft")
    assert all("Remove line 4 (-F, -Z)" in warning for warning in found)


def test_an_unchanged_file_is_not_tried_again(host):
    host.run(["iptables", "-N", "DYN"])
    host.write(FILE, DYNAMIC)
    first = said(plan(host))
    host.run(["sed", "-i", "s/DYN/SEEN BEFORE/", "/var/lib/iptlive/boot/ipv4.json"])
    assert said(plan(host)) == [first[0].replace("DYN", "SEEN BEFORE", 1)] != first
    host.write(FILE, "#\n" + DYNAMIC)
    assert said(plan(host)) == [first[0].replace("line 4", "line 5")]
    host.write("/etc/iptables/ipsets", "create good hash:net family inet\n")
    host.run(["sed", "-i", "s/DYN/SEEN BEFORE/", "/var/lib/iptlive/boot/ipv4.json"])
    assert "SEEN BEFORE" not in said(plan(host))[0]


def test_the_verdict_need_not_be_kept(host):
    host.run(["iptables", "-N", "DYN"])
    host.write(FILE, DYNAMIC)
    host.write("/var/lib/iptlive/boot", "no folder\n")
    assert len(said(plan(host))) == 1


def test_the_option(host):
    host.run(["iptables", "-N", "DYN"])
    host.write(FILE, DYNAMIC)
    assert said(plan(host, boot="ignore")) == []
    assert not host.run(["find", "/var/lib/iptlive", "-name", "ipv4.json"], check=False).stdout
    refused = host.call("iptlive.apply", families=["ipv4"], boot="refuse")
    assert (refused.retcode, list(refused.value["refusals"])) == (1, ["IPv4/filter/INPUT"])
    assert "-i lo" not in host.save()
    with pytest.raises(SaltError, match="option 'boot': expected one of report, refuse, ignore"):
        plan(host, boot="never")


def test_a_rule_that_names_an_object_of_the_live_host_is_not_loaded_anywhere(host):
    host.write(FILE, FINE.replace("COMMIT", "-A INPUT -j IDLETIMER --timeout 500 --label no-label\nCOMMIT"))
    plan(host)
    assert host.run(["test", "-e", "/sys/class/xt_idletimer/timers/no-label"], check=False).returncode


def test_sources_are_tried_before_they_are_written(host):
    host.run(["iptables", "-N", "DYN"])
    host.write(FILE, FINE)
    host.write("/run/lab/files/fw/rules.v4", DYNAMIC)
    refused = plan(host, sources={"ipv4": "salt://fw/rules.v4"}, boot="refuse")
    assert "salt://fw/rules.v4, line 4" in refused["refusals"]["IPv4/filter/INPUT"][0]["message"]


def story(host, files, enabled=(), text=FINE, **options):
    """What iptlive.boot tells with these files on the host."""
    host.run(["rm", "-rf", "/etc/systemd/system"])
    host.write(FILE, text)
    for path, content in files.items():
        host.write(path, content, mode="0755")
    for unit in enabled:
        host.run(["mkdir", "-p", "/etc/systemd/system/multi-user.target.wants"])
        host.run(["ln", "-sf", f"../{unit}", "/etc/systemd/system/multi-user.target.wants"])
    reply = host.call("iptlive.boot", families=["ipv4"], **options)
    assert reply.retcode == (reply.value["status"] == "problems") == bool(reply.value["problems"])
    return reply.value["problems"], reply.value["families"]["IPv4"]


@pytest.mark.parametrize(
    "files, enabled, text, problem",
    [
        ({}, [], FINE, f"nothing loads {FILE} at boot"),
        (LOADED, [], FINE, "fw.service loads /etc/iptables/rules.v4, but is not enabled"),
        ({**LOADED, **DOCKER}, ["fw.service"], FINE, None),
        (
            {"/etc/systemd/system/fw.service": UNIT.format("multi-user.target", FILE), **DOCKER},
            ["fw.service"],
            FINE,
            "not ordered before the network",
        ),
        (
            {"/etc/systemd/system/fw.service": UNIT.format("network-pre.target", FILE),
             "/etc/systemd/system/docker.service": "[Service]\nExecStart=/x\n"},
            ["fw.service"],
            FINE,
            "not ordered before Docker",
        ),
        (
            {"/etc/systemd/system/fw.service": UNIT.format("network-pre.target", "/etc/fw/script"), **DOCKER,
             "/etc/systemd/system/fw.service.d/order.conf": "[Unit]\nBefore=docker.service\n",
             "/etc/systemd/system/again.service": UNIT.format("network-pre.target docker.service", FILE)},
            ["fw.service", "again.service"],
            FINE,
            None,
        ),
        (
            {**LOADED, "/etc/systemd/system/again.service": UNIT.format("network-pre.target docker.service", FILE)},
            ["fw.service", "again.service"],
            FINE,
            "again.service and fw.service all load /etc/iptables/rules.v4",
        ),
        (LOADED, ["fw.service"], SET, "names the ipset 'good', which nothing makes before"),
        (
            {**LOADED, "/etc/iptables/ipsets": "create good hash:net family inet\n"},
            ["fw.service"],
            SET,
            "/etc/iptables/ipsets holds the ipset 'good', but nothing restores it",
        ),
        (
            {**LOADED, "/etc/iptables/ipsets": "create good hash:net family inet\n",
             "/etc/systemd/system/sets.service":
             "[Unit]\nBefore=fw.service\n[Service]\nExecStart=/sbin/ipset restore -f /etc/iptables/ipsets\n"},
            ["fw.service", "sets.service"],
            SET,
            None,
        ),
    ],
)  # fmt: skip
def test_who_loads_the_file(host, files, enabled, text, problem):
    host.run(["ipset", "create", "good", "hash:net"])
    problems, told = story(host, files, enabled, text)
    if problem is None:
        assert problems == []
        assert told["rehearsal"] == "in_sync"
    else:
        assert any(problem in found for found in problems), problems


def test_a_script_of_ifupdown_loads_it(host):
    host.write("/etc/network/if-pre-up.d/firewall", f"#!/bin/sh\niptables-restore < {FILE}\n", mode="0755")
    problems, told = story(host, {})
    host.run(["rm", "/etc/network/if-pre-up.d/firewall"])
    assert problems == []
    assert [loader["name"] for loader in told["loaders"]] == ["/etc/network/if-pre-up.d/firewall"]
