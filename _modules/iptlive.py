"""
Bring the live iptables rules in line with the stored rules file, without ever flushing them
============================================================================================

Two descriptions of one firewall exist on a host: the **stored** one, a rules file in iptables-restore syntax, and the
**kernel** one. Rules of the kernel that no stored line accounts for are **foreign**: somebody else's (Docker,
Kubernetes, fail2ban), and never touched. This module finds the smallest set of deletes and inserts after which every
stored rule stands in the kernel in stored order, puts each rule only where its neighbours prove that it belongs,
commits that in verified transactions, and reads the kernel again.

A rule is deleted when its line in the stored file is prefixed with ``#DELETE#``. A rule that is merely gone from the
stored file is foreign from then on, and stays.

Options may be given as arguments; an option that is not given is taken from pillar ``iptlive``:

.. code-block:: yaml

    iptlive:
      families: [ipv4]
      placement: refuse
      chains:
        IPv4/filter/FORWARD: {placement: before}

families
    Which families to manage. Default: ``[ipv4, ipv6]``.
files
    Per family, a path or a list of candidates of which exactly one must exist. Default: for ``ipv4``
    ``/etc/iptables/rules.v4`` and ``/etc/sysconfig/iptables``, for ``ipv6`` ``/etc/iptables/rules.v6`` and
    ``/etc/sysconfig/ip6tables``.
sources
    Per family, a ``salt://`` file, or a list whose first existing entry is taken, that becomes the stored file. It is
    planned first, and written (mode 0600) only after the kernel has accepted it; a refused plan changes neither.
    Default: none.
template, context, defaults
    How to render ``sources``, as for ``file.managed``. Default: none.
backup
    ``minion`` keeps a copy of a stored file that is replaced, as for ``file.managed``. Default: the minion's
    ``backup_mode``.
boot
    When the stored file would not load at boot, or load as something else than is planned: ``report`` it as a warning,
    ``refuse`` the chain, or ``ignore`` it and do not try. See :py:func:`boot`. Default: ``report``.
backend
    ``auto`` (whatever the host's ``iptables`` command is), ``nft`` or ``legacy``. Default: ``auto``.
placement
    Where rules go when foreign rules separate them from an anchor: ``refuse`` the chain; ``after``, right behind the
    anchor above (without one, in front of the anchor below); ``before``, the mirror image. Default: ``refuse``.
reorder
    ``true`` moves a stored rule that the kernel has in another order (a delete and an insert in one transaction)
    instead of refusing the chain. Default: ``false``.
duplicates
    ``refuse`` identical stored rules, or ``allow`` them, aligned as a sequence. Default: ``refuse``.
policy
    When a chain's policy differs: ``report`` it as a warning, ``enforce`` the stored one, or ``refuse`` the chain.
    Default: ``report``.
chains
    Overrides of ``placement``, ``reorder``, ``duplicates`` and ``policy`` for single chains, by keys like
    ``IPv4/filter/FORWARD``. Default: none.
owners
    Programs to recognise besides the known ones: per name ``chains``, ``comments`` and ``interfaces`` as shell
    patterns, see :py:func:`foreign`. They only name rules in results; no change depends on them. Default: none.
partial
    ``true`` updates the other chains when one is refused; ``false`` then changes nothing at all on this host.
    Default: ``false``.
wait
    Seconds to wait for the xtables lock and for a quiet ruleset. Default: ``10``.
confirm
    Seconds until an unconfirmed update rolls itself back; ``0`` keeps it. Default: ``0``.
confirm_check
    What confirms by itself: ``master``, a new connection to the master (where there is none, as ``manual``); a list
    of ``host:port`` that must all be reachable; ``manual``, only :py:func:`confirm`. Default: ``master``.

expect
    What must stay reachable and what must not be: a list of entries like ``{accept: 22/tcp, from: 192.0.2.0/24}`` or
    ``{block: 5432/tcp, except: 10.1.0.0/16}``. Each is tried with packets in a throw-away clone of the host that holds
    the rules as they will be; an update that breaks one is refused before anything is written. docs/expectations.md
    has all of it. Default: none.
opens
    ``refuse`` an update that lets in what was not let in before and what no ``accept`` of ``expect`` names, or only
    ``report`` what it opens and closes. Default: ``report``.

Only in pillar:

allow
    Paths and ``salt://`` files, as shell patterns, that a caller who is not root may name in ``files``, ``sources``,
    ``path`` and ``dest``, besides those that pillar names there. Default: ``[]``.
enabled
    ``false`` makes the state do nothing on this host, and say so. Default: ``true``.
hosts
    For the master: the roster ``iptlive``, in the fields of the original ``host-list.json``. Default: none.
fingerprints
    For the master: the host keys that the runner ``relearn_known_hosts`` may learn, by host. Default: none.
"""

