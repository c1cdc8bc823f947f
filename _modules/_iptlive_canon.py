"""Stored rules in the kernel's own spelling: loaded into a throw-away network namespace and read back.

Nothing of the live firewall is touched, and what the kernel would refuse is refused here, with the line's number.
"""

import os
import re
import subprocess
import tempfile
from typing import Container, Dict, Iterable, List, Sequence, Set

from _iptlive_kernel import Done, Tools, environment, message, run
from _iptlive_model import HostError, Table
from _iptlive_rules import parse_save, sets
from _iptlive_scratch import Load, build
from _iptlive_stored import StoredFile, StoredRule

_ERROR_LINE = re.compile(r"(?:Error occurred at line: |^line |: line )(\d+)", re.MULTILINE)


def existing_sets() -> Set[str]:
    """The names of the live ipsets."""
    done = run(["ipset", "list", "-n"])
    if done.status:
        raise HostError(f"ipset list: {message(done.err)}")
    return set(done.out.split())


class Scratch:
    """A throw-away network namespace, held by a ``cat`` that ends with its standard input."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="iptlive-")
        self._holder = subprocess.Popen(
            ["unshare", "--net", "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
        )
        self._holder.stdin.write(b"\n")
        self._holder.stdin.flush()
        if not self._holder.stdout.read(1):
            refusal = self._holder.stderr.read().decode("utf-8", "replace")
            self.close()
            raise HostError(f"no throw-away network namespace can be made here: {message(refusal)}")

    def __enter__(self) -> "Scratch":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def close(self) -> None:
        self._holder.communicate()
        self._folder.cleanup()

    def run(self, argv: Sequence[str], stdin: str = "") -> Done:
        lock = os.path.join(self._folder.name, os.path.basename(argv[0]))
        return run(["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", "--"] + list(argv), stdin, lock)

    def make_sets(self, names: Iterable[str]) -> None:
        """Stubs: for a rule's text neither type nor content of a set matters."""
        stubs = "".join(f"create {name} hash:ip\n" for name in sorted(names))
        done = self.run(["ipset", "restore", "-exist"], stubs)
        if done.status:
            raise HostError(f"ipset restore in the throw-away namespace: {message(done.err)}")

    def load(self, tools: Tools, text: str) -> Done:
        return self.run([tools.restore], text)

    def listing(self, tools: Tools) -> Dict[str, Table]:
        done = self.run([tools.save])
        if done.status:
            raise HostError(f"{tools.save}: {message(done.err)}")
        return parse_save(done.out)


def canonical(scratch: Scratch, tools: Tools, stored: StoredFile, live: Dict[str, Table]):
    """The stored file's load and what it became in the throw-away namespace: (Load, listing).

    Raises HostError naming file, line and the program's message for the first rule that is not accepted.
    """
    known_sets = _stored_sets(stored)
    if known_sets:
        scratch.make_sets(known_sets & existing_sets())
    load = build(stored, live)
    done = scratch.load(tools, load.text)
    if done.status:
        raise _refused(scratch, tools, stored, live, load, done)
    return load, scratch.listing(tools)


def _stored_sets(stored: StoredFile) -> Set[str]:
    return {name for table in stored.tables.values() for rule in table.rules for name in sets(rule.spec)}


def _refused(scratch: Scratch, tools: Tools, stored: StoredFile, live, load: Load, done: Done) -> HostError:
    numbers = [int(number) for number in _ERROR_LINE.findall(done.err)]
    rule = next((load.origin[number] for number in numbers if number in load.origin), None)
    if rule is None:
        rule, done = _bisect(scratch, tools, stored, live, done)
    where = f"{stored.path}, line {rule.line}" if rule else stored.path
    what = f" the rule '-A {rule.chain} {rule.spec}'" if rule else " it"
    return HostError(
        f"{where}: {os.path.basename(tools.restore)} refuses{what}: {message(done.err)}. Correct the line; nothing "
        "was changed"
    )


def _bisect(scratch: Scratch, tools: Tools, stored: StoredFile, live, done: Done):
    """A refusal at COMMIT names no rule: find the shortest beginning of the file that is refused."""
    rules: List[StoredRule] = [rule for table in stored.tables.values() for rule in table.rules]
    good, bad, answer = 0, len(rules), done

    def attempt(count: int) -> Done:
        chosen: Container[StoredRule] = set(rules[:count])
        return scratch.load(tools, build(stored, live, chosen).text)

    if attempt(0).status:
        return None, done
    while bad - good > 1:
        middle = (good + bad) // 2
        tried = attempt(middle)
        if tried.status:
            bad, answer = middle, tried
        else:
            good = middle
    return (rules[bad - 1] if rules else None), answer
