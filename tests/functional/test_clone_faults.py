"""Everything that could make the clone a liar, or leave something behind: each fault is told, and none is a proof."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from lab.host import BACKENDS, ENVIRONMENT, REPO, Host
from lab.truth import Cloner

from .clone_cases import case, loaded, mutated, packet, prepare, put, says

SSH = {"from": "192.0.2.7", "in": "eth0", "port": 22}
OPEN = loaded(["-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT"])


@pytest.fixture(scope="module", params=BACKENDS)
def host(request):
    with Host(request.param) as host:
        prepare(host)
        host.restore(OPEN)
        yield host


def prove(host, probes, edits=None, **options):
    with Cloner(host, **options) as cloner:
        return cloner.prove(probes, edits)


# A fault in a room, and the case that tells it.
MUTANTS = [
    ("all holds", "findings", "outcome = self._carry_out(probe)",
     'outcome = self._carry_out(probe)._replace(verdict="accept")', "dropped by the policy"),
    ("nothing holds", "findings", "outcome = self._carry_out(probe)",
     'outcome = self._carry_out(probe)._replace(verdict="drop")', "accepted, with the rule that did it"),
    ("edits are not loaded", "rehearsal", "for text in texts.get(ruleset.family, ()):", "for text in ():",
     "the edits are what is tried"),
    ("the request alone counts", "conversation", "return self._received(probe, request, outcome, arrivals)",
     "return outcome, None", "the answer is dropped"),
    ("the follow-up does not count", "conversation", "if connection is None:", "if False:", "the follow-up is dropped"),
    ("a limit is left as it is", "openrules", "if not _SUSPECT.search(text):", "if True:", "a limit does not wear out"),
    ("only the quiet world is tried", "findings", "if worlds else [{} for _ in probes]",
     "if False else [{}] * len(probes)",
     "too many connections"),
    ("no trace is kept apart", "tracer",
     "event for event in events if event.packet is not None and is_wanted(event.packet)", "*events",
     "accepted, with the rule that did it"),
    ("errors of IPv6 are limited", "replica", '"ipv6/icmp/ratemask": "128",', "", "IPv6, all rejects are seen"),
    ("errors are limited", "replica", '"ipv4/icmp_ratemask": "0",', '"ipv4/icmp_ratemask": "6168",',
     "all rejects are seen"),
    ("neighbours are taken for granted", "discovery", 'failed = ""', "return ''",
     "IPv6 without neighbour discovery"),
    ("policy routing is left out", "replica", "self._add_rules(host)", "", "policy routing by a mark"),
    ("a queue is passed over", "openrules", 'NFQUEUE QUEUE SYNPROXY', "QUEUE SYNPROXY", "somebody else's queue"),
    ("sessions are opened after the edits", "findings", "if probe not in self._sessions:", "if True:",
     "the first rules with a state of a host find no connection that was open before"),
]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant[0] for mutant in MUTANTS])
def test_a_fault_in_the_clone_is_told(host, mutant, tmp_path):
    _, room, old, new, name = mutant
    wanted = [case(name)["says"]] * case(name)["probe"].get("times", 1)
    for modules, is_right in ((REPO / "_modules", True), (mutated(tmp_path, room, old, new), False)):
        with Cloner(host, modules) as cloner:
            assert (says(put(cloner, case(name)), case(name)) == wanted) is is_right


def test_packets_on_another_processor_prove_nothing(host, tmp_path):
    """What was dropped cannot be told when others are still on their way as ``write`` returns."""
    modules = mutated(tmp_path, "replica", '{"core/rps_default_mask": "0"}', '{"core/rps_default_mask": "2"}')
    answer = prove(host, [packet("ipv4", SSH)], modules=modules)
    assert "did not arrive at once: the kernel hands packets to another processor" in answer["cannot"]


# A child that is lost, at each of its steps, and one that says nothing, or too much.
LOST = [
    ("clone", "self._kind = self._leave()", "os.kill(os.getpid(), 9)"),
    ("clone", "self._replica.set_conntrack(self._host)", "os.kill(os.getpid(), 9)"),
    ("clone", "answers = self._judge.judge([_probe(*one) for one in probes], worlds)", "os._exit(0)"),
    ("clone", "answers = self._judge.judge([_probe(*one) for one in probes], worlds)", "raise ValueError('lost')"),
    ("clone", 'sys.stdout.write(json.dumps(answer) + "\\n")', 'sys.stdout.write("accept\\n")'),
]


@pytest.mark.parametrize("fault", LOST, ids=range(len(LOST)))
def test_a_lost_clone_is_an_error(host, fault, tmp_path):
    answer = prove(host, [packet("ipv4", SSH)], modules=mutated(tmp_path, *fault))
    assert re.match(
        "the clone in which the update was to be tried (ended without an|gave no proper) answer", answer["error"]
    )


def test_edits_that_the_kernel_refuses_are_an_error(host):
    host.restore(OPEN)
    answer = prove(host, [packet("ipv4", SSH)], {"ipv4": "*filter\n-D INPUT 7\nCOMMIT\n"})
    assert answer["error"].startswith("the clone refuses the update of IPv4: ")


def test_what_was_promised_is_what_the_edits_make(host):
    rules = ["-A INPUT -p tcp -m limit --limit 3/min -j ACCEPT", '-A INPUT -m comment --comment "a b" -j DROP',
             "-A FORWARD -m statistic --mode nth --every 3 --packet 0 -j DROP"]  # fmt: skip
    host.restore(loaded(rules))
    edits = ["*filter", "-D INPUT 2", "-I INPUT 1 -m recent --rcheck --name x -j DROP", "-N NEW",
             "-A NEW -m limit --limit 1/sec", "COMMIT", ""]  # fmt: skip
    edits = "\n".join(edits)
    answer = prove(host, [packet("ipv4", SSH)], {"ipv4": edits})
    host.run(["iptables-restore", "--noflush"], input=edits)
    assert answer["saved"]["ipv4"] == prove(host, [packet("ipv4", SSH)])["live"]["ipv4"]


# --- other rules that see the packets ---------------------------------------------------------------------------------

NATIVE = """
table inet fire {
  set trusted { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 192.0.2.0/24 }; }
  map ports { type inet_service : verdict; elements = { 22 : accept, 8000 : drop }; }
  chain in {
    type filter hook input priority filter + 10; policy accept;
    ct state established,related accept
    ip saddr @trusted tcp dport vmap @ports
    tcp dport 5432 reject with icmpx admin-prohibited
  }
}
table ip early {
  chain pre {
    type filter hook prerouting priority -450; policy accept;
    ip saddr 203.0.113.66 drop
  }
}
"""


@pytest.fixture
def native(host):
    host.restore(loaded(["-P INPUT ACCEPT"]))
    host.run(["nft", "-f", "-"], input=NATIVE)
    yield host
    for table in (["inet", "fire"], ["ip", "early"]):
        host.run(["nft", "delete", "table", *table])


def test_native_tables(native):
    probes = [
        packet("ipv4", {"from": source, "in": "eth0", "port": port, "whole": False})
        for source, port in (
            ("192.0.2.7", 22),
            ("192.0.2.7", 8000),
            ("8.8.8.8", 8000),
            ("8.8.8.8", 5432),
            ("203.0.113.66", 80),
        )
    ]
    answers = prove(native, probes)["was"]
    assert [one["verdict"] for one in answers] == ["accept", "drop", "accept", "reject", "drop"]
    assert [one["rule"][:3] for one in answers[1:2] + answers[3:]] == [
        ["native", "inet fire", "in"], ["native", "inet fire", "in"], ["native", "ip early", "pre"]
    ]  # fmt: skip


def test_a_native_table_that_hangs_on_a_limit(native):
    native.run(
        ["nft", "add", "rule", "inet", "fire", "in", "tcp", "dport", "443", "limit", "rate", "1/minute", "accept"]
    )
    (answer,) = prove(native, [packet("ipv4", {**SSH, "port": 443})])["was"]
    assert answer["verdict"] == "undecided"
    assert "'inet fire' hangs on 'limit rate'" in answer["why"]


def test_native_tables_and_no_program_to_read_them(native):
    place = native.run(["sh", "-c", "command -v nft"]).stdout.strip()
    prefix = ["unshare", "--mount", "sh", "-c", f'mount --bind /dev/null {place} && exec "$@"', "sh"]
    (answer,) = prove(native, [packet("ipv4", SSH)], prefix=prefix)["was"]
    assert answer["verdict"] == "undecided"
    assert "nftables table" in answer["why"]


def test_rules_of_the_other_backend(host):
    other = {"nft": "legacy", "legacy": "nft"}[host.backend]
    host.restore(loaded(["-P INPUT ACCEPT"]))
    host.restore("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp -m tcp --dport 22 -j REJECT\nCOMMIT\n", backend=other)
    try:
        (answer,) = prove(host, [packet("ipv4", SSH)])["was"]
    finally:
        host.restore("*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n", backend=other)
    assert answer["verdict"] == "reject"
    assert answer["rule"][:4] == [other, "filter", "INPUT", 1]


def test_what_no_clone_has_is_named(host):
    host.restore(OPEN)
    host.run(["nft", "add table bridge lab"])
    host.run("ip xfrm policy add src 192.0.2.0/24 dst 198.51.100.0/24 dir in priority 7 action allow".split())
    try:
        named = prove(host, [packet("ipv4", SSH)])["not_cloned"]
    finally:
        host.run(["nft", "delete table bridge lab"])
        host.run(["ip", "xfrm", "policy", "flush"])
    assert named == ["the policies of IPsec (xfrm)", "the nftables table 'bridge lab'"]
    assert prove(host, [packet("ipv4", SSH)])["not_cloned"] == []


# --- where a clone cannot be made -------------------------------------------------------------------------------------

WITHOUT_SYS_ADMIN = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
NO_USERS = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c",
            'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"', "sh", *WITHOUT_SYS_ADMIN]  # fmt: skip
NO_TUN = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh"]


def test_without_the_right_to_make_a_namespace(host):
    host.restore(OPEN)
    probes = [SSH, {**SSH, "port": 23}, {"to": "8.8.8.8", "port": 80, "user": [33, 33]}]
    answer = prove(host, [packet("ipv4", one) for one in probes], prefix=WITHOUT_SYS_ADMIN)
    assert answer["kind"] == "user namespace"
    assert [one["verdict"] for one in answer["was"]] == ["accept", "drop", "drop"]
    assert answer["was"][2]["leg"] == "answer"


@pytest.mark.parametrize(
    "prefix, why", [(NO_USERS, "no throw-away namespace can be made here"), (NO_TUN, "/dev/net/tun cannot be opened")]
)
def test_where_no_clone_can_be_made(host, prefix, why):
    assert why in prove(host, [packet("ipv4", SSH)], prefix=prefix)["cannot"]


# --- nothing is seen, nothing is left ---------------------------------------------------------------------------------


def test_nothing_is_seen_on_the_host(host):
    """No watcher of the live network is told of anything; and a LOG of the clone does not get into the kernel's log."""
    host.restore(
        loaded(
            [
                '-A INPUT -j LOG --log-prefix "lab-clone-probe "',
                "-A INPUT -m conntrack --ctstate NEW,ESTABLISHED -j ACCEPT",
            ]
        )
    )
    watchers = [["ip", "-o", "monitor", "all"], ["nft", "monitor"], ["conntrack", "-E"]]
    running = [host.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for argv in watchers]
    time.sleep(0.5)
    before = host.save()
    probes = [packet("ipv4", SSH), packet("ipv4", {"to": "8.8.8.8", "port": 80})]
    with Cloner(host) as cloner:
        for _ in range(10):
            assert [one["verdict"] for one in cloner.prove(probes)["was"]] == ["accept", "accept"]
    for one in running:
        os.killpg(one.pid, signal.SIGTERM)
    seen = [one.communicate()[0].decode() for one in running]
    assert seen == ["", "", ""]
    assert host.save() == before
    assert "lab-clone-probe" not in subprocess.run(["dmesg"], capture_output=True, text=True, check=False).stdout


