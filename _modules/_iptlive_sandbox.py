"""Sandboxes: places where rules are loaded and read back without being in force.

The best is a throw-away network namespace: nothing of the live firewall is touched, and what the kernel would refuse is
refused here, with the line's number. Where none can be made, and for rules that name an object of the live host, the
rules are listed inside a restore that fails on purpose: the same text, without the kernel's opinion.
"""

import contextlib
import os
import re
import subprocess
import sys
import threading
from typing import Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Set

import _iptlive_netlink as netlink
import _iptlive_spelling as spelling
from _iptlive_family import FAMILIES, label
from _iptlive_kernel import listing, present
from _iptlive_model import BUILTIN, HostError, Table
from _iptlive_netlink import Rule
from _iptlive_programs import TIMEOUT, Done, Tools, environment, message, run
from _iptlive_rules import parse_lists, sets
from _iptlive_spelling import Texts
from _iptlive_stored import StoredFile, StoredRule

_ERROR_LINE = re.compile(r"(?:Error occurred at line: |^line |: line )(\d+)", re.MULTILINE)
_NO_MODULE = re.compile(r"Extension (\S+) revision \d+ not supported")
_NOT_INSTALLED = "There is no {} '{}' on this host: correct the name, or install the extension"
FIXES = (
    (re.compile(r"Couldn't load (match) `([^']+)'"), _NOT_INSTALLED),
    (re.compile(r"Couldn't load (target) `([^']+)'"), _NOT_INSTALLED),
    (re.compile(r"host/network `([^']+)' not found"), "No address is known for '{}': correct it, or write the address"),
    (_NO_MODULE, "This kernel has no '{}': load or install its module"),
)


class Task(NamedTuple):
    """Rules to be read, and the chains of the kernel that they may jump to."""

    tools: Tools
    stored: StoredFile
    live: Dict[str, Table]

    def only(self, keep: Callable[[StoredRule], bool]) -> "Task":
        return self._replace(stored=self.stored.only(keep))


class Sandbox:
    """A place where rules can be read without being in force; this one can only list and discard."""

    kind = "dry run"
    caveat = ""
    can_load = False

    def run(self, argv: Sequence[str], stdin: str = "") -> Done:
        return run(self._prefix() + list(argv), stdin, own_lock=True)

    def restore(self, tools: Tools, text: str, *options: str) -> Done:
        """Run the restore program here, which neither takes nor waits for the host's xtables lock."""
        if tools.ways.reading == "private":
            return run([*self._private_prefix(), tools.restore, "-w", str(TIMEOUT), *options], text)
        return self.run([tools.restore, *options], text)

    def close(self) -> None:
        pass

    def _prefix(self) -> List[str]:
        return []

    def _private_prefix(self) -> List[str]:
        """Where there is another xtables lock."""
        raise HostError(
            "no throw-away network namespace can be made here, and to read the stored rules without one, iptables "
            "programs before 1.8.6 would take the host's xtables lock. Install iptables 1.8.6 or newer"
        )

    def _bench(self, tools: Tools) -> str:
        """A table that is there already: naming another one would create it (legacy)."""
        if tools.backend == "nft":
            return "filter"
        there = present(tools, BUILTIN)
        if not there:
            raise HostError(
                f"{label(tools.family)}: the kernel has no table yet, and without a throw-away network namespace "
                f"rules cannot be read without creating one. Create it: '{tools.command} -t filter -S'"
            )
        return there[0]

    def is_target(self, tools: Tools, name: str) -> bool:
        """Whether iptables has a target of that name: no chain may be called like one."""
        text = f"*{self._bench(tools)}\n-N {name}\n-D {spelling.NOWHERE} 1\nCOMMIT\n"
        return "clash with target name" in self.restore(tools, text, "--noflush").err

    def spell(self, task: Task, known_sets: Set[str]) -> Texts:
        """What each of the rules becomes."""
        return self._discarded(task)

    def _discarded(self, task: Task) -> Texts:
        tools = task.tools
        if not task.stored.texts():
            return {}
        load = spelling.to_discard(self._bench(tools), task.stored, task.live)
        done = self.restore(tools, load.text, "--noflush")
        if not done.out.endswith("\n") or load.marker.format(next(reversed(load.runs))) not in done.out:
            raise self._refused(task, load, done)
        for name in _NO_MODULE.findall(done.err):
            # The one opinion of the kernel's that can be had this way.
            raise _refusal(task, next(rule for rule in load.origin.values() if spelling.uses(rule.spec, name)), done)
        return spelling.became(load, [chain.rules for _, chain in parse_lists(done.out)])

    def _refused(self, task: Task, load: spelling.Load, done: Done) -> HostError:
        numbers = [int(number) for number in _ERROR_LINE.findall(done.err)]
        rule = next((load.origin[number] for number in numbers if number in load.origin), None)
        return _refusal(task, rule, done)


