"""Rolling an update back where others have written since."""

import pytest

from lab.host import SaltError

PATH = "/etc/iptables/rules.v4"
OLD = "*filter\n-A INPUT -i lo -j ACCEPT\n-A INPUT -s 192.0.2.9/32 -j DROP\n-A INPUT -p icmp -j ACCEPT\nCOMMIT\n"
NEW = OLD.replace("-A INPUT -s", "#DELETE# -A INPUT -s").replace("COMMIT", "-A OUTPUT -o lo -j ACCEPT\nCOMMIT")
GONE = "-s 192.0.2.9/32 -j DROP"
IPV4 = {"families": ["ipv4"]}


def rules(host):
    return [line for line in host.save().splitlines() if line.startswith("-A")]


@pytest.fixture
def updated(host):
    host.restore(OLD)
    host.write(PATH, NEW)
    assert host.call("iptlive.apply", **IPV4).value["applied"]
    return host


def rival(host, *commands):
    host.run(["iptables-restore", "--noflush"], input="\n".join(["*filter", *commands, "COMMIT", ""]))


def test_foreign_rule_between_the_former_neighbours(updated):
    rival(updated, "-I INPUT 2 -s 192.0.2.1/32 -j DROP")
    before = updated.save()
    answer = updated.call("iptlive.rollback", "last")
    assert (answer.retcode, answer.value["status"], answer.value["applied"]) == (1, "refused", False)
    (refusal,) = answer.value["refusals"]["IPv4/filter/INPUT"]
    assert (refusal["reason"], refusal["rules"], refusal["lines"]) == ("foreign_between", [GONE], [])
    assert f"the update deleted '{GONE}', and cannot put it back" in refusal["message"]
    assert "'placement=after'" in refusal["hint"]
    assert updated.save() == before
    done = updated.call("iptlive.rollback", "last", placement="after").value
    back = {"action": "insert", "position": 2, "rule": GONE, "line": None}
    assert done["changes"]["IPv4/filter/INPUT"] == [back], "of no stored file's line"
    assert rules(updated)[1:3] == [f"-A INPUT {GONE}", "-A INPUT -s 192.0.2.1/32 -j DROP"]


def test_no_former_rule_left(updated):
    """Nobody can tell where the deleted rule belongs: behind all others it overrules none of them."""
    rival(updated, "-F INPUT", "-A INPUT -s 192.0.2.1/32 -j DROP")
    before = updated.save()
    answer = updated.call("iptlive.rollback", "last").value
    assert answer["status"] == "refused"
    (refusal,) = answer["refusals"]["IPv4/filter/INPUT"]
    assert refusal["reason"] == "no_anchor"
    assert updated.save() == before
    looked = updated.call("iptlive.rollback", "last", placement="after", test=True).value
    assert updated.save() == before
    done = updated.call("iptlive.rollback", "last", placement="after").value
    assert (done["changes"], done["warnings"]) == (looked["changes"], looked["warnings"])
    assert set(done["changes"]) == {"IPv4/filter/INPUT", "IPv4/filter/OUTPUT"}
    assert len(done["warnings"]) == 1 and GONE in done["warnings"][0]
    assert rules(updated) == ["-A INPUT -s 192.0.2.1/32 -j DROP", f"-A INPUT {GONE}"]


@pytest.mark.parametrize("function", ["rollback", "confirm", "outcome"])
@pytest.mark.parametrize("name", [20260714, "../journal/x", "nosuch"])
def test_update_that_does_not_exist(updated, function, name):
    with pytest.raises(SaltError) as caught:
        updated.call("iptlive." + function, name)
    assert caught.value.kind == ("CommandExecutionError" if function == "confirm" else "SaltInvocationError")
    assert str(name) in caught.value.message


def test_watchdog_lets_in_again_what_was_let_in(host):
    """All rules of a chain that drops were deleted, and others have written since: no reason to stay locked out."""
    host.restore("*filter\n:INPUT DROP [0:0]\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\nCOMMIT\n")
    host.write(PATH, "*filter\n:INPUT DROP [0:0]\n#DELETE# -A INPUT -p tcp --dport 22 -j ACCEPT\nCOMMIT\n")
    update = host.call("iptlive.apply", confirm=2, confirm_check="manual", **IPV4).value
    rival(host, "-A INPUT -s 192.0.2.1/32 -j DROP")
    settled = host.call("iptlive.outcome", update["id"]).value
    assert settled["state"] == "rolled_back"
    assert settled["reason"].startswith("not confirmed within 2 seconds. IPv4/filter/INPUT: the update deleted")
    assert rules(host) == ["-A INPUT -s 192.0.2.1/32 -j DROP", "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT"]


def test_without_an_id_it_only_tells_which(updated):
    before = updated.save()
    looked = updated.call("iptlive.rollback", placement="after").value
    assert (looked["applied"], updated.save()) == (False, before)
    (newest, *_) = updated.call("iptlive.history").value
    assert (newest["id"], newest["state"]) == (looked["id"], "done")
    done = updated.call("iptlive.rollback", "last", placement="after").value
    assert (done["id"], done["applied"], done["changes"]) == (looked["id"], True, looked["changes"])
    assert updated.call("iptlive.history").value[0]["reason"].startswith("rollback was asked for")
