"""Ask many hosts at once, over minions or salt-ssh: one answer per host, whatever becomes of it.

salt-ssh tells of a failure in another form in each release; here all of them become an Answer.
"""

import math
import re
import shlex
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import salt.client
import salt.client.ssh.client
from _iptlive_printable import brief, clean, printable

LONGEST_ERROR = 4000

_PREFIX = re.compile(
    r"^(?:ERROR: |Error running '[\w.]+': |An Exception occurred while executing [\w.]+: "
    r"|The minion function caused an exception: )+"
)
_NO_MODULE = re.compile(r"'iptlive[.\w]*' is not available")
_SYNC = "The modules are not on this minion: run salt {} saltutil.sync_all"
_SERVE = "The modules are not served: put them into the master's file_roots, or install the extension there"


class Targets(NamedTuple):
    """Which hosts, and the way to them."""

    tgt: Any
    tgt_type: str = "glob"
    ssh: bool = False
    batch: Any = None
    timeout: Optional[int] = None


class Answer(NamedTuple):
    """What a host said: a dictionary, or why there is none. A silent host gave no answer at all."""

    host: str
    value: Optional[Dict[str, Any]] = None
    error: str = ""
    silent: bool = False


def ask(opts, targets: Targets, function: str, **arguments) -> Iterator[Answer]:
    """Call a function on all targets; every target answers exactly once."""
    if targets.ssh:
        yield from _ask_ssh(opts, targets, function, arguments)
        return
    with salt.client.get_local_client(mopts=opts) as client:
        for tgt, tgt_type, silent in _batches(client, targets):
            yield from map(silence, silent)
            if tgt:
                yield from _ask_minions(client, targets._replace(tgt=tgt, tgt_type=tgt_type), function, arguments)


def _batches(client, targets: Targets) -> Iterator[Tuple[Any, str, List[str]]]:
    """(target, its type, hosts known to be silent): as Salt's own batches, only hosts that answer a ping are asked."""
    if not targets.batch:
        yield targets.tgt, targets.tgt_type, []
        return
    pinged = list(_ask_minions(client, targets, "test.ping", {}))
    there = sorted(answer.host for answer in pinged if not answer.silent)
    size = batch_size(targets.batch, len(there))
    yield [], "list", [answer.host for answer in pinged if answer.silent]
    for start in range(0, len(there), size):
        yield there[start : start + size], "list", []


def batch_size(batch: Any, hosts: int) -> int:
    """How many hosts at a time: ``5``, or ``20%`` of them; at least one. Raises ValueError."""
    text = str(batch).strip()
    size = math.ceil(hosts * float(text[:-1]) / 100) if text.endswith("%") else int(text)
    if size < 0 or (size == 0 and hosts):
        raise ValueError(batch)
    return max(1, size)


def _ask_minions(client, targets: Targets, function: str, arguments) -> Iterator[Answer]:
    answers = client.cmd_iter(
        targets.tgt,
        function,
        kwarg=arguments,
        tgt_type=targets.tgt_type,
        timeout=targets.timeout,
        expect_minions=True,
        yield_pub_data=True,
    )
    asked, seen = set(), set()
    for answer in answers:
        if answer and {"jid", "minions"} <= set(answer):  # the job itself, and the minions that it goes to
            asked.update(answer["minions"])
            continue
        for host, reply in (answer or {}).items():
            if host not in seen:
                seen.add(host)
                yield _minion_answer(host, reply)
    # Salt forgets a minion that answered its question after the job with an error.
    yield from (silence(host) for host in sorted(asked - seen))


def silence(host: str) -> Answer:
    return Answer(host, error="nothing came back in time", silent=True)


def _minion_answer(host: str, reply: Dict[str, Any]) -> Answer:
    if reply.get("failed"):
        return silence(host)
    return _hinted(_answer(host, reply.get("ret")), _SYNC.format(shlex.quote(host)))


def _ask_ssh(opts, targets: Targets, function: str, arguments) -> Iterator[Answer]:
    opts = dict(opts, ssh_max_procs=_procs(opts, targets.batch))
    client = salt.client.ssh.client.SSHClient(mopts=opts)
    for answer in client.cmd_iter(
        targets.tgt, function, kwarg=arguments, tgt_type=targets.tgt_type, timeout=targets.timeout
    ):
        for host, reply in answer.items():
            yield _hinted(_ssh_answer(host, reply), _SERVE)


def _procs(opts, batch: Any) -> int:
    """Over salt-ssh a batch is the number of connections at a time."""
    most = opts.get("ssh_max_procs", 25)
    return batch_size(batch, most) if batch else most


def _ssh_answer(host: str, reply: Any) -> Answer:
    if isinstance(reply, dict) and isinstance(reply.get("return"), dict):
        return _answer(host, reply["return"])
    if not isinstance(reply, dict):
        return _answer(host, reply)
    said = next((reply[key] for key in ("stderr", "return", "stdout", "_error") if reply.get(key)), "")
    # 255 is ssh's own exit status: the host was not reached, or did not let us in.
    return _answer(host, said)._replace(silent=reply.get("retcode") == 255)


def _answer(host: str, said: Any) -> Answer:
    """What a host said, whatever it is, as what can be shown."""
    if isinstance(said, dict):
        return Answer(host, value=clean(said))
    text = printable(_PREFIX.sub("", brief(said)[:LONGEST_ERROR].strip()))
    return Answer(host, error=text or "an empty answer")


def _hinted(answer: Answer, hint: str) -> Answer:
    """Whose host does not know our functions is told what to do about it."""
    if not _NO_MODULE.match(answer.error):
        return answer
    return answer._replace(error="{}. {}".format(answer.error.rstrip("."), hint))
