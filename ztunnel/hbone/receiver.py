"""Processes the frames that a peer sends.

How it works. `FrameReader` splits the bytes into frames and calls the methods here. The table in
`stream_state` says what each frame does to its stream; the table's effects are carried out here. What differs
between client and server is in the `Role`.

An error that ends the connection is raised as Violation; ``HboneConnection.receive`` turns it into GOAWAY and
ConnectionFailed.
"""

from __future__ import annotations

from typing import Protocol

from ztunnel.hbone import frames as wire
from ztunnel.hbone import work
from ztunnel.hbone.abuse import AbuseCounter
from ztunnel.hbone.engine import Engine
from ztunnel.hbone.events import Event, WindowOpened
from ztunnel.hbone.fields import read_response, sound_trailers
from ztunnel.hbone.hbone_errors import ErrorCode, Violation
from ztunnel.hbone.header_block import HeaderBlock, HeaderReader
from ztunnel.hbone.settings import HboneSettings
from ztunnel.hbone.stream import Stream
from ztunnel.hbone.stream_registry import StreamRegistry
from ztunnel.hbone.stream_state import (
    IDLE,
    RECV_DATA,
    RECV_HEADERS,
    RECV_INFORMATIONAL,
    RECV_RESET,
    STREAM_TABLE,
    Effect,
    StreamState,
)
from ztunnel.hbone.windows import ConnectionWindows
from ztunnel.hbone.writer import FrameWriter

_FOR_THE_CONNECTION = frozenset((wire.SETTINGS, wire.PING, wire.GOAWAY))


class Role(Protocol):
    """What a client and a server do differently with the peer's frames. Methods may raise Violation."""

    def request_received(self, stream_id: int, block: HeaderBlock, *, end_stream: bool) -> None:
        """A header block opens a stream."""

    def answer_received(self, stream: Stream, block: HeaderBlock, *, end_stream: bool) -> None:
        """The final response to our CONNECT came."""

    def reset_received(self, stream: Stream, state: StreamState) -> None:
        """The peer reset a stream that was in ``state``."""

    def settings_received(self) -> None:
        """The peer's SETTINGS came and are in force."""

    def pong_received(self, opaque: bytes) -> None:
        """The answer to our PING came."""

    def goaway_received(self, last_stream_id: int, code: int, debug: bytes) -> None:
        """GOAWAY came."""


