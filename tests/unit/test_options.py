"""Options: what is accepted, what is refused and how it is said, and whose setting counts for a chain."""

import pytest
from _iptlive_family import FAMILIES
from _iptlive_model import BUILTIN, Choices, InputError
from _iptlive_options import Options, parse
from hypothesis import given
from hypothesis import strategies as st

KEYS = st.builds(lambda family, table, chain: f"{family}/{table}/{chain}", st.sampled_from(["IPv4", "IPv6"]),
                 st.sampled_from(list(BUILTIN)), st.sampled_from(["INPUT", "MINE"]))  # fmt: skip
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "placement": st.sampled_from(["refuse", "after", "before"]),
        "reorder": st.booleans(),
        "duplicates": st.sampled_from(["refuse", "allow"]),
        "policy": st.sampled_from(["report", "enforce", "refuse"]),
    },
)
# What YAML may hold.
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from(["ipv4", "/x"])
)
MAPPINGS = st.dictionaries(st.one_of(st.text(max_size=4), st.integers(), st.just("ipv4")), PLAIN, max_size=2)
VALUES = st.one_of(PLAIN, st.lists(st.one_of(PLAIN, MAPPINGS), max_size=3), MAPPINGS)
WRONG = {
    "families": ["ipv5", [], None, ["ipv4", "arp"], {"ipv4": True}, [["ipv4"]], True],
    "files": ["/rules", {"v4": "/rules"}, {"ipv4": []}, {"ipv4": "rules.v4"}, {"ipv4": [None]}, None],
    "backend": ["nftables", None, ["nft"]],
    "placement": ["top", True],
    "duplicates": ["report", False],
    "policy": ["DROP", None],
    "reorder": ["yes", 1, None],
    "partial": ["true", 0],
    "confirm": [-1, True, "60"],
    "confirm_check": ["nobody", [], ["host"], ["host:0"], ["host:65536"], ["a b:1"], [22], {"host": 22}],
    "wait": [-1, True, "10", 1.5, None],
    "chains": [
        ["IPv4/filter/INPUT"],
        {"INPUT": {}},
        {"ipv4/filter/INPUT": {}},
        {"IPv4/broute/INPUT": {}},
        {"IPv4/filter/": {}},
        {"IPv4/filter/INPUT": "before"},
        {"IPv4/filter/INPUT": {"wait": 5}},
        {"IPv4/filter/INPUT": {"placement": "top"}},
        {4: {}},
    ],
}


def test_defaults():
    """Those of the documentation."""
    options = parse({})
    assert options == Options()
    assert options.families == ("ipv4", "ipv6")
    assert options.files == {
        "ipv4": ("/etc/iptables/rules.v4", "/etc/sysconfig/iptables"),
        "ipv6": ("/etc/iptables/rules.v6", "/etc/sysconfig/ip6tables"),
    }
    assert (options.backend, options.partial, options.wait) == ("auto", False, 10)
    assert options.choices("ipv4", "filter", "INPUT") == Choices("refuse", False, "refuse", "report")


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_wrong_value_is_named(name, value):
    with pytest.raises(InputError, match=rf"^option '{name}\b.*': expected .*, got ") as refusal:
        parse({name: value})
    assert str(refusal.value).rpartition(", got ")[2] in repr(value)


def test_unknown_option_is_named_with_those_that_exist():
    with pytest.raises(
        InputError, match=r"^unknown option 'placment'; known are backend, backup, boot, chains, .*\bplacement, .*wait$"
    ):
        parse({"placment": "before"})


@given(st.dictionaries(st.sampled_from(list(Options._fields)), VALUES, max_size=3))
def test_any_value_is_read_or_refused(given_options):
    try:
        options = parse(given_options)
    except InputError as err:
        assert any(f"option '{name}" in str(err) for name in given_options)
        return
    assert options.families and set(options.families) <= set(FAMILIES)
    assert all(options.files[family] for family in options.families)


@given(SETTINGS, st.dictionaries(KEYS, SETTINGS))
def test_a_chains_own_setting_counts_more(general, chains):
    options = parse(dict(general, chains=chains))
    for key in list(chains) + ["IPv4/filter/OTHER"]:
        family, table, chain = key.split("/")
        expected = {**Choices()._asdict(), **general, **chains.get(key, {})}
        assert options.choices(family.lower(), table, chain)._asdict() == expected


def test_short_forms():
    options = parse({"families": "ipv6", "files": {"ipv6": "/my/rules"}})
    assert (options.families, options.files["ipv6"]) == (("ipv6",), ("/my/rules",))
    assert options.files["ipv4"] == Options().files["ipv4"]
    assert parse({"families": ["ipv6", "ipv4", "ipv6"]}).families == ("ipv4", "ipv6")
