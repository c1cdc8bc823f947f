"""Expectations on the real kernel: plans and updates that keep, break or cannot decide them, on both backends."""

import re

import pytest
import yaml

from lab.host import BACKENDS, REPO, Host
from lab.network import connect

DOCUMENT = REPO / "docs" / "expectations.md"
BLOCK = re.compile(r"^(\w+):\n\n```\w+\n(.*?)```$", re.MULTILINE | re.DOTALL)
PATHS = {"ipv4": "/etc/iptables/rules.v4", "ipv6": "/etc/iptables/rules.v6"}
INPUT = "IPv4/filter/INPUT"
KERNEL = """\
*filter
:INPUT DROP [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -p {icmp} -j ACCEPT
-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
"""
ICMP = {"ipv4": "icmp", "ipv6": "ipv6-icmp"}
KERNEL4 = KERNEL.format(icmp="icmp")
ADMIN = {"ipv4": "192.0.2.0/24", "ipv6": "2001:db8:5::/48"}
ONE = {"ipv4": "192.0.2.7", "ipv6": "2001:db8:5::7"}


@pytest.fixture(scope="module", params=BACKENDS)
def kept_network(request):
    with Host(request.param) as host:
        yield connect(host)


@pytest.fixture
def network(kept_network):
    kept_network.reset()
    return kept_network


def rules(text, new="", before="-A INPUT -p tcp -m tcp --dport 22"):
    """The rules with further ones in front of a line."""
    return text.replace(before, new + before)


def stored(host, text, family="ipv4"):
    host.write(PATHS[family], text)
    return {"families": [family]}


def found(reply):
    return [(one["was"], one["state"]) for one in reply.value["expect"]]


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_what_an_update_would_break_is_refused(network, family):
    """In plan, test=True, apply and the state; nothing is written. Without the line that breaks it, it goes through."""
    entries = [{"accept": "22/tcp", "from": ADMIN[family]}, {"block": "5432/tcp"}]
    kernel = KERNEL.format(icmp=ICMP[family])
    network.restore(kernel, family)
    options = stored(network, rules(kernel, f"-A INPUT -s {ONE[family]} -j DROP\n"), family)
    before = network.save(family)
    for fun, more in [("plan", {}), ("apply", {}), ("apply", {"test": True})]:
        reply = network.call("iptlive." + fun, expect=entries, **options, **more)
        assert (reply.retcode, reply.value["status"], reply.value["changes"]) == (1, "refused", {})
        assert found(reply) == [("holds", "broken"), ("holds", "holds")]
        (broken,) = [one for one in reply.value["expect"] if one["state"] == "broken"]
        assert (broken["line"], broken["verdict"], broken["leg"]) == (5, "drop", "request")
        assert broken["witness"].startswith(ONE[family] + " > ")
        ((refusal,),) = reply.value["refusals"].values()
        assert (refusal["reason"], refusal["lines"], refusal["expect"]) == ("expectation", [5], broken["expect"])
    for test in (True, False):
        state = network.state(test=test, expect=entries, **options).value
        assert (state["result"], state["changes"]) == (False, {})
        assert "would no longer be accepted" in state["comment"] and "Fix: move line 5 below line 6" in state["comment"]
    assert network.save(family) == before
    options = stored(network, rules(kernel, "-A INPUT -p tcp --dport 8000 -j ACCEPT\n"), family)
    state = network.state(expect=entries, **options).value
    assert state["result"] is True and "opens 8000/tcp to this host from anywhere." in state["comment"]
    assert "--dport 8000" in network.save(family)
    # Nothing is left to do: it is tried all the same.
    reply = network.call("iptlive.apply", expect=entries, **options)
    assert (reply.retcode, reply.value["status"], found(reply)) == (0, "in_sync", [("holds", "holds")] * 2)


