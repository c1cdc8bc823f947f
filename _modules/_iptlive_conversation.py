"""One probe: a packet, or a whole conversation, and what became of it. No rule is read here, only packets.

A conversation has the legs request, answer and follow-up. Who answers is a real socket where this host is addressed;
where a packet leaves the host, what came out is answered as it came out, so that address translation needs no model.
"""

import contextlib
import errno
import random
import socket
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import _iptlive_packets as packets
import _iptlive_probe as probing
from _iptlive_discovery import Neighbours
from _iptlive_packets import ACK, ICMPV6, OWN_PORTS, SYN, TCP, UDP, Packet
from _iptlive_probe import ANSWER, FOLLOW_UP, NEIGHBOUR, REQUEST, IsIts, Outcome, Probe, Session
from _iptlive_replica import drain
from _iptlive_tracer import Event, of
from _iptlive_wire import Arrival, Wire, answer_datagrams, drop, is_connected, owned_socket

_DISCARD = 9  # a port that nobody answers on


class Leg(NamedTuple):
    """A packet of the conversation, and the rules that it met."""

    name: str
    events: List[Event]


Opened = Tuple[Outcome, Optional[Session]]


class Conversations:
    """``legs`` is what the last one had, with the events of the trace where there is a tracer."""

    def __init__(self, wire: Wire, tracer=None):
        self._wire = wire
        self._tracer = tracer
        self._neighbours = Neighbours(wire)
        self._number = random.randint(1, 1 << 28)
        self._port = random.choice(OWN_PORTS)
        self._events: List[Event] = []
        self._to_many: Dict[str, bool] = {}
        self.legs: List[Leg] = []
        self.packets = 0

    def refresh(self) -> None:
        """The rules have changed."""
        self._neighbours.forget()
        if self._tracer:
            self._tracer.refresh()

    def hold(self, probe: Probe) -> Outcome:
        """The whole conversation, or the first packet only, as the probe has it."""
        outcome, session = self.open(probe)
        if session:
            close(session)
        return outcome

    def open(self, probe: Probe) -> Opened:
        """A session is there only after a whole conversation."""
        self._start()
        source_port = self._source_port(probe)
        if packets.is_error_kind(probe.protocol, probe.icmp):
            return self._complain(probe, source_port)
        if probe.interface:
            opened = self._from_outside(probe, source_port)
        elif probe.protocol == TCP:
            opened = self._connect(probe, source_port)
        elif probe.protocol == UDP:
            opened = self._send_datagram(probe, source_port)
        else:
            opened = self._send_raw(probe)
        return self._with_neighbours(probe, *opened)

    def go_on(self, session: Session) -> Outcome:
        """One more packet each way."""
        self._start()
        outcome = self._more_from_client(session)
        return self._more_from_server(session, outcome) if outcome.verdict == "accept" else outcome

    # --- steps ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.legs = []
        self._wire.forget()
        if self._tracer:
            self._tracer.forget()

    def _source_port(self, probe: Probe) -> int:
        """Each packet has one of its own, or else must not go on with a connection of an earlier one."""
        if probe.source_port or (probe.protocol not in probing.WITH_PORTS and probe.protocol not in probing.ECHO):
            self._wire.forget_connection(probe)
        self._port = self._port + 1 if self._port + 1 in OWN_PORTS else OWN_PORTS[0]
        return probe.source_port or self._port

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _observe(self, leg: str, is_its: IsIts) -> List[Arrival]:
        """What came of the packet that was just sent."""
        self.packets += 1
        arrivals = self._wire.arrivals()
        self._events = self._tracer.events() if self._tracer else []
        self._record(leg, is_its)
        return arrivals

    def _record(self, leg: str, is_its: IsIts) -> None:
        """Also of a packet with which the kernel answered at once."""
        self.legs.append(Leg(leg, of(self._events, is_its)))

    def _with_neighbours(self, probe: Probe, outcome: Outcome, session: Optional[Session]) -> Opened:
        """IPv6 finds its neighbours by packets that the rules see: without them nobody is reached."""
        reaches = outcome.verdict == "accept" or (outcome.verdict == "reject" and probe.interface)
        if not reaches or not probe.whole or probe.family != "ipv6":
            return outcome, session
        self._wire.forget()
        failed = self._neighbours.missing(probe.interface, probe.source, outcome.arrival)
        if not failed:
            return outcome, session
        self._observe(NEIGHBOUR, lambda packet: packet.protocol == ICMPV6)
        if session:
            close(session)
        return Outcome("drop", NEIGHBOUR, failed, "", outcome.arrival), None

    # --- from outside --------------------------------------------------------------------------------------------

    def _from_outside(self, probe: Probe, source_port: int) -> Opened:
        number = self._next()
        request = self._request(probe, source_port, number)
        self._expect(probe)
        if self._wire.inject(probe.interface, request.raw):
            return Outcome("undecided", REQUEST, "", f"the interface {probe.interface} is down"), None
        arrivals = self._observe(REQUEST, probing.is_on_its_way(request))
        outcome = probing.became(
            arrivals, probing.carries(request.protocol, number), probing.refuses(request.protocol, request.source_port)
        )
        if outcome.verdict != "accept" or not probe.whole:
            return outcome, None
        if outcome.arrival.interface:
            return self._forwarded(probe, request, outcome)
        port = outcome.arrival.packet.port
        if probe.protocol in probing.WITH_PORTS and not self._wire.serves(probe.family, probe.protocol, port):
            self._wire.listener(probe.family, probe.protocol, port)  # redirected to a port that nobody served yet
            return self._from_outside(probe, self._source_port(probe))
        return self._received(probe, request, outcome, arrivals)

    def _complain(self, probe: Probe, source_port: int) -> Opened:
        """An ICMP error never comes alone: it is about a packet that went the other way just before."""
        source = probe.source or self._wire.replica.route(probe.family, probe.destination).source
        there, here = packets.pack(probe.destination), packets.pack(source)
        about = packets.udp(source_port, _DISCARD, probing.MARK)
        inner = packets.build(there, here, UDP, about, self._next())
        self._from_there(probe, source, inner)
        self._wire.forget()
        if self._tracer:
            self._tracer.forget()
        payload = packets.icmp(*probe.icmp, 0, 0, inner)
        raw = packets.build(here, there, probe.protocol, payload, self._next())
        if probe.interface:
            error = self._wire.inject(probe.interface, raw)
        else:
            error = self._wire.send_raw(probe.family, raw, probe.destination, probe.user)
        arrivals = self._observe(REQUEST, lambda packet: packet.icmp == probe.icmp)
        if error not in (0, errno.EPERM):
            return probing.cannot_send(probe, error), None
        outcome = probing.became(arrivals, lambda packet: packet.icmp == probe.icmp, lambda packet: "")
        return outcome, None

    def _from_there(self, probe: Probe, source: str, packet: bytes) -> None:
        """As if the host at the destination sent it, be it this one."""
        way = self._wire.replica.route(probe.family, probe.destination)
        if way.type == "local":
            self._wire.send_raw(probe.family, packet, source, (0, 0))
        elif way.index:
            self._wire.inject(self._wire.replica.name(way.index), packet)

    def _request(self, probe: Probe, source_port: int, number: int) -> Packet:
        source, destination = packets.pack(probe.source), packets.pack(probe.destination)
        payload = probing.first_payload(probe, source_port, number)
        return packets.parse(packets.build(source, destination, probe.protocol, payload, number))

    def _expect(self, probe: Probe) -> None:
        """Be ready to receive it."""
        self._wire.listen_raw(probe.family, probe.protocol)
        destination = packets.pack(probe.destination)
        if probe.interface and packets.is_multicast(destination):
            self._wire.join(probe.family, probe.interface, destination)
        if probe.whole and probe.protocol in probing.WITH_PORTS:
            server = self._wire.listener(probe.family, probe.protocol, probe.port)
            if probe.protocol == UDP:
                while _received_data(server):
                    pass

    def _received(self, probe: Probe, request: Packet, outcome: Outcome, arrivals: Sequence[Arrival]) -> Opened:
        """Delivered on this host, which must answer."""
        if probe.protocol == TCP:
            return self._accepted(probe, request, outcome, arrivals)
        session = Session(probe, request, outcome.arrival, None, None, 0, 0)
        if not self._is_answered(probe, request):
            return outcome, session
        is_answer = probing.answers_to(request)
        if probe.protocol == UDP:
            server = self._wire.listener(probe.family, UDP, outcome.arrival.packet.port)
            answer_datagrams(server, probing.MARK)
            session = session._replace(server=server)
            arrivals = self._observe(ANSWER, is_answer)
        else:
            self._record(ANSWER, is_answer)
        if any(probing.is_answer(arrival, request, is_answer) for arrival in arrivals):
            return outcome, session
        return Outcome("drop", ANSWER, "", "", outcome.arrival), None

    def _accepted(self, probe: Probe, request: Packet, outcome: Outcome, arrivals: Sequence[Arrival]) -> Opened:
        is_answer = probing.answers_to(request)
        self._record(ANSWER, is_answer)
        answers = [
            arrival.packet
            for arrival in arrivals
            if probing.is_answer(arrival, request, is_answer) and arrival.packet.flags & (SYN | ACK) == SYN | ACK
        ]
        if not answers:
            return Outcome("drop", ANSWER, "", "", outcome.arrival), None
        sequence, acknowledged = request.sequence + 1, answers[0].sequence + 1
        payload = packets.tcp(request.source_port, request.port, sequence, ACK, acknowledged)
        self._send_as_client(probe, request, payload)
        arrivals = self._observe(FOLLOW_UP, probing.is_on_its_way(request))
        connection = self._connection(probe.family, outcome.arrival.packet.port, request.source_port)
        if connection is None:
            return probing.refused(
                arrivals, probing.refuses(TCP, request.source_port), FOLLOW_UP, outcome.arrival
            ), None
        return outcome, Session(probe, request, outcome.arrival, None, connection, sequence, acknowledged)

    def _connection(self, family: str, port: int, source_port: int) -> Optional[socket.socket]:
        server = self._wire.listener(family, TCP, port)
        while True:
            try:
                connection, client = server.accept()
            except BlockingIOError:
                return None
            if client[1] == source_port:
                connection.setblocking(False)
                return connection
            drop(connection)

    def _send_as_client(self, probe: Probe, request: Packet, payload: bytes) -> None:
        packet = packets.build(request.source, request.destination, probe.protocol, payload, self._next())
        self._wire.inject(probe.interface, packet)

    # --- through the host ----------------------------------------------------------------------------------------

    def _forwarded(self, probe: Probe, request: Packet, outcome: Outcome) -> Opened:
        """It left the host again; who it went to answers."""
        answered = self._mirror(probe, outcome)
        if answered is None:
            return outcome, Session(probe, request, outcome.arrival, None, None, 0, 0)
        number, arrivals = answered
        is_same = probing.carries(probe.protocol, number)
        if not any(
            arrival.interface and is_same(arrival.packet) and arrival.packet.destination == request.source
            for arrival in arrivals
        ):
            return probing.refused(
                arrivals, probing.refuses(probe.protocol, outcome.arrival.packet.port), ANSWER, outcome.arrival
            ), None
        session = Session(probe, request, outcome.arrival, None, None, request.sequence + 1, number + 1)
        if probe.protocol != TCP:
            return outcome, session
        payload = packets.tcp(request.source_port, request.port, session.client_next, ACK, session.server_next)
        self._send_as_client(probe, request, payload)
        arrivals = self._observe(FOLLOW_UP, probing.is_on_its_way(request))
        is_same = probing.carries(TCP, session.client_next)
        if any(arrival.interface and is_same(arrival.packet) for arrival in arrivals):
            return outcome, session
        return probing.refused(arrivals, probing.refuses(TCP, request.source_port), FOLLOW_UP, outcome.arrival), None

    def _mirror(self, probe: Probe, outcome: Outcome) -> Optional[Tuple[int, List[Arrival]]]:
        """Answer what came out; the number that the answer carries. None for what nobody answers."""
        came = outcome.arrival.packet
        number = self._next()
        if probe.protocol == TCP:
            payload = packets.tcp(came.port, came.source_port, number, SYN | ACK, came.sequence + 1)
        elif probe.protocol == UDP:
            payload = packets.udp(came.port, came.source_port, probing.mark(number))
        elif came.icmp == probing.ECHO.get(probe.protocol):
            payload = packets.icmp(*probing.ECHO_REPLY[probe.protocol], came.ident, 1, probing.mark(number))
        else:
            return None
        answer = packets.parse(packets.build(came.destination, came.source, probe.protocol, payload, number))
        self._wire.forget()
        self._wire.inject(outcome.arrival.interface, answer.raw)
        return number, self._observe(ANSWER, probing.is_on_its_way(answer))

    # --- from this host ------------------------------------------------------------------------------------------

    def _bound(self, probe: Probe, kind: int, source_port: int, protocol: int = 0) -> socket.socket:
        """Raises OSError."""
        client = owned_socket(probe.family, kind, probe.user, protocol)
        with contextlib.ExitStack() as failed:
            failed.callback(client.close)
            if kind != socket.SOCK_RAW:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                client.bind((probe.source, source_port))
            elif probe.source:
                client.bind((probe.source, 0))
            failed.pop_all()
        return client

    def _connect(self, probe: Probe, source_port: int) -> Opened:
        self._expect(probe._replace(whole=True))
        try:
            client = self._bound(probe, socket.SOCK_STREAM, source_port)
        except OSError as err:
            return probing.cannot_send(probe, err.errno), None
        error = client.connect_ex((probe.destination, probe.port))
        is_its = probing.is_from_port(TCP, source_port)
        arrivals = self._observe(REQUEST, is_its)
        outcome = probing.became(arrivals, probing.is_first, probing.refuses(TCP, source_port))
        if outcome.verdict == "drop" and error not in (0, errno.EINPROGRESS, errno.EPERM):
            outcome = probing.cannot_send(probe, error)
        if outcome.verdict != "accept" or not probe.whole:
            drop(client)
            return outcome, None
        connected = self._connected if outcome.arrival.interface else self._connected_here
        failed, session = connected(probe, outcome, client, arrivals)
        if failed:
            drop(client)
            return failed, None
        return outcome, session

    def _connected(self, probe: Probe, outcome: Outcome, client: socket.socket, arrivals):
        number, arrivals = self._mirror(probe, outcome)
        came = outcome.arrival.packet
        failed = self._handshake(outcome, client, arrivals, came.port)
        if failed:
            return failed, None
        request = _as_sent(probe, client, came)
        return None, Session(probe, request, outcome.arrival, client, None, came.sequence + 1, number + 1)

    def _connected_here(self, probe: Probe, outcome: Outcome, client: socket.socket, arrivals):
        """All in one go, over the loopback interface."""
        came = outcome.arrival.packet
        self._record(ANSWER, lambda packet: packet.protocol == TCP and packet.port == came.source_port)
        failed = self._handshake(outcome, client, arrivals, came.port)
        server = None if failed else self._connection(probe.family, came.port, client.getsockname()[1])
        if server is None:
            return failed or Outcome("drop", FOLLOW_UP, "", "", outcome.arrival), None
        numbers = [arrival.packet.sequence for arrival in arrivals if probing.is_second(arrival.packet)]
        request = _as_sent(probe, client, came)
        return None, Session(probe, request, outcome.arrival, client, server, came.sequence + 1, numbers[0] + 1)

    def _handshake(self, outcome: Outcome, client: socket.socket, arrivals, port: int) -> Optional[Outcome]:
        """What is missing for this host's own connection: the answer, or what the kernel says to it at once."""
        if not any(not arrival.interface and probing.is_second(arrival.packet) for arrival in arrivals):
            return probing.refused(arrivals, probing.refuses(TCP, port), ANSWER, outcome.arrival)
        source_port = outcome.arrival.packet.source_port
        self._record(FOLLOW_UP, probing.is_from_port(TCP, source_port))
        sent = any(probing.is_bare_acknowledgement(arrival.packet) for arrival in arrivals)
        if sent and is_connected(client):
            return None
        refusal = probing.refuses(TCP, client.getsockname()[1])
        return probing.refused(arrivals, refusal, FOLLOW_UP, outcome.arrival)

    def _send_datagram(self, probe: Probe, source_port: int) -> Opened:
        self._expect(probe._replace(whole=True))
        number = self._next()
        try:
            client = self._bound(probe, socket.SOCK_DGRAM, source_port)
        except OSError as err:
            return probing.cannot_send(probe, err.errno), None
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        return self._sent(probe, client, number, probing.mark(number), probing.is_from_port(UDP, source_port))

    def _send_raw(self, probe: Probe) -> Opened:
        self._expect(probe)
        number = self._next()
        try:
            client = self._bound(probe, socket.SOCK_RAW, 0, probe.protocol)
        except OSError as err:
            return probing.cannot_send(probe, err.errno), None
        payload = packets.summed(b"", b"", probe.protocol, probing.first_payload(probe, 0, number))
        return self._sent(probe, client, number, payload, lambda packet: packet.protocol == probe.protocol)

    def _sent(self, probe: Probe, client: socket.socket, number: int, data: bytes, is_its: IsIts) -> Opened:
        """Of a protocol without connections."""
        error = _send(client, data, probe)
        arrivals = self._observe(REQUEST, is_its)
        refuses = probing.refuses(probe.protocol, client.getsockname()[1] if probe.protocol == UDP else 0)
        outcome = probing.became(arrivals, probing.carries(probe.protocol, number), refuses)
        if outcome.verdict == "drop" and error not in (0, errno.EPERM):
            outcome = probing.cannot_send(probe, error)
        if outcome.verdict != "accept" or not probe.whole:
            client.close()
            return outcome, None
        request = _as_sent(probe, client, outcome.arrival.packet)
        session = Session(probe, request, outcome.arrival, client, None, 0, 0)
        if self._is_answered_to(probe, outcome, client):
            return outcome, session
        client.close()
        return Outcome("drop", ANSWER, "", "", outcome.arrival), None

    def _is_answered_to(self, probe: Probe, outcome: Outcome, client: socket.socket) -> bool:
        came = outcome.arrival.packet
        if not self._is_answered(probe, came):
            return True
        if outcome.arrival.interface:
            number, arrivals = self._mirror(probe, outcome)
            is_same = probing.carries(probe.protocol, number)
            if probe.protocol == UDP:
                return _received_data(client)
            return any(not arrival.interface and is_same(arrival.packet) for arrival in arrivals)
        if probe.protocol == UDP:
            answer_datagrams(self._wire.listener(probe.family, UDP, came.port), probing.MARK)
            self._observe(ANSWER, probing.answers_to(came))
            return _received_data(client)
        # The kernel answered at once: all that it received has come with the request already.
        self._record(ANSWER, probing.answers_to(came))
        return any(map(probing.answers_to(came), _replies(client, probe)))

    def _is_answered(self, probe: Probe, request: Packet) -> bool:
        """Not what is sent to many, and not what asks nothing."""
        if probe.protocol not in probing.WITH_PORTS and (request.icmp or ()) != probing.ECHO.get(probe.protocol):
            return False
        if probe.destination not in self._to_many:
            kind = self._wire.replica.route(probe.family, probe.destination).type
            self._to_many[probe.destination] = kind in ("broadcast", "multicast")
        return not self._to_many[probe.destination] and any(request.source)

    # --- a session that goes on ----------------------------------------------------------------------------------
    # What is sent in it is written by hand, also where an end is a socket: that would wait while a packet is missing.

    def _more_from_client(self, session: Session) -> Outcome:
        probe, request, number = session.probe, session.request, self._next()
        payload = probing.further_payload(session, number)
        packet = packets.build(request.source, request.destination, probe.protocol, payload, number)
        if probe.interface:
            error = self._wire.inject(probe.interface, packet)
        else:
            error = self._wire.send_raw(probe.family, packet, probe.destination, probe.user)
        arrivals = self._observe(REQUEST, probing.is_on_its_way(request))
        refusal = probing.refuses(probe.protocol, request.source_port)
        outcome = probing.became(arrivals, probing.holds_data(probe.protocol, number), refusal)
        if outcome.verdict == "drop" and error not in (0, errno.EPERM):
            return probing.cannot_send(probe, error)
        return outcome._replace(arrival=session.arrival if outcome.arrival else None)

    def _more_from_server(self, session: Session, outcome: Outcome) -> Outcome:
        probe, came, number = session.probe, session.arrival.packet, self._next()
        if not self._is_answered(probe, session.request):
            return outcome
        payload = probing.answering_payload(session, number)
        raw = packets.build(came.destination, came.source, probe.protocol, payload, number)
        self._wire.forget()
        if session.arrival.interface:
            self._wire.inject(session.arrival.interface, raw)
        else:
            self._wire.send_raw(probe.family, raw, packets.show(came.source), (0, 0))
        arrivals = self._observe(ANSWER, probing.is_on_its_way(packets.parse(raw)))
        is_same = probing.holds_data(probe.protocol, number)
        to_outside = bool(probe.interface)
        if any(bool(arrival.interface) == to_outside and is_same(arrival.packet) for arrival in arrivals):
            return outcome
        return probing.refused(arrivals, probing.refuses(probe.protocol, came.port), ANSWER, outcome.arrival)


