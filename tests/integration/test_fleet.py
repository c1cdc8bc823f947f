"""Minions and salt-ssh: the same plans, states and runners, on the Salt that runs this."""

import base64
import json
import re

import psutil
import pytest

HEAD = "*filter\n:INPUT ACCEPT [0:0]\n"
RULES = "-A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\n"
NEW = "-A INPUT -p udp -m udp --dport 53 -j ACCEPT\n"
STORED = HEAD + RULES + NEW + "COMMIT\n"
FILE = "/etc/iptables/rules.v4"


def in_sync(host):
    host.write(FILE, STORED)
    host.restore(STORED)


def with_changes(host):
    host.write(FILE, STORED)
    host.restore(HEAD + RULES + "COMMIT\n")


def refused(host):
    host.write(FILE, STORED)
    host.restore(HEAD + RULES + "-A INPUT -s 192.0.2.7/32 -j DROP\nCOMMIT\n")


def broken(host):
    host.write(FILE, STORED.replace("udp -m udp", "nosuch"))


@pytest.fixture
def mixed(fleet):
    """A host of each kind, over minions and over salt-ssh."""
    for prepare, name in ((in_sync, "m1"), (with_changes, "m2"), (refused, "m3"), (broken, "m4")):
        prepare(fleet.minions[name])
    in_sync(fleet.ssh_hosts["s1"])
    refused(fleet.ssh_hosts["s2"])
    return fleet


def kernels(fleet):
    return {name: host.save() for name, host in fleet.hosts().items()}


def test_report(mixed):
    before = kernels(mixed)
    done = mixed.salt_run("iptlive.report", "*")
    hosts = done.value["hosts"]
    assert {name: found["status"] for name, found in hosts.items()} == {
        "m1": "in_sync",
        "m2": "changes",
        "m3": "refused",
        "m4": "error",
    }
    assert done.retcode == 1
    assert hosts["m2"]["changes"] == 1
    assert hosts["m3"]["refusals"][0]["hint"]
    assert f"{FILE}, line 5" in hosts["m4"]["error"]
    over_ssh = mixed.salt_run("iptlive.report", "*", "ssh=True")
    assert {name: found["status"] for name, found in over_ssh.value["hosts"].items()} == {
        "s1": "in_sync",
        "s2": "refused",
    }
    assert over_ssh.value["hosts"]["s2"]["refusals"] == hosts["m3"]["refusals"]
    assert mixed.salt_run("iptlive.report", "m1").retcode == 0
    assert mixed.salt_run("iptlive.report", "s1", "ssh=True").retcode == 0
    assert mixed.salt_run("iptlive.report", "nobody").retcode == 1
    assert kernels(mixed) == before


def test_report_in_batches_and_as_a_table(mixed):
    one_by_one = mixed.salt_run("iptlive.report", "*", "batch=1")
    assert one_by_one.value["hosts"] == mixed.salt_run("iptlive.report", "*").value["hosts"]
    table = mixed.salt_run("iptlive.report", "*", out="iptlive").stdout
    lines = table.splitlines()
    assert re.match(r"m1 +in sync", lines[0])
    assert re.match(r"m2 +changes +1 change", lines[1])
    assert re.match(r"m3 +refused", lines[2])
    assert "fix: " in table
    assert lines[-1] == "4 hosts: 1 in sync, 1 changes, 1 refused, 1 error"


def test_a_host_that_is_down_is_reported_and_the_others_are_done(mixed):
    mixed.ssh_hosts["s2"].run(["pkill", "-x", "sshd"], check=False)
    try:
        done = mixed.salt_run("iptlive.report", "*", "ssh=True")
        assert {name: found["status"] for name, found in done.value["hosts"].items()} == {
            "s1": "in_sync",
            "s2": "no_answer",
        }
        saved = mixed.salt_run("iptlive.backup", "*", "ssh=True")
        assert saved.retcode == 1
        assert list(saved.value["saved"]) == ["s1"]
        assert "refused" in saved.value["failed"]["s2"]
    finally:
        mixed.new_host_key("s2")