def test_what_does_not_hold_and_is_not_the_updates_doing(network):
    """It is told, and the state fails, but the update goes through; one that the update mends holds."""
    network.restore(KERNEL4)
    options = stored(network, rules(KERNEL4, "-A INPUT -p tcp --dport 443 -j ACCEPT\n"))
    entries = [{"accept": "443/tcp"}, {"accept": "25/tcp", "name": "mail comes in"}]
    state = network.state(expect=entries, **options).value
    assert (state["result"], list(state["changes"])) == (False, [INPUT])
    assert "mail comes in (accept 25/tcp) is not accepted: " in state["comment"]
    assert "by the policy of IPv4/filter/INPUT." in state["comment"]
    reply = network.call("iptlive.plan", expect=entries, **options)
    assert (reply.retcode, reply.value["status"]) == (1, "in_sync")
    assert found(reply) == [("holds", "holds"), ("broken", "broken")]


def test_wrong_entries_stop_everything(network):
    """By name, and before any file is read."""
    network.run(["rm", "-f", PATHS["ipv4"]])
    state = network.state(expect=[{"accept": "22/tcp"}, {"acept": "22/tcp"}]).value
    assert state["result"] is False
    assert state["comment"].startswith("option 'expect', entry 2 (acept: 22/tcp): unknown key 'acept'; known are ")
    state = network.state(expect=[{"accept": "22/tcp", "from": "no-such-host.invalid"}]).value
    assert "the host name 'no-such-host.invalid' has no address" in state["comment"]
    state = network.state(expect=[{"accept": "4505/tcp", "to": "master"}]).value
    assert "this host has no master" in state["comment"]


def test_neighbour_discovery_is_part_of_it(network):
    """Without it nothing reaches an IPv6 host, whatever the rule for the port says."""
    kernel = KERNEL.format(icmp="ipv6-icmp")
    network.restore(kernel, "ipv6")
    deleting = kernel.replace("-A INPUT -p ipv6-icmp", "#DELETE# -A INPUT -p ipv6-icmp")
    reply = network.call("iptlive.plan", expect=[{"accept": "22/tcp"}], **stored(network, deleting, "ipv6"))
    assert found(reply) == [("holds", "broken")]
    assert reply.value["expect"][0]["leg"] == "neighbour"


def test_partial_does_not_go_ahead(network):
    network.restore(KERNEL4)
    options = stored(network, rules(KERNEL4, "-A INPUT -j DROP\n") + "*nat\n-A PREROUTING -j ACCEPT\nCOMMIT\n")
    before = network.save()
    reply = network.call("iptlive.apply", partial=True, expect=[{"accept": "22/tcp"}], **options)
    assert (reply.value["status"], reply.value["applied"], network.save()) == ("refused", False, before)


def test_the_open_rules(network):
    """A limited ACCEPT is as good as one that is not used up; a block that hangs on a list is not decided."""
    limited = "-A INPUT -p tcp -m tcp --dport 80 -m limit --limit 5/sec -j ACCEPT\n"
    listed = "-A INPUT -p tcp -m tcp --dport 81 -m recent --name seen --rcheck -j ACCEPT\n"
    queued = "-A INPUT -p tcp -m tcp --dport 82 -j NFQUEUE --queue-num 0\n"
    text = rules(KERNEL4, limited + listed + queued)
    network.restore(text)
    entries = [{"accept": "80/tcp"}, {"block": "81/tcp"}, {"accept": "82/tcp"}, {"block": "82/tcp"}]
    reply = network.call("iptlive.plan", expect=entries, **stored(network, text))
    assert [one["state"] for one in reply.value["expect"]] == ["holds"] + ["undecided"] * 3
    notes = [one["note"] for one in reply.value["expect"]]
    assert "unless -m limit of IPv4/filter/INPUT 3 says otherwise" in notes[0]
    assert "-m recent of IPv4/filter/INPUT 4" in notes[1] and all("NFQUEUE" in note for note in notes[2:])


