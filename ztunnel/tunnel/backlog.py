"""What waits to be written to a tunnel's TLS connection, and how pieces are joined for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from ztunnel.tls.scratch import CHUNK

SMALL = 16 * 1024
"""Pieces below the size of a TLS record (RFC 8446 section 5.1) are joined with what follows: a frame's header
with its payload.
"""


class Wire(Protocol):
    """What takes the bytes."""

    def try_send(self, data: bytes | bytearray | memoryview) -> int:
        """Take some; returns how many bytes, 0 when it would block. Raises OSError, TlsError."""


class Backlog:
    """Frames that were handed over and not taken by TLS yet."""

    __slots__ = ("_pieces", "_wire")

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._pieces: deque[bytes | memoryview] = deque()

    def __len__(self) -> int:
        return len(self._pieces)

    def extend(self, pieces: Iterable[bytes | memoryview]) -> None:
        """Add what is to be written after all that waits already."""
        self._pieces.extend(pieces)

    def clear(self) -> None:
        """Drop it: nothing is written any more."""
        self._pieces.clear()

    def write(self) -> None:
        """Write until it is empty or TLS would block. Raises what ``try_send`` raises."""
        pieces = self._pieces
        try_send = self._wire.try_send
        while pieces:
            data = pieces.popleft()
            if pieces and len(data) < SMALL:
                data = self._gather(data)
            size = len(data)
            sent = try_send(data)
            while 0 < sent < size:
                data = memoryview(data)[sent:]
                size -= sent
                sent = try_send(data)
            if not sent:
                pieces.appendleft(data)
                return

    def _gather(self, first: bytes | memoryview) -> bytes:
        """Join small pieces, so that a frame's header and its payload travel together."""
        pieces = self._pieces
        parts = [first]
        room = CHUNK - len(first)
        while pieces and room:
            piece = pieces[0]
            if len(piece) <= room:
                parts.append(pieces.popleft())
                room -= len(piece)
            else:
                view = memoryview(piece)
                parts.append(view[:room])
                pieces[0] = view[room:]
                room = 0
        return b"".join(parts)