import contextlib
import functools
import importlib
import os
import sys
import threading

import salt.utils.args
import salt.utils.files
from salt.exceptions import CommandExecutionError, SaltInvocationError

_PREFIX = "_iptlive_"


class _Rooms:
    """
    The private rooms of this file's own version, each loaded when it is first needed.

    A minion's parent process (beacons, the scheduler) outlives a sync of the modules, and may hold an old and a new
    version of this file at a time: so each keeps its rooms to itself, and loads none that was replaced after it.
    """

    def __init__(self):
        self._folder = os.path.dirname(__file__)
        self._stamps = self._stamped()
        self._loaded = {}
        self._lock = threading.RLock()

    def load(self, name):
        if name not in self._loaded:
            with self._lock, self._at_home():
                importlib.import_module(name)
        return self._loaded[name]

    def _stamped(self):
        with os.scandir(self._folder) as entries:
            stats = {entry.name: entry.stat() for entry in entries if entry.name.startswith(_PREFIX)}
        return {name: (stat.st_mtime_ns, stat.st_size, stat.st_ino) for name, stat in stats.items()}

    @contextlib.contextmanager
    def _at_home(self):
        """While a room is imported, and whatever it imports, only this version's rooms are to be seen."""
        if self._stamped() != self._stamps:
            raise CommandExecutionError("the modules of iptlive were replaced while this ran: run it again")
        others = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith(_PREFIX)}
        sys.modules.update(self._loaded)
        sys.path.insert(0, self._folder)
        # Each state run begins with a sync that deletes what Python has compiled beside the modules.
        kept, sys.pycache_prefix = sys.pycache_prefix, os.path.join(__opts__["cachedir"], "iptlive")
        try:
            yield
        finally:
            sys.pycache_prefix = kept
            sys.path.remove(self._folder)
            rooms = [name for name in sys.modules if name.startswith(_PREFIX)]
            self._loaded.update((name, sys.modules.pop(name)) for name in rooms)
            sys.modules.update(others)


class _Room:
    """Stands for a private room until something of it is needed."""

    def __init__(self, name):
        self._name = _PREFIX + name

    def __getattr__(self, name):
        return getattr(_ROOMS.load(self._name), name)


_ROOMS = _Rooms()
backup_room = _Room("backup")
boot_room = _Room("boot")
callers = _Room("callers")
drifting = _Room("drift")
expecting = _Room("expect")
exporter = _Room("export")
family_room = _Room("family")
whose = _Room("foreign")
grapher = _Room("graph")
hostnames = _Room("hostnames")
journal = _Room("journal")
model = _Room("model")
options_room = _Room("options")
owners = _Room("owners")
picturing = _Room("picture")
printables = _Room("printable")
proving = _Room("proof")
reach = _Room("reach")
report = _Room("report")
shadows = _Room("shadowed")
sources_room = _Room("sources")
survey = _Room("survey")
update = _Room("update")
watchdog = _Room("watchdog")

__virtualname__ = "iptlive"

PUBLISH_PORT = 4505  # the master's, unless it is set otherwise
PILLAR_ONLY = ("allow", "enabled", "fingerprints", "hosts")


def __virtual__():
    return __virtualname__


