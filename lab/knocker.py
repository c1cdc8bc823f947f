"""
Runs inside a throw-away host for ``lab.truth``: serves ports, or tries them with real sockets and real time.

One JSON request per line, one JSON line in answer.

    {"do": "serve", "ports": [22, 80]}          tcp and udp, both families; what comes is sent back
    {"do": "try", "seconds": 0.3, "probes": [["tcp", "192.0.2.1", 4000, "198.51.100.1", 22], ...]}
    ["accept" | "drop" | "reject", ...]
"""

import contextlib
import errno
import json
import select
import socket
import struct
import sys
import threading
import time

IP_RECEIVE_ERRORS = {socket.AF_INET: (socket.IPPROTO_IP, 11), socket.AF_INET6: (socket.IPPROTO_IPV6, 25)}
PING = {socket.AF_INET: (socket.IPPROTO_ICMP, 8, 0), socket.AF_INET6: (58, 128, 129)}
PACKET_INFO = {socket.AF_INET: (socket.IPPROTO_IP, 8), socket.AF_INET6: (socket.IPPROTO_IPV6, 49)}
PENDING = (errno.EINPROGRESS, errno.EAGAIN, errno.EPERM)  # a packet that OUTPUT drops is refused at once


class Server:
    """Sends back whatever comes, from the address that it came to."""

    def __init__(self, ports):
        self._waiting = select.epoll()
        self._sockets = {}
        for family in PING:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                for port in ports:
                    self._add(opened(family, kind, port))
        threading.Thread(target=self._work, daemon=True).start()

    def _add(self, one):
        one.setblocking(False)
        self._sockets[one.fileno()] = one
        self._waiting.register(one, select.EPOLLIN)

    def _work(self):
        while True:
            for number, _ in self._waiting.poll():
                with contextlib.suppress(OSError):  # a client that has gone, an answer that the rules refuse
                    self._answer(self._sockets[number])

    def _answer(self, one):
        if one.type == socket.SOCK_DGRAM:
            data, extras, _, sender = one.recvmsg(100, 256)
            one.sendmsg([data], [(level, kind, source(level, info)) for level, kind, info in extras], 0, sender)
        elif one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self._add(one.accept()[0])
        else:
            self._echo(one)

    def _echo(self, one):
        try:
            data = one.recv(100)
        except OSError:
            data = b""
        if data:
            one.send(data)
        else:
            del self._sockets[one.fileno()]
            one.close()


def opened(family, kind, port):
    one = socket.socket(family, kind)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.setsockopt(*PACKET_INFO[family], 1)
    one.bind(("", port))
    if kind == socket.SOCK_STREAM:
        one.listen(1024)
    return one


def source(level, info):
    """Of the packet information of a datagram, what asks for the address it came to as the answer's source."""
    return bytes(4) + info[4:8] + bytes(4) if level == socket.IPPROTO_IP else info[:16] + bytes(4)


class Attempt:
    """One connection, or one datagram, until it is answered or refused."""

    def __init__(self, protocol, source, source_port, destination, port):
        family = socket.AF_INET6 if ":" in destination else socket.AF_INET
        self.protocol, self.verdict, self.data = protocol, None, f"{source_port} {time.monotonic()}".encode()
        self.said = False
        if protocol == "ping":
            number, self.request, self.reply = PING[family]
            self.socket = socket.socket(family, socket.SOCK_RAW, number)
            self.ident = source_port
        else:
            kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
            self.socket = socket.socket(family, kind)
        self.family = family
        self.socket.setblocking(False)
        self.socket.setsockopt(*IP_RECEIVE_ERRORS[family], 1)
        self.socket.bind((source, 0 if protocol == "ping" else source_port))
        self.start(destination, port)

    def start(self, destination, port):
        error = self.socket.connect_ex((destination, 0 if self.protocol == "ping" else port))
        if error not in (0, *PENDING):
            self.verdict = "reject"
        elif self.protocol != "tcp":
            self.say()

    def say(self):
        self.said = True
        data = self.data
        if self.protocol == "ping":
            data = struct.pack("!BBHHH", self.request, 0, 0, self.ident, 1) + data
            if self.family == socket.AF_INET:
                data = data[:2] + struct.pack("!H", checksum(data)) + data[4:]
        try:
            self.socket.send(data)
        except OSError as err:
            if err.errno not in PENDING:
                self.verdict = "reject"

    def look(self):
        error = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error and error not in PENDING:
            self.verdict = "reject"
            return
        if self.protocol == "tcp" and not self.said:
            _, writable, _ = select.select([], [self.socket], [], 0)
            if writable:
                self.say()
        try:
            got = self.socket.recv(500)
        except BlockingIOError:
            return
        except OSError as err:
            if err.errno not in PENDING and err.errno != errno.ENOTCONN:
                self.verdict = "reject"
            return
        if self.data in got and (self.protocol != "ping" or self.is_reply(got)):
            self.verdict = "accept"
        elif not got and self.protocol == "tcp":
            self.verdict = "reject"

    def is_reply(self, got):
        start = (got[0] & 15) * 4 if self.family == socket.AF_INET else 0
        return got[start] == self.reply

    def close(self):
        if self.protocol == "tcp":
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def attempt(probes, seconds):
    """All at once; what is not answered in time is dropped."""
    attempts = [Attempt(*probe) for probe in probes]
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(one.verdict is None for one in attempts):
        for one in attempts:
            if one.verdict is None:
                one.look()
        time.sleep(0.003)
    for one in attempts:
        one.close()
    return [one.verdict or "drop" for one in attempts]


def main():
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "serve":
            Server(request["ports"])
            answer = None
        else:
            answer = attempt(request["probes"], request["seconds"])
        print(json.dumps(answer), flush=True)


main()