LISTING = """
import glob, json, os
found = []
for process in glob.glob("/proc/[0-9]*"):
    try:
        found.append([os.readlink(process + "/ns/net"), open(process + "/cmdline").read()])
    except OSError:
        pass
print(json.dumps(found))
"""


def processes(host):
    """Ours that run in the host, and the network namespaces in use there."""
    found = json.loads(host.run([sys.executable, "-I", "-S", "-c", LISTING]).stdout)
    ours = [line for _, line in found if re.search("_iptlive_clone|cloner.py|-restore", line)]
    return ours, {name for name, line in found}


@pytest.mark.parametrize("whom", ["cloner.py", "_iptlive_clone.py"])
def test_killed_at_any_moment_nothing_is_left(host, whom):
    """Whether the one who asked is killed, or the clone itself."""
    host.restore(loaded([f"-A INPUT -s 192.0.2.{number}/32 -m limit --limit 1/sec -j ACCEPT" for number in range(200)]))
    assert processes(host)[0] == []
    _, namespaces = processes(host)
    before = host.save()
    request = json.dumps(
        {"edits": {}, "probes": [packet("ipv4", {**SSH, "from": f"192.0.2.{one}"}) for one in range(50)]}
    )
    for delay in range(0, 320, 40):
        argv = [sys.executable, "-I", REPO / "lab" / "cloner.py", REPO / "_modules"]
        running = host.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PATH": ENVIRONMENT["PATH"]})
        running.stdin.write(request.encode() + b"\n")
        running.stdin.flush()
        time.sleep(delay / 1000)
        host.run(["pkill", "-KILL", "-f", whom], check=False)
        told = running.communicate()[0]
        if told and whom == "_iptlive_clone.py":
            assert {"error", "was"} & json.loads(told).keys()
        wait_for(lambda: processes(host) == ([], namespaces))
    assert host.save() == before


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "something is left"
        time.sleep(0.05)
