"""
The functions of iptlive over salt-ssh, with the options of the host's pillar
=============================================================================

salt-ssh gives pillar to states only: a function that is called by itself, like ``salt-ssh web1 iptlive.plan``, finds
none on the host. These wrappers run where salt-ssh is started, and hand over what pillar ``iptlive`` says as
arguments. Arguments, results and errors are those of the execution module of the same name.

``sources`` are read and rendered here too, and brought to the host for the time of the call: nothing on the host could
fetch them.

An installed extension brings them along. Otherwise name their folder in the master's configuration, twice: where
salt-ssh looks first, and in what it takes for the host's own options. (A synced wrapper is lost on the way there in
Salt 3008, and Salt 3006 syncs none; so this folder is not called ``_wrapper``.)

.. code-block:: yaml

    wrapper_dirs: [/srv/iptlive/wrapper]
    ssh_minion_opts:
      wrapper_dirs: [/srv/iptlive/wrapper]
"""

import contextlib
import re
import shlex
import tempfile
import uuid

import salt.client.ssh
import salt.utils.args
import salt.utils.json
import salt.utils.stringutils
import salt.utils.templates
from _iptlive_printable import clean, printable_text
from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "iptlive"

# What pillar iptlive holds beside options: the execution module's PILLAR_ONLY.
PILLAR_ONLY = ("allow", "enabled", "fingerprints", "hosts")
BACKUP_OPTIONS = ("families", "files", "backend")


def __virtual__():
    return __virtualname__


def plan(**options):
    """
    Tell what :py:func:`apply` would change, see the execution module.

    CLI Example:

    .. code-block:: bash

        salt-ssh '*' iptlive.plan
    """
    with _sources_brought(_merged(options)) as (settings, names):
        return _remote("plan", names, **settings)


def apply(test=False, **options):
    """
    Bring the kernel's rules in line with the stored files, see the execution module.

    CLI Example:

    .. code-block:: bash

        salt-ssh '*' iptlive.apply test=True
    """
    if not test and not enabled():
        raise CommandExecutionError(
            "iptlive is disabled on this host (pillar iptlive:enabled is false): nothing was changed"
        )
    with _sources_brought(_merged(options)) as (settings, names):
        return _remote("apply", names, test=test, **settings)


def backup(dest="/var/lib/iptlive/backup", retain=10, returned=False, **options):
    """
    Save the stored files and the kernel's rules, see the execution module.

    CLI Example:

    .. code-block:: bash

        salt-ssh '*' iptlive.backup
    """
    settings = {name: value for name, value in _pillar().items() if name in BACKUP_OPTIONS}
    settings.update(salt.utils.args.clean_kwargs(**options))
    return _remote("backup", dest=dest, retain=retain, returned=returned, **settings)


def foreign(**options):
    """
    List the kernel rules that no stored line accounts for, see the execution module.

    CLI Example:

    .. code-block:: bash

        salt-ssh '*' iptlive.foreign
    """
    return _remote("foreign", **_merged(options))


def export(test=False, overwrite=False, **options):
    """
    Write the stored files from the live kernel, see the execution module.

    CLI Example:

    .. code-block:: bash

        salt-ssh '*' iptlive.export test=True
    """
    return _remote("export", test=test, overwrite=overwrite, **_merged(options))


def graph(form="dot", path=None, **options):
    """
    Draw the chains of all tables and their jumps, see the execution module.

    CLI Example:

    .. code-block:: bash

        salt-ssh web1 iptlive.graph mermaid --out=txt
    """
    return _remote("graph", form=form, path=path, **_merged(options))


def drift(since=None, **options):
    """
    Tell whether stored and live rules agree, see the execution module.

    CLI Example:

    .. code-block:: bash

        salt-ssh '*' iptlive.drift
    """
    return _remote("drift", since=since, **_merged(options))


def enabled():
    """
    Tell whether iptlive may change this host, see the execution module.

    CLI Example:

    .. code-block:: bash

        salt-ssh '*' iptlive.enabled
    """
    value = _pillar().get("enabled", True)
    if not isinstance(value, bool):
        raise SaltInvocationError(f"pillar iptlive:enabled: expected true or false, got {value!r}")
    return value


def _merged(options):
    settings = {name: value for name, value in _pillar().items() if name not in PILLAR_ONLY}
    settings.update(salt.utils.args.clean_kwargs(**options))
    return settings


def _pillar():
    settings = __pillar__.get("iptlive") or {}
    if not isinstance(settings, dict):
        raise SaltInvocationError(f"pillar iptlive: expected a mapping of options, got {settings!r}")
    return settings


