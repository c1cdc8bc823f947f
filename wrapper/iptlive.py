"""
The functions of iptlive over salt-ssh, with the options of the host's pillar
=============================================================================

salt-ssh gives pillar to states only: a function that is called by itself, like ``salt-ssh web1 iptlive.plan``, finds
none on the host. These wrappers run where salt-ssh is started, and hand over what pillar ``iptlive`` says as
arguments. Arguments, results and errors are those of the execution module of the same name.

An installed extension brings them along. Otherwise name their folder in the master's configuration, twice: where
salt-ssh looks first, and in what it takes for the host's own options. (A synced wrapper is lost on the way there in
Salt 3008, and Salt 3006 syncs none; so this folder is not called ``_wrapper``.)

.. code-block:: yaml

    wrapper_dirs: [/srv/iptlive/wrapper]
    ssh_minion_opts:
      wrapper_dirs: [/srv/iptlive/wrapper]
"""

import salt.client.ssh
import salt.utils.args
import salt.utils.json
from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "iptlive"

# What pillar iptlive holds beside options: the execution module's PILLAR_ONLY.
PILLAR_ONLY = ("enabled", "fingerprints", "hosts", "owners")
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
    return _remote("plan", **_merged(options))


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
    return _remote("apply", test=test, **_merged(options))


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


def _remote(function, **arguments):
    """Call the execution module on the host; ``__salt__["iptlive.plan"]`` would be this module again."""
    argv = ["iptlive." + function]
    argv += [f"{name}={salt.utils.json.dumps(value)}" for name, value in arguments.items()]
    single = salt.client.ssh.Single(
        __salt__.opts,
        argv,
        mods=__salt__.mods,
        fsclient=__salt__.fsclient,
        minion_opts=__salt__.minion_opts,
        disable_wipe=True,
        **__salt__.kwargs,
    )
    stdout, stderr, retcode = single.cmd_block()
    try:
        answer = salt.utils.json.find_json(stdout)["local"]
        value = answer["return"]
    except (ValueError, KeyError, TypeError):
        said = stderr.strip() or stdout.strip() or f"exit status {retcode}"
        raise CommandExecutionError(said.replace(f"Error running '{argv[0]}': ", "")) from None
    status = max(int(retcode), int(answer.get("retcode", 0)))
    __context__["retcode"] = status
    # In this form salt-ssh of every version passes on a value together with its return code.
    return {"local": {"return": value, "retcode": status}}
