"""The kernel's data about a TCP connection: its state, its queues, and when it last moved a byte.

Sources: tcp(7) for TCP_INFO and its structure (linux/tcp.h), SIOCOUTQ and SIOCINQ.
"""

from __future__ import annotations

import array
import fcntl
import socket
import struct
import termios
from typing import NamedTuple

_SIOCOUTQ = 0x5411
_HEAD = struct.Struct("8B24I")
_LAST_SENT, _LAST_RECEIVED, _ROUND_TRIP = 9, 11, 15
_STATES = (
    "",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "LISTEN",
    "CLOSING",
)


class TcpInfo(NamedTuple):
    """The state of a connection at one moment.

    unsent: bytes in the send queue that the peer has not acknowledged. unread: bytes received and not read
        yet.
    idle, round_trip: seconds.
    """

    state: str
    unsent: int
    unread: int
    idle: float
    round_trip: float


def tcp_info(sock: socket.socket) -> TcpInfo | None:
    """Returns the state of a TCP socket; None for a closed one and for other sockets."""
    try:
        data = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _HEAD.size)
    except OSError:
        return None
    if len(data) < _HEAD.size:
        return None
    fields = _HEAD.unpack(data)
    numbers = fields[8:]
    state = _STATES[fields[0]] if fields[0] < len(_STATES) else str(fields[0])
    idle = min(numbers[_LAST_SENT], numbers[_LAST_RECEIVED]) / 1000
    return TcpInfo(
        state, _queue(sock, _SIOCOUTQ), _queue(sock, termios.FIONREAD), idle, numbers[_ROUND_TRIP] / 1e6
    )


def _queue(sock: socket.socket, request: int) -> int:
    value = array.array("i", [0])
    try:
        fcntl.ioctl(sock.fileno(), request, value)
    except OSError:
        return 0
    return value[0]