def test_a_minion_that_is_too_slow_is_reported(mixed):
    entered = psutil.Process(mixed.daemons["m4"].pid)
    processes = entered.children(recursive=True)
    for process in processes:
        process.suspend()
    try:
        done = mixed.salt_run("iptlive.report", "*", "timeout=3")
        found = {name: host["status"] for name, host in done.value["hosts"].items()}
        assert found == {"m1": "in_sync", "m2": "changes", "m3": "refused", "m4": "no_answer"}
    finally:
        for process in [*processes, entered]:  # nsenter stops with its child
            process.resume()


def test_a_minion_without_the_modules_is_told_what_to_do(mixed):
    new = mixed.minions["m2"]
    new.run(["find", mixed.daemons["m2"].config["extension_modules"], "-name", "*iptlive*", "-delete"])
    mixed.salt("m2", "saltutil.refresh_modules", "async=False")
    told = mixed.salt_run("iptlive.report", "m2").value["hosts"]["m2"]
    assert told["status"] == "error"
    command = told["error"].partition("run salt ")[2].split()
    assert command == ["m2", "saltutil.sync_all"]
    mixed.salt(*command)
    assert mixed.salt_run("iptlive.report", "m2").value["hosts"]["m2"]["status"] == "changes"


@pytest.mark.parametrize("way", ["minion", "ssh"])
def test_backup_collects_every_host_with_the_files_names_of_old(fleet, way):
    hosts = fleet.minions if way == "minion" else fleet.ssh_hosts
    for host in hosts.values():
        in_sync(host)
    first, second, *_ = hosts  # of either backend
    many = [f"-A INPUT -s 10.{n % 251}.{n // 251}.{n * 7919 % 251}/32 -j ACCEPT" for n in range(50000)]
    big = HEAD + "\n".join(many) + "\nCOMMIT\n"
    hosts[first].write("/etc/sysconfig/iptables", big)
    for name in (first, second):
        hosts[name].restore(big)
    arguments = ["ssh=True"] if way == "ssh" else []
    done = fleet.salt_run("iptlive.backup", "*", *arguments)
    assert (done.retcode, set(done.value["saved"]), done.value["failed"]) == (0, set(hosts), {})
    folder = done.value["path"]
    assert re.fullmatch(r"/run/lab/iptables-backup-\d{8}-\d{6}", folder)
    names = {"debian-v4-rules", *(f"in-kernel-v4-rules-{t}" for t in ("filter", "mangle", "nat", "raw", "security"))}
    for name in hosts:
        there = set(fleet.master.run(["ls", f"{folder}/{name}"]).stdout.split())
        assert there == names | ({"centos-v4-rules"} if name == first else set())
    assert fleet.master.read(f"{folder}/{first}/centos-v4-rules") == big
    assert fleet.master.read(f"{folder}/{second}/debian-v4-rules") == STORED
    for name in (first, second):
        saved = fleet.master.read(f"{folder}/{name}/in-kernel-v4-rules-filter").splitlines()
        assert [line for line in saved if line.startswith("-A")] == many
    modes = set(fleet.master.run(["find", folder, "-printf", "%y%m\n"]).stdout.split())
    assert modes == {"d700", "f600"}
    assert f"{first}: 7 files" in done.stderr


def test_the_rollout_looks_first_and_stops_at_the_first_failure(fleet):
    for host in fleet.minions.values():
        with_changes(host)
    refused(fleet.minions["m4"])
    before = kernels(fleet)
    rollout = ["state.orchestrate", "iptlive.orch.rollout"]
    assert fleet.salt_run(*rollout).retcode
    assert kernels(fleet) == before
    with_changes(fleet.minions["m4"])
    done = fleet.salt_run(*rollout, 'pillar={"rollout": {"batch": 2}}')
    assert done.retcode == 0, done.stdout
    assert all(NEW.strip() in host.save() for host in fleet.minions.values())
    assert not any(fleet.salt("*", "iptlive.pending").value.values())


