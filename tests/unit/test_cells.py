"""Cells: whatever the rules are, all packets of one cell meet the same fate, and every packet is in a cell."""

import ipaddress

import _iptlive_spans as spans
import pytest
from _iptlive_cells import Ground
from _iptlive_expect import parse
from _iptlive_regions import Surveyor
from _iptlive_shapes import Ruleset, shape
from _iptlive_trials import trials
from hypothesis import given
from hypothesis import strategies as st
from proof_host import FACTS, Packet, Rule, routes, table, verdict

NETS = ["192.0.2.0/24", "192.0.2.7/32", "192.0.2.128/25", "10.0.0.0/8", "10.0.0.5/32", "0.0.0.0/1", "203.0.113.0/28"]
OWN = ["198.51.100.10/32", "10.0.0.2/32", "198.51.100.0/24"]
PORTS = ["22", "80", "20:25", "79:8080", "1024:65535"]
SPORTS = ["53", "1:1023", "40000:50000"]
SETS = {"bans": ["192.0.2.7/32", "203.0.113.4/30", "10.0.0.64/26"]}
SET_FACTS = {"bans": {"type": "hash:net", "family": "inet", "members": SETS["bans"]}}


@st.composite
def rules(draw, targets=("ACCEPT", "DROP", "MINE")):
    protocol = draw(st.sampled_from(["", "tcp", "udp"]))
    return Rule(
        source=draw(st.sampled_from(["", *NETS])),
        not_source=draw(st.booleans()),
        destination=draw(st.sampled_from(["", "", *OWN])),
        protocol=protocol,
        port=draw(st.sampled_from(["", *PORTS])) if protocol else "",
        sport=draw(st.sampled_from(["", "", *SPORTS])) if protocol else "",
        inside=draw(st.sampled_from(["", "", "eth0", "eth1"])),
        set_name=draw(st.sampled_from(["", "", "bans"])),
        target=draw(st.sampled_from(targets)),
    )._replace(**({} if draw(st.booleans()) else {"not_source": False}))


RULESETS = st.fixed_dictionaries({
    "INPUT": st.lists(rules(), max_size=6),
    "MINE": st.lists(rules(("ACCEPT", "DROP")), max_size=4),
})  # fmt: skip
ENTRIES = st.sampled_from([
    {"accept": "22/tcp", "from": "192.0.2.0/24"},
    {"block": "20-90/tcp", "except": ["10.0.0.0/24", "192.0.2.7"]},
    {"block": "53/udp"},
    {"accept": ["22/tcp", "53/udp"]},
    {"drop": "80/tcp", "from": ["203.0.113.0/24", "10.0.0.5"], "in": "eth1"},
    {"reject": "22/tcp", "to": "10.0.0.2", "from": "192.0.2.0/25"},
])  # fmt: skip


def holding(cells, packet):
    return [
        cell
        for cell in cells
        if cell.protocol == packet.protocol
        and cell.interface() == packet.interface
        and cell.destination.value == packet.destination
        and spans.holds([cell.source.span], packet.source)
        and spans.holds([cell.port], packet.port)
        and spans.holds([cell.sport], packet.sport)
    ]


def sent(cell):
    """The packet that stands for the cell."""
    made = cell.packet(whole=False)
    return Packet(
        int(ipaddress.ip_address(made["source"])),
        int(ipaddress.ip_address(made["destination"])),
        made["protocol"],
        made["port"],
        made["source_port"] or 45000,
        made["interface"],
    )


def unusual(source):
    """No packet comes from there."""
    return source >> 24 in (0, 127) or source >> 24 >= 224


def routed(source):
    return routes([("ipv4", str(ipaddress.ip_address(source)), None, None)])[0]


@given(RULESETS, ENTRIES, st.randoms(use_true_random=False))
def test_a_cell_has_one_verdict(content, entry, chance):
    """Any packet that an expectation is about is in just one cell, and fares as the packet that is tried for it."""
    (one,) = parse([entry])
    ruleset = Ruleset(table(content), {}, SET_FACTS)
    cells = trials(one, "ipv4", ruleset, Ground("ipv4", FACTS, routes), most=10**6).cells
    for _ in range(20):
        packet = drawn(one, chance)
        found = holding(cells, packet) if packet else None
        if found is not None:
            assert len(found) == 1, packet
            fates = [verdict(content, "INPUT", each, SETS) for each in (packet, sent(found[0]))]
            assert fates[0] == fates[1], (packet, found[0])


def drawn(one, chance):
    """A packet that the expectation is about; None where the one drawn is of no interest."""
    service = chance.choice(one.services)
    places = [place.span for place in one.sources] if one.sources else [spans.everything("ipv4")]
    near = [spans.span(net) for net in NETS]
    span = chance.choice(spans.common(near, places) or places)
    source = chance.randint(*span)
    interface, _, kind = routed(source)
    if kind != "unicast" or unusual(source) or spans.holds([place.span for place in one.excepted], source):
        return None
    interface = one.inside or interface
    own = {"eth0": ["198.51.100.10"], "eth1": ["10.0.0.1", "10.0.0.2"]}[interface]
    end = one.to.text if one.to else chance.choice(own)
    port = chance.randint(*service.ports)
    sport = 45000 if one.verb == "accept" else chance.choice([53, 700, 45000])
    return Packet(source, int(ipaddress.ip_address(end)), service.protocol, port, sport, interface)


