"""SO_LINGER with zero seconds: closing the socket sends a reset."""

from __future__ import annotations

import socket
import struct

_RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, for 0 seconds


def set_reset_on_close(sock: socket.socket) -> None:
    """Let the peer see a reset when the socket is closed. What is queued is discarded.

    Does nothing to a closed socket.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
    except OSError:
        pass


def close_with_reset(sock: socket.socket) -> None:
    """Close at once, with a reset."""
    set_reset_on_close(sock)
    sock.close()