def test_stored_files_from_the_master(fleet):
    hosts = fleet.hosts()
    for host in hosts.values():
        host.restore(HEAD + RULES + "COMMIT\n")
    fleet.master.write("/run/lab/states/fw/rules.v4", STORED.replace("53", "{{ port }}"))
    managed = {"iptlive.managed": [
        {"sources": {"ipv4": "salt://fw/rules.v4"}}, {"template": "jinja"}, {"context": {"port": 53}}
    ]}  # fmt: skip
    fleet.master.write("/run/lab/states/fw/init.sls", json.dumps({"firewall": managed}))
    for run in (fleet.salt, fleet.salt_ssh):
        told = run("*", "state.apply", "fw", "test=True").value
        assert {state["result"] for found in told.values() for state in found.values()} == {None}
        done = run("*", "state.apply", "fw").value
        assert {state["result"] for found in done.values() for state in found.values()} == {True}
    for host in hosts.values():
        assert host.read(FILE) == STORED
        assert NEW.strip() in host.save()


def test_a_source_is_taken_as_it_is_unless_a_template_engine_is_named(fleet):
    fleet.master.write("/run/lab/states/fw/rules.v4", STORED)
    fleet.pillar({"iptlive": {"families": ["ipv4"], "sources": {"ipv4": "salt://fw/rules.v4"}}})
    for host in fleet.hosts().values():
        host.restore(HEAD + RULES + "COMMIT\n")
    done = {**fleet.salt("*", "iptlive.apply").value, **fleet.salt_ssh("*", "iptlive.apply").value}
    assert {name: found["written"] for name, found in done.items()} == {name: [FILE] for name in fleet.hosts()}
    assert {host.read(FILE) for host in fleet.hosts().values()} == {STORED}
    fleet.master.write("/run/lab/states/fw/rules.v4", STORED.replace("53", "{{ port }}"))
    for run, target in ((fleet.salt, "m1"), (fleet.salt_ssh, "s1")):
        said = json.dumps(run(target, "iptlive.plan", "template=jinja").value)
        assert "salt://fw/rules.v4, line 5: Jinja variable 'port' is undefined" in said.replace("; line 5", "")
        assert "Traceback" not in said


def test_over_salt_ssh_single_functions_have_the_stored_files_of_the_master(fleet):
    hosts = fleet.ssh_hosts
    for host in hosts.values():
        host.restore(HEAD + RULES + "COMMIT\n")
    many = "".join(f"# {n} comments make a file that is larger than a command line\n" for n in range(5000))
    template = "{% import 'fw/ports.jinja' as ports %}" + many + STORED.replace("53", "{{ ports[pillar.role] }}")
    fleet.master.write("/run/lab/states/fw/ports.jinja", "{% set dns = 53 %}")
    fleet.master.write("/run/lab/states/fw/rules.v4", template)
    sources = {"ipv4": ["salt://fw/nobody.v4", "salt://fw/rules.v4"]}
    options = {"families": ["ipv4"], "sources": sources, "template": "jinja"}
    fleet.pillar({"role": "dns", "iptlive": options})
    report = fleet.salt_run("iptlive.report", "*", "ssh=True").value["hosts"]
    assert {(found["status"], found["changes"]) for found in report.values()} == {("changes", 1)}
    plan = fleet.salt_ssh("s1", "iptlive.plan").value["s1"]
    assert plan["files"][FILE]["source"] == "salt://fw/rules.v4"
    done = fleet.salt_ssh("*", "iptlive.apply").value
    assert {tuple(found["written"]) for found in done.values()} == {(FILE,)}
    for host in hosts.values():
        assert host.read(FILE) == many + STORED
        assert NEW.strip() in host.save()
        assert host.run(["find", "/var/tmp", "-name", "iptlive-*"]).stdout == ""
    assert fleet.salt_run("iptlive.report", "s2", "ssh=True").retcode == 0
    # A state is rendered on the host, where nothing can be imported.
    fleet.master.write("/run/lab/states/fw/rules.v4", STORED.replace("53", "{{ {'dns': 53}[pillar.role] }}"))
    (state,) = fleet.salt_ssh("s2", "state.apply", "iptlive").value["s2"].values()
    assert (state["result"], list(state["changes"])) == (True, [FILE])
    assert hosts["s2"].read(FILE) == STORED
    fleet.pillar({"iptlive": dict(options, sources={"ipv4": "salt://fw/nobody.v4"})})
    missing = fleet.salt_run("iptlive.report", "s1", "ssh=True").value["hosts"]["s1"]
    assert missing["error"] == "salt://fw/nobody.v4 (saltenv base): there is none on the master"


