"""
Tell the master when stored and live rules drift apart, and when they agree again
==================================================================================

.. code-block:: yaml

    beacons:
      iptlive:
        - interval: 60
        - families: [ipv4]

An event is fired when the state changes: from in sync to ``changes``, ``refused`` or ``error``, between these, and back
to ``in_sync``. Rules of others never cause one: they are not part of the state. A minion starts with the assumption
that all is in sync.

On a host that is disabled (pillar ``iptlive:enabled``) nothing is compared.

The event's tag is ``salt/beacon/MINION/iptlive/STATE``, and its data the summary of the plan: ``status``, ``was``,
``changes`` (how many per chain), ``refusals`` (the reasons per chain), ``warnings``; with ``error`` the ``message``.

As long as neither a stored file nor the ruleset has changed, an interval costs next to nothing: see
``iptlive.drift``. All options of the execution module may be given; those that are not are taken from pillar
``iptlive``.
"""

from salt.exceptions import CommandExecutionError, SaltInvocationError

__virtualname__ = "iptlive"

# What Salt itself puts into, or understands in, a beacon's configuration.
_SALTS_WORDS = ("interval", "enabled", "disable_during_state_run", "run_once", "beacon_module", "_beacon_name")

_last = {}  # per beacon: the fingerprint and the state of the last look


def __virtual__():
    return __virtualname__


def validate(config):
    """
    Tell whether the configuration is a list of options; the options themselves are read at the first interval.
    """
    if not isinstance(config, list) or not all(isinstance(item, dict) for item in config):
        return False, "Configuration for iptlive beacon must be a list of options."
    return True, "Valid beacon configuration."


def beacon(config):
    """
    Compare stored and live rules, and return an event where the state is another one than at the last interval.
    """
    settings = {}
    for item in config:
        settings.update(item)
    name = settings.get("_beacon_name", __virtualname__)
    options = {word: value for word, value in settings.items() if word not in _SALTS_WORDS}
    since, was = _last.get(name, (None, "in_sync"))
    found = _look(since, options)
    status = found.get("status", was)
    fingerprint = found.pop("fingerprint")
    # What a refusal waits for, such as an ipset, need not leave a trace in the ruleset: look again each time.
    _last[name] = (None if status == "refused" else fingerprint, status)
    return [] if status == was else [dict(found, tag=status, was=was)]


def _look(since, options):
    try:
        if not __salt__["iptlive.enabled"]():
            return {"fingerprint": since}
        return __salt__["iptlive.drift"](since=since, **options)
    except (CommandExecutionError, SaltInvocationError) as err:
        return {"fingerprint": None, "status": "error", "message": str(err)}