def plan(saltenv=None, **options):
    """
    Tell what :py:func:`apply` would change. Reads only: no rule, chain, table, counter or lock of the live
    firewall is created or changed.

    saltenv
        Where ``sources`` are looked for. Default: that of the minion, else ``base``.
    options
        See the module's description. What is not given is taken from pillar ``iptlive``.

    Returns a dictionary:

    status
        ``in_sync``, ``changes`` or ``refused``. A refusal sets the job's return code to 1.
    families
        Per family the stored ``file``, the ``backend`` and ``version`` of iptables, and ``scratch``: where the stored
        rules were read to know the kernel's spelling (``none`` where the kernel prints all of them as they are stored,
        ``namespace``, ``user namespace``, or ``dry run``, where the kernel was not asked whether it takes them).
    changes
        Per chain (``IPv4/filter/INPUT``) the steps in the order they would be taken: ``action`` (``create_chain``,
        ``delete``, ``insert``, ``policy``), ``position`` (counted from 1, as the plain command would take it at that
        moment), ``rule`` in the kernel's own spelling, ``line`` of the stored file. A moved rule shows as its delete
        and its insert, both with ``moved``. Empty where a chain is refused and ``partial`` is false.
    refusals
        Per chain a list of ``reason``, ``rules``, ``lines``, ``message`` and ``hint``; where foreign rules stand in
        the way also ``anchors``, ``foreign`` (the first twenty of these rules), as long a list of their ``owners``,
        and ``foreign_count``, how many there are in all.
    warnings
        A list of sentences.
    foreign
        Per chain that the stored files name, how many rules of whom stand there that no stored line accounts for,
        like ``{"docker": 6, "unknown": 1}``.
    neighbours
        Per changed chain pieces of the chain as it becomes, each from the stored rule above a group of changes to the
        one below. Each entry has ``position`` and ``rule``, and ``line`` (stored) or ``owner`` (foreign); what comes
        and goes has ``action`` too. Of many foreign rules in a row most are only counted: ``{"foreign": {...}}``.
        The first hundred entries of a host are given.

    expect
        Per expectation and family: ``expect`` (its name or words), ``family``, ``state`` (``holds``, ``broken`` or
        ``undecided``), ``was`` (the same with the rules as they are), ``packets`` (how many tried it), and the one
        that shows it best: ``witness``, ``leg`` (``request``, ``answer`` ..., where it failed), ``verdict``, ``rule``,
        ``line`` (stored) or ``owner`` (foreign); ``note``, ``message`` (a sentence where it does not hold), and
        ``default``, true for a minion's connections to its master, which nobody needs to write down. One that does
        not hold sets the return code to 1.
    verdicts
        What the changes mean: ``change`` (``opens``, ``closes``, ``changes``), ``service``, ``from``, ``to``, ``was``,
        ``becomes``, ``complete`` (false: at least these), ``state`` for open connections, and ``words``.
    proof
        ``packets``, ``clone`` (where they were tried; ``None``: nowhere), ``undecided``, and ``not_cloned``, what the
        clone lacks.
    files
        With ``sources``: the stored files that would be written, by path, each with ``source`` and ``diff``.

    Raises ``SaltInvocationError`` for an unknown or ill-typed option, and ``CommandExecutionError`` for a stored file
    that cannot be read or parsed or that iptables rejects, naming file, line and fix.

    CLI Example:

    .. code-block:: bash

        salt '*' iptlive.plan
        salt-call --local iptlive.plan families='[ipv4]' placement=before
    """
    _refuse_words(saltenv=saltenv)
    with _salt_errors():
        return _with_retcode(_looked_at(*_settings(options, saltenv)))


