"""TCP keepalive and the user timeout of a socket."""

from __future__ import annotations

import socket
from dataclasses import dataclass

# The kernel takes these as a C int; tcp(7) allows smaller ranges and refuses the rest.
_MAX_KEEPIDLE = 32767
_MAX_KEEPINTVL = 32767
_MAX_KEEPCNT = 127


@dataclass(frozen=True, slots=True)
class Keepalive:
    """When the kernel probes a silent peer (TCP keepalive), and the user timeout.

    time: seconds of silence before the first probe. interval: seconds between probes. retries: probes without
        an answer after which the connection is dead.
    user_timeout: seconds for which sent data may stay unacknowledged; None for the kernel's own rule.
    """

    time: float = 180.0
    interval: float = 180.0
    retries: int = 9
    user_timeout: float | None = None

    def apply(self, sock: socket.socket) -> None:
        """Set the options on a TCP socket.

        An option that the kernel refuses stays as it was: none is essential.
        """
        _try_set(sock, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        _try_set(sock, socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _bounded(self.time, _MAX_KEEPIDLE))
        _try_set(sock, socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _bounded(self.interval, _MAX_KEEPINTVL))
        _try_set(sock, socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _bounded(self.retries, _MAX_KEEPCNT))
        if self.user_timeout is not None:
            milliseconds = _bounded(self.user_timeout * 1000, 2**31 - 1)
            _try_set(sock, socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def _bounded(value: float, most: int) -> int:
    return int(min(max(value, 1), most))


def _try_set(sock: socket.socket, level: int, option: int, value: int) -> None:
    try:
        sock.setsockopt(level, option, value)
    except OSError:
        pass