def _as_sent(probe: Probe, client: socket.socket, came: Packet) -> Packet:
    """Before any address of it was translated."""
    source, source_port = client.getsockname()[:2]
    payload = probing.first_payload(probe, source_port, came.sequence)
    if came.icmp:
        payload = packets.icmp(*came.icmp, came.ident, 1, b"")
    source = packets.show(came.source) if not any(packets.pack(source)) else source
    return packets.parse(packets.build(packets.pack(source), packets.pack(probe.destination), probe.protocol, payload))


def close(session: Session) -> None:
    for end in (session.client, session.server):
        if end is not None and not (end is session.server and session.probe.protocol == UDP):
            drop(end)


# --- sockets ---------------------------------------------------------------------------------------------------------


def _send(client: socket.socket, data: bytes, probe: Probe) -> int:
    """0, or the number of the error."""
    try:
        if client.type == socket.SOCK_STREAM:
            client.send(data)
        else:
            client.sendto(data, (probe.destination, probe.port if client.type == socket.SOCK_DGRAM else 0))
    except OSError as err:
        return err.errno
    return 0


def _received_data(receiver: socket.socket) -> bool:
    try:
        return bool(receiver.recv(1 << 16))
    except OSError:
        return False


def _replies(client: socket.socket, probe: Probe) -> Iterator[Packet]:
    for data, sender in drain(client):
        if probe.family == "ipv6":
            yield packets.parse_payload("ipv6", packets.pack(sender[0].split("%")[0]), probe.protocol, data)
        else:
            yield packets.parse(data)