def apply(test=False, saltenv=None, **options):
    """
    Bring the kernel's rules in line with the stored files.

    Each table is changed in one transaction that is compared with the plan before it is committed; afterwards the
    kernel is read again. When a later table fails, the earlier ones are rolled back.

    test
        ``True``: change nothing, as :py:func:`plan`.
    saltenv
        Where ``sources`` are looked for. Default: that of the minion, else ``base``.
    options
        See the module's description. What is not given is taken from pillar ``iptlive``.

    Returns what :py:func:`plan` returns, and:

    written
        With ``sources``: the paths of the stored files that were written.
    applied
        Whether the kernel was changed. ``changes`` then holds what was really done.
    id
        The update's name in the journal, where something was changed.
    confirm
        With ``confirm``: what became of the update, as :py:func:`outcome` returns it. Where somebody must confirm it
        the state is ``pending``, and the call does not wait. One that was rolled back sets the return code to 1.

    Raises what :py:func:`plan` raises, and ``CommandExecutionError`` where the kernel refused the update or was found
    otherwise than planned.

    CLI Example:

    .. code-block:: bash

        salt '*' iptlive.apply test=True
        salt '*' iptlive.apply
    """
    _refuse_words(test, saltenv)
    with _salt_errors():
        settings, known = _settings(options, saltenv)
        if test:
            return _with_retcode(dict(_looked_at(settings, known), applied=False))
        if not enabled():
            raise model.HostError(
                "iptlive is disabled on this host (pillar iptlive:enabled is false): nothing was changed"
            )
        checks = _checks(settings.confirm_check) if settings.confirm else ()
        guard = update.Guard(settings.confirm, checks, reach.resolve(checks))
        differences = sources_room.differences(sources_room.changed(settings))
        contents = {new.path: new.data for new in settings.new_files.values()}
        files = update.Replacements(contents, functools.partial(_keep_old, settings.backup))
        prove = functools.partial(proving.prove, owners=known)
        applied = update.apply(settings, guard, watchdog.arm, files, prove)
        answer = report.applied(applied, update.settled(applied.entry))
        answer = whose.annotate(answer, applied.found, known, applied.steps())
        return _with_retcode(_with_files(answer, differences))


def _looked_at(settings, known):
    found = survey.survey(settings)
    answer = report.planned(found, _proved(found, settings, known))
    answer["warnings"] += journal.notices()
    differences = sources_room.differences(sources_room.changed(settings))
    return _with_files(whose.annotate(answer, found, known), differences)


def _proved(found, settings, known):
    """None where nothing changes and nothing is expected but what holds by itself: then no room is needed for it."""
    if found.refused() and not settings.partial:
        return None
    changes = any(plan.edits for _, plan in found.plans())
    return proving.prove(found, known) if changes or any(not one.own for one in settings.expect) else None


def _settings(given, saltenv):
    """The options, with the stored files that are to come from the master as their bytes; and the known owners."""
    options, known = _options(given, **({"saltenv": saltenv} if saltenv else {}))
    options = options._replace(expect=_expected(options.expect))
    saltenv = saltenv or __opts__.get("saltenv") or "base"
    return sources_room.fetched(options, saltenv, __salt__, CommandExecutionError), known


def _expected(given):
    """With addresses in the place of names; and what every minion's update must keep, the way to its master."""
    address, _, port = (_master() or "").rpartition(":")
    own = ()
    if address and not expecting.gives_up_master(given):
        own = expecting.of_minion((int(__opts__.get("publish_port", PUBLISH_PORT)), int(port)))
    return expecting.resolved(given + own, hostnames.addresses, address.strip("[]") or None)


def _with_files(answer, differences):
    """Tell of the stored files too; where the plan is refused they stay as they are."""
    if differences and answer["status"] != "refused":
        answer.update(files=differences, status="changes")
    return answer


def _keep_old(backup_mode, paths):
    """Salt's own file backups."""
    if __salt__["config.backup_mode"](backup_mode) not in ("minion", "both"):
        return []
    folder = os.path.join(__opts__["cachedir"], "file_backup")
    return sources_room.copied(paths, lambda path: salt.utils.files.backup_minion(path, folder))


def _checks(confirm_check):
    """The endpoints whose answer confirms an update; none where somebody must confirm it."""
    if isinstance(confirm_check, tuple):
        return confirm_check
    master = _master() if confirm_check == "master" else None
    return (master,) if master else ()


