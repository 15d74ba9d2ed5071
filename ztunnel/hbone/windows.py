"""The flow-control windows of one connection (RFC 9113 section 5.2): what the peer may send us, and we it.

A DATA frame is taken from the receive windows when its header is read. Payload is given back when the caller
acknowledges it; padding, and data for streams that are closed, at once. ``Stream.unacknowledged`` counts what
a stream has taken; when it closes with something left, the count moves to ``outstanding`` until the caller
has consumed or dropped the rest.

Lending. A few streams whose consumers take nothing would use up the connection's window, and stop all others.
So when it is low, the connection gets back what is held as well: the peer may go on, the stream that holds
the bytes may not, since its own window is not touched. What is lent is bounded, for the connection by
``HboneSettings.lent_window`` and for the process by a `WindowBudget`; it is repaid as bytes are consumed. A
stream that a reset or the end of the tunnel has closed holds no window at all: everything is lent for it at
once, and if the budget has not enough, whoever holds its bytes is told to drop them (``Stream.overdrawn``).

    held = size - current - consumed + lent        (bytes that wait for a consumer)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ztunnel.hbone import frames as wire
from ztunnel.hbone.budget import WindowBudget
from ztunnel.hbone.hbone_errors import ErrorCode, Violation

if TYPE_CHECKING:
    from ztunnel.hbone.settings import HboneSettings
    from ztunnel.hbone.stream import Stream
    from ztunnel.hbone.writer import FrameWriter


class ReceiveWindow:
    """What a peer may still send, and what was consumed without having been given back to it.

    current: bytes that may come. size: the largest that ``current`` becomes. consumed: bytes that wait to be
    given back in one WINDOW_UPDATE.
    """

    __slots__ = ("consumed", "current", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.current = size
        self.consumed = 0

    def give_back(self, count: int) -> int:
        """``count`` bytes were consumed. Returns the increment for a WINDOW_UPDATE that is due now, or 0.

        It is due when half of the window waits, and earlier when the peer has nothing left to send with.
        """
        consumed = self.consumed = self.consumed + count
        if consumed < self.size // 2 and (self.current or consumed <= min(1024, self.size // 4)):
            return 0
        increment = min(consumed, self.size - self.current)
        self.consumed = 0
        self.current += increment
        return increment


class WindowBook:
    """The windows of the connection, and those of its streams as far as the two have to move together."""

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
        """The header of a DATA frame came. Raises Violation when it overruns the connection's window."""
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
        """The window is low: give back what was consumed, and as much of what is held as may be lent."""
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
        """``count`` bytes are not held any more: repay what was lent, or give room back to the peer."""
        if self.lent:
            low = self.connection.current < self._low
            # A window that is low gets them first; but no more may be lent than is held.
            count -= self._repay(self.lent - (self.held - count) if low and not self._over else count)
        self._open(count)

    def _repay(self, count: int) -> int:
        repaid = max(0, min(count, self.lent))
        self.lent -= repaid
        self._budget.give(repaid)
        return repaid

    def _open(self, count: int) -> None:
        """Give room back to the peer, when it is worth a WINDOW_UPDATE."""
        increment = self.connection.give_back(count)
        if increment:
            self._writer.window_update(0, increment)

    def acknowledge(self, stream: Stream, count: int) -> None:
        """Give back to both windows what was taken from them, and no more than that."""
        count = min(count, stream.unacknowledged)
        if count > 0:
            stream.unacknowledged -= count
            self.give_back(count)
            increment = stream.window.give_back(count)
            if increment:
                self._writer.window_update(stream.stream_id, increment)

    def drop(self, stream: Stream) -> None:
        """What a stream of ours held is not wanted any more: it holds no window either."""
        if stream.unacknowledged:
            self.give_back(stream.unacknowledged)
            stream.unacknowledged = 0

    def stream_closed(self, stream: Stream) -> None:
        """A stream is closed, and its data perhaps not consumed yet."""
        held = stream.unacknowledged
        if not held:
            return
        self.outstanding[stream.stream_id] = held
        if stream.state.dead and self._lendable:
            self._lend_to_dead(stream, held)

    def _lend_to_dead(self, stream: Stream, held: int) -> None:
        # Some of it may have been lent before.
        missing = min(held, self.held - self.lent)
        if self.lent + missing > self._lendable or self._budget.limit - self._budget.lent < missing:
            stream.overdrawn = True
            del self.outstanding[stream.stream_id]
            self._open(held - self._repay(self.lent - (self.held - held)))
            return
        self.lent += self._budget.take(missing)
        self._open(missing)

    def tunnel_lost(self, streams: Iterable[Stream]) -> None:
        """No window matters any more, but what is held is still memory: it counts for the process."""
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
        """As ``acknowledge``, for data that outlived its stream."""
        outstanding = self.outstanding.get(stream_id, 0)
        count = min(count, outstanding)
        if count > 0:
            if count == outstanding:
                del self.outstanding[stream_id]
            else:
                self.outstanding[stream_id] = outstanding - count
            self.give_back(count)

    def peer_opens(self, increment: int) -> bool:
        """The peer takes more on the connection. Returns whether it took nothing before.

        Raises Violation when the window becomes larger than HTTP/2 allows.
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
