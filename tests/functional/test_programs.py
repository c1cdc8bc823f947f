"""How many programs a plan and an apply run: no more for many rules than for few, and none for others' rules."""

import pytest

from lab.host import BACKENDS, PREFIX

PROGRAMS = [f"ip{six}tables{what}" for six in ("", "6") for what in ("", "-restore", "-save")] + ["unshare", "nsenter"]
COUNT = "/run/lab/programs"
WRAPPER = '#!/bin/sh\necho "${{0##*/}} $*" >>{count}\nexec {path} "$@"\n'
FILES = {"ipv4": "/etc/iptables/rules.v4", "ipv6": "/etc/iptables/rules.v6"}


def rules(family, count):
    """A stored table; one of its rules jumps to a chain of somebody else's."""
    address = "10.0.{}.{}" if family == "ipv4" else "2001:db8::{}:{}"
    lines = [f"-A INPUT -s {address.format(number >> 8, number & 255)} -p tcp -j ACCEPT" for number in range(count)]
    return "\n".join(["*filter", ":INPUT ACCEPT [0:0]", *lines, "-A INPUT -j OTHER", "COMMIT", ""])


def others(count):
    heads = [f":OTHER-{number} - [0:0]" for number in range(count)]
    lines = [f"-A OTHER-{number} -j ACCEPT" for number in range(count)]
    return "\n".join(["*filter", ":OTHER - [0:0]", *heads, *lines, "COMMIT", ""])


@pytest.fixture(params=BACKENDS)
def counting_host(request, hosts):
    """A host whose programs write down that they were run."""
    host = hosts(request.param)
    host.run(["mount", "-t", "tmpfs", "none", "/usr/local/sbin"])
    for program in PROGRAMS:
        path = host.run(["sh", "-c", f"command -v {program}"]).stdout.strip()
        host.write(f"/usr/local/sbin/{program}", WRAPPER.format(count=COUNT, path=path), mode="0755")
    yield host
    host.close()


def run_by(host, function, status="changes"):
    host.write(COUNT, "")
    assert host.call(function).value["status"] == status
    ran = [line.split() for line in host.read(COUNT).splitlines()]
    return sorted(words[0] for words in ran if words[1:] != ["-V"])


def programs(host, stored, foreign):
    host.reset()
    for family, path in FILES.items():
        text = rules(family, stored)
        host.write(path, text)
        host.restore(others(foreign).replace("COMMIT\n", text.split(":INPUT ACCEPT [0:0]\n")[1]), family)
        host.run([PREFIX[family], "-D", "INPUT", "2"])
    host.call("iptlive.plan")  # the first time, the programs themselves are tried
    return run_by(host, "iptlive.plan"), run_by(host, "iptlive.apply")


def test_their_number_does_not_grow_with_the_rules(counting_host):
    small = programs(counting_host, 5, 1)
    large = programs(counting_host, 400, 200)
    assert large == small


def test_a_host_in_sync_answers_from_one_listing(counting_host):
    host = counting_host
    host.reset()
    for family, path in FILES.items():
        text = rules(family, 20).replace("-A INPUT -j OTHER\n", "")
        host.restore(text, family)
        host.write(path, host.save(family))
    host.call("iptlive.plan")
    assert run_by(host, "iptlive.plan", "in_sync") == ["ip6tables-restore", "iptables-restore"]
