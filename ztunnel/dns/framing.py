"""DNS over TCP: each message behind two bytes that say how long it is (RFC 1035, 4.2.2)."""

from __future__ import annotations

import socket

import trio

from ztunnel.dns.message import LONGEST_TCP

_CHUNK = 4096


class MessageStream:
    """Messages over a connected, non-blocking socket, which stays its opener's to close.

    What a peer sends ahead stays in the socket's buffer, but for one message and a chunk at most.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._received = bytearray()

    async def receive(self) -> bytes | None:
        """Returns the next message, None when the peer has ended its side, in the middle of one or not.

        Raises OSError. Not a checkpoint when there is a message already.
        """
        received = self._received
        while True:
            missing = 2 - len(received)
            if missing <= 0:
                end = 2 + int.from_bytes(received[:2], "big")
                missing = end - len(received)
                if missing <= 0:
                    message = bytes(received[2:end])
                    del received[:end]
                    return message
            try:
                data = self._sock.recv(max(missing, _CHUNK))
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                continue
            if not data:
                return None
            received += data

    async def send(self, message: bytes) -> None:
        """Write a message of at most 65,535 bytes. Raises OSError. Not a checkpoint when it fits at once."""
        assert len(message) <= LONGEST_TCP
        rest = memoryview(len(message).to_bytes(2, "big") + message)
        while rest:
            try:
                rest = rest[self._sock.send(rest) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock)
