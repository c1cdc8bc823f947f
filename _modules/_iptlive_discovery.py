"""Neighbour discovery of IPv6: questions and answers that the rules see like any other packet.

No interface of the clone asks for its neighbours: they are asked for here, one question for each address, since a host
whose rules drop them is reached by nobody, whatever else they accept.
"""

import contextlib
import socket
from typing import Optional, Set, Tuple

import _iptlive_packets as packets
from _iptlive_packets import ADVERTISEMENT, ICMPV6, SOLICITATION
from _iptlive_replica import PEER
from _iptlive_wire import Arrival, Wire

_ROUTER = "fe80::ff:fe00:fe"
_HOPS = 255  # with any other number it is not believed
_MULTICAST_HOPS, _BIND_TO_DEVICE = 18, 25
_GROUP = packets.pack("ff02::1:ff00:0")[:13]  # in which an address is asked for, together with its last three bytes


class Neighbours:
    """Whether this host and those next to it find each other."""

    def __init__(self, wire: Wire):
        self._wire = wire
        self._found: Set[Tuple[str, str, str, str]] = set()

    def forget(self) -> None:
        self._found.clear()

    def missing(self, interface: str, source: str, arrival: Optional[Arrival]) -> str:
        """What keeps them apart; "" for nothing. ``interface`` is where the packet from ``source`` came in by.

        One that was rejected did not arrive anywhere, but whoever sent it has to be told.
        """
        failed = ""
        if interface:
            failed = self._from(interface, source, packets.show(arrival.packet.destination) if arrival else "")
        if arrival and arrival.interface and not failed:
            own = self._own(arrival.interface, packets.show(arrival.packet.source))
            wanted = packets.show(arrival.packet.destination)
            neighbour = self._gateway(wanted) or wanted
            failed = self._once(self._asks_for, arrival.interface, own, neighbour)
            if interface and not failed:  # who answers through this host asks for it
                failed = self._once(self._asked_for, arrival.interface, neighbour, own)
        return failed

    def _from(self, interface: str, source: str, wanted: str) -> str:
        """Whoever asks is known by that. A router asks by an address that is not the one that we send our answer to."""
        gateway = self._gateway(source)
        asker = source if not gateway else gateway if gateway.startswith("fe80:") else _ROUTER
        own = self._own(interface, wanted)
        failed = self._once(self._asked_for, interface, asker, own)
        if gateway and gateway != asker and not failed:
            failed = self._once(self._asks_for, interface, own, gateway)
        return failed

    def _once(self, ask, interface: str, asker: str, address: str) -> str:
        question = (ask.__name__, interface, asker, address)
        known = not self._wire.replica.links[interface].ethernet or question in self._found
        if known or not asker or not address:
            return ""
        failed = ask(interface, asker, address)
        if not failed:
            self._found.add(question)
        return failed

    def _gateway(self, address: str) -> str:
        return self._wire.replica.route("ipv6", address).gateway

    def _own(self, interface: str, wanted: str) -> str:
        """An address of this host's on the interface: the one that is wanted, or one that holds only there."""
        there = [address for family, address in self._wire.replica.addresses.get(interface, ()) if family == "ipv6"]
        there.sort(key=lambda address: (address != wanted, not address.startswith("fe80:")))
        return there[0] if there else ""

    def _asked_for(self, interface: str, asker: str, address: str) -> str:
        target = packets.pack(address)
        group = _GROUP + target[-3:]
        self._wire.join("ipv6", interface, group)
        question = packets.solicitation(target, PEER)
        self._wire.inject(interface, packets.build(packets.pack(asker), group, ICMPV6, question, ttl=_HOPS))
        if self._came(interface, ADVERTISEMENT):
            return ""
        return f"{address} is not found by its neighbours: no advertisement of it is sent"

    def _asks_for(self, interface: str, own: str, address: str) -> str:
        self._ask(interface, own, packets.pack(address))
        if not self._came(interface, SOLICITATION):
            return f"the neighbour {address} is not found: no solicitation of it is sent"
        target = packets.pack(address)
        answer = packets.advertisement(target, PEER)
        self._wire.inject(interface, packets.build(target, packets.pack(own), ICMPV6, answer, ttl=_HOPS))
        if self._came("", ADVERTISEMENT):
            return ""
        return f"the neighbour {address} is not found: its advertisement does not come in"

    def _ask(self, interface: str, own: str, target: bytes) -> None:
        replica = self._wire.replica
        index = replica.links[interface].index
        question = packets.solicitation(target, replica.hardware_address(interface))
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, ICMPV6) as asker, contextlib.suppress(OSError):
            asker.setsockopt(socket.SOL_SOCKET, _BIND_TO_DEVICE, interface.encode() + b"\0")
            asker.setsockopt(socket.IPPROTO_IPV6, _MULTICAST_HOPS, _HOPS)
            asker.bind((own, 0, 0, index))
            asker.sendto(question, (packets.show(_GROUP + target[-3:]), 0, 0, index))

    def _came(self, interface: str, kind: int) -> Optional[Arrival]:
        came = (arrival for arrival in self._wire.arrivals() if arrival.interface == interface)
        return next((one for one in came if one.packet.protocol == ICMPV6 and one.packet.icmp == (kind, 0)), None)
