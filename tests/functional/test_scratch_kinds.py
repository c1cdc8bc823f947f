"""Where stored rules are read: three kinds of scratch with the same answer, and nothing of the live host disturbed."""

import json
import re
import sys

import pytest
from rule_list import rules

from lab.host import ENVIRONMENT, REPO, CommandError, SaltError

PATH = "/etc/iptables/rules.v4"
IPV4 = {"families": ["ipv4"]}
# What a minion would run, without Salt: it takes too long to start it for each kind.
PLAN = """
import json, sys
sys.path.insert(0, sys.argv[1])
import _iptlive_options, _iptlive_report, _iptlive_survey
print(json.dumps(_iptlive_report.planned(_iptlive_survey.survey(_iptlive_options.parse(json.loads(sys.argv[2]))))))
"""
WITHOUT_SYS_ADMIN = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
OBJECT_LABEL = "iptlive-test"


def stored(family):
    text = ""
    chosen = [rule for rule in rules() if rule[0] == family]
    for table in dict.fromkeys(rule[1] for rule in chosen):
        text += f"*{table}\n:MINE - [0:0]\n"
        text += "".join(f"-A {chain} {' '.join(rest)}\n" for _, where, chain, *rest in chosen if where == table)
        text += "COMMIT\n"
    return text


KERNEL = "*filter\n:THEIRS - [0:0]\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\nCOMMIT\n"
KERNEL6 = "*filter\nCOMMIT\n"  # the dry run creates no table


def plan_in(host, prefix, script="", options=None):
    """The plan, by the same code as on a minion, run by ``prefix`` after ``script``."""
    command = [sys.executable, "-I", "-c", PLAN, str(REPO / "_modules"), json.dumps(options or {"placement": "after"})]
    setup = "set -e\n" + script + '\nexec "$@"\n'
    done = host.run([*prefix, "sh", "-c", setup, "sh", *command], env={"PATH": ENVIRONMENT["PATH"]})
    return json.loads(done.stdout)


LOAD = """
ipset create blocked hash:ip,port
ipset create blocked6 hash:ip family inet6
iptables-restore < /run/kernel
ip6tables-restore < /run/kernel6
"""
# A user namespace within which there are no more: it has its own /proc/sys/user/max_user_namespaces.
PRISON = "echo 0 > /proc/sys/user/max_user_namespaces\n" + LOAD
KINDS = {
    "namespace": (["unshare", "--net"], LOAD),
    "user namespace": (["unshare", "--net", "sh", "-c", LOAD + 'exec "$@"', "sh", *WITHOUT_SYS_ADMIN], ""),
    "dry run": (["unshare", "--user", "--map-root-user", "--net", "sh", "-c", PRISON + 'exec "$@"', "sh",
                 *WITHOUT_SYS_ADMIN], ""),
}  # fmt: skip


def test_every_kind_of_scratch_reads_the_same(host):
    host.write("/run/kernel", KERNEL)
    host.write("/run/kernel6", KERNEL6)
    host.write(PATH, stored("ipv4"))
    host.write("/etc/iptables/rules.v6", stored("ipv6"))
    plans = {kind: plan_in(host, *how) for kind, how in KINDS.items()}
    for kind, made in plans.items():
        assert {family["scratch"] for family in made["families"].values()} == {kind}
        assert made["changes"] == plans["namespace"]["changes"]
        assert made["refusals"] == {}
    changes = plans["namespace"]["changes"]
    inserted = {(key[:4], edit["line"]) for key in changes for edit in changes[key] if edit["action"] == "insert"}
    assert len(inserted) == len(rules()) - 1, "every rule but the one that is there already"
    assert any("not tried" in warning for warning in plans["dry run"]["warnings"])


def test_dry_run_refuses_what_can_be_told(host):
    """Without the kernel's opinion the programs' own remains: line, thing and fix as ever."""
    host.write("/run/kernel", KERNEL)
    host.write("/run/kernel6", KERNEL6)
    options = {"families": ["ipv4"]}
    host.write(PATH, "*filter\n-A INPUT -i lo\n-A INPUT -j NOWHERE\n-A FORWARD -m set --match-set none src\nCOMMIT\n")
    made = plan_in(host, *KINDS["dry run"], options)
    assert {chain: [refusal["lines"] for refusal in told] for chain, told in made["refusals"].items()} == {
        "IPv4/filter/INPUT": [[3]],
        "IPv4/filter/FORWARD": [[4]],
    }


def test_dry_run_makes_no_table(hosts):
    """Naming a legacy table is enough to make it: where there is none, nothing can be read without a trace."""
    host = hosts("legacy")
    host.write(PATH, "*filter\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n")
    prison = PRISON.partition("iptables-restore")[0] + '"$@" || cat /proc/net/ip_tables_names; exit 1'
    command = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", prison, "sh", *WITHOUT_SYS_ADMIN]
    with pytest.raises(
        CommandError, match="the kernel has no table yet.*Create it: '.*iptables -t filter -S'"
    ) as caught:
        plan_in(host, command, options=IPV4)
    assert caught.value.stdout == ""


