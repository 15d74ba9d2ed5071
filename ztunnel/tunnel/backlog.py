"""The frames that wait to be written to a tunnel's TLS connection."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from ztunnel.tls.scratch import CHUNK

SMALL = 16 * 1024
"""Bytes.

Smaller pieces are joined with what follows, so that one TLS record (at most 16 KiB, RFC 8446 section 5.1)
carries a frame's header and its payload.
"""


class Wire(Protocol):
    """The TLS connection to which the frames are written."""

    def try_send(self, data: bytes | bytearray | memoryview) -> int:
        """Write some bytes. Returns how many were written, 0 when it would block.

        Raises OSError, TlsError.
        """


class Backlog:
    """A queue of frames that TLS has not taken yet."""

    __slots__ = ("_pieces", "_wire")

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._pieces: deque[bytes | memoryview] = deque()

    def __len__(self) -> int:
        return len(self._pieces)

    def send(self, pieces: Sequence[bytes | memoryview]) -> bool:
        """Write at least one piece, behind what waits already. Returns whether everything was written.

        Raises what ``try_send`` raises.
        """
        queue = self._pieces
        count = len(pieces)
        if not queue and (count == 1 or (count == 2 and len(pieces[1]) < SMALL)):
            # A frame or two need no queue.
            data = pieces[0] if count == 1 else b"".join(pieces)
            sent = self._wire.try_send(data)
            if sent == len(data):
                return True
            queue.append(memoryview(data)[sent:])
            if not sent:
                return False
        else:
            queue.extend(pieces)
        self.write()
        return not queue

    def clear(self) -> None:
        """Drop everything: nothing is written any more."""
        self._pieces.clear()

    def write(self) -> None:
        """Write until the queue is empty or TLS would block. Raises what ``try_send`` raises."""
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
        """Join small pieces: one call of TLS, and one record, for a frame's header and its payload."""
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
