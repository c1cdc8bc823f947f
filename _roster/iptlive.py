"""
The host list of the original scripts as a roster for salt-ssh
==============================================================

.. code-block:: bash

    salt-ssh --roster iptlive --roster-file host-list.json '*' state.apply iptlive test=True
    salt-ssh --roster iptlive '*' state.apply iptlive test=True

The first form reads a ``host-list.json`` as it is; a roster file with another ending is not ours. The second form
reads the same list from the pillar of the master itself (a ``top.sls`` that gives it to the master's own id, such as
``'*_master'``, keeps it from the minions):

.. code-block:: yaml

    iptlive:
      hosts:
        - {name: web1, ip: 10.128.129.130, user: admin, state: 'on'}
        - {name: web2, ip: 172.16.1.1, user: SRCUSER, state: 'on'}

name
    The host's id for salt-ssh.
ip
    The address to connect to.
user
    The remote user; ``SRCUSER`` is the local one. Any but root must be allowed to use sudo.
state
    Only hosts that are ``on`` are targets; others are ignored without a word.

An entry that lacks a field, or holds what can be no host, address or user, is left out with a warning that names it.
Keys that start with ``#`` are comments. What is the same for all hosts (port, key) belongs into ``roster_defaults`` of
the master's configuration.
"""

import ipaddress
import json
import logging
import re

import salt.utils.user
from salt.exceptions import SaltRenderError

log = logging.getLogger(__name__)

__virtualname__ = "iptlive"

FIELDS = ("name", "ip", "user", "state")

# Nothing of these can be taken for an option, a path or a word of the shell.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}")


def __virtual__():
    return __virtualname__


def targets(tgt, tgt_type="glob", **kwargs):
    """
    Return the hosts of the list that match, as salt-ssh wants them.

    CLI Example:

    .. code-block:: bash

        salt-ssh --roster iptlive --roster-file host-list.json '*' test.ping
    """
    path = __opts__.get("roster_file") or ""
    if path.endswith(".json"):
        source, entries = path, _read(path)
    else:
        source, entries = "pillar iptlive:hosts", _from_pillar()
    if not isinstance(entries, list):
        raise SaltRenderError(f"{source}: expected a list of hosts, got {entries!r:.200}")
    return __utils__["roster_matcher.targets"](_hosts(source, entries), tgt, tgt_type, "ipv4")


def _hosts(source, entries):
    hosts = {}
    for number, entry in enumerate(entries, 1):
        try:
            target = _target(entry)
        except ValueError as err:
            log.warning("%s: entry %d is left out: %s: %a", source, number, err, entry)
            continue
        if target and target[0] in hosts:
            log.warning("%s: entry %d is left out: there is a host %s already", source, number, target[0])
        elif target:
            hosts[target[0]] = target[1]
    return hosts


def _read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as err:
        raise SaltRenderError(f"{path}: is no host list in JSON: {err}") from err


def _from_pillar():
    settings = __runner__["pillar.show_pillar"](__opts__["id"]).get("iptlive") or {}
    if "hosts" not in settings:
        raise SaltRenderError(
            "no host list: give one with --roster-file host-list.json, or in pillar iptlive:hosts of the master, "
            "whose id is " + __opts__["id"]
        )
    return settings["hosts"]


def _target(entry):
    """(name, roster entry), or None for one that is not on. Raises ValueError."""
    if not isinstance(entry, dict):
        raise ValueError("it is no mapping")
    fields = {key: value for key, value in entry.items() if not str(key).startswith("#")}
    if entry and not fields:
        return None
    for field in FIELDS:
        if field not in fields:
            raise ValueError(f"field '{field}' is missing")
    if fields["state"] not in ("on", True):  # YAML reads a bare on as true
        return None
    name = _checked(fields, "name", "host name", _NAME.fullmatch)
    address = _checked(fields, "ip", "address nor a host name", _is_address)
    user = _checked(fields, "user", "user name", _USER.fullmatch)
    if user == "SRCUSER":
        user = salt.utils.user.get_user()
    return name, {"host": address, "user": user, **({} if user == "root" else {"sudo": True})}


def _checked(fields, field, what, is_valid):
    value = fields[field]
    if not isinstance(value, str) or not is_valid(value):
        raise ValueError(f"field '{field}' is no {what}")
    return value


def _is_address(address):
    try:
        ipaddress.ip_address(address)
        return "%" not in address
    except ValueError:
        return bool(_NAME.fullmatch(address))
