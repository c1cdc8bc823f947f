"""A stored line that the kernel prints needs no sandbox: the plan is the same as if every line were loaded into one.

``--corpus FOLDER`` plans all stored files of a folder both ways too (``NAME.v4`` and ``NAME.v6``).
"""

import contextlib
import json
import sys

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from lab.host import PREFIX, REPO

PATHS = {"ipv4": "/etc/iptables/rules.v4", "ipv6": "/etc/iptables/rules.v6"}
# Plans by the short and by the long way, again and again; each rule of the kernel that is refused is left out.
PLANNER = """
import json, subprocess, sys
sys.path.insert(0, sys.argv[1])
import _iptlive_options, _iptlive_printed, _iptlive_report, _iptlive_survey
from _iptlive_model import HostError

def plan(options):
    try:
        made = _iptlive_report.planned(_iptlive_survey.survey(_iptlive_options.parse(options)))
    except HostError as err:
        return {"error": str(err).partition("-restore")[0]}, None  # the rest is the program's: lines of its input
    return made, [family.pop("scratch") for family in made["families"].values()]

short = _iptlive_printed.texts
for line in sys.stdin:
    case = json.loads(line)
    for text in case["kernel"]:
        done = subprocess.run([case["restore"], "--noflush"], input=text.encode(), stderr=subprocess.DEVNULL)
    answer = [plan(case["options"])]
    _iptlive_printed.texts = lambda stored, live, doubts: {}
    answer.append(plan(case["options"]))
    _iptlive_printed.texts = short
    print(json.dumps(answer), flush=True)
"""


class Planner:
    def __init__(self, host):
        self._host = host
        argv = [sys.executable, "-I", "-c", PLANNER, str(REPO / "_modules")]
        self._process = host.popen(argv, stdin=-1, stdout=-1, text=True)

    def both(self, kernel, stored, family="ipv4", **options):
        """The plan by the short way and by the long way; the first also tells which sandbox it took."""
        self._host.write(PATHS[family], stored)
        options = {"families": [family], "placement": "after", "duplicates": "allow", **options}
        case = {"kernel": kernel, "restore": f"{PREFIX[family]}-restore", "options": options}
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        (short, kind), (long, _) = json.loads(self._process.stdout.readline())
        return short, long, kind

    def close(self):
        self._process.stdin.close()
        self._process.wait()


@contextlib.contextmanager
def planner_in(host):
    planner = Planner(host)
    yield planner
    planner.close()


def lines_in(text, lines):
    return "\n".join([text, *lines, "COMMIT", ""])


# --- generated -----------------------------------------------------------------------------------------------------

FILTER = "*filter\n:A - [0:0]\n:B - [0:0]\n:C - [0:0]"
NAT = "*nat\n:A - [0:0]\n:B - [0:0]"
HEADS = {
    "filter": ("INPUT", "FORWARD", "A", "B", "C"),
    "nat": ("PREROUTING", "POSTROUTING", "A", "B"),
}
SPECS = [
    "-i lo -j ACCEPT",
    "-j ACCEPT -i lo",
    "-p tcp -m tcp --dport 22 -j ACCEPT",
    "-p tcp --dport ssh -j ACCEPT",
    "-s 192.0.2.1,192.0.2.2 -j DROP",
    "-s 192.0.2.1/32 -j DROP",
    "-6 -j DROP",
    "-s localhost -j DROP",
    "-m set --match-set blocked src -j DROP",
    "-m set --match-set missing src -j DROP",
    '-m comment --comment "a b, -j C" -j RETURN',
    '-m comment --comment "say \\"no\\" -s a,b"',
    '-j LOG --log-prefix "end "',
    "-j A",
    "-p tcp -j B",
    "-g C",
    "-j THEIRS",
    "-j NOWHERE",
    "-o eth0 -j MASQUERADE",
    "-p tcp -j REDIRECT --to-ports 8080",
    "-j DNAT --to-destination 192.0.2.9",
    "-m owner --uid-owner 0 -j ACCEPT",
    "-j REJECT --reject-with icmp-port-unreachable",
    # What does not read back as itself, as it is written, and as it is printed.
    "-p ipcomp -m ipcomp --ipcompspi :",
    "-p ipcomp -m ipcomp",
    '-m recent --rcheck --name "a b"',
    "-m recent --rcheck --name a b --mask 255.255.255.255 --rsource",
    '-m set --match-set "two words" dst',
    "-m set --match-set two words dst",
    '-m recent --rcheck --name "a\\"b"',
    '-m recent --rcheck --name a"b --mask 255.255.255.255 --rsource -m comment --comment "',
    "",
]
MARKS = ("-A {} {}", "-A {} {}", "-A {} {}", "-I {} {}", "#DELETE# -A {} {}")


