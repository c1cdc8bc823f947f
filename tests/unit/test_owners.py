"""Whose a rule is: cases in ``owners.txt``, and the table as pillar extends it."""

from pathlib import Path

import _iptlive_owners as owners
import pytest
from _iptlive_model import InputError

CASES = [
    line.split(None, 1)
    for line in (Path(__file__).parent / "owners.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


def owner_of(known, case):
    place, _, rule = case.partition(" ")
    table, chain = place.split("/")
    owner = known.of_rule(table, chain, rule)
    assert known.of_rules(table, chain, [rule]) == [owner]
    assert known.of_rules(table, chain, ["-i eth9 -j DROP", rule]) == [
        known.of_rule(table, chain, "-i eth9 -j DROP"),
        owner,
    ]
    return owner


@pytest.mark.parametrize(("owner", "case"), CASES)
def test_owner_of_a_rule(owner, case):
    assert owner_of(owners.parse({}), case) == owner


def test_every_owner_has_a_case():
    assert {owner for owner, _ in CASES} == set(owners.OWNERS) | {owners.UNKNOWN}


def test_pillar_adds_to_an_owner_and_names_new_ones():
    known = owners.parse(
        {
            "docker": {"interfaces": ["mybridge"]},
            "portal": {"chains": ["PORTAL-*", "IN*"], "comments": ["portal: *"], "interfaces": ["guest*"]},
            "swarm": {"chains": "DOCKER-SWARM*"},
            "taps": {
                "interfaces": ["tap*"],
                "rules": [
                    "filter/FORWARD -m physdev --physdev-in {interface} -j ACCEPT",
                    "filter/OUTPUT( -o {interface})? -p 99",
                ],
            },
        }
    )
    assert owner_of(known, "filter/FORWARD -i mybridge ! -o mybridge -j ACCEPT") == "docker"
    assert owner_of(known, "filter/FORWARD -o docker0 -j DOCKER") == "docker"
    assert owner_of(known, "filter/INPUT -j PORTAL-IN") == "portal"
    assert owner_of(known, 'filter/INPUT -m comment --comment "portal: voucher 7" -j ACCEPT') == "portal"
    assert owner_of(known, "filter/INPUT -i guest3 -p udp -j ACCEPT") == "portal"
    assert owner_of(known, "filter/FORWARD -i eth0 -o guest3 -j ACCEPT") == "portal"
    assert owner_of(known, "filter/FORWARD -m physdev --physdev-in tap0 -j ACCEPT") == "taps"
    assert owner_of(known, "filter/OUTPUT -p 99") == "taps"
    # A pattern that fits a built-in chain makes nobody the owner of all that is in it.
    assert owner_of(known, "filter/INPUT -i eth0 -p udp -j ACCEPT") == "unknown"
    # The user's own is the more precise.
    assert owner_of(known, "filter/FORWARD -j DOCKER-SWARM-1") == "swarm"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["docker"], "owners"),
        ({"docker": "docker0"}, "docker"),
        ({"docker": {"bridges": ["a"]}}, "bridges"),
        ({"docker": {"chains": [7]}}, "chains"),
        ({"docker": {"rules": ["filter/INPUT ("]}}, "filter/INPUT ("),
    ],
)
def test_wrong_settings_are_named(given, named):
    with pytest.raises(InputError, match="owners") as error:
        owners.parse(given)
    assert named in str(error.value)
