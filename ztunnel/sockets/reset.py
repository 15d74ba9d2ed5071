"""SO_LINGER decides what the peer sees when a socket is closed: a reset, or an end (FIN).

A connection that ztunnel carries must not end in order unless both its ends were seen: a truncated answer
would look complete. So its sockets are made with a reset on close. The listening sockets have it, from which
accepted ones inherit it (`ztunnel.sockets.listen`), and a dial sets it before it connects. Only a relay that
has seen both ends takes it back. So every other way out ends with a reset: a failure, a cancellation, a bug,
and also the death of the process, since the kernel closes its sockets in the same way.
"""

from __future__ import annotations

import socket
import struct

# struct linger: on or off, and its seconds
_RESET = struct.pack("ii", 1, 0)
_END = struct.pack("ii", 0, 0)


def set_reset_on_close(sock: socket.socket) -> None:
    """Let the peer see a reset when the socket is closed. What is queued is discarded.

    Does nothing to a closed socket.
    """
    _set_linger(sock, _RESET)


def set_end_on_close(sock: socket.socket) -> None:
    """Let the peer see an end when the socket is closed, after what is queued.

    Does nothing to a closed socket.
    """
    _set_linger(sock, _END)


def close_with_reset(sock: socket.socket) -> None:
    """Close at once, with a reset."""
    set_reset_on_close(sock)
    sock.close()


def _set_linger(sock: socket.socket, linger: bytes) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    except OSError:
        pass