def _master():
    if __opts__.get("file_client") == "local" or not __opts__.get("master_uri"):
        return None  # salt-call --local and salt-ssh
    return __opts__["master_uri"].split("://", 1)[1]


def rollback(id=None, test=False, placement="refuse", wait=10):
    """
    Roll an update back: what it inserted is deleted, what it deleted comes back between the neighbours it had.

    It is undone by its inverse in the chains as they are now, not by restoring an old dump: rules that others have
    added since then stay. All of it is rolled back or, where one chain refuses, nothing.

    id
        Which update, as :py:func:`apply` or :py:func:`history` returns it, or ``last``. Without it nothing is changed:
        the answer tells which update ``last`` would be, and what rolling it back would do.
    test
        ``True``: change nothing, and tell what would be done.
    placement
        Where a deleted rule goes whose former neighbours are no longer adjacent: ``refuse``, ``after``, ``before``.
        Where no former rule is left at all, the latter two take the place of the update's own rules, else the end of
        the chain, and ``warnings`` says so.
    wait
        Seconds to wait for another run of iptlive to end.

    Returns ``id``, ``status`` (``changes``, ``refused``, or ``in_sync`` where nothing of it stands any more),
    ``applied``, ``changes``, ``refusals`` and ``warnings`` as :py:func:`apply` does.

    Raises ``SaltInvocationError`` where there is no such update, ``CommandExecutionError`` where there is none at all
    or the kernel refused.

    CLI Example:

    .. code-block:: bash

        salt '*' iptlive.rollback
        salt '*' iptlive.rollback last

    Or one that :py:func:`history` lists:

    .. code-block:: bash

        salt web1 iptlive.rollback 20260714-061500-123-4711
    """
    _refuse_words(test)
    with _salt_errors():
        choices = options_room.parse({"placement": placement, "wait": wait})
        chosen = None if id == "last" else id
        only_look = test or id is None
        return _with_retcode(report.rolled_back(update.rollback(chosen, choices.wait, choices.placement, only_look)))


def history():
    """
    List the updates of this host that the journal still knows, the newest first.

    Returns a list of dictionaries: ``id``, ``started``, ``state`` (``done``, ``pending``, ``rolled_back`` ...) and
    ``reason``, which tells how it was confirmed or why it was rolled back.

    CLI Example:

    .. code-block:: bash

        salt '*' iptlive.history
    """
    with _salt_errors():
        return report.history(journal.entries(steps=False))


def confirm(id=None):
    """
    Confirm the update that waits for it, so that it stays. Over salt-ssh this very call is the proof that a new
    connection can be made.

    id
        Which update; the pending one if left out.

    Returns the update: ``id``, ``state``, ``started``, ``reason``, ``seconds``, ``seconds_left`` and ``checks``; with
    ``sources`` also ``files``, the stored files that are written once it is confirmed.

    Raises ``CommandExecutionError`` where no update waits, and says what became of the last one.

    CLI Example:

    .. code-block:: bash

        salt-ssh web1 iptlive.confirm
    """
    with _salt_errors():
        return report.update(update.confirm(id, options_room.Options().wait))


def pending():
    """
    Tell which update waits for its confirmation.

    Returns what :py:func:`confirm` returns, or an empty dictionary.

    CLI Example:

    .. code-block:: bash

        salt '*' iptlive.pending
    """
    with _salt_errors():
        waiting = [entry for entry in journal.unfinished() if entry.state == "pending"]
        return report.update(waiting[-1]) if waiting else {}


def outcome(id):
    """
    Wait until an update with ``confirm`` is confirmed or rolled back. A rolled back one sets the return code to 1.

    id
        Which update.

    Returns what :py:func:`confirm` returns; ``state`` is ``confirmed`` or ``rolled_back``, ``reason`` tells why.

    CLI Example:

    .. code-block:: bash

        salt web1 iptlive.outcome 20260714-061500-123-4711
    """
    with _salt_errors():
        settled = report.update(update.outcome(id))
        if settled["state"] != "confirmed":
            __context__["retcode"] = 1
        return settled


