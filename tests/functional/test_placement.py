"""Random chains on the real kernel: what holds after an update, and that a refusal leaves everything as it was."""

import random

from _iptlive_rules import parse_save
from chain_properties import check_refused, check_updated
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

PATH = "/etc/iptables/rules.v4"
# As the kernel prints them, and as a stored file may write them; X, Y and Z are foreign.
RULES = {
    "a": ("-i lo -j ACCEPT", "-j ACCEPT -i lo"),
    "b": ("-p tcp -m tcp --dport 22 -j ACCEPT", "-p tcp --dport ssh -j ACCEPT"),
    "c": ("-s 192.0.2.0/24 -j DROP", "-s 192.0.2.77/24 -j DROP"),
    "d": ("-m state --state RELATED,ESTABLISHED -j ACCEPT", "-m state --state ESTABLISHED,RELATED -j ACCEPT"),
    "e": ("-p udp -j MINE", "--protocol udp --jump MINE"),
    "X": ('-i docker0 -m comment --comment "put here by somebody else" -j ACCEPT', ""),
    "Y": ("-j THEIRS", ""),
    "Z": ("-p icmp -m limit --limit 5/sec -j ACCEPT", ""),
}
SPELLED = dict(RULES.values())
CHAINS = ("filter/INPUT", "filter/FORWARD", "filter/MINE", "raw/PREROUTING", "mangle/OUTPUT")

PAIRS = st.fixed_dictionaries(
    {
        "stored": st.lists(st.sampled_from("abcd"), max_size=6).map(lambda letters: [RULES[x][0] for x in letters]),
        "kernel": st.lists(st.sampled_from("abcdXXYZ"), max_size=8).map(lambda letters: [RULES[x][0] for x in letters]),
        "deletes": st.sets(st.sampled_from("deX"), max_size=1).map(lambda letters: [RULES[x][0] for x in letters]),
        "placement": st.sampled_from(["refuse", "after", "before"]),
        "reorder": st.booleans(),
        "duplicates": st.sampled_from(["refuse", "allow", "allow"]),
    }
)
# A smaller example is not worth the minutes that a real kernel takes to find it.
REAL = settings(phases=[Phase.explicit, Phase.reuse, Phase.generate])
OPTIONS = ("placement", "reorder", "duplicates")


def sections(chains, rules_of, headers):
    """Text in iptables-restore syntax; ``rules_of`` gives a chain's lines."""
    lines = []
    for table in dict.fromkeys(name.split("/")[0] for name in chains):
        lines += ["*" + table] + [f":{chain} - [0:0]" for chain in headers]
        for name in chains:
            if name.startswith(table + "/"):
                lines += rules_of(name.split("/")[1], chains[name])
        lines.append("COMMIT")
    return "\n".join(lines) + "\n"


def in_kernel(chain, pair):
    # Interfaces can only be matched where a packet has one of that direction.
    return [f"-A {chain} {fit(chain, rule)}" for rule in pair["kernel"]]


def in_file(chain, pair):
    lines = [f"-A {chain} {fit(chain, SPELLED.get(rule, rule))}" for rule in pair["stored"]]
    return lines + [f"#DELETE# -A {chain} {fit(chain, rule)}" for rule in pair["deletes"]]


def fit(chain, rule):
    return rule.replace("-i ", "-o ") if chain == "OUTPUT" else rule


def rules_of(tables, chains):
    """What the kernel holds, in the words of the pairs."""
    found = {}
    for name in chains:
        table, chain = name.split("/")
        rules = tables.get(table, {}).get(chain)
        found[name] = [rule.replace("-o ", "-i ") for rule in rules.rules] if rules else []
    return found


def check(host, chains, refusals, before):
    after = rules_of(parse_save(host.save()), chains)
    for name, pair in chains.items():
        told = refusals.get("IPv4/" + name)
        if told:
            assert after[name] == before[name]
            reasons = [refusal["reason"] for refusal in told]
            check_refused(pair["stored"], pair["deletes"], before[name], reasons, *map(pair.get, OPTIONS))
        else:
            check_updated(pair["stored"], pair["deletes"], before[name], after[name])
    return after