# What a host that is not ours any more might send: (its answer, what the report says of it).
PART = {"parts": 1, "part": 0, "path": "/var/backup"}
HOSTILE = [
    ({**PART, "archive": "../../x"}, "damaged"),
    ({**PART, "archive": base64.b64encode(b"not zlib").decode()}, "damaged"),
    ({**PART, "archive": "", "parts": 10**9}, "a backup of 1000000000 parts"),
    ({"parts": "many"}, "no backup"),
    ({"files": 1}, "no backup"),
    (["a list"], "a list"),
    (None, "None"),
]


def test_a_hostile_answer_is_written_nowhere(fleet):
    hostile = fleet.minions["m4"]
    path = fleet.daemons["m4"].config["extension_modules"] + "/modules/iptlive.py"
    own = hostile.read(path)
    try:
        for answer, message in HOSTILE:
            hostile.write(path, f"def backup(*args, **kwargs):\n    return {answer!r}\n")
            done = fleet.salt_run("iptlive.backup", "m4")
            assert done.retcode == 1
            assert message in done.value["failed"]["m4"]
            assert fleet.master.run(["find", done.value["path"], "-mindepth", "1"]).stdout == ""
    finally:
        hostile.write(path, own)


@pytest.mark.parametrize("way", ["minion", "ssh", "local"])
def test_highstate_tells_the_truth_applies_and_then_finds_nothing_to_do(fleet, way):
    hosts = dict(fleet.ssh_hosts if way == "ssh" else fleet.minions)
    if way == "local":
        hosts = {name: hosts[name] for name in ("m1", "m2")}  # one of each backend: here they take turns
    for host in hosts.values():
        with_changes(host)
    fleet.master.write("/run/lab/states/top.sls", json.dumps({"base": {"*": ["iptlive"]}}))

    def states(*arguments):
        if way == "local":
            done = {name: local(host, *arguments) for name, host in hosts.items()}
        else:
            done = (fleet.salt if way == "minion" else fleet.salt_ssh)("*", *arguments).value
        return {name: next(iter(found.values())) for name, found in done.items()}

    def local(host, *arguments):
        done = host.salt_call(*arguments, pillar={"iptlive": {"families": ["ipv4"]}})
        return done.value

    if way == "local":
        for host in hosts.values():
            host.salt_call("saltutil.sync_all", check=True)  # a highstate syncs by itself, a single state does not
    apply = ["state.apply", "iptlive"] if way == "local" else ["state.highstate"]
    before = kernels(fleet)
    assert {found["result"] for found in states(*apply, "test=True").values()} == {None}
    assert kernels(fleet) == before
    done = states(*apply)
    assert {found["result"] for found in done.values()} == {True}
    assert {chain for found in done.values() for chain in found["changes"]} == {"IPv4/filter/INPUT"}
    again = states(*apply)
    assert [(found["result"], found["changes"]) for found in again.values()] == [(True, {})] * len(hosts)
    assert all(NEW.strip() in host.save() for host in hosts.values())


