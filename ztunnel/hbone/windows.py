"""The flow-control windows of one connection (RFC 9113 section 5.2): how much each side may send.

A DATA frame reduces the receive windows when its header is read. Padding and data for closed streams are
given back at once, payload when the caller acknowledges it. ``Stream.unacknowledged`` counts what a stream
has taken and not given back. When a stream closes, the rest of its count moves to ``outstanding``, until the
caller has consumed or dropped those bytes.

Lending. A few streams with slow consumers could use up the connection's window and block all other streams.
So when that window is low, bytes that are still held are given back to the peer too: they are lent. Other
streams can continue; the slow stream cannot, because its own window stays as it is. Lending has two limits:
``HboneSettings.lent_window`` for the connection, and a `WindowBudget` for the process. As bytes are consumed,
the loan is repaid first. A stream that was closed by a reset or by the loss of its tunnel must hold no
window: all its bytes are lent at once. If the budget is too small for that, ``Stream.overdrawn`` tells the
holder of the bytes to drop them.

    held = size - current - consumed + lent        (bytes that wait for a consumer)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ztunnel.bounds import DEFAULTS
from ztunnel.hbone import frames as wire
from ztunnel.hbone.hbone_errors import ErrorCode, Violation

if TYPE_CHECKING:
    from ztunnel.hbone.settings import HboneSettings
    from ztunnel.hbone.stream import Stream
    from ztunnel.hbone.writer import FrameWriter


class WindowBudget:
    """The bytes that tunnels may lend together. All tunnels of a process share one object.

    limit: the most bytes that may be lent at a time. lent: bytes that are lent now.
    """

    __slots__ = ("lent", "limit")

    def __init__(self, limit: int = DEFAULTS.tunnel.lent_bytes) -> None:
        self.limit = limit
        self.lent = 0

    def take(self, count: int) -> int:
        """Lend up to ``count`` bytes. Returns how many were left to lend."""
        granted = max(0, min(count, self.limit - self.lent))
        self.lent += granted
        return granted

    def give(self, count: int) -> None:
        """Repay ``count`` bytes: they are no longer held."""
        self.lent -= count


class ReceiveWindow:
    """The receive window of a stream or of the connection.

    current: bytes that the peer may send now. size: the largest value of ``current``. consumed: bytes that
    are consumed but not given back yet, so that one WINDOW_UPDATE gives back many.
    """

    __slots__ = ("consumed", "current", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.current = size
        self.consumed = 0

    def give_back(self, count: int) -> int:
        """Note ``count`` consumed bytes. Returns the increment of a WINDOW_UPDATE to send now, or 0 for none.

        A WINDOW_UPDATE is due when half of the window was consumed, or earlier if the peer's window is 0.
        """
        consumed = self.consumed = self.consumed + count
        if consumed < self.size // 2 and (self.current or consumed <= min(1024, self.size // 4)):
            return 0
        increment = min(consumed, self.size - self.current)
        self.consumed = 0
        self.current += increment
        return increment


class ConnectionWindows:
    """The two windows of the connection, and the changes that concern stream windows at the same time.

    connection: the receive window. send_window: bytes that the peer takes on the connection now.
    lent: bytes lent now. outstanding: unconsumed bytes of closed streams, by stream id.
    """

    __slots__ = (
        "_budget",
        "_lendable",
        "_low",
        "_over",
        "_writer",
        "connection",
        "largest_send_window",
        "lent",
        "outstanding",
        "send_window",
    )

    def __init__(self, settings: HboneSettings, writer: FrameWriter, budget: WindowBudget) -> None:
        self._writer = writer
        self._budget = budget
        self._lendable = settings.lent_window
        self._low = settings.connection_window // 4
        self._over = False
        self.lent = 0
        self.connection = ReceiveWindow(settings.connection_window)
        self.send_window = self.largest_send_window = wire.DEFAULT_WINDOW
        self.outstanding: dict[int, int] = {}

    def take(self, count: int) -> None:
        """Reduce the window by a DATA frame of ``count`` bytes.

        Raises Violation when the window is too small.
        """
        window = self.connection
        window.current -= count
        if window.current < 0:
            raise Violation(ErrorCode.FLOW_CONTROL_ERROR, "the peer overran the connection's window")
        if window.current < self._low and self._lendable:
            self._lend()

    @property
    def held(self) -> int:
        """Bytes that wait for a consumer."""
        if self._over:
            return self.lent
        window = self.connection
        return window.size - window.current - window.consumed + self.lent

    def _lend(self) -> None:
        """The window is low: give back what was consumed, and lend as much of what is held as allowed."""
        window = self.connection
        wanted = min(self.held, self._lendable) - self.lent
        if window.consumed + wanted < window.size // 16:
            return
        lent = self._budget.take(wanted)
        self.lent += lent
        increment = window.consumed + lent
        if increment:
            window.consumed = 0
            window.current += increment
            self._writer.window_update(0, increment)

    def give_back(self, count: int) -> None:
        """``count`` bytes are no longer held: repay what was lent, give the rest back to the peer."""
        if self.lent:
            low = self.connection.current < self._low
            # If the window is low, the peer needs these bytes more than the loan does. But the loan may never
            # be larger than what is held.
            count -= self._repay(self.lent - (self.held - count) if low and not self._over else count)
        self._open(count)

    def _repay(self, count: int) -> int:
        repaid = max(0, min(count, self.lent))
        self.lent -= repaid
        self._budget.give(repaid)
        return repaid

    def _open(self, count: int) -> None:
        """Give bytes back to the peer; a WINDOW_UPDATE is sent when enough have come together."""
        increment = self.connection.give_back(count)
        if increment:
            self._writer.window_update(0, increment)

    def acknowledge(self, stream: Stream, count: int) -> None:
        """The consumer took ``count`` bytes of an open stream: give them back to both windows.

        Never gives back more than the stream has taken.
        """
        count = min(count, stream.unacknowledged)
        if count > 0:
            stream.unacknowledged -= count
            self.give_back(count)
            increment = stream.window.give_back(count)
            if increment:
                self._writer.window_update(stream.stream_id, increment)

    def drop(self, stream: Stream) -> None:
        """Give back all that a stream holds, because nobody wants its data any more."""
        if stream.unacknowledged:
            self.give_back(stream.unacknowledged)
            stream.unacknowledged = 0

    def stream_closed(self, stream: Stream) -> None:
        """A stream has closed. Its data may not be consumed yet."""
        held = stream.unacknowledged
        if not held:
            return
        self.outstanding[stream.stream_id] = held
        if stream.state.dead and self._lendable:
            self._lend_to_dead(stream, held)

    def _lend_to_dead(self, stream: Stream, held: int) -> None:
        # A part of these bytes may have been lent before.
        missing = min(held, self.held - self.lent)
        if self.lent + missing > self._lendable or self._budget.limit - self._budget.lent < missing:
            stream.overdrawn = True
            del self.outstanding[stream.stream_id]
            self._open(held - self._repay(self.lent - (self.held - held)))
            return
        self.lent += self._budget.take(missing)
        self._open(missing)

    def tunnel_lost(self, streams: Iterable[Stream]) -> None:
        """The tunnel has ended. Windows do not matter any more, but held bytes still use memory.

        So all that is held is lent from the process's budget. If it is too small, all streams are overdrawn.
        """
        held = self.held
        missing = held - self.lent
        granted = self._budget.take(missing)
        self._over = True
        if granted == missing:
            self.lent = held
            for stream in streams:
                if stream.unacknowledged:
                    self.outstanding[stream.stream_id] = stream.unacknowledged
            return
        self._budget.give(granted + self.lent)
        self.lent = 0
        self.outstanding.clear()
        for stream in streams:
            stream.overdrawn = True

    def acknowledge_closed(self, stream_id: int, count: int) -> None:
        """As ``acknowledge``, for data of a stream that has closed."""
        outstanding = self.outstanding.get(stream_id, 0)
        count = min(count, outstanding)
        if count > 0:
            if count == outstanding:
                del self.outstanding[stream_id]
            else:
                self.outstanding[stream_id] = outstanding - count
            self.give_back(count)

    def peer_opens(self, increment: int) -> bool:
        """Increase the connection's send window. Returns whether it was 0 before.

        Raises Violation when it becomes larger than HTTP/2 allows.
        """
        before = self.send_window
        if before + increment > wire.LARGEST_WINDOW:
            raise Violation(ErrorCode.FLOW_CONTROL_ERROR, "the peer opened the connection's window too far")
        self.send_window = before + increment
        self.largest_send_window = max(self.largest_send_window, self.send_window)
        return not before

    @property
    def congested(self) -> bool:
        """Whether less than a quarter of the connection's window is left, in either direction."""
        receive = self.connection
        return (
            self.send_window * 4 < self.largest_send_window
            or (receive.current + receive.consumed) * 4 < receive.size
        )
