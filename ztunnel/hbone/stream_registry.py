"""The streams of one connection: the open ones, and how the closed ones ended."""

from __future__ import annotations

from ztunnel.hbone import frames as wire
from ztunnel.hbone.abuse import AbuseCounter
from ztunnel.hbone.events import Event, StreamEnded, StreamReset
from ztunnel.hbone.settings import HboneSettings
from ztunnel.hbone.stream import Stream
from ztunnel.hbone.stream_state import (
    FORGOTTEN,
    IDLE,
    RECV_END,
    RECV_RESET,
    SEND_RESET,
    TUNNEL_LOST,
    StreamState,
)
from ztunnel.hbone.windows import ConnectionWindows, ReceiveWindow
from ztunnel.hbone.writer import FrameWriter

REMEMBERED = 1024
"""For how many closed streams their last state is kept. Late frames of a peer are about far fewer streams."""


class StreamRegistry:
    """Opens, ends, resets and removes streams. Appends what the caller has to know to ``events``.

    open: the open streams by id, in the order in which they were opened.
    initial_window: the send window of a new stream in bytes, as the peer's SETTINGS say.
    """

    __slots__ = (
        "_abuse",
        "_closed",
        "_events",
        "_highest",
        "_own_window",
        "_windows",
        "_writer",
        "initial_window",
        "open",
    )

    def __init__(
        self,
        settings: HboneSettings,
        writer: FrameWriter,
        windows: ConnectionWindows,
        abuse: AbuseCounter,
        events: list[Event],
    ) -> None:
        self._writer = writer
        self._windows = windows
        self._abuse = abuse
        self._events = events
        self._own_window = settings.stream_window
        self._closed: dict[int, StreamState] = {}
        self._highest = 0
        self.initial_window = wire.DEFAULT_WINDOW
        self.open: dict[int, Stream] = {}

    def enter(self, stream_id: int, state: StreamState) -> Stream:
        """Add a new stream. Its id must be higher than all before it."""
        stream = Stream(stream_id, state, ReceiveWindow(self._own_window), self.initial_window)
        self._highest = stream_id
        self.open[stream_id] = stream
        return stream

    def closed_state(self, stream_id: int) -> StreamState:
        """Returns the state of a stream that is not open. Only clients open streams, so ids are odd."""
        if stream_id > self._highest or not stream_id & 1:
            return IDLE
        return self._closed.get(stream_id, FORGOTTEN)

    def peer_ended(self, stream: Stream) -> None:
        """The peer sent END_STREAM."""
        stream.step(RECV_END)
        self._events.append(StreamEnded(stream.stream_id))
        if stream.state.closed:
            self.remove(stream)

    def reset(self, stream: Stream, code: int) -> None:
        """Send RST_STREAM and drop what the stream holds."""
        if not stream.state.closed:
            stream.step(SEND_RESET)
        stream.reset_code = code
        self._writer.reset(stream.stream_id, code)
        self._windows.drop(stream)
        self.remove(stream)

    def reset_on_error(self, stream: Stream, code: int) -> None:
        """Reset a stream because of an error of the peer, and add a StreamReset event."""
        self.reset(stream, code)
        self._events.append(StreamReset(stream.stream_id, code, remote=False))
        self._abuse.local_error()

    def reset_by_peer(self, stream: Stream, code: int) -> None:
        """The peer has reset a stream."""
        stream.step(RECV_RESET)
        stream.reset_code = code
        self.remove(stream)
        self._events.append(StreamReset(stream.stream_id, code))

    def remove(self, stream: Stream) -> None:
        """Remove a closed stream and keep its last state."""
        closed = self._closed
        closed[stream.stream_id] = stream.state
        if len(closed) > REMEMBERED:
            del closed[next(iter(closed))]
        del self.open[stream.stream_id]
        self._windows.stream_closed(stream)

    def lose_all(self) -> None:
        """The connection has ended: all streams are lost."""
        streams = list(self.open.values())
        for stream in streams:
            stream.step(TUNNEL_LOST)
        self.open.clear()
        self._windows.tunnel_lost(streams)
