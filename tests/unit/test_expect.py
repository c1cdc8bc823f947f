"""The option ``expect``: what an entry may say, how a wrong one is named, which families are meant, its words."""

import pytest
from _iptlive_expect import Arrival, parse, resolved
from _iptlive_model import InputError
from hypothesis import given
from hypothesis import strategies as st

WRONG = [
    ("22/tcp", "option 'expect': expected a list of entries like {accept: 22/tcp}, got '22/tcp'"),
    ([["accept", "22/tcp"]], "entry 1: expected a mapping like {accept: 22/tcp}, got ['accept', '22/tcp']"),
    ([{"accept": "22/tcp"}, {"accept": "22/tcp", "form": "any"}],
     "option 'expect', entry 2 (accept: 22/tcp, form: any): unknown key 'form'; known are accept, block, "),
    ([{"from": "any"}], "entry 1 (from: any): expected one of accept, block, drop, reject, got none of them"),
    ([{"accept": "22/tcp", "drop": "23/tcp"}], "expected one of accept, block, drop, reject, got both accept and drop"),
    ([{"accept": 22}], "expected a service like 80/tcp, "),
    ([{"accept": "ssh"}], "expected a service like 80/tcp, "),
    ([{"accept": "0/tcp"}], "expected a service"),
    ([{"accept": "65536/tcp"}], "expected a service"),
    ([{"accept": "90-80/tcp"}], "expected a service"),
    ([{"accept": "icmp/256"}], "expected a service"),
    ([{"accept": []}], "expected a service like 80/tcp, "),
    ([{"block": "22/tcp", "arrives": "10.0.0.1:22"}], "'arrives' goes with accept only"),
    ([{"accept": "22/tcp", "arrives": "10.0.0.1:0"}], "'arrives': expected a port between 1 and 65535"),
    ([{"accept": "22/tcp", "arrives": "web:80"}], "'arrives': expected an address or address:port, got 'web:80'"),
    ([{"accept": "25/tcp", "user": "postfix", "from": "any"}], "'user' is about packets of this host's own, 'from'"),
    ([{"accept": "25/tcp", "user": "postfix", "to": "any", "in": "eth0"}], "'user' is about packets of this host's"),
    ([{"accept": "25/tcp", "user": "postfix"}], "'user' needs a 'to'"),
    ([{"accept": "25/tcp", "to": "any", "except": "10.0.0.1"}], "'except' is taken out of 'from'"),
    ([{"accept": "22/tcp", "from": "192.0.2.0/33"}], "'from': expected an address or a network, got '192.0.2.0/33'"),
    ([{"accept": "22/tcp", "from": "192.0.2.256"}], "'from': expected an address or a network"),
    ([{"accept": "22/tcp", "from": []}], "'from': expected an address, a network or a list of them, got an empty list"),
    ([{"accept": "22/tcp", "from": "192.0.2.1", "to": "2001:db8::1"}], "no family is left"),
    ([{"accept": "icmp/3", "from": "2001:db8::1"}], "no family is left"),
    ([{"accept": "22/tcp", "state": "related"}], "'state': expected new or established, got 'related'"),
    ([{"accept": "ping", "state": "established"}], "'state: established' is about tcp and udp"),
    ([{"accept": "22/tcp", "in": ""}], "'in': expected a text, got ''"),
    ([{"accept": "22/tcp", "name": "a\nb"}], "'name': expected a text, got 'a\\nb'"),
]  # fmt: skip
WORDS = [
    ({"accept": "22/tcp", "from": "192.0.2.0/24"}, "accept 22/tcp from 192.0.2.0/24", ("ipv4",)),
    ({"block": "5432/tcp", "except": "10.1.0.0/16"}, "block 5432/tcp from anywhere except 10.1.0.0/16",
     ("ipv4", "ipv6")),
    ({"accept": "8080/tcp", "arrives": "172.17.0.2:80"}, "accept 8080/tcp arriving at 172.17.0.2:80", ("ipv4",)),
    ({"accept": ["4505/tcp", "4506/tcp"], "to": "192.0.2.1"}, "accept 4505/tcp, 4506/tcp to 192.0.2.1", ("ipv4",)),
    ({"accept": "443/tcp", "in": "docker0", "to": "any"}, "accept 443/tcp in docker0 to anywhere", ("ipv4", "ipv6")),
    ({"accept": "25/tcp", "to": "2001:db8::25", "user": "postfix"}, "accept 25/tcp to 2001:db8::25 of user postfix",
     ("ipv6",)),
    ({"accept": "22/tcp", "state": "established"}, "accept 22/tcp in established connections", ("ipv4", "ipv6")),
    ({"drop": ["ping", "icmp/8"], "from": ["192.0.2.1", "192.0.2.9"]}, "drop ping, icmp/8 from 192.0.2.1, 192.0.2.9",
     ("ipv4",)),
    ({"reject": "icmpv6/128"}, "reject icmpv6/128", ("ipv6",)),
    ({"accept": "gre", "name": "the tunnel"}, "the tunnel", ("ipv4", "ipv6")),
]  # fmt: skip


