"""Stored files as people really write them: each case is one small file in ``syntax/``, run on both backends.

A case's first line says what it is about. It holds ``stored``, and optionally ``kernel`` (what the kernel holds
before), ``family`` (ipv4), ``options``, ``hosts`` (lines for /etc/hosts) and ``sets`` (ipsets that exist); and what
must come of it: ``rules`` (per chain, after the update) and ``warnings`` (each must be found), or ``error``, or
``refusals`` (per chain the reasons, lines, messages and hints).
"""

from pathlib import Path

import pytest
import yaml
from _iptlive_rules import parse_save

from lab.host import SaltError

PATHS = {"ipv4": "/etc/iptables/rules.v4", "ipv6": "/etc/iptables/rules.v6"}
LOCALHOST = "127.0.0.1 localhost\n::1 localhost\n"


def cases():
    return sorted((Path(__file__).parent / "syntax").glob("*.yaml"))


@pytest.fixture
def prepared(host, request):
    """The host as the case wants it before, and the case."""
    # Not decoded by Python's universal newlines: a case may hold CRLF.
    case = yaml.safe_load(request.param.read_bytes())
    family = case.setdefault("family", "ipv4")
    host.write("/etc/hosts", LOCALHOST + case.get("hosts", ""))
    for name in case.get("sets", ()):
        host.run(["ipset", "create", name, "hash:net"])
    if "kernel" in case:
        host.restore(case["kernel"], family)
    host.write(PATHS[family], case["stored"])
    return host, case


@pytest.mark.parametrize("prepared", cases(), ids=lambda path: path.stem, indirect=True)
def test_syntax(prepared):
    host, case = prepared
    family = case["family"]
    options = {"families": [family], **case.get("options", {})}
    before = host.save(family)
    if "error" in case:
        with pytest.raises(SaltError) as caught:
            host.call("iptlive.apply", **options)
        assert caught.value.kind == "CommandExecutionError"
        assert case["error"] in caught.value.message
        assert host.save(family) == before
        return
    planned = host.call("iptlive.plan", **options).value
    assert host.save(family) == before
    for warning in case.get("warnings", ()):
        assert any(warning in text for text in planned["warnings"]), planned["warnings"]
    if "refusals" in case:
        told = {
            chain: [{key: refusal[key] for key in ("reason", "lines", "message", "hint")} for refusal in refusals]
            for chain, refusals in planned["refusals"].items()
        }
        assert told == case["refusals"]
        assert host.call("iptlive.apply", **options).retcode == 1
        assert host.save(family) == before
        return
    assert planned["refusals"] == {}
    host.call("iptlive.apply", **options)
    tables = parse_save(host.save(family))
    found = {name: list(tables[name.split("/")[0]][name.split("/")[1]].rules) for name in case["rules"]}
    assert found == case["rules"]
    assert host.call("iptlive.plan", **options).value["status"] == "in_sync"
