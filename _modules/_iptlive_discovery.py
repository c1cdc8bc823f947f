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

_ASKER = packets.pack("fe80::ff:fe00:fe")
_HOPS = 255  # with any other number it is not believed
_UNICAST_HOPS, _BIND_TO_DEVICE = 16, 25


class Neighbours:
    """Whether this host and those next to it find each other."""

    def __init__(self, wire: Wire):
        self._wire = wire
        self._found: Set[Tuple[str, str]] = set()

    def forget(self) -> None:
        self._found.clear()

    def missing(self, interface: str, destination: str, arrival: Arrival) -> str:
        """What keeps them apart; "" for nothing. ``interface`` is where the packet came in by."""
        if interface and not arrival.interface:
            return self._once(self._asked_for, interface, self._address_of(interface, destination))
        if arrival.interface:
            return self._once(self._asks_for, arrival.interface, packets.show(arrival.packet.destination))
        return ""

    def _once(self, ask, interface: str, address: str) -> str:
        ethernet = self._wire.replica.links[interface].ethernet
        if not ethernet or not address or (interface, address) in self._found:
            return ""
        failed = ask(interface, address)
        if not failed:
            self._found.add((interface, address))
        return failed

    def _address_of(self, interface: str, wanted: str) -> str:
        """The address by which a neighbour there reaches the host: the one that is wanted, if it is there."""
        there = self._addresses(interface)
        return wanted if wanted in there else next(iter(there), "")

    def _addresses(self, interface: str):
        """Its own of IPv6, those that hold only there first."""
        there = [address for family, address in self._wire.replica.addresses.get(interface, ()) if family == "ipv6"]
        return sorted(there, key=lambda address: not address.startswith("fe80:"))

    def _asked_for(self, interface: str, address: str) -> str:
        target = packets.pack(address)
        question = packets.build(_ASKER, target, ICMPV6, packets.solicitation(target, PEER), ttl=_HOPS)
        self._wire.inject(interface, question)
        if self._came(interface, ADVERTISEMENT):
            return ""
        return f"{address} is not found by its neighbours: no advertisement of it is sent"

    def _asks_for(self, interface: str, destination: str) -> str:
        own = next(iter(self._addresses(interface)), "")
        if not own:
            return ""
        address = self._wire.replica.route("ipv6", destination).gateway or destination
        self._ask(interface, own, address)
        if not self._came(interface, SOLICITATION):
            return f"the neighbour {address} is not found: no solicitation of it is sent"
        target = packets.pack(address)
        answer = packets.advertisement(target, PEER)
        self._wire.inject(interface, packets.build(target, packets.pack(own), ICMPV6, answer, ttl=_HOPS))
        if self._came("", ADVERTISEMENT):
            return ""
        return f"the neighbour {address} is not found: its advertisement does not come in"

    def _ask(self, interface: str, own: str, address: str) -> None:
        replica = self._wire.replica
        index = replica.links[interface].index
        question = packets.solicitation(packets.pack(address), replica.hardware_address(interface))
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, ICMPV6) as asker, contextlib.suppress(OSError):
            asker.setsockopt(socket.SOL_SOCKET, _BIND_TO_DEVICE, interface.encode() + b"\0")
            asker.setsockopt(socket.IPPROTO_IPV6, _UNICAST_HOPS, _HOPS)
            asker.bind((own, 0, 0, index))
            asker.sendto(question, (address, 0, 0, index))

    def _came(self, interface: str, kind: int) -> Optional[Arrival]:
        came = (arrival for arrival in self._wire.arrivals() if arrival.interface == interface)
        return next((one for one in came if one.packet.protocol == ICMPV6 and one.packet.icmp == (kind, 0)), None)