def test_a_ban_inside_an_accepted_net(network):
    """fail2ban's rule for one address is a note, and stays a note while the update is made."""
    network.restore(KERNEL4)
    for argv in (["-N", "f2b-sshd"], ["-I", "INPUT", "-p", "tcp", "--dport", "22", "-j", "f2b-sshd"],
                 ["-A", "f2b-sshd", "-s", ONE["ipv4"], "-j", "REJECT"]):  # fmt: skip
        network.run(["iptables", *argv])
    options = stored(network, KERNEL4.replace("COMMIT", "-A INPUT -p tcp --dport 80 -j ACCEPT\nCOMMIT"))
    entries = [{"accept": "22/tcp", "from": ADMIN["ipv4"]}, {"accept": "22/tcp", "from": ONE["ipv4"]}]
    reply = network.call("iptlive.apply", expect=entries, **options)
    assert reply.value["applied"] is True
    assert found(reply) == [("holds", "holds"), ("broken", "broken")]
    assert reply.value["expect"][0]["note"] == f"but not for {ONE['ipv4']} (fail2ban, IPv4/filter/f2b-sshd 1)"
    assert reply.value["expect"][1]["owner"] == "fail2ban"


def test_a_set_of_banned_nets(network):
    """Members of a set cut the space: the one that is in an accepted net is found; who is not in it is accepted."""
    network.run(["ipset", "create", "bans", "hash:net"])
    network.run(["ipset", "add", "bans", "192.0.2.128/26"])
    text = rules(KERNEL4, "-A INPUT -m set --match-set bans src -j DROP\n")
    network.restore(text)
    options = stored(network, text)
    entries = [{"accept": "22/tcp", "from": ADMIN["ipv4"]}, {"accept": "22/tcp", "from": "192.0.2.0/25"},
               {"block": "22/tcp", "from": "192.0.2.128/26"}]  # fmt: skip
    reply = network.call("iptlive.plan", expect=entries, **options)
    assert [one["state"] for one in reply.value["expect"]] == ["broken", "holds", "holds"]
    assert reply.value["expect"][0]["witness"].startswith("192.0.2.137 > ")


def test_a_published_port(network):
    """Before NAT it is the host's port, after it the container's; an edit of FORWARD closes it, and is refused."""
    docker = """\
*nat
-A PREROUTING -d 198.51.100.10/32 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.17.0.2:80
COMMIT
*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
COMMIT
"""
    network.restore(docker)
    options = stored(network, "*filter\n-A FORWARD -s 203.0.113.0/24 -j DROP\n"
                     "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n")  # fmt: skip
    entries = [{"accept": "8080/tcp", "arrives": "172.17.0.2:80", "from": "192.0.2.0/24"}]
    reply = network.call("iptlive.plan", expect=entries, **options)
    assert found(reply) == [("holds", "holds")]
    assert any("8080/tcp to this host from 203.0.113.0/24" in one["words"] for one in reply.value["verdicts"])
    for entry in ({"accept": "8080/tcp", "arrives": "172.17.0.2:80"}, {"accept": "8080/tcp"}):
        reply = network.call("iptlive.plan", expect=[entry], **options)
        assert found(reply) == [("holds", "broken")] and reply.value["expect"][0]["line"] == 2
    reply = network.call("iptlive.plan", expect=[{"accept": "8080/tcp", "arrives": "172.17.0.2:81"}], **options)
    assert found(reply) == [("broken", "broken")]


@pytest.mark.docker
@pytest.mark.parametrize("chain", ["FORWARD", "DOCKER-USER"])
def test_a_port_that_docker_publishes(docker_host, chain):
    """Docker's own rules, and a real request: what is refused would have cut it off, and what is told is so."""
    host = docker_host.host
    there = [line + "\n" for line in host.run(["iptables", "-S", chain]).stdout.splitlines() if line[:2] == "-A"]
    policy = "DROP" if chain == "FORWARD" else "-"
    text = f"*filter\n:{chain} {policy} [0:0]\n-A {chain} -s 198.51.100.0/28 -j DROP\n" + "".join(there) + "COMMIT\n"
    options = stored(host, text)
    published = [{"accept": "8080/tcp", "from": "198.51.100.0/24", "arrives": "172.17.0.2:80"}]
    reply = host.call("iptlive.apply", expect=published, **options)
    assert (reply.value["applied"], found(reply)) == (False, [("holds", "broken")])
    assert reply.value["expect"][0]["line"] == 3 and docker_host.reachable(8080)
    done = host.call("iptlive.apply", **options).value
    assert any(one["words"].startswith("closes 8080/tcp") or " 8080/tcp" in one["words"] for one in done["verdicts"])
    assert not docker_host.reachable(8080)
    host.call("iptlive.rollback", done["id"])
    assert docker_host.reachable(8080)