@given(RULESETS, rules(("ACCEPT", "DROP")), st.integers(0, 6), st.randoms(use_true_random=False))
def test_what_an_insert_changes_is_in_its_region(before, rule, at, chance):
    """A packet that fares differently after the insert is in one of the inserted rule's cells."""
    after = dict(before, INPUT=before["INPUT"][:at] + [rule] + before["INPUT"][at:])
    ruleset = Ruleset(table(before), table(after), SET_FACTS)
    ground = Ground("ipv4", FACTS, routes)
    axes = Surveyor(ruleset, ground).axes("filter", "INPUT", rule.text())
    cells = [cell for one, _ in axes for cell in one.cells()]
    for _ in range(20):
        source = chance.randint(*spans.span(chance.choice([rule.source or NETS[0], *NETS])))
        interface, _, kind = routed(source)
        if kind != "unicast" or unusual(source):
            continue
        end = {"eth0": "198.51.100.10", "eth1": "10.0.0.2"}[interface]
        packet = Packet(source, int(ipaddress.ip_address(end)), chance.choice(["tcp", "udp"]),
                        chance.choice([22, 80, 24, 5000]), chance.choice([53, 700, 45000]), interface)  # fmt: skip
        if verdict(before, "INPUT", packet, SETS) != verdict(after, "INPUT", packet, SETS):
            found = [cell for cell in holding(cells, packet)
                     if cell.state == "new"]  # fmt: skip
            assert len(found) == 1, packet
            fates = [verdict(rules, "INPUT", sent(found[0]), SETS) for rules in (before, after)]
            assert fates == [verdict(rules, "INPUT", packet, SETS) for rules in (before, after)]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=8),
       st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=8))  # fmt: skip
def test_spans_are_sets(one, other):
    """What the arithmetic of spans says is what sets of numbers say."""
    spans_of = [[(low, low + more) for low, more in part] for part in (one, other)]
    numbers = [{n for low, high in part for n in range(low, high + 1)} for part in spans_of]
    assert {n for low, high in spans.without(*spans_of) for n in range(low, high + 1)} == numbers[0] - numbers[1]
    assert {n for low, high in spans.common(*spans_of) for n in range(low, high + 1)} == numbers[0] & numbers[1]
    assert spans.meet(*spans_of) == bool(numbers[0] & numbers[1])
    pieces = spans.cut(spans_of[0], spans.edges(spans_of[1]))
    assert sorted(n for low, high in pieces for n in range(low, high + 1)) == sorted(numbers[0])
    assert all(len({n in range(low, high + 1) for n in range(first, last + 1)}) == 1
               for first, last in pieces for low, high in spans_of[1])  # fmt: skip


@pytest.mark.parametrize(("text", "field", "value"), [
    ("! -s 10.0.0.0/8 -j DROP", "sources", (spans.span("10.0.0.0/8"),)),
    ("-p tcp -m multiport --dports 22,6000:6100 -j ACCEPT", "ports", ((22, 22), (6000, 6100))),
    ("-p tcp -m multiport --ports 53 -j ACCEPT", "either_ports", ((53, 53),)),
    ("-m iprange --src-range 10.0.0.5-10.0.0.9 -j DROP", "sources", ((0x0A000005, 0x0A000009),)),
    ("-s 10.0.0.0/255.0.255.0 -j DROP", "sources", (spans.span("10.0.0.0/8"),)),
    ('-m comment --comment "-s is no source" -j ACCEPT', "sources", ()),
    ("-m comment --comment -s -j ACCEPT", "sources", ()),
    ("-p ipv6-icmp -j ACCEPT", "protocol", "icmp"),
    ("-m set ! --match-set bans src,dst -j DROP", "sets", (("bans", ("src", "dst")),)),
    ("-p tcp -j DNAT --to-destination [2001:db8::2]:80", "to_addresses", (spans.span("2001:db8::2"),)),
])  # fmt: skip
def test_what_a_rule_names(text, field, value):
    assert getattr(shape(text), field) == value


def test_witnesses_for_each_rule():
    """Where there are too many cells every rule that can match still has a packet that it can match."""
    content = {"INPUT": [Rule(source=f"192.0.2.{n}/32", target="DROP") for n in range(200)] + [Rule()]}
    (one,) = parse([{"accept": "22/tcp"}])
    trial = trials(one, "ipv4", Ruleset(table(content), {}), Ground("ipv4", FACTS, routes), most=150)
    assert "tried with" in trial.note and len(trial.cells) <= 750
    packets = [sent(cell) for cell in trial.cells]
    assert all(any(rule.matches(packet, {}) for packet in packets) for rule in content["INPUT"])