def timer(host):
    return int(host.read(f"/sys/class/xt_idletimer/timers/{OBJECT_LABEL}"))


def test_idletimer_of_the_live_host_runs_on(host):
    """The label is one for the whole machine: loading the stored rule anywhere would set the live timer."""
    live = f"-j IDLETIMER --timeout 4000 --label {OBJECT_LABEL}"
    host.restore(f"*filter\n-A INPUT {live}\nCOMMIT\n")
    host.write(PATH, f"*filter\n-A INPUT {live}\n-A INPUT -j IDLETIMER --timeout 9 --label {OBJECT_LABEL}\nCOMMIT\n")
    made = host.call("iptlive.plan", **IPV4).value
    assert [(edit["line"], edit["rule"]) for edit in made["changes"]["IPv4/filter/INPUT"]] == [
        (3, f"-j IDLETIMER --timeout 9 --label {OBJECT_LABEL}")
    ]
    assert timer(host) > 3000
    host.write(PATH, f"*filter\n#DELETE# -A INPUT {live}\nCOMMIT\n")
    assert host.call("iptlive.apply", **IPV4).value["applied"]
    assert "IDLETIMER" not in host.save()


# struct nfgenmsg and one attribute NFACCT_NAME, as nfnetlink_acct wants them: there is no program for it here.
MAKE_NFACCT = """
import socket, struct, sys
name = sys.argv[1].encode() + b"\\0"
attribute = struct.pack("=HH", 4 + len(name), 1) + name + b"\\0" * (-len(name) % 4)
body = struct.pack("=BBH", 0, 0, 0) + attribute
netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
netlink.send(struct.pack("=IHHII", 16 + len(body), 7 << 8, 0x605, 1, 0) + body)
sys.exit(-struct.unpack_from("=i", netlink.recv(4096), 16)[0])
"""
OBJECTS = {
    "nfacct": "-m nfacct --nfacct-name web -j ACCEPT",
    "rateest": "-m rateest --rateest1 one --rateest-gt --rateest-bps1 1mbit -j DROP",
}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_that_only_the_live_host_has(host, name):
    rule = OBJECTS[name]
    estimator = "-A FORWARD -j RATEEST --rateest-name one --rateest-interval 250ms --rateest-ewmalog 500ms\n"
    host.restore(f"*filter\n{estimator}COMMIT\n")
    if name == "nfacct":
        host.run([sys.executable, "-I", "-c", MAKE_NFACCT, "web"])
    host.write(PATH, f"*filter\n-A INPUT {rule}\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n")
    done = host.call("iptlive.apply", **IPV4).value
    assert [edit["line"] for edit in done["changes"]["IPv4/filter/INPUT"]] == [2, 3]
    assert host.call("iptlive.plan", **IPV4).value["status"] == "in_sync"
    host.write(PATH, f"*filter\n#DELETE# -A INPUT {rule}\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n")
    host.call("iptlive.apply", **IPV4)
    assert "-A INPUT -i lo -j ACCEPT" in host.save() and name not in re.sub("rateest-", "", host.save())


@pytest.mark.parametrize(
    "rule",
    [
        "-m nfacct --nfacct-name none -j ACCEPT",
        "-m rateest --rateest1 none --rateest-gt --rateest-bps1 1mbit",
        "-j SECMARK --selctx system_u:object_r:none_t:s0",
    ],
)
def test_objects_that_do_not_exist(host, rule):
    """Only the live kernel can tell: the transaction is refused as a whole."""
    table = "mangle" if "SECMARK" in rule else "filter"
    host.restore(f"*{table}\n-A INPUT -i eth7 -j ACCEPT\nCOMMIT\n")
    host.write(PATH, f"*{table}\n-A INPUT -i eth7 -j ACCEPT\n-A INPUT {rule}\nCOMMIT\n")
    before = host.save()
    assert host.call("iptlive.plan", **IPV4).value["status"] == "changes"
    with pytest.raises(SaltError, match="IPv4/" + table):
        host.call("iptlive.apply", **IPV4)
    assert host.save() == before


def test_lists_of_recent_addresses_are_left_alone(host):
    """The names of recent and hashlimit belong to a network namespace, so those in the scratch are others."""
    rule = "-m recent --name bad --rcheck --seconds {} -j DROP"
    host.restore(f"*filter\n-A INPUT {rule.format(60)}\nCOMMIT\n")
    host.run(["tee", "/proc/net/xt_recent/bad"], input="+192.0.2.1\n")
    before = host.read("/proc/net/xt_recent/bad")
    host.write(PATH, f"*filter\n-A INPUT {rule.format(60)}\n-A INPUT {rule.format(90)}\nCOMMIT\n")
    assert host.call("iptlive.plan", **IPV4).value["status"] == "changes"
    assert host.read("/proc/net/xt_recent/bad") == before