@contextlib.contextmanager
def _sources_brought(settings):
    """
    Bring what ``sources`` names on the master to the host; what was brought is removed there afterwards.

    Yields the settings with the files' places on the host, and a mapping of these places to what the user calls them.
    """
    lists = _source_lists(settings)
    if not any(source.startswith("salt://") for sources in lists.values() for source in sources):
        yield settings, {}
        return
    saltenv = settings.get("saltenv") or __opts__.get("saltenv") or "base"
    contents = {family: _rendered(sources, saltenv, settings) for family, sources in lists.items()}
    places = {family: "{}/iptlive-{}".format(__opts__["thin_dir"], uuid.uuid4().hex) for family in contents}
    shell = _single([]).shell
    rest = {name: value for name, value in settings.items() if name not in ("template", "context", "defaults")}
    try:
        for family, (source, data) in contents.items():
            _send(shell, source, data, places[family])
        yield dict(rest, sources=places), {places[family]: source for family, (source, _) in contents.items()}
    finally:
        shell.exec_cmd("rm -f " + " ".join(map(shlex.quote, places.values())))


def _source_lists(settings):
    """The sources of the families that count; none where they are malformed, for the host says what is wrong."""
    sources, families = settings.get("sources"), settings.get("families", ("ipv4", "ipv6"))
    if not isinstance(sources, dict):
        return {}
    lists = {family: [names] if isinstance(names, str) else names for family, names in sources.items()}
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists.values()):
        return {}
    return {family: names for family, names in lists.items() if family in families}


def _rendered(sources, saltenv, settings):
    """The first of the sources that there is, and its content, rendered as states are: here, with the host's pillar."""
    if not all(source.startswith("salt://") for source in sources):
        raise SaltInvocationError(f"sources: over salt-ssh expected salt:// files, got {', '.join(sources)}")
    client = __salt__.fsclient
    found = ((source, client.cache_file(source, saltenv)) for source in sources)
    source, path = next(((source, path) for source, path in found if path), (None, None))
    if not path:
        raise CommandExecutionError(f"{', '.join(sources)} (saltenv {saltenv}): there is none on the master")
    template = settings.get("template")
    if template is None:
        with open(path, "rb") as file:
            return source, file.read()
    if template not in salt.utils.templates.TEMPLATE_REGISTRY:
        raise SaltInvocationError(f"option 'template': Salt has no template engine {template!r}")
    context = {**(settings.get("defaults") or {}), **(settings.get("context") or {})}
    try:
        done = salt.utils.templates.TEMPLATE_REGISTRY[template](
            path,
            to_str=True,
            name=source,
            source=source,
            saltenv=saltenv,
            context=context,
            salt=__salt__,
            pillar=__pillar__,
            grains=__opts__["grains"],
            opts=__opts__,
            fileclient=client,
        )
    except Exception as err:  # a template is a program, and raises what it likes
        raise CommandExecutionError(_in_one_line(source, str(err) or type(err).__name__)) from err
    if not done["result"]:
        raise CommandExecutionError(_in_one_line(source, done["data"]))
    return source, salt.utils.stringutils.to_bytes(done["data"])


def _in_one_line(source, problem):
    """As the host would say it, see _modules/_iptlive_sources.py, which cannot be imported here."""
    lines = [line.strip() for line in problem.splitlines() if line.strip()]
    said = lines[-1] if lines[0].startswith("Traceback") else lines[0]
    number = re.search(r"line (\d+)", said)
    return f"{source}, line {number.group(1)}: {said}" if number else f"{source}: {said}"


def _send(shell, source, data, place):
    # A file, because arguments travel in one word of a command line, which holds 128 KiB at most.
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        stdout, stderr, retcode = shell.send(file.name, place)
    if retcode:
        raise CommandExecutionError(f"{source}: cannot be brought to the host: {stderr.strip() or stdout.strip()}")


def _single(argv):
    """The function that the words name, on the host; ``__salt__["iptlive.plan"]`` would be this module again."""
    return salt.client.ssh.Single(
        __salt__.opts,
        argv,
        mods=__salt__.mods,
        fsclient=__salt__.fsclient,
        minion_opts=__salt__.minion_opts,
        disable_wipe=True,
        **__salt__.kwargs,
    )


def _remote(function, names=None, **arguments):
    """Call the execution module on the host; ``names`` are what to call places on the host in its answer."""
    argv = ["iptlive." + function]
    argv += [f"{name}={salt.utils.json.dumps(value)}" for name, value in arguments.items()]
    stdout, stderr, retcode = _single(argv).cmd_block()
    for place, name in (names or {}).items():
        stdout, stderr = stdout.replace(place, salt.utils.json.dumps(name)[1:-1]), stderr.replace(place, name)
    try:
        answer = salt.utils.json.find_json(stdout)["local"]
        value, status = answer["return"], max(int(retcode), int(answer.get("retcode", 0)))
    except (ValueError, KeyError, TypeError, RecursionError):
        said = stderr.strip() or stdout.strip() or f"exit status {retcode}"
        raise CommandExecutionError(printable_text(said.replace(f"Error running '{argv[0]}': ", ""))) from None
    __context__["retcode"] = status
    # In this form salt-ssh of every version passes on a value together with its return code.
    return {"local": {"return": clean(value), "retcode": status}}
