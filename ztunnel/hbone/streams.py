"""The streams of one connection: those that are open, and how the others ended."""

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
    State,
)
from ztunnel.hbone.windows import ReceiveWindow, WindowBook
from ztunnel.hbone.writer import FrameWriter

REMEMBERED = 1024
"""Closed streams of which it is known how they ended. What a peer can be late with is far less."""


class StreamBook:
    """Opens, ends, resets and removes streams, and tells the caller about it through ``events``.

    open: the open streams by id, in the order in which they were opened.
    initial_window: bytes that the peer takes on a new stream.
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
        windows: WindowBook,
        abuse: AbuseCounter,
        events: list[Event],
    ) -> None:
        self._writer = writer
        self._windows = windows
        self._abuse = abuse
        self._events = events
        self._own_window = settings.stream_window
        self._closed: dict[int, State] = {}
        self._highest = 0
        self.initial_window = wire.DEFAULT_WINDOW
        self.open: dict[int, Stream] = {}

    def enter(self, stream_id: int, state: State) -> Stream:
        """A stream begins. Its id is higher than any before it."""
        stream = Stream(stream_id, state, ReceiveWindow(self._own_window), self.initial_window)
        self._highest = stream_id
        self.open[stream_id] = stream
        return stream

    def closed_state(self, stream_id: int) -> State:
        """The state of a stream that is not open. Only clients open streams, with odd ids."""
        if stream_id > self._highest or not stream_id & 1:
            return IDLE
        return self._closed.get(stream_id, FORGOTTEN)

    def peer_ended(self, stream: Stream) -> None:
        """The peer has ended its direction."""
        stream.step(RECV_END)
        self._events.append(StreamEnded(stream.stream_id))
        if stream.state.closed:
            self.remove(stream)

    def reset(self, stream: Stream, code: int) -> None:
        """Send RST_STREAM. What the stream holds is not wanted any more."""
        if not stream.state.closed:
            stream.step(SEND_RESET)
        stream.reset_code = code
        self._writer.reset(stream.stream_id, code)
        self._windows.drop(stream)
        self.remove(stream)

    def reset_on_error(self, stream: Stream, code: int) -> None:
        """Reset a stream for what the peer did on it, and tell the caller."""
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
        """Drop a closed stream, remembering how it was closed."""
        closed = self._closed
        closed[stream.stream_id] = stream.state
        if len(closed) > REMEMBERED:
            del closed[next(iter(closed))]
        del self.open[stream.stream_id]
        self._windows.stream_closed(stream)

    def lose_all(self) -> None:
        """The connection is over."""
        streams = list(self.open.values())
        for stream in streams:
            stream.step(TUNNEL_LOST)
        self.open.clear()
        self._windows.tunnel_lost(streams)