@st.composite
def pairs(draw):
    """The kernel's rules and a stored file that has much in common with them."""
    table = draw(st.sampled_from(["filter", "filter", "nat"]))
    placed = st.tuples(st.sampled_from(HEADS[table]), st.sampled_from(SPECS))
    kernel = draw(st.lists(placed, max_size=10))
    stored = list(kernel)
    for _ in range(draw(st.integers(0, 3))):
        if stored and draw(st.booleans()):
            stored.pop(draw(st.integers(0, len(stored) - 1)))
        else:
            stored.insert(draw(st.integers(0, len(stored))), draw(placed))
    marks = draw(st.lists(st.sampled_from(MARKS), min_size=len(stored), max_size=len(stored)))
    return table, kernel, [mark.format(*rule).rstrip(" ") for mark, rule in zip(marks, stored)]


def in_filter(kernel, stored):
    return "filter", kernel, [f"-A {chain} {spec}" for chain, spec in stored]


def in_nat(kernel, stored):
    return "nat", kernel, [f"-A {chain} {spec}" for chain, spec in stored]


@pytest.fixture
def prepared(host):
    host.run(["ipset", "create", "blocked", "hash:ip"])
    host.run(["ipset", "create", "two words", "hash:ip"])
    with planner_in(host) as planner:
        yield host, planner


# A loop, a rule below a hook where it is not allowed, and a way that is too long: each made by one new line of many.
LOOP = [("INPUT", "-j A"), ("A", "-j B"), ("B", "-p tcp -j C")]
MASQUERADE = [("POSTROUTING", "-j A"), ("A", "-j B"), ("B", "-o eth0 -j MASQUERADE")]
UPWARDS = [("PREROUTING", "-j A"), ("A", "-j B"), ("B", "-p tcp -j REDIRECT --to-ports 8080")]


@example(in_filter(LOOP, [*LOOP, ("C", "-j A")]))
@example(in_nat(MASQUERADE, [*MASQUERADE, ("PREROUTING", "-j A")]))
@example(in_nat(UPWARDS, [*UPWARDS, ("B", "-o eth0 -j MASQUERADE")]))
@settings(max_examples=25, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(pairs())
def test_generated(prepared, case):
    host, planner = prepared
    table, kernel, stored = case
    head = {"filter": FILTER, "nat": NAT}[table]
    loaded = [lines_in(f"{head}\n:THEIRS - [0:0]\n" + "\n".join(f"-F {chain}" for chain in HEADS[table]), [])]
    loaded += [lines_in("*" + table, [f"-A {chain} {spec}".rstrip(" ")]) for chain, spec in kernel]
    short, long, _ = planner.both(loaded, lines_in(head, stored))
    assert short == long


# --- files ---------------------------------------------------------------------------------------------------------


def as_saved(host, family, text):
    """What a file becomes in the kernel, as iptables saves it."""
    host.restore(text, family)
    return host.save(family)


def with_holes(text, every):
    """The text without some of its rules."""
    rules = [line for line in text.split("\n") if line.startswith("-A")]
    gone = set(rules[every // 2 :: every])
    return "\n".join(line for line in text.split("\n") if line not in gone)


def check_file(host, planner, family, text):
    saved = as_saved(host, family, text)
    for kernel, stored in ((saved, saved), (with_holes(saved, 5), saved), (saved, text), (with_holes(saved, 3), text)):
        host.restore(kernel, family)
        short, long, kind = planner.both([], stored, family)
        assert short == long
        if kernel == stored and host.backend == "legacy":  # what nft writes in many ways is loaded to be compared
            assert (short["status"], kind) == ("in_sync", ["none"])


def test_files(prepared, corpus):
    host, planner = prepared
    for path in corpus:
        family = {".v4": "ipv4", ".v6": "ipv6"}[path.suffix]
        host.reset()
        host.run(["ipset", "create", "lan", "hash:net"])
        host.run(["ipset", "create", "lan6", "hash:net", "family", "inet6"])
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        check_file(host, planner, family, text if text.endswith("\n") else text + "\n")