@pytest.mark.parametrize(("value", "message"), WRONG)
def test_a_wrong_entry_is_named(value, message):
    with pytest.raises(InputError) as error:
        parse(value)
    assert message in str(error.value)
    assert str(error.value).startswith("option 'expect'")


@pytest.mark.parametrize(("entry", "words", "families"), WORDS)
def test_words_and_families(entry, words, families):
    (one,) = parse([entry])
    assert (one.text(), one.families()) == (words, families)


@given(st.lists(st.dictionaries(
    st.sampled_from(["accept", "block", "from", "except", "to", "in", "arrives", "user", "state", "name"]),
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=6), st.lists(st.text(max_size=4), max_size=2),
              st.sampled_from(["22/tcp", "any", "self", "192.0.2.1", "2001:db8::/32", "new", "10.0.0.1:80"])),
    max_size=4), max_size=3))  # fmt: skip
def test_whatever_yaml_holds(value):
    """Either it is understood, and can be told, or it is refused by name."""
    try:
        found = parse(value)
    except InputError as err:
        assert str(err).startswith("option 'expect'")
    else:
        assert len(found) == len(value) and all(one.text() for one in found)


def test_names_are_looked_up():
    entries = [
        {"accept": "22/tcp", "from": ["admin.example.org", "192.0.2.9"]},
        {"accept": "4506/tcp", "to": "master"},
        {"block": "23/tcp", "from": "192.0.2.1"},
    ]
    known = {"admin.example.org": ["192.0.2.5", "2001:db8::5"]}
    found = resolved(parse(entries), lambda name: known.get(name, []), "2001:db8::1")
    assert [one.families() for one in found] == [("ipv4", "ipv6"), ("ipv6",), ("ipv4",)]
    assert [place.text for place in found[0].sources] == ["admin.example.org"] * 2 + ["192.0.2.9"]
    assert found[1].words() == "accept 4506/tcp to the master"
    for entry, master, message in [
        ({"accept": "22/tcp", "from": "no.example.org"}, "192.0.2.1", "the host name 'no.example.org' has no address"),
        ({"accept": "4506/tcp", "to": "master"}, None, "'to: master': this host has no master; give its address"),
        ({"accept": "icmp/3", "to": "master"}, "2001:db8::1", "no family is left"),
    ]:
        with pytest.raises(InputError, match="option 'expect', entry 1 .*" + message):
            resolved(parse([entry]), lambda name: [], master)


def test_where_it_arrives():
    for text, address, port in [
        ("172.17.0.2:80", "172.17.0.2", 80),
        ("172.17.0.2", "172.17.0.2", None),
        ("[2001:db8::2]:80", "2001:db8::2", 80),
        ("2001:db8::2", "2001:db8::2", None),
    ]:
        (one,) = parse([{"accept": "80/tcp", "arrives": text}])
        assert one.arrives == Arrival(address, port) and one.arrives.text() == text