def test_of_this_host_and_through_it(network):
    """A user's packets, and those that come in by one interface and leave by another."""
    text = """\
*filter
:FORWARD DROP [0:0]
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i docker0 -p tcp -m tcp --dport 443 -j ACCEPT
-A OUTPUT -p tcp -m tcp --dport 25 -m owner ! --uid-owner 65534 -j REJECT
COMMIT
"""
    network.restore(text)
    entries = [
        {"accept": "25/tcp", "to": "203.0.113.25", "user": "nobody"},
        {"reject": "25/tcp", "to": "203.0.113.25"},
        {"accept": "443/tcp", "in": "docker0", "to": "any"},
        {"drop": "80/tcp", "in": "docker0", "to": "any"},
        {"accept": "443/tcp", "from": "172.17.0.2", "to": "203.0.113.9"},
        {"drop": "443/tcp", "from": "203.0.113.9", "to": "172.17.0.2"},
        {"accept": "22/tcp", "in": "eth9", "to": "any", "from": "192.168.0.0/24"},
    ]
    reply = network.call("iptlive.plan", expect=entries, **stored(network, text))
    assert [one["state"] for one in reply.value["expect"]][:6] == ["holds"] * 6
    assert reply.value["expect"][6]["state"] != "holds"


RESTORE = """\
#!/bin/sh
real=/usr/sbin/iptables-{backend}-restore
# Neither in a clone, nor for a listing, nor when it is merely asked who it is.
[ -z "$XTABLES_LOCKFILE" -a "$(readlink /proc/self/ns/net)" = "{live}" -a "$1" != -V ] || exec $real "$@"
if [ {backend} = nft ]; then
    input=$(mktemp)
    cat >$input
    exec <$input
    grep -q '^-I INPUT' $input || exec $real "$@"
fi
{before}
$real "$@"
status=$?
! iptables -w -C INPUT -p tcp --dport 8000 -j ACCEPT 2>/dev/null || {{ {after}; }}
exit $status
"""
CUT = "iptables -w -C INPUT -p tcp --dport 22 -j DROP 2>/dev/null || iptables -w -I INPUT -p tcp --dport 22 -j DROP"
HARMLESS = CUT.replace("22 -j DROP", "9000 -j ACCEPT")


@pytest.fixture
def rival(network):
    """Another program that writes right before or after the update's own transaction."""
    path = "/etc/alternatives/iptables-restore"
    old = network.run(["readlink", path]).stdout.strip()
    live = network.run(["readlink", "/proc/self/ns/net"]).stdout.strip()

    def write(before=":", after=":"):
        text = RESTORE.format(backend=network.backend, live=live, before=before, after=after)
        network.write("/run/lab/rival-restore", text, mode="0755")
        network.run(["ln", "-sf", "/run/lab/rival-restore", path])

    yield write
    network.run(["ln", "-sf", old, path])


def test_a_rival_between_commit_and_the_last_look(network, rival):
    """What it writes breaks an expectation: ours is rolled back, though not the rival's. Otherwise ours stays."""
    entries = [{"accept": "22/tcp"}]
    for command, applied in [(CUT, False), (HARMLESS, True)]:
        network.reset()
        network.restore(KERNEL4)
        options = stored(network, rules(KERNEL4, "-A INPUT -p tcp --dport 8000 -j ACCEPT\n"))
        rival(after=command)
        answer = network.call("iptlive.apply", expect=entries, **options).value
        assert answer["applied"] is applied
        kept = network.save()
        assert ("--dport 8000" in kept, "DROP" in kept.replace("INPUT DROP", "")) == (applied, not applied)
        if not applied:
            ((refusal,),) = answer["refusals"].values()
            assert refusal["reason"] == "expectation" and "Another program changed the rules" in refusal["message"]


def test_a_rival_between_proof_and_commit(network, rival):
    """The update is tried again on the chain as it has become: there it is not the update that breaks it."""
    network.restore(KERNEL4)
    options = stored(network, rules(KERNEL4, "-A INPUT -p tcp --dport 8000 -j ACCEPT\n"))
    rival(before=CUT)
    reply = network.call("iptlive.apply", expect=[{"accept": "22/tcp"}], **options)
    assert (reply.value["applied"], found(reply)) == (True, [("broken", "broken")])
    assert any("after the update was tried; trying the update again" in text for _, text in reply.log)


