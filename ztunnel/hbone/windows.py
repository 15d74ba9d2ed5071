"""The flow-control windows of one connection (RFC 9113 section 5.2): what the peer may send us, and we it.

A DATA frame is taken from the receive windows when its header is read. Payload is given back when the caller
acknowledges it; padding, and data for streams that are closed, at once. So what a peer can make the caller
hold is one connection window. ``Stream.unacknowledged`` counts what a stream has taken; when it closes with
something left, the count moves to ``outstanding`` until the caller has consumed or dropped the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ztunnel.hbone import frames as wire
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

    __slots__ = ("_writer", "connection", "largest_send_window", "outstanding", "send_window")

    def __init__(self, settings: HboneSettings, writer: FrameWriter) -> None:
        self._writer = writer
        self.connection = ReceiveWindow(settings.connection_window)
        self.send_window = self.largest_send_window = wire.DEFAULT_WINDOW
        self.outstanding: dict[int, int] = {}

    def take(self, count: int) -> None:
        """The header of a DATA frame came. Raises Violation when it overruns the connection's window."""
        window = self.connection
        window.current -= count
        if window.current < 0:
            raise Violation(ErrorCode.FLOW_CONTROL_ERROR, "the peer overran the connection's window")

    def give_back(self, count: int) -> None:
        """Give room back to the connection's window, when it is enough for a WINDOW_UPDATE."""
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
        if stream.unacknowledged:
            self.outstanding[stream.stream_id] = stream.unacknowledged

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
