"""Installed with pip, from the same files: Salt finds everything by the entry point, with no file_roots at all."""

import email
import json
import shutil
import subprocess
import sys

import pytest

from lab.host import PROGRAMS, REPO, Host

STORED = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n"
PARTS = ["pyproject.toml", "README.md", "LICENSE", "extension", "wrapper"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Where pip has put the extension: a folder of its own, to be found by PYTHONPATH."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    for part in PARTS + [path.name for path in REPO.glob("_*") if path.is_dir() and path.name != "__pycache__"]:
        copy = shutil.copytree if (REPO / part).is_dir() else shutil.copy
        copy(str(REPO / part), str(source / part))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, timeout=300)
    return target


@pytest.fixture(scope="module")
def salt(installed):
    """``salt("salt-call", ...)`` in a host whose Salt knows nothing of this checkout; and that host."""
    with Host("nft") as host:
        base = {"root_dir": "/run/lab/ext", "enable_fqdns_grains": False, "id": "lab"}
        host.write("/run/lab/ext/conf/minion", json.dumps({**base, "file_client": "local"}))
        host.write("/run/lab/ext/conf/master", json.dumps(base))

        def run(program, *arguments):
            argv = [PROGRAMS / program, "--config-dir", "/run/lab/ext/conf", *arguments]
            return host.run(argv, check=False, timeout=120, env={"PYTHONPATH": str(installed)})

        yield run, host


def test_every_file_is_installed_once(installed):
    files = {path.relative_to(installed).as_posix() for path in installed.rglob("*.py")}
    for kind in ("beacons", "modules", "output", "roster", "runners", "states"):
        ours = {path.name for path in (REPO / ("_" + kind)).glob("*.py")}
        assert ours
        assert {f"saltext/iptlive/{kind}/{name}" for name in ours} <= files
    assert {name for name in files if name.endswith("wrapper/iptlive.py")} == {"saltext/iptlive/wrapper/iptlive.py"}


def test_what_the_package_index_would_show(installed):
    (path,) = installed.glob("*.dist-info/METADATA")
    metadata = email.message_from_string(path.read_text())
    assert (metadata["Name"], metadata["Requires-Dist"]) == ("saltext-iptlive", "salt>=3006")
    assert len(metadata.get_all("Project-URL")) == 4 and metadata.get_all("Classifier")


def test_module_state_and_outputter(salt):
    run, host = salt
    host.write("/etc/iptables/rules.v4", STORED)
    local = ["--local", "--retcode-passthrough"]
    plan = json.loads(run("salt-call", *local, "--out=json", "iptlive.plan", "families=[ipv4]").stdout)["local"]
    assert plan["status"] == "changes"
    done = run("salt-call", *local, "--out=json", "state.single", "iptlive.managed", "fw", "families=[ipv4]")
    assert [state["result"] for state in json.loads(done.stdout)["local"].values()] == [True]
    assert "-A INPUT -i lo -j ACCEPT" in host.save()
    assert "in sync" in run("salt-call", *local, "--out=iptlive", "iptlive.plan", "families=[ipv4]").stdout


ON_THE_MASTER = """
import salt.config, salt.loader, salt.roster
options = salt.config.master_config("/run/lab/ext/conf/master")
options["roster_file"] = "/run/lab/list.json"
print(salt.roster.Roster(options, "iptlive").targets("*", "glob"))
print(list(salt.loader.ssh_wrapper(options)))
"""


def test_runner_roster_and_wrapper(salt, installed):
    run, host = salt
    assert "iptlive.relearn_known_hosts" in run("salt-run", "-d", "iptlive").stdout
    host.write("/run/lab/list.json", '[{"name": "a", "ip": "192.0.2.1", "user": "root", "state": "on"}]')
    found = host.run([sys.executable, "-c", ON_THE_MASTER], env={"PYTHONPATH": str(installed)}).stdout
    assert "{'a': {'host': '192.0.2.1', 'user': 'root'}}" in found
    assert "iptlive.plan" in found