@settings(REAL, max_examples=60)
@given(st.fixed_dictionaries(dict.fromkeys(CHAINS, PAIRS)))
def test_random_chains(host, chains):
    host.reset()
    host.restore(sections(chains, in_kernel, ["MINE", "THEIRS"]))
    host.write(PATH, sections(chains, in_file, ["MINE"]))
    overrides = {"IPv4/" + name: {option: pair[option] for option in OPTIONS} for name, pair in chains.items()}
    options = {"families": ["ipv4"], "chains": overrides}
    text = host.save(counters=True)
    before = rules_of(parse_save(host.save()), chains)
    whole = host.call("iptlive.apply", **options)
    if whole.value["status"] == "refused":
        assert whole.retcode == 1 and host.save(counters=True) == text
    refused = host.call("iptlive.apply", partial=True, **options).value["refusals"]
    assert set(refused) == set(whole.value["refusals"])
    check(host, chains, refused, before)
    again = host.call("iptlive.plan", partial=True, **options).value
    assert (again["changes"], set(again["refusals"])) == ({}, set(refused))


def test_foreign_comment_that_looks_like_a_rule(host):
    """The command line takes a newline in a comment; what is printed then cannot even be loaded again."""
    host.restore("*filter\n-A INPUT -i lo -j ACCEPT\nCOMMIT\n")
    comment = 'one\n-A INPUT -j DROP\nCOMMIT " \\ two'
    host.run(["iptables", "-A", "INPUT", "-m", "comment", "--comment", comment, "-j", "ACCEPT"])
    host.run(["iptables", "-A", "INPUT", "-i", "eth1", "-j", "ACCEPT"])
    foreign = host.run(["iptables", "-S", "INPUT", "2"]).stdout
    assert foreign.count("\n") == 3
    rules = "-A INPUT -i lo -j ACCEPT\n-A INPUT -i eth0 -j DROP\n#DELETE# -A INPUT -i eth1 -j ACCEPT\n"
    host.write(PATH, f"*filter\n{rules}COMMIT\n")
    options = {"families": ["ipv4"], "placement": "after"}
    assert host.call("iptlive.apply", **options).value["applied"]
    assert host.run(["iptables", "-S", "INPUT", "2"]).stdout == "-A INPUT -i eth0 -j DROP\n"
    assert host.run(["iptables", "-S", "INPUT", "3"]).stdout == foreign
    assert host.run(["iptables", "-S", "INPUT", "4"], check=False).stdout == ""
    assert host.call("iptlive.plan", **options).value["status"] == "in_sync"


def dump(seed):
    """A ruleset like those of hosts with containers: many chains, many rules, some of them twice."""
    choose = random.Random(seed)
    chains = {name: [] for name in CHAINS}
    for number in range(choose.randint(60, 160)):
        name = choose.choice(CHAINS)
        source = f"-s 198.51.100.{choose.randint(0, 60)}/32"
        port = f"-p {choose.choice(['tcp', 'udp'])} -m multiport --dports {choose.randint(1, 9)},{number + 10}"
        rule = choose.choice([source, port, f"{source} {port}", f'-m comment --comment "service {number % 40}"'])
        chains[name].append(f"{rule} -j {choose.choice(['ACCEPT', 'RETURN', 'THEIRS'])}")
    return choose, chains


@settings(REAL, max_examples=12)
@given(st.integers(0, 10**6), st.sampled_from(["refuse", "after", "before"]))
def test_a_dump_split_at_random(host, seed, placement):
    """Each rule of a dump is stored, in the kernel, or both: in order, so that nothing need be moved."""
    choose, rules = dump(seed)
    chains = {}
    for name in CHAINS:
        where = [choose.choice(["stored", "kernel", "both", "both", "both"]) for _ in rules[name]]
        parts = {
            side: [rule for rule, place in zip(rules[name], where) if place in (side, "both")]
            for side in ("stored", "kernel")
        }
        chains[name] = dict(parts, deletes=[], placement=placement, reorder=False, duplicates="allow")
    host.reset()
    host.restore(sections(chains, in_kernel, ["MINE", "THEIRS"]))
    host.write(PATH, sections(chains, in_file, ["MINE"]))
    before = rules_of(parse_save(host.save()), chains)
    options = {"families": ["ipv4"], "partial": True, "duplicates": "allow", "placement": placement}
    refused = host.call("iptlive.apply", **options).value["refusals"]
    check(host, chains, refused, before)
    again = host.call("iptlive.plan", **options).value
    assert (again["changes"], set(again["refusals"])) == ({}, set(refused))