def foreign(**options):
    """
    List the kernel's rules that no stored line accounts for, and whose they are. Reads only.

    All tables and chains of the kernel are looked at, also those that the stored files do not name. Owners are told
    by chains, comments and interfaces; the option ``owners`` adds to what is known:

    .. code-block:: yaml

        iptlive:
          owners:
            docker: {interfaces: [mybridge]}
            portal: {chains: ["PORTAL-*"], comments: ["portal: *"], interfaces: ["guest*"]}

    options
        See the module's description. What is not given is taken from pillar ``iptlive``.

    Returns a dictionary: per chain (``IPv4/filter/FORWARD``) a list of ``position``, ``rule`` and ``owner``
    (``docker``, ``kubernetes``, ``fail2ban`` ..., ``unknown``).

    Raises what :py:func:`plan` raises.

    CLI Example:

    .. code-block:: bash

        salt '*' iptlive.foreign
    """
    with _salt_errors():
        settings, known = _options(options)
        return whose.foreign(survey.survey(settings), known)


def shadowed(**options):
    """
    List the rules of the table ``filter`` that no packet comes to, and which rules take their packets. Reads only: the
    packets are sent in a throw-away clone of the host.

    For each rule, packets are made that it could match; a rule is listed when none of them came to it.

    options
        See the module's description. What is not given is taken from pillar ``iptlive``.

    Returns a dictionary:

    shadowed
        Per chain (``IPv4/filter/INPUT``) a list of ``position``, ``rule``, ``line`` (stored) or ``owner`` (foreign),
        ``complete`` (whether the packets stand for all that could come to it; otherwise some were tried), and
        ``taken_by``: the ``chain``, ``position``, ``rule`` and ``line`` or ``owner`` of up to three rules that took
        them, position 0 being the chain's policy.
    not_tried
        Per chain the positions of rules that no packet could be made for, such as those of an absent interface or of
        the loopback.
    rules, packets
        How many rules were looked at, and with how many packets.

    Raises what :py:func:`plan` raises, and ``CommandExecutionError`` where no clone can be made.

    CLI Example:

    .. code-block:: bash

        salt '*' iptlive.shadowed
    """
    with _salt_errors():
        settings, known = _options(options)
        return shadows.shadowed(survey.survey(settings), known)


def export(test=False, overwrite=False, **options):
    """
    Write the stored files from the live kernel, without the chains and rules of known other programs (those that
    :py:func:`foreign` names). For a host that never had a stored file, or whose file was saved with Docker's rules in
    it. The files are the ones that option ``files`` names, or the usual ones; the kernel is not changed.

    A file is written only when it plans as in sync with the kernel. Where a chain holds the same rule twice the second
    copy is left out, unless ``duplicates`` is ``allow``.

    test
        ``True``: write nothing, and return the text.
    overwrite
        ``True``: replace files that are there; the old ones are kept with ``.before-export`` added to their names.
    options
        See the module's description. What is not given is taken from pillar ``iptlive``.

    Returns per family ``file``, ``written``, ``rules`` (how many were exported), ``left_out`` (how many rules of each
    owner), ``warnings``, and with ``test`` the ``text``.

    Raises ``SaltInvocationError`` for an unknown or ill-typed option, and ``CommandExecutionError`` where a file is
    there already, or cannot be written.

    CLI Example:

    .. code-block:: bash

        salt-call iptlive.export test=True families='[ipv4]' --out=json
        salt '*' iptlive.export overwrite=True
    """
    with _salt_errors():
        _refuse_words(test)
        settings, known = _options(options)
        return exporter.export(settings, known, test, overwrite)


