"""No text from outside costs more than in proportion to its length: sixteen times the text is some sixteen times the
work. What is quadratic would be 256 times, and what is cubic 4,096 times; the bound is a quarter of the former."""

import contextlib
import time

import _iptlive_archive as archive
import _iptlive_hostnames as hostnames
import _iptlive_keyscan as keyscan
import _iptlive_known_hosts as known_hosts
import _iptlive_printable as printable
import _iptlive_rules as rules
import _iptlive_spelling as spelling
import _iptlive_stored as stored
import _iptlive_switches as switches
import pytest
from _iptlive_model import HostError

TIMES = 16
BOUND = 64


def file(*lines):
    return "\n".join(["*filter", *lines, "COMMIT", ""]).encode()


def parse(data):
    return stored.parse("ipv4", "/rules", data)


def load(data):
    return spelling.to_commit(parse(data), {})


# What is done, with what, and how large the small text is.
CASES = {
    "names of hosts": (hostnames.may_name_hosts, lambda n: "-s" * n + ":", 5000),
    "names of hosts, blanks": (hostnames.may_name_hosts, lambda n: "-s " + " " * n + "=" * n, 20000),
    "names of hosts, commas": (hostnames.may_name_hosts, lambda n: " -s " + "1," * n, 20000),
    "names of hosts, colons": (hostnames.may_name_hosts, lambda n: " -s a:" * n, 5000),
    "switches": (switches.may_hold, lambda n: " -4" + "4" * n, 50000),
    "switches, joined": (switches.may_hold, lambda n: " -4-" * n, 10000),
    "switches, texts": (switches.may_hold, lambda n: ' --comment "\\"' * n, 10000),
    "switches, words": (switches.held, lambda n: '-m comment --comment "a" ' * n, 300),
    "a quote left open": (rules.quotes_closed, lambda n: '"\\"' * n + '"', 20000),
    "a quote left open, many": (rules.quotes_closed, lambda n: '"a" \\' * n + '"', 20000),
    "words": (rules.words, lambda n: 'a" ' * n, 3000),
    "words, escapes": (rules.words, lambda n: '"' + "\\" * n, 20000),
    "targets": (rules.targets, lambda n: '-j "' * n, 3000),
    "targets of all": (rules.all_targets, lambda n: ["-j"] * n, 3000),
    "one line from many": (rules.logical_lines, lambda n: "a\n" * n + '"', 20000),
    "one text over all lines": (rules.logical_lines, lambda n: '-A a"b\n' + "-A x\n" * n, 1000),
    "becoming one": (spelling.becomes_one, lambda n: '-4 --ports --comment "' * n, 3000),
    "flushes": (parse, lambda n: file(*["-A INPUT -j ACCEPT", "-F"] * n), 150),
    "flushes behind": (parse, lambda n: file(*["-A INPUT"] * n, *["-F INPUT"] * n), 150),
    "flushes of nothing": (parse, lambda n: file(*["#DELETE# -A INPUT"] * n, *["-F"] * n), 150),
    "flushes in turn": (parse, lambda n: file(*["-A INPUT", "-A OUTPUT", "-F INPUT"] * n), 150),
    "sections": (parse, lambda n: b"*filter\nCOMMIT\n" * n, 300),
    "blanks": (parse, lambda n: file(*[" " * 1000] * n), 100),
    "marks": (parse, lambda n: file("#DELETE#" * n + "-A INPUT"), 100),
    "counters": (parse, lambda n: file(*["[1:" + "1" * 1000 + " -A INPUT"] * n), 100),
    "chains": (parse, lambda n: file(*[f":C{number} - [0:0]" for number in range(n)]), 500),
    "markers": (load, lambda n: file(*["-A INPUT -m comment --comment iptlive-line" + "-x" * 100] * n), 100),
    "markers, one long": (spelling._marker, lambda n: Texts("iptlive-line" + "-x" * n), 4000),
    "known hosts": (
        lambda data: list(map(known_hosts.read_line, known_hosts.split(data))),
        lambda n: b"\t@ a," * n,
        20000,
    ),
    "a scan": (lambda data: keyscan.offered(data, "a"), lambda n: b"a ssh-rsa " + b"A" * n + b"\n\x0c" * n, 3000),
    "an archive": (archive.unpacked, lambda n: "A" * n, 50000),
    "what is shown": (printable.printable_text, lambda n: "\x85\n" * n, 3000),
    "names that are shown": (printable.printable_name, lambda n: "\\" * n, 50000),
    "an answer": (printable.clean, lambda n: {"a": [["\x9b"] * n] * 2}, 2000),
    "an answer in short": (printable.brief, lambda n: ["a" * n] * n, 2000),
}


class Texts(str):
    """Stands for a stored file of one line."""

    def texts(self):
        return [str(self)]


def cost(function, argument):
    """The processor time of the quickest of five calls."""
    times = []
    for _ in range(5):
        start = time.thread_time()
        with contextlib.suppress(ValueError, HostError):
            function(argument)
        times.append(time.thread_time() - start)
    return min(times)


@pytest.mark.parametrize("case", CASES)
def test_cost_grows_with_the_length(case):
    function, make, size = CASES[case]
    assert cost(function, make(TIMES * size)) < BOUND * max(cost(function, make(size)), 0.0002)
