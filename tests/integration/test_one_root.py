"""
One gitfs remote, written as README has it, is all that has to be served: master, minion, salt-ssh and a minion without
a master are run from it. All other tests have one file root.
"""

import json
import subprocess

import documented
import pytest
import salt.config
import salt.fileserver
import yaml

from lab.fleet import Fleet
from lab.host import REPO, SCRATCH, minion_options

STORED = "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n"
KINDS = {"_beacons", "_modules", "_output", "_roster", "_runners", "_states", "iptlive"}
# Of the remote, in README, and what it is here.
PUBLISHED = "https://git.example.org/iptlive.git"


@pytest.fixture(scope="module")
def remote(tmp_path_factory):
    """A repository of this checkout as it is, with a release tag, and the address of it."""
    place = tmp_path_factory.mktemp("iptlive.git")
    git = ["git", "-C", str(place), "-c", "user.name=lab", "-c", "user.email=lab@example.org"]
    parts = [path.name for path in REPO.glob("_*/")] + ["salt", "tests", "README.md"]
    subprocess.run(["cp", "-a", *(str(REPO / part) for part in parts), str(place)], check=True)
    # The default branch need not be what Salt takes for it.
    for step in (["init", "--quiet", "--initial-branch=trunk"], ["add", "--all"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *step], check=True)
    subprocess.run([*git, "tag", "v1.0.0"], check=True)
    return f"file://{place}"


@pytest.fixture(scope="module")
def settings(remote):
    """The settings for gitfs that README shows."""
    shown = next(text for place, text in documented.settings() if place.startswith("README.md") and PUBLISHED in text)
    return yaml.safe_load(shown.replace(PUBLISHED, remote))


@pytest.fixture(scope="module")
def fleet(settings):
    with Fleet(minions=1, ssh_hosts=1, **settings, file_roots={"base": [SCRATCH + "/states"]}) as fleet:
        # Again: the remote may have been fetched later than the master was up.
        fleet.salt_run("saltutil.sync_all")
        yield fleet


@pytest.mark.parametrize("provider", ["gitpython", "pygit2"])
def test_both_providers_serve_the_same_as_a_file_root(settings, tmp_path, provider):
    (tmp_path / "master").write_text("{}")
    options = salt.config.master_config(str(tmp_path / "master"))
    options.update({name: str(tmp_path / name) for name in ("cachedir", "pki_dir", "sock_dir")})
    options.update(gitfs_provider=provider, fileserver_list_cache_time=0)

    def served(**more):
        server = salt.fileserver.Fileserver({**options, **more})
        server.update()
        found = {}
        for name in server.file_list({"saltenv": "base"}):
            if "__pycache__" not in name:
                data = server.serve_file({"path": name, "saltenv": "base", "loc": 0})["data"]
                found[name] = data if isinstance(data, str) else data.decode()
        return found

    by_git = served(**settings, file_roots={"base": []})
    by_root = served(fileserver_backend=["roots"], file_roots={"base": [str(REPO / "file_root")]})
    assert by_git == by_root
    assert {name.split("/")[0] for name in by_git} == KINDS


def test_master_minion_and_salt_ssh(fleet):
    for host in fleet.hosts().values():
        host.write("/etc/iptables/rules.v4", STORED)
    fleet.pillar({"iptlive": {"families": ["ipv4"]}})
    assert fleet.salt_run("iptlive.report", "*", "changes_ok=True").retcode == 0
    for done in (fleet.salt("m1", "state.apply", "iptlive"), fleet.salt_ssh("s1", "state.apply", "iptlive")):
        assert [state["result"] for host in done.value.values() for state in host.values()] == [True], done
    for host in fleet.hosts().values():
        assert "-A INPUT -i lo -j ACCEPT" in host.save()


def test_without_a_master(fleet, settings, hosts):
    alone = hosts("nft")
    options = {**minion_options(SCRATCH + "/salt"), **settings, "file_roots": {"base": []}}
    alone.write(SCRATCH + "/salt/minion", json.dumps(options))
    alone.write("/etc/iptables/rules.v4", STORED)
    alone.salt_call("saltutil.sync_all", check=True)
    done = alone.salt_call("state.apply", "iptlive", pillar={"iptlive": {"families": ["ipv4"]}}, check=True)
    assert [state["result"] for state in done.value.values()] == [True]
    assert "-A INPUT -i lo -j ACCEPT" in alone.save()