class Namespace(Sandbox):
    """A throw-away network namespace, held by a ``cat`` that ends with its standard input."""

    kind = "namespace"
    can_load = True
    _unshare = ("unshare", "--net", "cat")

    def __init__(self):
        self._mounts: Optional[_PrivateRun] = None
        self._lock = threading.Lock()  # both families may ask at once
        self._holder = _holder(self._unshare)

    def close(self) -> None:
        if self._mounts:
            self._mounts.close()
        with contextlib.suppress(BrokenPipeError):
            self._holder.communicate()

    def _private_prefix(self) -> List[str]:
        with self._lock:
            if self._mounts is None:
                self._mounts = _PrivateRun(self._prefix())
        return [*self._prefix(), *self._mounts.prefix]

    def _prefix(self) -> List[str]:
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", "--"]

    def _bench(self, tools: Tools) -> str:
        return "filter"

    def spell(self, task: Task, known_sets: Set[str]) -> Texts:
        self._make_sets(known_sets)
        if not spelling.may_name_objects("\n".join(task.stored.texts())):
            return self._committed(task)
        with_object = task.only(lambda rule: spelling.names_object(rule.spec))
        others = task.only(lambda rule: not spelling.names_object(rule.spec))
        return {**self._committed(others), **self._discarded(with_object)}

    def _make_sets(self, names: Iterable[str]) -> None:
        """Stubs: for a rule's text a set's type and content do not matter, and a list:set belongs to both families."""
        stubs = "".join(f"create {name} list:set\n" for name in sorted(names))
        if stubs:
            done = self.run(["ipset", "restore", "-exist"], stubs)
            if done.status:
                raise HostError(f"ipset restore in the throw-away namespace: {message(done.err)}")

    def _committed(self, task: Task) -> Texts:
        load = spelling.to_commit(task.stored, task.live)
        # One program loads, commits, then names the tables anew, which makes it read them from the kernel, and lists.
        done = self._loaded(task.tools, load)
        if done.status:
            raise self._not_loaded(task, load, done)
        return spelling.became(load, [chain.rules for _, chain in parse_lists(done.out)])

    def _loaded(self, tools: Tools, load: spelling.Load) -> Done:
        if tools.ways.lists_after_commit:
            return self.restore(tools, load.text + listing(load.chains), "--noflush")
        done = self.restore(tools, load.text, "--noflush")
        return done if done.status else self.restore(tools, listing(load.chains), "--noflush")

    def written(self, tools: Tools, table: str, printed: Sequence[str], chains: Iterable[str]) -> List[Optional[Rule]]:
        """What iptables writes into the kernel for rules as they are printed; None for one that it does not take."""
        self._make_sets({name for rule in printed for name in sets(rule)})
        start = ["*" + table] + [f":{chain} - [0:0]" for chain in list(chains) + [spelling.BENCH]]

        def load(rules: Sequence[str]) -> Optional[List[Rule]]:
            lines = [f"-A {spelling.BENCH} {rule}".rstrip(" ") for rule in rules]
            if self.restore(tools, "\n".join(start + lines + ["COMMIT", ""]), "--noflush").status:
                return None
            dump = [sys.executable, "-I", netlink.__file__, str(FAMILIES[tools.family].number), table, spelling.BENCH]
            done = self.run(dump)
            if done.status:
                raise HostError(f"{' '.join(dump)}: {message(done.err)}")
            return [netlink.rule(data) for data in netlink.from_json(done.out)]

        found = load(printed)
        if found is None or len(found) != len(printed):
            return [one[0] if one and len(one) == 1 else None for one in ([load([rule]) for rule in printed])]
        return list(found)

    def _not_loaded(self, task: Task, load: spelling.Load, done: Done) -> HostError:
        """A refusal at COMMIT names no rule: find the shortest beginning of the file that is refused."""
        numbers = [int(number) for number in _ERROR_LINE.findall(done.err)]
        if any(number in load.origin for number in numbers):
            return self._refused(task, load, done)

        rules = sorted(load.origin.values(), key=lambda rule: rule.line)

        def attempt(count: int) -> Done:
            beginning = task.stored.only(lambda rule: count > 0 and rule.line <= rules[count - 1].line)
            return self.restore(task.tools, spelling.to_commit(beginning, task.live).text)

        if attempt(0).status:
            return _refusal(task, None, done)
        good, bad = 0, len(rules)
        while bad - good > 1:
            middle = (good + bad) // 2
            tried = attempt(middle)
            if tried.status:
                bad, done = middle, tried
            else:
                good = middle
        return _refusal(task, rules[bad - 1], done)