class Receiver:
    """The `FrameHandler` of one connection."""

    __slots__ = (
        "_abuse",
        "_client",
        "_engine",
        "_events",
        "_headers",
        "_role",
        "_streams",
        "_windows",
        "_writer",
        "work",
    )

    def __init__(
        self,
        settings: HboneSettings,
        role: Role,
        *,
        client: bool,
        streams: StreamRegistry,
        windows: ConnectionWindows,
        writer: FrameWriter,
        abuse: AbuseCounter,
        engine: Engine,
        events: list[Event],
    ) -> None:
        self._role = role
        self._client = client
        self._headers = HeaderReader(settings, engine.decoder, client=client)
        self._streams = streams
        self._windows = windows
        self._writer = writer
        self._abuse = abuse
        self._engine = engine
        self._events = events
        # The cost of large header blocks and such; `HboneConnection.take_work` reads it and sets it to 0.
        self.work = 0

    # -- DATA -------------------------------------------------------------------------------------------

    def data_began(self, stream_id: int, length: int, padded: int) -> bool:
        """See FrameHandler."""
        self._windows.take(length)
        stream = self._streams.open.get(stream_id)
        if stream is None or not stream.state.receives:
            self._unwanted_data(stream_id, length, stream)
            return False
        window = stream.window
        window.current -= length
        if window.current < 0:
            raise Violation(
                ErrorCode.FLOW_CONTROL_ERROR, f"the peer overran the window of stream {stream_id}"
            )
        stream.unacknowledged += length
        if self._abuse.unproductive and length and not padded:
            self._abuse.useful()
        return True

    def _unwanted_data(self, stream_id: int, length: int, stream: Stream | None) -> None:
        """Give back the window of DATA that no stream wants; reset the stream if the peer could know that."""
        self.work += work.LATE
        state = self._streams.closed_state(stream_id) if stream is None else stream.state
        _, effect = STREAM_TABLE[state][RECV_DATA]
        if effect is Effect.GOAWAY_PROTOCOL_ERROR:
            when = "which was never opened" if state is IDLE else "before its HEADERS"
            joint = ", " if state is IDLE else " "
            raise Violation(ErrorCode.PROTOCOL_ERROR, f"DATA came on stream {stream_id}{joint}{when}")
        self._windows.give_back(length)
        if effect is Effect.RESET_STREAM_CLOSED:
            self._answer_with_reset(stream_id, stream, ErrorCode.STREAM_CLOSED)
        else:
            self._abuse.late_frame()

    def payload_wanted(self, stream_id: int) -> bool:
        """See FrameHandler."""
        return stream_id in self._streams.open

    def data_ended(self, stream_id: int, *, padding: int, empty: bool, end_stream: bool) -> None:
        """See FrameHandler."""
        stream = self._streams.open[stream_id]
        if padding:
            self._windows.acknowledge(stream, padding)
        if end_stream:
            self._streams.peer_ended(stream)
        elif empty:
            self.work += work.USELESS
            self._abuse.empty_frame()
        else:
            self._abuse.useful()

    # -- header blocks ----------------------------------------------------------------------------------

    def block_received(self, stream_id: int, block: bytes, *, end_stream: bool) -> None:
        """See FrameHandler."""
        fields = self._headers.read(block)
        self.work += self._headers.work
        informational = self._client and fields.informational
        input_ = RECV_INFORMATIONAL if informational else RECV_HEADERS
        stream = self._streams.open.get(stream_id)
        if stream is None:
            _, effect = STREAM_TABLE[self._streams.closed_state(stream_id)][input_]
        else:
            effect = stream.step(input_)
        if effect is Effect.REQUEST and not self._client and stream_id & 1:
            self._role.request_received(stream_id, fields, end_stream=end_stream)
        elif effect is Effect.REQUEST or effect is Effect.GOAWAY_PROTOCOL_ERROR:
            raise Violation(
                ErrorCode.PROTOCOL_ERROR, f"HEADERS came for stream {stream_id}, which cannot be opened"
            )
        elif effect is Effect.GOAWAY_STREAM_CLOSED:
            raise Violation(ErrorCode.STREAM_CLOSED, f"HEADERS came for stream {stream_id}, which has ended")
        elif effect is Effect.RESET_STREAM_CLOSED:
            self._answer_with_reset(stream_id, stream, ErrorCode.STREAM_CLOSED)
        elif effect is Effect.RESET_PROTOCOL_ERROR:
            self._answer_with_reset(stream_id, stream, ErrorCode.PROTOCOL_ERROR)
        elif stream is not None:
            self._fields_on(stream, fields, effect, end_stream=end_stream)

    def _fields_on(self, stream: Stream, block: HeaderBlock, effect: Effect, *, end_stream: bool) -> None:
        """Process a block that the stream's state allows. If the block itself is wrong, reset the stream."""
        if not block.fits:
            self._streams.reset_on_error(stream, ErrorCode.PROTOCOL_ERROR)
        elif effect is Effect.ANSWER:
            self._role.answer_received(stream, block, end_stream=end_stream)
        elif effect is Effect.TRAILERS:
            if end_stream and sound_trailers(block.fields):
                self._streams.peer_ended(stream)
            else:
                self._streams.reset_on_error(stream, ErrorCode.PROTOCOL_ERROR)
        elif end_stream or read_response(block.fields) is None:
            self._streams.reset_on_error(stream, ErrorCode.PROTOCOL_ERROR)
        else:
            self._abuse.empty_frame()

    def _answer_with_reset(self, stream_id: int, stream: Stream | None, code: ErrorCode) -> None:
        """Send RST_STREAM for a frame that the peer must not send.

        An open stream gives a StreamReset event.
        """
        if stream is not None:
            self._streams.reset_on_error(stream, code)
        else:
            self._writer.reset(stream_id, code)
            self._abuse.local_error()

    # -- other frames -----------------------------------------------------------------------------------

    def frame_received(self, kind: int, flags: int, stream_id: int, body: bytes) -> None:
        """See FrameHandler."""
        if kind == wire.WINDOW_UPDATE:
            self._window_update_received(stream_id, int.from_bytes(body, "big") & wire.LARGEST_WINDOW)
        elif kind in _FOR_THE_CONNECTION:
            if stream_id:
                raise Violation(
                    ErrorCode.PROTOCOL_ERROR, f"a frame of type {kind} came on stream {stream_id}"
                )
            if kind == wire.PING:
                self.work += work.USELESS
                if flags & wire.ACK:
                    self._role.pong_received(body)
                else:
                    self._writer.pong(body)
            elif kind == wire.SETTINGS:
                self._settings_received(flags, body)
            else:
                self._goaway_received(body)
        else:
            self._reset_received(stream_id, int.from_bytes(body, "big"))

    def _reset_received(self, stream_id: int, code: int) -> None:
        stream = self._streams.open.get(stream_id)
        if stream is not None:
            state = stream.state
            self._streams.reset_by_peer(stream, code)
            self._role.reset_received(stream, state)
            return
        self.work += work.LATE
        _, effect = STREAM_TABLE[self._streams.closed_state(stream_id)][RECV_RESET]
        if effect is Effect.GOAWAY_PROTOCOL_ERROR:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "RST_STREAM came for a stream that was never opened")

    def _window_update_received(self, stream_id: int, increment: int) -> None:
        if not stream_id:
            if not increment:
                raise Violation(
                    ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE came for the connection with an increment of 0"
                )
            windows = self._windows
            self._count_opening(increment, windows.send_window, windows.largest_send_window)
            if windows.peer_opens(increment):
                self._events.append(WindowOpened(None))
            return
        stream = self._streams.open.get(stream_id)
        if stream is None:
            self.work += work.LATE
            if self._streams.closed_state(stream_id) is IDLE:
                raise Violation(
                    ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE came for a stream that was never opened"
                )
            return
        before = stream.send_window
        self._count_opening(increment, before, self._streams.initial_window)
        if not increment or before + increment > wire.LARGEST_WINDOW:
            wrong = ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR
            self._streams.reset_on_error(stream, wrong)
            return
        stream.send_window = before + increment
        if before <= 0 < before + increment:
            self._events.append(WindowOpened(stream_id))

    def _count_opening(self, increment: int, before: int, largest: int) -> None:
        """Count a window's opening as useless unless it gives back a fair piece of what was used."""
        if increment < work.WINDOW_BYTES or before + increment > largest:
            self.work += work.USELESS

    def _settings_received(self, flags: int, body: bytes) -> None:
        if flags & wire.ACK:
            # Our settings count as in force from the start, so an acknowledgement changes nothing.
            if body:
                raise Violation(ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS has a body")
            return
        self.work += work.SETTINGS + len(body) // work.SETTINGS_BYTES
        peer = self._engine
        before = peer.initial_window
        acknowledgement = peer.receive_settings(body)
        if peer.header_table_size < wire.DEFAULT_TABLE_SIZE:
            self._writer.table_was_shrunk()
        self._writer.peer_frame_size(peer.max_frame_size)
        self._streams.initial_window = peer.initial_window
        self._resize_windows(peer.initial_window - before)
        self._writer.settings_ack(acknowledgement)
        self._role.settings_received()

    def _resize_windows(self, change: int) -> None:
        """Apply a changed initial window to all open streams (RFC 9113 section 6.9.2)."""
        streams = self._streams.open
        self.work += len(streams) * work.RESIZED
        for stream in streams.values():
            stream.send_window += change
            if stream.send_window > wire.LARGEST_WINDOW:
                raise Violation(ErrorCode.FLOW_CONTROL_ERROR, "the peer's SETTINGS open a window too far")
        if change > 0 and streams:
            self._events.append(WindowOpened(None))

    def _goaway_received(self, body: bytes) -> None:
        self.work += work.GOAWAY
        if len(body) < 8:
            raise Violation(ErrorCode.FRAME_SIZE_ERROR, f"GOAWAY with {len(body)} bytes came")
        last_stream_id = int.from_bytes(body[:4], "big") & wire.LARGEST_STREAM_ID
        self._role.goaway_received(last_stream_id, int.from_bytes(body[4:8], "big"), body[8:])