def test_salt_ssh_functions_know_the_hosts_pillar(fleet):
    for host in fleet.ssh_hosts.values():
        with_changes(host)
    plans = fleet.salt_ssh("*", "iptlive.plan").value
    assert {plan["status"] for plan in plans.values()} == {"changes"}
    assert {tuple(plan["families"]) for plan in plans.values()} == {("IPv4",)}
    options = {"families": ["ipv4"], "owners": {"portal": {"interfaces": ["guest*"]}}}
    fleet.pillar({"iptlive": options})
    for host in fleet.ssh_hosts.values():
        host.run(["iptables", "-I", "INPUT", "1", "-i", "guest3", "-j", "DROP"])
    foreign = fleet.salt_ssh("*", "iptlive.foreign").value
    assert [[rule["owner"] for rule in found["IPv4/filter/INPUT"]] for found in foreign.values()] == [["portal"]] * 2
    plans = fleet.salt_ssh("*", "iptlive.plan").value
    assert [plan["foreign"]["IPv4/filter/INPUT"] for plan in plans.values()] == [{"portal": 1}] * 2
    assert all("1 portal" in picture for picture in fleet.salt_ssh("*", "iptlive.graph").value.values())
    drifted = fleet.salt_ssh("s1", "iptlive.drift").value["s1"]
    assert (drifted["status"], drifted["changes"]) == ("changes", {"IPv4/filter/INPUT": 1})
    assert fleet.salt_ssh("s1", "iptlive.drift", f"since={drifted['fingerprint']}").value == {
        "s1": {"fingerprint": drifted["fingerprint"]}
    }
    fleet.pillar({"iptlive": {**options, "enabled": False}})
    before = kernels(fleet)
    refusal = fleet.salt_ssh("s1", "iptlive.apply")
    assert refusal.retcode
    assert "disabled on this host" in refusal.stdout
    assert kernels(fleet) == before


def test_the_host_list_of_the_original_scripts_works_on_day_one(fleet):
    for host in fleet.ssh_hosts.values():
        with_changes(host)
    hosts = [
        {"name": "web1", "ip": "198.51.100.21", "user": "SRCUSER", "state": "on"},
        {"name": "web2", "ip": "198.51.100.22", "user": "admin", "state": "on"},
        {"name": "web3", "ip": "198.51.100.23", "user": "root", "state": "off"},
        {"name": "../../evil", "ip": "198.51.100.22", "user": "admin", "state": "on"},
    ]
    fleet.master.write("/run/lab/host-list.json", json.dumps(hosts))
    roster = ["--roster", "iptlive", "--roster-file", "/run/lab/host-list.json"]
    done = fleet.salt_ssh("*", "state.apply", "iptlive", "test=True", *roster)
    assert {name: next(iter(found.values()))["result"] for name, found in done.value.items()} == {
        "web1": None,
        "web2": None,
    }
    assert "entry 4 is left out: field 'name' is no host name" in done.stderr
    fleet.pillar({"iptlive": {"families": ["ipv4"]}}, fleet=("control", {"iptlive": {"hosts": hosts}}))
    assert set(fleet.salt_ssh("*", "test.ping", "--roster", "iptlive", "--roster-file", "").value) == {"web1", "web2"}


