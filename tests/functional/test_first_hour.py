"""What newcomers get wrong, and what they are told."""

import pytest

from lab.host import SaltError

FILE = "/etc/iptables/rules.v4"
STORED = "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT\nCOMMIT\n"


def plan(host, **options):
    return host.call("iptlive.plan", families=["ipv4"], **options).value


def test_all_missing_files_are_named_at_once(host):
    with pytest.raises(SaltError) as caught:
        host.call("iptlive.plan")
    assert "IPv4: no stored file" in caught.value.message and "IPv6: no stored file" in caught.value.message


@pytest.mark.parametrize("function", ["plan", "apply", "export", "rollback"])
def test_a_family_without_the_options_name(host, function):
    host.write(FILE, STORED)
    arguments = (None, "ipv4") if function == "rollback" else ("ipv4",)
    with pytest.raises(SaltError) as caught:
        host.call(f"iptlive.{function}", *arguments)
    assert caught.value.kind == "SaltInvocationError"
    assert "got 'ipv4'" in caught.value.message
    assert "-i lo" not in host.save()


def test_a_key_of_chains_that_names_no_chain(host):
    host.write(FILE, STORED)
    keys = ["IPv4/filter/FORWRD", "IPv4/filter/FORWARD", "IPv6/filter/MINE"]
    warnings = plan(host, chains={key: {"placement": "after"} for key in keys})["warnings"]
    assert warnings == ["option 'chains': 'IPv4/filter/FORWRD' is no chain of the stored file, and has no effect"]


@pytest.mark.parametrize("end", ["-j RETURN", "-j DROP", "-j REJECT --reject-with icmp-port-unreachable"])
def test_no_place_is_offered_behind_the_end(host, end):
    host.restore(f"*filter\n-A FORWARD -s 192.0.2.1/32 -j ACCEPT\n-A FORWARD {end}\nCOMMIT\n")
    host.write(FILE, "*filter\n-A FORWARD -s 192.0.2.2 -j ACCEPT\nCOMMIT\n")
    ((refusal,),) = plan(host)["refusals"].values()
    assert refusal["reason"] == "no_anchor"
    assert end not in refusal["hint"] and "'-A FORWARD -s 192.0.2.1/32 -j ACCEPT', below line 2" in refusal["hint"]
    text = "*filter\n-A FORWARD -s 192.0.2.1 -j ACCEPT\n-A FORWARD -s 192.0.2.2 -j ACCEPT\n-A FORWARD -j LOG\nCOMMIT\n"
    host.restore(f"*filter\n-A FORWARD -s 192.0.2.1/32 -j ACCEPT\n-A FORWARD {end}\n-A FORWARD -j LOG\nCOMMIT\n")
    host.write(FILE, text)
    ((refusal,),) = plan(host)["refusals"].values()
    assert "placement: after" in refusal["hint"] and "placement: before" not in refusal["hint"]


def test_one_line_number_only(host):
    host.write(
        FILE, "# one\n# two\n# three\n" + STORED.replace("COMMIT", "-A INPUT -j SNAT --to-source 192.0.2.1\nCOMMIT")
    )
    with pytest.raises(SaltError) as caught:
        plan(host)
    assert caught.value.message.count("line") == 2  # "line 8" and "Correct the line"
    assert f"{FILE}, line 8" in caught.value.message
