"""The reading side of a tunnel: TLS, then the sans-IO HTTP/2 connection, then the streams.

The reader works in turns. A turn reads until a short read says that the socket is empty, feeds the bytes
to the HTTP/2 connection, and has the events processed and delivered. Nothing in a turn waits. So while the
reader waits for the socket, the loop itself takes the turns for small messages (`Watch.readable`), which
saves a step of the reader's task for each message. That task is woken for the rest: bulk data, which lets
others go first; more frames than one turn may have; and the end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Enum, auto
from typing import Generic, TypeVar

import trio

from ztunnel.bounds import TunnelBounds
from ztunnel.hbone import Event, HboneConnection
from ztunnel.loop.bulk import make_room, piece
from ztunnel.tls.scratch import CHUNK
from ztunnel.tls.tls_connection import TlsConnection
from ztunnel.tls.tls_errors import TlsError
from ztunnel.tunnel.rest import SMALL_READ, end_turn

BATCH = 2
"""Reads in one turn: together 256 KiB, a good size for one ``sendmsg``."""

HboneT = TypeVar("HboneT", bound=HboneConnection)


class _After(Enum):
    """What is left for the reader's task after a turn."""

    ALL_READ = auto()
    FULL = auto()
    TOO_MUCH = auto()
    END = auto()


class TunnelReader(ABC, Generic[HboneT]):
    """What `Tunnel` reads with. The attributes are described there."""

    def __init__(self, tls: TlsConnection, hbone: HboneT, bounds: TunnelBounds) -> None:
        self.tls = tls
        self.hbone = hbone
        self.bounds = bounds
        self.failure: str | None = None
        self.many = False
        self.heard: float = trio.current_time()
        self._bulk = self._sent_bulk = False
        self._end_received = self._broken = False
        self._turn_cost = 0
        self._after: _After | None = None
        # Large reads cost memory, so they are for tunnels that are full of payload.
        self._read_size = SMALL_READ
        # Cheaper than `trio.current_time`, and called with each message.
        self._now = trio.lowlevel.current_clock().current_time

    @abstractmethod
    def flush(self) -> None:
        """Write the output of the HTTP/2 connection."""

    @abstractmethod
    def _dispatch(self, event: Event) -> None:
        """Process an event of the HTTP/2 connection."""

    @abstractmethod
    def _deliver(self) -> None:
        """Deliver what the events of a turn brought."""

    @abstractmethod
    def _finished(self) -> bool:
        """Whether the tunnel needs nothing more from its peer."""

    async def _read(self) -> None:
        """Read until the end, an error of the transport (``_broken``), or the tunnel has finished."""
        after: _After | None = None
        # What the turns have cost that follow each other because more was waiting.
        work = 0
        while True:
            if after is None:
                if self._bulk:
                    await make_room()
                after = self._turn()
            if after is _After.END:
                break
            if after is _After.TOO_MUCH:
                work = await end_turn(self._turn_cost, work, self.bounds)
                after = None
                continue
            work = 0
            if after is _After.FULL:
                await trio.lowlevel.checkpoint()
                after = None
            else:
                self._after = None
                await self.tls.wait_receivable(self._small_turn)
                after = self._after

    def _small_turn(self) -> bool:
        """The handler of `Watch.readable`: a turn without a step of the reader's task.

        Returns whether nothing is left for that task.
        """
        if self._bulk:
            return False
        after = self._turn()
        if after is _After.ALL_READ and self.tls.at_rest():
            return True
        self._after = after
        return False

    def _turn(self) -> _After:
        """Read once or twice, process and deliver what came. Returns what the reader is to do then."""
        tls = self.tls
        hbone = self.hbone
        reads = turn = 0
        turn_limit = self.bounds.turn_work if self.many else self.bounds.first_work
        much = end = False
        unread = hbone.unread
        size = limit = self._read_size
        batch = BATCH
        if self._bulk:
            limit = piece(size)
            batch = BATCH if limit == size else 1
        try:
            while reads < batch:
                data = b"" if unread else tls.try_receive(limit)
                if data is None:
                    break
                if not data and not unread:
                    end = True
                    break
                reads += 1
                much |= len(data) >= SMALL_READ
                for event in hbone.receive(data, turn_limit - turn):
                    self._dispatch(event)
                turn += hbone.take_work()
                unread = hbone.unread
                if unread or turn > turn_limit:
                    break
        except (OSError, TlsError) as error:
            end = self._broken = True
            self.failure = self.failure or f"io error: {error}"
            hbone.silence()
        self._end_received = end
        if reads:
            self.heard = self._now()
        # Of a tunnel that sends bulk data, the small frames in return are as little urgent.
        much = much or self._sent_bulk
        self._sent_bulk = False
        if self._bulk != much:
            self._bulk = tls.bulk = much
        self._deliver()
        self.flush()
        if end or self._finished():
            return _After.END
        if unread or turn > turn_limit:
            # A large read has too many small frames.
            self._read_size = SMALL_READ
            self.many = True
            self._turn_cost = turn
            return _After.TOO_MUCH
        self.many = False
        if reads == batch:
            self._read_size = CHUNK
            return _After.FULL
        return _After.ALL_READ
