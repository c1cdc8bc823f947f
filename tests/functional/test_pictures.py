"""Pictures of a real host's tables."""

import shutil

import pytest

from lab.docker import docker_rules
from lab.host import ENVIRONMENT, SaltError
from lab.neighbours import load_kube

STORED = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:MINE - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -j MINE
-A INPUT -p icmp -j ACCEPT
-A FORWARD -p icmp -j ACCEPT
-A FORWARD -j REJECT --reject-with icmp-port-unreachable
COMMIT
"""


@pytest.fixture
def busy_host(host):
    host.restore(STORED.replace("-A FORWARD -p icmp -j ACCEPT\n", ""))
    docker_rules(host)
    load_kube(host, 60)
    host.write("/etc/iptables/rules.v4", STORED)
    return host


def graph(host, *args):
    return host.call("iptlive.graph", *args, families=["ipv4"]).value


def test_one_node_per_chain_or_family(busy_host):
    text = graph(busy_host)
    assert '"INPUT  policy ACCEPT\\n3 stored, 2 kubernetes"' in text
    assert '"FORWARD  policy DROP\\n1 stored, 6 docker, 1 kubernetes\\nrefused"' in text
    assert '"KUBE-SVC-* (60 chains)\\n180 kubernetes"' in text
    assert '"MINE\\nempty"' in text
    assert graph(busy_host, "mermaid").count("KUBE-SEP-* (120 chains)") == 1


def test_a_file_is_written(busy_host):
    assert graph(busy_host, "dot", "/run/pictures/host.dot") == "/run/pictures/host.dot"
    assert busy_host.read("/run/pictures/host.dot") == graph(busy_host)


def test_svg_where_graphviz_is_installed(busy_host):
    if shutil.which("dot", path=ENVIRONMENT["PATH"]):
        assert "</svg>" in graph(busy_host, "svg")
    else:
        with pytest.raises(SaltError, match="the program 'dot' is not installed"):
            graph(busy_host, "svg")


@pytest.mark.parametrize(
    ("args", "said"), [(("png",), "form"), (("dot", "x.dot"), "absolute path"), (("dot", 5), "absolute path")]
)
def test_wrong_arguments(host, args, said):
    with pytest.raises(SaltError, match=said) as error:
        graph(host, *args)
    assert error.value.kind == "SaltInvocationError"