def graph(form="dot", path=None, **options):
    """
    Draw the chains of all tables and their jumps: what is stored, what is foreign and whose, what would change.
    Reads only. In a table with many chains those whose names begin alike are drawn as one.

    form
        ``dot`` (Graphviz), ``mermaid``, or ``svg`` where Graphviz is installed. Default: ``dot``.
    path
        A file to write; without it the text is returned.
    options
        See the module's description. What is not given is taken from pillar ``iptlive``.

    Returns the text, or the path it was written to.

    Raises what :py:func:`plan` raises, and ``CommandExecutionError`` where Graphviz is needed and missing.

    CLI Example:

    .. code-block:: bash

        salt-call iptlive.graph svg /var/tmp/firewall.svg
        salt-call iptlive.graph mermaid --out=txt
    """
    if path is not None and not str(path).startswith("/"):
        raise SaltInvocationError(f"path: expected an absolute path, got {path!r}")
    if form not in ("dot", "mermaid", "svg"):
        raise SaltInvocationError(f"form: expected dot, mermaid or svg, got {form!r}")
    with _salt_errors():
        settings, known = _options(options, path=path)
        pictures = [grapher.picture(view, known) for view in picturing.views(survey.survey(settings))]
        text = printables.printable_text(grapher.mermaid(pictures) if form == "mermaid" else grapher.dot(pictures))
        if form == "svg":
            text = picturing.svg(text)
        if path is None:
            return text
        exporter.write(path, text)
        return path


def backup(dest="/var/lib/iptlive/backup", retain=10, returned=False, **options):
    """
    Save the stored files and the kernel's rules, every table of each family.

    The files have the names of the original scripts: ``debian-v4-rules`` or ``centos-v4-rules`` (``stored-v4-rules``
    for a stored file elsewhere), ``in-kernel-v4-rules-filter`` and so on. Each can be given to :py:func:`plan` as
    ``files``, to compare it with the present, and to ``iptables-restore``.

    dest
        Where the folder ``iptables-backup-YYYYmmdd-HHMMSS`` is made (mode 0700, its files 0600). It appears whole or
        not at all.
    retain
        How many backups to keep there; the oldest are removed.
    returned
        ``True``: write nothing, and return the files' texts. ``packed``: write the folder, and return its first part
        for the runner ``iptlive.backup``.
    options
        ``families``, ``files`` and ``backend``, see the module's description.

    Returns ``files`` (names with sizes, or with ``returned=True`` with texts) and ``warnings``; where a folder was
    written also ``path`` and ``pruned``; with ``returned=packed`` also what :py:func:`backup_part` returns.

    Raises ``SaltInvocationError`` for wrong arguments, ``CommandExecutionError`` for what cannot be read or written.

    CLI Example:

    .. code-block:: bash

        salt '*' iptlive.backup
        salt '*' iptlive.plan files='{ipv4: /var/lib/iptlive/backup/iptables-backup-20260714-061500/debian-v4-rules}'
    """
    with _salt_errors():
        place = {"dest": dest} if dest != backup_room.PLACE else {}
        return backup_room.save(_options(options, **place)[0], dest, retain, returned)


def backup_part(path, part=0, **caller):
    """
    Return one part of a backup, for the runner ``iptlive.backup``: a large one does not fit into one answer.

    path
        The folder, as :py:func:`backup` returned it.
    part
        Which part, counted from 0.

    Returns ``parts`` (how many there are), ``part`` and ``archive``, its base64 text. All of them together are zlib
    data: for each file a line with its name and its length in bytes, and its bytes.

    CLI Example:

    .. code-block:: bash

        salt web1 iptlive.backup_part /var/lib/iptlive/backup/iptables-backup-20260714-061500
    """
    unknown = salt.utils.args.clean_kwargs(**caller)
    if unknown:
        salt.utils.args.invalid_kwargs(sorted(unknown))
    with _salt_errors():
        if os.path.dirname(str(path)) != backup_room.PLACE:
            callers.check(caller.get(callers.PUBLISHER), {"path": path}, _pillar())
        return backup_room.packed(backup_room.read(path), part)


