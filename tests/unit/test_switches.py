"""The programs' own options in rule lines are found however they are written, and nothing else is taken for one."""

import _iptlive_stored as stored
import _iptlive_switches as switches
import pytest
from _iptlive_model import HostError
from hypothesis import given
from hypothesis import strategies as st

LONG = ["modprobe", "wait", "wait-interval", "numeric", "verbose", "line-numbers", "table", "help", "version", "exact"]
OWN = st.one_of(
    st.sampled_from(LONG).flatmap(lambda name: st.integers(1, len(name)).map(lambda end: "--" + name[:end])),
    st.sampled_from(["--modprobe=/x", "--wait=5", "--modp=/x", "--help=tcp"]),
    st.tuples(st.text("46bfnvxV", max_size=3), st.sampled_from("nvxVhMtwW"), st.sampled_from(["", "/x"])).map(
        lambda parts: "-" + "".join(parts)
    ),
)
QUOTED = st.sampled_from(["{}", '"{}"']) | st.just('-"{}"')
RULES = st.sampled_from(
    [
        "-s 192.0.2.1/32 -p tcp -m tcp --dport 22 -j ACCEPT",
        "-i lo -j ACCEPT",
        "! -i eth0 -f -m set --match-set x src -c 1 2 -g MINE",
        "-p tcp -m tcp --tcp-flags SYN,ACK SYN -m comment --comment text -j LOG --log-prefix new:",
        '-m comment --comment "a text -v" -m recent --set --name x --rsource -j LOG --log-prefix "-h "',
        "-m comment --comment --modprobe=/x -j NFLOG --nflog-prefix -v",
    ]
)


def file(spec):
    return f"*filter\n-A INPUT {spec}\n-A INPUT -j ACCEPT\nCOMMIT\n".encode()


@given(RULES, RULES, OWN, QUOTED)
def test_each_is_found_wherever_it_is(before, after, own, quoted):
    word = f'-"{own[1:]}"' if quoted == '-"{}"' else quoted.format(own)
    with pytest.raises(HostError, match="/rules, line 2: .*is an option of the iptables program itself"):
        stored.parse("ipv4", "/rules", file(f"{before} {word} {after}"))


@given(RULES, RULES)
def test_rules_hold_none(before, after):
    assert stored.parse("ipv4", "/rules", file(f"{before} {after}")).texts()


@pytest.mark.parametrize(
    "spec",
    [
        "-m comment --comment --comment --modprobe=/x",
        "-s --comment --modprobe=/x",
        "-m limit --limit --log-prefix -M/x",
        '-s --comment "--modprobe=/x"',
        '-m comment --comment "-" "-M/x"',
        '-m comment --comment "a\\"" "-M/x"',
    ],
)
def test_a_text_hides_none(spec):
    assert switches.may_hold(spec)
    assert switches.held(spec)


def test_in_front_of_the_command_and_in_a_deletion_too():
    for line in ("-M/x -A INPUT -j DROP", "#DELETE# -A INPUT -j DROP --modprobe /x", "[1:2] -A INPUT -t nat -j DROP"):
        with pytest.raises(HostError, match="line 2"):
            stored.parse("ipv4", "/rules", f"*filter\n{line}\nCOMMIT\n".encode())
