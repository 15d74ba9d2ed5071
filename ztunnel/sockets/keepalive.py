"""TCP keepalive and the user timeout of a socket."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from functools import lru_cache

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
        for option in _options(self.time, self.interval, self.retries, self.user_timeout):
            try:
                sock.setsockopt(*option)
            except OSError:
                pass


@lru_cache(maxsize=8)
def _options(
    time: float, interval: float, retries: int, user_timeout: float | None
) -> tuple[tuple[int, int, int], ...]:
    """Returns level, name and value of each option. The configuration is the same for each connection."""
    tcp = socket.IPPROTO_TCP
    options = [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (tcp, socket.TCP_KEEPIDLE, _bounded(time, _MAX_KEEPIDLE)),
        (tcp, socket.TCP_KEEPINTVL, _bounded(interval, _MAX_KEEPINTVL)),
        (tcp, socket.TCP_KEEPCNT, _bounded(retries, _MAX_KEEPCNT)),
    ]
    if user_timeout is not None:
        options.append((tcp, socket.TCP_USER_TIMEOUT, _bounded(user_timeout * 1000, 2**31 - 1)))
    return tuple(options)


def _bounded(value: float, most: int) -> int:
    return int(min(max(value, 1), most))
