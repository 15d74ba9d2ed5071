"""Entries of connection tracking over netlink, each of which translates one connection's source address.

The messages are those of nfnetlink (linux/netfilter/nfnetlink_conntrack.h, ctnetlink). The kernel processes a
message within ``send`` and has the answer ready when it returns, so nothing here waits. An entry belongs to
the network namespace of the netlink socket; adding and removing need CAP_NET_ADMIN.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from ztunnel.bounds import DEFAULTS

NETLINK_NETFILTER = 12

_REQUEST, _ACK, _EXCL, _CREATE = 0x1, 0x4, 0x200, 0x400
_NEW, _GET, _DELETE = 0x100, 0x101, 0x102  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_…
_NLMSG_ERROR = 2

_TUPLE_ORIG, _TUPLE_REPLY, _PROTOINFO, _NAT_SRC, _TIMEOUT = 1, 2, 4, 6, 7  # CTA_…
_NESTED = 0x8000
_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct("!BBH")
_ATTRIBUTE = struct.Struct("=HH")
_PORT_ATTRIBUTE = struct.Struct("=HH2sH")
_ERRNO = struct.Struct("=i")


class ConntrackEndpoint(NamedTuple):
    """An address in network byte order (4 or 16 bytes), and a port."""

    ip: bytes
    port: int


class TcpState(IntEnum):
    """The states of a tracked connection that has ended (linux/netfilter/nf_conntrack_tcp.h)."""

    TIME_WAIT = 7
    CLOSE = 8


class _Family(NamedTuple):
    """The numbers that depend on the IP version: the family's, and those of its attributes."""

    number: int
    source: int
    destination: int
    least: int
    most: int


_FAMILIES = {4: _Family(socket.AF_INET, 1, 2, 1, 2), 16: _Family(socket.AF_INET6, 3, 4, 4, 5)}


def encode_add(
    sequence: int,
    source: ConntrackEndpoint,
    destination: ConntrackEndpoint,
    shown: ConntrackEndpoint,
    unused_seconds: float,
) -> bytes:
    """Returns a request to add a TCP connection from ``source`` that ``destination`` sees as from ``shown``.

    unused_seconds: how long the entry lives if the first packet does not come.
    """
    family = _FAMILIES[len(source.ip)]
    nat = (
        _attribute(family.least, shown.ip)
        + _attribute(family.most, shown.ip)
        + _attribute(3 | _NESTED, _port(1, shown.port) + _port(2, shown.port))
    )
    body = (
        _tuple(_TUPLE_ORIG, source, destination)
        + _tuple(_TUPLE_REPLY, destination, source)
        + _attribute(_NAT_SRC | _NESTED, nat)
        + _attribute(_TIMEOUT, int(unused_seconds).to_bytes(4, "big"))
    )
    return _message(_NEW, _ACK | _CREATE | _EXCL, sequence, family, body)


def encode_get(sequence: int, source: ConntrackEndpoint, destination: ConntrackEndpoint) -> bytes:
    """Returns a request for the entry whose replies go from ``source`` to ``destination``."""
    return _message(_GET, 0, sequence, _FAMILIES[len(source.ip)], _tuple(_TUPLE_REPLY, source, destination))


def encode_delete(sequence: int, source: ConntrackEndpoint, destination: ConntrackEndpoint) -> bytes:
    """Returns a request to remove the entry whose replies go from ``source`` to ``destination``."""
    return _message(
        _DELETE, _ACK, sequence, _FAMILIES[len(source.ip)], _tuple(_TUPLE_REPLY, source, destination)
    )


def _message(kind: int, flags: int, sequence: int, family: _Family, body: bytes) -> bytes:
    length = _HEADER.size + _GENERIC.size + len(body)
    header = _HEADER.pack(length, kind, _REQUEST | flags, sequence, 0)
    return header + _GENERIC.pack(family.number, 0, 0) + body


def _tuple(kind: int, source: ConntrackEndpoint, destination: ConntrackEndpoint) -> bytes:
    family = _FAMILIES[len(source.ip)]
    addresses = _attribute(family.source, source.ip) + _attribute(family.destination, destination.ip)
    ports = _TCP + _port(2, source.port) + _port(3, destination.port)
    return _attribute(kind | _NESTED, _attribute(1 | _NESTED, addresses) + _attribute(2 | _NESTED, ports))


def _attribute(kind: int, data: bytes) -> bytes:
    """Returns a netlink attribute. All data here are whole 32-bit words, so no padding is needed."""
    return _ATTRIBUTE.pack(4 + len(data), kind) + data


def _port(kind: int, port: int) -> bytes:
    return _PORT_ATTRIBUTE.pack(6, kind, port.to_bytes(2, "big"), 0)


_TCP = _ATTRIBUTE.pack(5, 1) + bytes((socket.IPPROTO_TCP, 0, 0, 0))


class ConntrackReply(NamedTuple):
    """The kernel's answer: number of the request, errno (0: done), and state of the connection."""

    sequence: int
    error: int
    state: int | None


def decode_reply(message: bytes) -> ConntrackReply:
    """Read one message of the kernel. Raises ValueError if it is not valid."""
    if len(message) < _HEADER.size + 4:
        raise ValueError("a netlink message is cut short")
    _, kind, _, sequence, _ = _HEADER.unpack_from(message)
    if kind == _NLMSG_ERROR:
        return ConntrackReply(sequence, -_ERRNO.unpack_from(message, _HEADER.size)[0], None)
    state = None
    for kind, data in _attributes(message[_HEADER.size + _GENERIC.size :]):
        if kind == _PROTOINFO:
            for _, tcp in _attributes(data):
                state = next((value[0] for number, value in _attributes(tcp) if number == 1), None)
    return ConntrackReply(sequence, 0, state)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        if length < 4:
            raise ValueError("a netlink attribute is shorter than its header")
        yield kind & ~_NESTED, data[position + 4 : position + length]
        position += (length + 3) & ~3


class Conntrack:
    """The table of one network namespace. ``sock``: a non-blocking netlink socket of it; `close` closes it.

    unused_seconds: how long an entry lives if the first packet does not come. All methods raise OSError.
    """

    def __init__(self, sock: socket.socket, unused_seconds: float = DEFAULTS.connection.source_entry) -> None:
        self._sock = sock
        self._unused_seconds = unused_seconds
        self._sequence = 0

    def close(self) -> None:
        """Close the socket. Entries stay until a while after their connections have ended."""
        self._sock.close()

    def add(
        self, source: ConntrackEndpoint, destination: ConntrackEndpoint, shown: ConntrackEndpoint
    ) -> bool:
        """Translate a connection that is about to be made. Returns False when ``shown`` is in use there."""
        self._sequence += 1
        request = encode_add(self._sequence, source, destination, shown, self._unused_seconds)
        error = self._ask(request).error
        if error == errno.EEXIST:
            return False
        if error:
            raise OSError(error, os.strerror(error))
        return True

    def forget_ended(self, destination: ConntrackEndpoint, shown: ConntrackEndpoint) -> bool:
        """Remove the entry that prevents `add`, if its connection has ended."""
        self._sequence += 1
        found = self._ask(encode_get(self._sequence, destination, shown))
        if found.error or found.state not in {TcpState.TIME_WAIT, TcpState.CLOSE}:
            return False
        self._sequence += 1
        return not self._ask(encode_delete(self._sequence, destination, shown)).error

    def _ask(self, request: bytes) -> ConntrackReply:
        self._sock.send(request)
        while True:
            reply = decode_reply(self._sock.recv(8192))
            if reply.sequence == self._sequence:
                return reply
