"""Whether new connections can be opened: to addresses that were looked up before, so that nothing blocks."""

import contextlib
import errno
import os
import select
import socket
import time
from typing import Dict, Iterable, List, Mapping, Tuple

from _iptlive_model import HostError

Addresses = Mapping[str, Tuple[Tuple[str, int], ...]]


def resolve(checks: Iterable[str]) -> Dict[str, Tuple[Tuple[str, int], ...]]:
    """The addresses of each endpoint (host:port). Raises HostError."""
    return {check: _resolved(check) for check in checks}


def _resolved(check: str) -> Tuple[Tuple[str, int], ...]:
    host, _, port = check.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as err:
        raise HostError(
            f"confirm_check: no address is known for '{host}' ({err.strerror}), so '{check}' can confirm nothing. "
            "Correct it, or write the address; nothing was changed"
        ) from err
    # Of an IPv6 address what follows the first two tells its scope, which the text of a link-local one holds too.
    return tuple(dict.fromkeys((address[0], address[1]) for _, _, _, _, address in found))


def unreached(addresses: Addresses, seconds: float) -> List[str]:
    """Those endpoints of which no address lets itself be connected to within so many seconds."""
    reached = set()
    end = time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        poll, waiting = select.poll(), {}
        for check, found in addresses.items():
            for address in found:
                with contextlib.suppress(OSError):
                    connection = stack.enter_context(_connecting(address))
                    poll.register(connection, select.POLLOUT)
                    waiting[connection.fileno()] = check, connection
        while waiting and len(reached) < len(addresses) and time.monotonic() < end:
            for number, _ in poll.poll(1000 * max(0, end - time.monotonic())):
                poll.unregister(number)
                check, connection = waiting.pop(number)
                if not connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    reached.add(check)
    return [check for check in addresses if check not in reached]


def _connecting(address: Tuple[str, int]) -> socket.socket:
    """A connection under way; the address is one, so that nobody is asked for it."""
    host, port = address
    ((family, kind, protocol, _, full), *_) = socket.getaddrinfo(
        host.encode("ascii"), port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
    )
    connection = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    error = connection.connect_ex(full)
    if error not in (0, errno.EINPROGRESS):
        connection.close()
        raise OSError(error, os.strerror(error))
    return connection
