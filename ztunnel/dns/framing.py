"""DNS over TCP: each message has a length of two bytes before it (RFC 1035, 4.2.2)."""

from __future__ import annotations

import socket

import trio

from ztunnel.dns.message import LONGEST_TCP

_CHUNK = 4096


class MessageStream:
    """Messages over a connected, non-blocking socket, which the caller closes.

    What a peer sends ahead stays in the socket's buffer, except one message and a chunk at most.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._received = bytearray()

    async def receive(self) -> bytes | None:
        """Wait for the next message and return it.

        None when the peer has ended its side, even inside a message.

        Raises OSError. Not a checkpoint when a message is there already.
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