def test_opens_refuse(network):
    network.restore(KERNEL4)
    options = stored(network, rules(KERNEL4, "-A INPUT -p tcp --dport 8000 -j ACCEPT\n"))
    reply = network.call("iptlive.apply", opens="refuse", **options)
    ((refusal,),) = reply.value["refusals"].values()
    assert (refusal["reason"], reply.value["applied"]) == ("opens", False)
    assert "the update opens 8000/tcp to this host from anywhere" in refusal["message"]
    accept = [{"accept": "8000/tcp"}]
    assert network.call("iptlive.apply", opens="refuse", expect=accept, **options).value["applied"] is True
    options = stored(network, rules(KERNEL4, "#DELETE# -A INPUT -p tcp --dport 8000 -j ACCEPT\n"))
    assert network.call("iptlive.apply", opens="refuse", **options).value["applied"] is True


def test_a_rule_that_decides_nothing(network):
    network.restore(KERNEL4)
    options = stored(network, KERNEL4.replace("COMMIT", "-A INPUT -s 192.0.2.7 -p tcp --dport 22 -j DROP\nCOMMIT"))
    answer = network.call("iptlive.plan", **options).value
    assert f"{INPUT}: line 6 decides nothing: line 5 takes its packets" in answer["warnings"]


def test_shadowed(network):
    """Every planted one is found, with what takes its packets; none other; and what no packet can be made for."""
    network.restore("""\
*filter
:INPUT DROP [0:0]
:WEB - [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -s 10.20.0.0/16 -j ACCEPT
-A INPUT -s 10.20.5.0/24 -p tcp -m tcp --dport 22 -j DROP
-A INPUT -p tcp -m tcp --dport 80 -j WEB
-A INPUT -p tcp -m tcp --dport 22 -j LOG
-A INPUT -p tcp -m multiport --dports 22,443 -j ACCEPT
-A INPUT -p tcp -m tcp --dport 443 -j DROP
-A INPUT -j REJECT
-A INPUT -p tcp -m tcp --dport 9000 -j ACCEPT
-A WEB -s 192.0.2.0/24 -j DROP
-A WEB -p udp -j ACCEPT
-A WEB -j ACCEPT
COMMIT
""")
    options = stored(network, "*filter\n-A INPUT -s 10.20.5.0/24 -p tcp --dport 22 -j DROP\nCOMMIT\n")
    answer = network.call("iptlive.shadowed", **options).value
    positions = {chain: [one["position"] for one in rules] for chain, rules in answer["shadowed"].items()}
    assert positions == {INPUT: [4, 8, 10]}
    takers = [sorted(taker["position"] for taker in one["taken_by"]) for one in answer["shadowed"][INPUT]]
    assert takers == [[3], [3, 7], [3, 9]] and answer["shadowed"][INPUT][0]["line"] == 2
    assert answer["not_tried"] == {INPUT: [2], "IPv4/filter/WEB": [2]}


def examples():
    """By heading: the blocks of the document's sections that show what becomes of an update."""
    sections = re.split(r"^## (.+)$", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    blocks = {title: dict(BLOCK.findall(text)) for title, text in zip(sections[::2], sections[1::2])}
    return {title: found for title, found in blocks.items() if "Stored" in found}


@pytest.mark.parametrize("title", examples())
def test_the_document_is_true(network, title):
    example = examples()[title]
    network.restore(example["Kernel"])
    options = {**stored(network, example["Stored"]), **yaml.safe_load(example.get("Options", "{}"))}
    answer = network.call("iptlive.plan", **options).value
    if "Answer" in example:
        ((refusal,),) = answer["refusals"].values()
        assert [refusal["message"], "Fix: " + refusal["hint"]] == yaml.safe_load(example["Answer"])
    if "Verdicts" in example:
        assert [one["words"] for one in answer["verdicts"]] == yaml.safe_load(example["Verdicts"])
