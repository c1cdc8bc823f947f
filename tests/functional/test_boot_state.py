"""salt://iptlive/boot.sls with the real packages of the distribution: on the kernel, it loads and flushes nothing."""

import hashlib
import subprocess

import pytest

from lab.host import SCRATCH, Host

PACKAGES = ["netfilter-persistent", "iptables-persistent", "ipset-persistent"]
STORED = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n"
FILES = ("/etc/iptables/rules.v4", "/etc/iptables/rules.v6")
OTHERS = "*filter\n:DOCKER - [0:0]\n-A INPUT -s 192.0.2.7/32 -j DROP\n-A FORWARD -j DOCKER\nCOMMIT\n"
OVERLAY = f"lowerdir=/usr,upperdir={SCRATCH}/upper-usr,workdir={SCRATCH}/work-usr"


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The packages as Debian has them, in a folder that apt takes for a repository."""
    folder = tmp_path_factory.mktemp("repository")
    folder.chmod(0o755)
    download = ["apt-get", "download", "-o", "APT::Sandbox::User=root", *PACKAGES]
    if subprocess.run(download, cwd=str(folder), check=False).returncode:
        subprocess.run(["apt-get", "update", "--quiet"], check=True)
        subprocess.run(download, cwd=str(folder), check=True)
    index = ""
    for file in sorted(folder.glob("*.deb")):
        fields = subprocess.run(["dpkg-deb", "-f", str(file)], stdout=subprocess.PIPE, text=True, check=True).stdout
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        index += f"{fields.strip()}\nFilename: ./{file.name}\nSize: {file.stat().st_size}\nSHA256: {digest}\n\n"
    (folder / "Packages").write_text(index)
    return folder


@pytest.fixture
def fresh(repository):
    """A host with rules of others, a stored file that differs, and nothing that loads it."""
    with Host("nft") as host:
        host.run(["mkdir", f"{SCRATCH}/upper-usr", f"{SCRATCH}/work-usr"])
        host.run(["mount", "--no-mtab", "-t", "overlay", "-o", OVERLAY, "lab", "/usr"])
        host.run(["sh", "-c", "rm -rf /etc/apt/sources.list.d/* /usr/sbin/policy-rc.d"])
        host.write("/etc/apt/sources.list", f"deb [trusted=yes] file:{repository} ./\n")
        host.write("/etc/apt/apt.conf.d/99lab", 'APT::Sandbox::User "root";\n')
        host.run(["apt-get", "update"])
        for path in FILES:
            host.write(path, STORED)
        host.restore(OTHERS)
        host.run(["iptables", "-A", "INPUT", "-p", "icmp", "-j", "ACCEPT"])
        yield host


def test_the_packages_alone_load_the_file_or_overwrite_it(fresh):
    """What the state is for: without it this is what happens."""
    before = fresh.save()
    fresh.run(["apt-get", "install", "--yes", *PACKAGES], env={"DEBIAN_FRONTEND": "noninteractive"}, timeout=300)
    assert fresh.save() != before or fresh.read(FILES[0]) != STORED


def test_the_state_changes_nothing_in_the_kernel(fresh):
    before = fresh.save(counters=True), fresh.save("ipv6")
    generation = fresh.run(["nft", "-a", "list", "ruleset"]).stdout
    done = fresh.salt_call("state.apply", "iptlive.boot", timeout=300)
    results = {name: state["comment"] for name, state in done.value.items() if state["result"] is not True}
    assert results == {}
    assert (fresh.save(counters=True), fresh.save("ipv6")) == before
    assert fresh.run(["nft", "-a", "list", "ruleset"]).stdout == generation
    assert [fresh.read(path) for path in FILES] == [STORED, STORED]
    assert fresh.run(["test", "-e", "/usr/sbin/policy-rc.d"], check=False).returncode
    for package in PACKAGES:
        assert "install ok installed" in fresh.run(["dpkg", "-s", package]).stdout
    story = fresh.call("iptlive.boot", families=["ipv4"]).value["families"]["IPv4"]
    (loader,) = story["loaders"]
    assert (loader["name"], loader["enabled"], loader["before_network"]) == ("netfilter-persistent.service", True, True)
    again = fresh.salt_call("state.apply", "iptlive.boot", timeout=300)
    assert all(state["result"] is True and not state["changes"] for state in again.value.values()), again.stdout
    assert fresh.save(counters=True) == before[0]