def test_host_keys_are_learnt_anew(fleet):
    known = "/run/lab/known_hosts"
    others = "# mine\n@cert-authority *.example.com ssh-ed25519 AAAA\nelsewhere,192.0.2.1 ssh-ed25519 AAAA\n"
    fleet.master.write(known, others + fleet.master.read(known), mode="0640")
    before = fleet.master.read(known)
    old = fleet.master.run(["ssh-keygen", "-l", "-F", "198.51.100.21", "-f", known]).stdout.split()[-1]
    new = fleet.new_host_key("s1")
    assert fleet.salt_ssh("s1", "test.ping").retcode
    shown = fleet.salt_run("iptlive.relearn_known_hosts", "*", "test=True").value
    assert fleet.master.read(known) == before
    done = fleet.salt_run("iptlive.relearn_known_hosts", "*")
    assert shown["hosts"] == done.value["hosts"]
    s1, s2 = done.value["hosts"]["s1"], done.value["hosts"]["s2"]
    assert (s1["status"], s2["status"]) == ("changed", "unchanged")
    assert old in s1["old"]["198.51.100.21"]
    assert s1["new"]["198.51.100.21"] == [new]
    assert "MAN IN THE MIDDLE" in done.value["warning"]
    assert "MAN IN THE MIDDLE" in done.stderr
    assert fleet.master.read(known + ".old") == before
    assert fleet.master.read(known).startswith(others)
    assert fleet.master.run(["stat", "-c", "%a", known]).stdout.strip() == "640"
    assert fleet.salt_ssh("s1", "test.ping").value == {"s1": True}


def test_with_expected_fingerprints_nothing_else_is_learnt(fleet):
    fleet.ssh_hosts["s2"].run(["pkill", "-x", "sshd"], check=False)
    new = fleet.new_host_key("s1")
    before = fleet.master.read("/run/lab/known_hosts")
    wrong = "SHA256:" + "A" * 43
    done = fleet.salt_run("iptlive.relearn_known_hosts", "*", f"expected=['{wrong}']")
    assert done.retcode == 1
    assert {name: found["status"] for name, found in done.value["hosts"].items()} == {
        "s1": "refused",
        "s2": "unreachable",
    }
    assert done.value["hosts"]["s1"]["refused"] == [new]
    assert fleet.master.read("/run/lab/known_hosts") == before
    fleet.pillar({}, fleet=("control", {"iptlive": {"fingerprints": {"s1": [new]}}}))
    done = fleet.salt_run("iptlive.relearn_known_hosts", "s1")
    assert (done.retcode, done.value["hosts"]["s1"]["status"]) == (0, "changed")
    assert "warning" not in done.value
    fleet.new_host_key("s2")


def test_hostile_roster_entries_are_refused_and_nothing_is_executed(fleet):
    evil = [
        "-oProxyCommand=touch /run/lab/pwned",
        "x;touch /run/lab/pwned",
        "$(touch /run/lab/pwned)",
        "a\nb",
        "../../x",
    ]
    roster = {f"evil{n}": {"host": host} for n, host in enumerate(evil)}
    fleet.master.write("/run/lab/evil", json.dumps(roster))
    before = fleet.master.read("/run/lab/known_hosts")
    done = fleet.salt_run("iptlive.relearn_known_hosts", "*", "roster_file=/run/lab/evil")
    assert {found["status"] for found in done.value["hosts"].values()} == {"refused"}
    assert len(done.value["hosts"]) == len(evil)
    assert fleet.master.read("/run/lab/known_hosts") == before
    assert fleet.master.run(["ls", "/run/lab/pwned"], check=False).returncode


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["iptlive.report", "*", "batch=some"], "batch: expected"),
        (["iptlive.report", "*", "ssh=maybe"], "ssh: expected"),
        (["iptlive.backup", "*", "timeout=0"], "timeout: expected"),
        (["iptlive.backup", "*", "dest=/nowhere"], "cannot be made"),
        (["iptlive.relearn_known_hosts", "*", "timeout=61"], "from 1 to 60"),
        (["iptlive.relearn_known_hosts", "*", "expected=[x]"], "fingerprints like SHA256"),
    ],
)
def test_wrong_arguments(whole_fleet, arguments, message):
    done = whole_fleet.salt_run(*arguments)
    assert done.retcode == 1
    assert message in done.value["error"]
