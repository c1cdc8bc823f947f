"""Host names in stored lines become the addresses that iptables itself would ask for."""

import re
import socket

import _iptlive_hostnames as hostnames
import pytest
from _iptlive_model import HostError
from _iptlive_rules import options, quotes_closed, words
from _iptlive_stored import parse
from hypothesis import given, settings
from hypothesis import strategies as st

ADDRESSES = {
    (socket.AF_INET, "web"): ["192.0.2.20", "192.0.2.3"],
    (socket.AF_INET, "db-1.example"): ["198.51.100.7"],
    (socket.AF_INET6, "web"): ["2001:db8::20", "2001:db8::3"],
    (socket.AF_INET6, "near"): ["fe80::1%eth0"],
}


@pytest.fixture(autouse=True)
def asked(monkeypatch, tmp_path):
    """The names that the resolver is asked for, each time it is."""
    asked = []

    def getaddrinfo(name, port, family, kind):
        asked.append(name.decode())
        found = ADDRESSES.get((family, name.decode()))
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(family, kind, 0, "", (address, 0)) for address in found]

    networks = tmp_path / "networks"
    networks.write_text("# a comment: web\nloopback 127.0.0.0 lo-net\n")
    monkeypatch.setattr(hostnames, "NETWORKS", str(networks))
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def resolved(*specs, family="ipv4"):
    text = "*filter\n" + "".join(f"-A INPUT {spec}\n" for spec in specs) + "COMMIT\n"
    found = hostnames.resolve(parse(family, "/rules", text.encode()))
    return [rule.spec for rule in found.stored.tables["filter"].rules], found


@pytest.mark.parametrize(
    "spec, expected",
    [
        # In the order of the addresses, whatever the resolver's is.
        ("-s web -j DROP", "-s 192.0.2.3,192.0.2.20 -j DROP"),
        ("! --source web", "! --source 192.0.2.3,192.0.2.20"),
        ("--dst=web -j DROP", "--dst=192.0.2.3,192.0.2.20 -j DROP"),
        ("-dweb", "-d192.0.2.3,192.0.2.20"),
        ('-s "web"', "-s 192.0.2.3,192.0.2.20"),
        ("-s 10.0.0.1,db-1.example,10.0.0.2", "-s 10.0.0.1,198.51.100.7,10.0.0.2"),
        ("-s web -d db-1.example", "-s 192.0.2.3,192.0.2.20 -d 198.51.100.7"),
        # Of one network: one rule.
        ("-s web/24", "-s 192.0.2.0/24"),
        ("-s web/255.255.255.0", "-s 192.0.2.0/24"),
        ("-s web/255.0.255.0", "-s 192.0.2.3/255.0.255.0,192.0.2.20/255.0.255.0"),
        ("-m conntrack --ctorigsrc db-1.example", "-m conntrack --ctorigsrc 198.51.100.7"),
    ],
)
def test_a_name_becomes_its_addresses(spec, expected):
    specs, found = resolved(spec)
    assert specs == [expected]
    assert found.lines == {2}
    assert "line 2" in found.warnings[0]


@pytest.mark.parametrize(
    "spec",
    [
        "-s 192.0.2.1/24 -j DROP",
        "-s any/0",
        "-s any/0.0.0.0",
        "-s 1:2",
        "-s loopback",
        "-s lo-net/8",
        "-6 -s web",
        '-m comment --comment "-s web" -j DROP',
        "-m set --match-set web src",
        "-i web -j MINE",
    ],
)
def test_what_names_no_host_stays(spec, asked):
    specs, found = resolved(spec)
    assert (specs, found.lines, found.warnings, asked) == ([spec], frozenset(), [], [])


def test_the_other_family(asked):
    specs, found = resolved("-s web", "-s near", "-4 -s web", "-6 -s web", family="ipv6")
    both = "2001:db8::3,2001:db8::20"
    assert specs == [f"-s {both}", "-s fe80::1", "-4 -s web", f"-6 -s {both}"]
    assert found.lines == {2, 3, 5}
    assert asked == ["web", "near"]


@pytest.mark.parametrize(
    "spec, message",
    [
        ("-s nobody", r"^/rules, line 3: the host name 'nobody' has no address here \(Name or service not known\)"),
        ("-s " + "x" * 80 + ".", "line 3: the host name 'x+.' has no address here"),
        ("-m conntrack --ctorigsrc web", "line 3: '--ctorigsrc' takes one address, .*192.0.2.3, 192.0.2.20"),
    ],
)
def test_a_name_without_an_address_or_with_too_many_is_refused_by_its_line(spec, message):
    with pytest.raises(HostError, match=message):
        resolved("-s db-1.example", spec)


PARTS = {
    "web": "192.0.2.3,192.0.2.20",
    "db-1.example": "198.51.100.7",
    "web/24": "192.0.2.0/24",
    **{same: same for same in ("10.0.0.1", "10.0.0.0/8", "lo-net/8", "any/0")},
}
SOURCE = st.sampled_from(["-s {}", "-s{}", "! --src {}", "--source={}", '-s "{}"', "-s\t{}"])
DESTINATION = st.sampled_from(["-d {}", "--dst={}", '--destination "{}"'])
OTHER = st.sampled_from(["-p tcp", "-i web", '-m comment --comment "-s web"', "-j DROP"])
VALUE = st.lists(st.sampled_from(sorted(PARTS)), min_size=1, max_size=3)


@given(st.lists(st.tuples(SOURCE | DESTINATION, VALUE) | OTHER, max_size=4))
def test_each_name_is_replaced_and_nothing_else(options):
    def line(meaning):
        return " ".join(
            option if isinstance(option, str) else option[0].format(",".join(map(meaning, option[1])))
            for option in options
        )

    (spec,), _ = resolved(line(str))
    assert [word.value for word in words(spec)] == [word.value for word in words(line(PARTS.get))]


PIECES = st.sampled_from(
    ["-s", "-d", "--src", "--dst=", "--on-ip", "!", " ", "\t", '"', "web", "cafe", "_x", "10.0.0.1", "2001:db8::1",
     "/24", "/0", ",", "-j", "DROP", "--dst-type", "=", "-4", "\\", "--dport", "\u2028"]
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(PIECES, max_size=9).map("".join).filter(quotes_closed))
def test_no_name_is_missed_at_a_glance(spec):
    values = [option.value for option in options(spec, hostnames._LISTS + hostnames._SINGLE)]
    names = [part.partition("/")[0] for value in values for part in value.split(",")]
    if any(":" not in name and re.search("[A-Za-z_]", name) for name in names):
        assert hostnames.may_name_hosts(spec)