class _PrivateRun:
    """A mount namespace with an empty /run, and so with another xtables lock; for programs that look nowhere else."""

    def __init__(self, prefix: Sequence[str]):
        self._holder = _holder([*prefix, "unshare", "--mount", "cat"])
        self.prefix = ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--"]
        done = run([*prefix, *self.prefix, "mount", "-t", "tmpfs", "iptlive", "/run"])
        if done.status:
            self.close()
            raise HostError(f"no private /run for the iptables programs: {message(done.err)}")

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._holder.communicate()


def _holder(argv: Sequence[str]) -> subprocess.Popen:
    """A ``cat`` that holds the namespaces which the words before it make: they are there when it has answered."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    holder = subprocess.Popen(argv, env=environment(), **pipes)
    with contextlib.suppress(BrokenPipeError):
        holder.stdin.write(b"\n")
        holder.stdin.flush()
    if holder.stdout.read(1):
        return holder
    refusal = holder.stderr.read().decode("utf-8", "replace")
    with contextlib.suppress(BrokenPipeError):
        holder.communicate()
    raise HostError(message(refusal))


class UserNamespace(Namespace):
    """The same without CAP_SYS_ADMIN: a user namespace comes first, in which every user keeps its number."""

    kind = "user namespace"
    _unshare = ("unshare", "--user", "--net", "cat")

    def __init__(self):
        super().__init__()
        try:
            for name in ("uid_map", "gid_map"):
                with open(f"/proc/{self._holder.pid}/{name}", "w", encoding="ascii") as mapping:
                    mapping.write("0 0 4294967295\n")
            # Some distributions hand out user namespaces that may do nothing in them.
            done = self.run(["ip", "link", "set", "lo", "up"])
        except (OSError, HostError) as err:
            self.close()
            raise HostError(str(err)) from err
        if done.status:
            self.close()
            raise HostError(message(done.err))

    def _prefix(self) -> List[str]:
        spaces = f"/proc/{self._holder.pid}/ns"
        return ["nsenter", f"--user={spaces}/user", f"--net={spaces}/net", "--"]


class OnDemand:
    """The sandbox, opened for the first who needs it, and one for all."""

    def __init__(self, stack: contextlib.ExitStack):
        self._stack = stack
        self._lock = threading.Lock()
        self._sandbox: Optional[Sandbox] = None

    def __call__(self) -> Sandbox:
        with self._lock:
            if self._sandbox is None:
                self._sandbox = self._stack.enter_context(open_sandbox())
            return self._sandbox


@contextlib.contextmanager
def open_sandbox() -> Iterator[Sandbox]:
    """The best of the three that this host allows."""
    sandbox, why = None, ""
    for kind in (Namespace, UserNamespace):
        try:
            sandbox = kind()
            break
        except (HostError, OSError) as err:
            why = str(err)
    if sandbox is None:
        sandbox = Sandbox()
        sandbox.caveat = (
            f"no throw-away network namespace can be made here ({why}), so the stored rules were read but not "
            "tried; what the kernel would refuse shows only when they are applied"
        )
    try:
        yield sandbox
    finally:
        sandbox.close()


def _refusal(task: Task, rule: Optional[StoredRule], done: Done) -> HostError:
    where = f"{task.stored.path}, line {rule.line}" if rule else task.stored.path
    what = f" the rule '-A {rule.chain} {rule.spec}'" if rule else " it"
    program = os.path.basename(task.tools.restore)
    fix = (
        "Correct the line"
        if rule
        else "No rule is to blame: see whether the kernel has these tables, and the chains' names"
    )
    for pattern, sentence in FIXES:
        found = pattern.search(done.err)
        if found:
            fix = sentence.format(*found.groups())
            break
    return HostError(f"{where}: {program} refuses{what}: {message(done.err).rstrip('.')}. {fix}; nothing was changed")
