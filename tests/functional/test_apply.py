"""What an update does to the real kernel, beside the manual's examples."""

import pytest

IPV4_ONLY = {"families": ["ipv4"]}
PATH = "/etc/iptables/rules.v4"
# The kernel does not let the nat table drop.
POLICIES = {"raw": "DROP", "mangle": "DROP", "nat": "ACCEPT", "filter": "DROP", "security": "DROP"}


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_first_update_of_tables_that_nobody_has_used(hosts, backend):
    """iptables-nft-save prints built-in chains of a table that does not exist yet."""
    host = hosts(backend)
    sections = [
        f"*{table}\n:OUTPUT {policy} [0:0]\n:MINE - [0:0]\n-A OUTPUT -o lo -j MINE\n-A MINE -j RETURN\nCOMMIT\n"
        for table, policy in POLICIES.items()
    ]
    host.write(PATH, "".join(sections))
    done = host.call("iptlive.apply", policy="enforce", **IPV4_ONLY).value
    assert {key: [step["action"] for step in steps] for key, steps in done["changes"].items()} == {
        **{f"IPv4/{table}/MINE": ["create_chain", "insert"] for table in POLICIES},
        **{f"IPv4/{table}/OUTPUT": ["insert", "policy"] for table in POLICIES},
        "IPv4/nat/OUTPUT": ["insert"],
    }
    saved = host.save("ipv4")
    for section in sections:
        assert [line for line in section.splitlines() if line not in saved.splitlines()] == []
    assert host.call("iptlive.plan", policy="enforce", **IPV4_ONLY).value["status"] == "in_sync"


def test_policy_of_a_chain_in_use(host):
    host.restore("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n")
    host.write(PATH, "*filter\n:INPUT DROP [0:0]\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n")
    told = host.call("iptlive.plan", **IPV4_ONLY).value
    assert (told["status"], told["warnings"]) == (
        "in_sync",
        ["IPv4/filter/INPUT: the kernel's policy is ACCEPT, the stored one DROP"],
    )
    refused = host.call("iptlive.apply", policy="refuse", **IPV4_ONLY)
    assert (refused.retcode, refused.value["refusals"]["IPv4/filter/INPUT"][0]["reason"]) == (1, "policy")
    assert ":INPUT ACCEPT" in host.save()
    done = host.call("iptlive.apply", policy="enforce", **IPV4_ONLY).value
    assert done["changes"] == {
        "IPv4/filter/INPUT": [{"action": "policy", "position": None, "rule": "DROP", "line": 2, "was": "ACCEPT"}]
    }
    assert ":INPUT DROP" in host.save()
