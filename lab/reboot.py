"""
Stored files, rebooted: what a plan says of a file must be what a fresh kernel makes of it.

    python3 -m lab.reboot --files 1000 [--corpus FOLDER]

For each file a host is emptied, as after a boot, and a plan is asked; then the loader's own command loads the file, and
the host is planned again. Either nothing was said, the file loads and is in sync; or something was said, and it does
not. The files are drawn from what people write, well or badly, and, with ``--corpus``, taken from a folder of dumps
(``*.v4``, ``*.v6``). Prints one line for each disagreement, and the figures.
"""

import argparse
import random
import sys
from collections import Counter
from pathlib import Path

from lab.host import BACKENDS, Host, SaltError

FILES = {"ipv4": "/etc/iptables/rules.v4", "ipv6": "/etc/iptables/rules.v6"}
CHAINS = ["INPUT", "FORWARD", "OUTPUT", "MINE", "OTHER", "LOG_AND_DROP"]
MATCHES = ["", "-i lo", "-s 192.0.2.0/24", "-p tcp --dport 22", "-p tcp -m multiport --dports 80,443", "-i +"]
MATCHES += ["-s 192.0.2.1,192.0.2.2", "-m conntrack --ctstate NEW", "-m set --match-set good src", "-s localhost"]
RARE_MATCHES = ["-m set --match-set bad src", "-s nobody.invalid", "-m nosuch", "-p nosuch", "-4", "-6"]
TARGETS = ["ACCEPT", "DROP", "RETURN", "LOG", "REJECT", "MINE", "OTHER", "LOG_AND_DROP"]
RARE_TARGETS = ["NOWHERE", "DYN", "SNAT --to-source 192.0.2.9", "MASQUERADE", "CT --notrack"]
RARE_LINES = ["-F", "-F INPUT", "-Z", "-Z INPUT", "-X", "-P FORWARD DROP", "-N LATE", "# a comment", "", "  "]
RARE_LINES += [
    "#DELETE# -A INPUT -s 192.0.2.77 -j DYN",
    "-A LATE -j DROP",
    ":LATE - [0:0]",
    ":LATE [0:0]",
    "[1:2] -A INPUT",
]


def draw(random_):
    """The text of one file; most of its lines are fine, and most files have one or two that are not."""

    def pick(common, rare):
        return random_.choice(rare if random_.random() < 0.03 else common)

    def section(table):
        declared = [name for name in CHAINS[3:] if random_.random() < 0.9] if table == "filter" else []
        lines = [f":{name} - [0:0]" for name in declared]
        for _ in range(random_.randrange(9)):
            chain = random_.choice(CHAINS[:3] + declared if table == "filter" else ["PREROUTING", "OUTPUT"])
            rule = ["-A", chain, pick(MATCHES, RARE_MATCHES), "-j", pick(TARGETS[:4] + declared, RARE_TARGETS)]
            lines.append(" ".join(filter(None, rule)))
        if random_.random() < 0.2:
            lines.insert(random_.randrange(len(lines) + 1), random_.choice(RARE_LINES))
        if random_.random() < 0.05:
            random_.shuffle(lines)
        return [f"*{table}", *lines, "COMMIT"]

    tables = random_.choice([["filter"], ["filter"], ["filter", "nat"], ["filter", "filter"], ["mangle", "filter"]])
    text = "\n".join(line for table in tables for line in section(table)) + "\n"
    if random_.random() < 0.05:
        text = random_.choice([text.replace("\n", "\r\n"), text[:-1], "\ufeff" + text])
    return text


def trial(host, text, family="ipv4"):
    """(what the plan said, whether the file loads and is in sync); None for what it said where it could not plan."""
    host.reset()
    host.write("/etc/iptables/ipsets", "create good hash:net family inet\n")
    host.run(["ipset", "create", "good", "hash:net"])
    host.write(FILES[family], text)
    try:
        planned = host.call("iptlive.plan", families=[family], duplicates="allow").value
    except SaltError:
        said = None
    else:
        said = [warning for warning in planned["warnings"] if "would not come up at boot" in warning]
    program = "iptables-restore" if family == "ipv4" else "ip6tables-restore"
    text = text if isinstance(text, bytes) else text.encode()
    loads = host.run([program], input=text.decode("utf-8", "surrogateescape"), check=False).returncode == 0
    return said, loads and _in_sync(host, family)


def _in_sync(host, family):
    options = {"families": [family], "duplicates": "allow", "policy": "enforce", "boot": "ignore"}
    try:
        answer = host.call("iptlive.plan", **options).value
        return answer["status"] == "in_sync" and not answer["foreign"]
    except SaltError:
        return False


def agree(said, survives):
    return said is None or bool(said) != survives


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    drawn = [(f"drawn {n}", "ipv4", draw(random.Random(given.seed * 1_000_000 + n))) for n in range(given.files)]
    folder = sorted(given.corpus.glob("*.v[46]")) if given.corpus else []
    taken = [(path.name, "ipv" + path.name[-1], path.read_bytes()) for path in folder]
    wrong = 0
    for backend in BACKENDS:
        count = Counter()
        with Host(backend) as host:
            for name, family, text in taken + drawn:
                said, survives = trial(host, text, family)
                kind = "not planned" if said is None else "loads" if survives else "does not load"
                count[kind] += 1
                if not agree(said, survives):
                    wrong += 1
                    print(f"{backend}: {name}: the plan said {said}, and it {kind}\n{text!r}", flush=True)
        print(f"{backend}: {len(taken)} taken, {len(drawn)} drawn: {dict(count)}", flush=True)
    print(f"{wrong} disagreements")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