def drift(since=None, **options):
    """
    Tell whether stored and live rules agree, at next to no cost where nothing has changed since the last look: the
    beacon's question. Reads only.

    since
        The ``fingerprint`` that the last call returned.
    options
        See the module's description. What is not given is taken from pillar ``iptlive``.

    Returns ``fingerprint``. Where it is another one than ``since`` it is planned, and the plan's summary returned too:
    ``status``, ``changes`` (how many per chain), ``refusals`` (the reasons per chain) and ``warnings``.

    Raises what :py:func:`plan` raises.

    CLI Example:

    .. code-block:: bash

        salt '*' iptlive.drift
    """
    with _salt_errors():
        settings, _ = _options(options)
        now = drifting.fingerprint(settings)
        if now == since:
            return {"fingerprint": now}
        return dict(drifting.summary(report.planned(survey.survey(settings))), fingerprint=now)


def boot(**options):
    """
    Tell whether the host would come up with its stored rules. Reads only: nothing is loaded but into a throw-away
    network namespace.

    options
        See the module's description. What is not given is taken from pillar ``iptlive``.

    Returns a dictionary:

    status
        ``loads``, or ``problems``, which sets the job's return code to 1.
    families
        Per family the ``file``; its ``loaders`` (units, or scripts of the network), each with ``name``, ``enabled``,
        ``before_network`` and ``before_docker`` (``None`` without Docker); ``sets``, the ipsets that the file names,
        and whether they are restored before; and the ``rehearsal``: what the loader's own command made of the file in
        a fresh namespace (``in_sync``, ``refused``, or ``None`` where none can be made).
    problems
        A list of sentences, each with its fix.

    Raises what :py:func:`plan` raises.

    CLI Example:

    .. code-block:: bash

        salt '*' iptlive.boot
    """
    with _salt_errors():
        answer = boot_room.boot(_options(options)[0])
        if answer["status"] == "problems":
            __context__["retcode"] = 1
        return answer


def enabled():
    """
    Tell whether iptlive may change this host: pillar ``iptlive:enabled``, true where it is not set.

    CLI Example:

    .. code-block:: bash

        salt '*' iptlive.enabled
    """
    value = _pillar().get("enabled", True)
    if not isinstance(value, bool):
        raise SaltInvocationError(f"pillar iptlive:enabled: expected true or false, got {value!r}")
    return value


def _options(given, **named):
    """``named`` are arguments of the function itself that not everybody may choose."""
    settings = _pillar()
    arguments = salt.utils.args.clean_kwargs(**given)
    callers.check(given.get(callers.PUBLISHER), {**arguments, **named}, settings)
    settings = {name: value for name, value in settings.items() if name not in PILLAR_ONLY}
    settings.update(arguments)
    options = options_room.parse(settings)
    # Read at once: wrong owners are to stop an update before it begins.
    return options, owners.parse(options.owners)


def _pillar():
    settings = __pillar__.get("iptlive") or {}
    if not isinstance(settings, dict):
        raise SaltInvocationError(f"pillar iptlive: expected a mapping of options, got {settings!r}")
    return settings


def _refuse_words(test=False, saltenv=None):
    """A word without a name, like ``ipv4``, is the first argument: it would mean a dry run, or an environment."""
    if not isinstance(test, bool):
        raise SaltInvocationError(f"test: expected true or false, got {test!r}")
    if str(saltenv).lower() in family_room.FAMILIES:
        raise SaltInvocationError(f"saltenv: got {saltenv!r}; to name a family write families='[{saltenv.lower()}]'")


def _with_retcode(answer):
    if answer["status"] == "refused" or report.lost(answer) or report.unmet(answer):
        __context__["retcode"] = 1
    return answer


@contextlib.contextmanager
def _salt_errors():
    """The private rooms know nothing of Salt; their two errors become Salt's here, at the border."""
    try:
        yield
    except model.InputError as err:
        raise SaltInvocationError(printables.printable_text(str(err))) from err
    except model.HostError as err:
        raise CommandExecutionError(printables.printable_text(str(err))) from err
    except (OSError, MemoryError, RuntimeError) as err:  # a full disk, no process, no memory, no thread more
        raise CommandExecutionError(
            printables.printable_text(f"the host refused: {str(err) or 'out of memory'}")
        ) from err
