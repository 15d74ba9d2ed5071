"""What a peer sends, and what it does to the connection: the receiving half of ``HboneConnection``.

How it works. ``FrameReader`` cuts the stream into frames. What comes in numbers is dealt with right here:
DATA and WINDOW_UPDATE, by changing the same fields of h2's flow-control books that h2 would change; PING; and
GOAWAY, which h2 understands as the end of all streams. Header blocks, SETTINGS and every change of a stream's
state go through ``Engine``, which is h2.

Receive windows. A DATA frame is taken from the windows when its header is read. Payload is given back when
the caller acknowledges it; padding, and data for streams that are closed, at once. So what a peer can make
the caller hold is one connection window. ``Stream.unacknowledged`` counts what a stream has taken; when the
stream closes with something left, the count moves to ``_outstanding`` until the caller has consumed or
discarded the rest.

What ends a connection: ``Violation`` (raised here) and h2's ``ProtocolError``. ``HboneConnection.receive``
turns both into GOAWAY and ConnectionFailed.
"""

from __future__ import annotations

from abc import abstractmethod

from h2.stream import StreamInputs

from ztunnel.hbone import wire
from ztunnel.hbone.engine import Engine, FieldsReceived, StreamError
from ztunnel.hbone.errors import ErrorCode, Violation
from ztunnel.hbone.events import (
    ConnectionFailed,
    PeerDraining,
    Pong,
    StreamEnded,
    StreamReset,
    WindowOpened,
)
from ztunnel.hbone.fields import sound_trailers
from ztunnel.hbone.reader import FrameReader
from ztunnel.hbone.settings import HboneSettings
from ztunnel.hbone.stream import Stream

DRAIN_OPAQUE = bytes.fromhex("0b7ba2f08b9bfe54")
"""The PING between the two GOAWAYs of a graceful end (the value that the existing implementation sends)."""

_FOR_THE_CONNECTION = frozenset((wire.SETTINGS, wire.PING, wire.GOAWAY))

# Identifiers of SETTINGS that h2 is told; it would keep any other that a peer makes up.
_SETTINGS_FOR_H2 = frozenset(
    (wire.ENABLE_PUSH, wire.MAX_CONCURRENT_STREAMS, wire.INITIAL_WINDOW_SIZE, wire.MAX_FRAME_SIZE)
)


class Inbound(FrameReader):
    """The state of one connection, and everything that a received frame does to it."""

    def __init__(self, settings: HboneSettings, *, client: bool) -> None:
        self.settings = settings
        header_list = settings.client_max_header_list_size if client else settings.server_max_header_list_size
        super().__init__(settings, header_list_size=header_list, expects_preface=not client)
        self._engine = Engine(settings, client=client)
        self._streams: dict[int, Stream] = {}
        self._outstanding: dict[int, int] = {}
        self._closed = False
        self._draining = False
        self._refusing = False
        self._peer_is_draining = False
        self._last_processed = 0
        self._table_update = b""
        self._local_errors = 0
        self._empty_frames = 0
        self._replies = 0
        first = (
            (wire.ENABLE_PUSH, 0)
            if client
            else (wire.MAX_CONCURRENT_STREAMS, settings.max_concurrent_streams)
        )
        opening = [
            wire.PREFACE if client else b"",
            wire.settings(
                (
                    first,
                    (wire.INITIAL_WINDOW_SIZE, settings.stream_window),
                    (wire.MAX_FRAME_SIZE, settings.frame_size),
                    (wire.MAX_HEADER_LIST_SIZE, header_list),
                )
            ),
        ]
        increment = settings.connection_window - wire.DEFAULT_WINDOW
        if increment:
            opening.append(wire.window_update(0, increment))
        self._output: list[bytes | memoryview] = [b"".join(opening)]

    # -- for the subclasses -----------------------------------------------------------------------------

    @abstractmethod
    def _begin_drain(self) -> None:
        """Send the first GOAWAY of a drain."""

    @abstractmethod
    def _fields_received(self, stream_id: int, received: FieldsReceived) -> None:
        """A header block that is not trailers came."""

    @abstractmethod
    def _reset_received(self, stream: Stream) -> None:
        """The peer reset a stream."""

    @abstractmethod
    def _refused_above(self, last_stream_id: int) -> list[Stream]:
        """The streams that a GOAWAY with this last id has refused."""

    def _refuse_from_now(self) -> None:
        """Send the last GOAWAY of a drain."""
        self._refusing = True
        self._output.append(wire.goaway(self._last_processed, ErrorCode.NO_ERROR))

    def _stream_ended(self, stream: Stream) -> None:
        stream.ended = True
        stream.deliverable = False
        self._events.append(StreamEnded(stream.stream_id))
        if stream.h2.closed:
            self._remove(stream)

    def _reset(self, stream: Stream, code: int) -> None:
        if not stream.h2.closed:
            stream.machine.process_input(StreamInputs.SEND_RST_STREAM)
        self._output.append(wire.rst_stream(stream.stream_id, code))
        if stream.unacknowledged:
            self._give_back(stream.unacknowledged)
            stream.unacknowledged = 0
        self._remove(stream)

    def _reset_on_error(self, stream: Stream, code: ErrorCode) -> None:
        """Reset a stream for what the peer did on it."""
        self._reset(stream, code)
        self._events.append(StreamReset(stream.stream_id, code, remote=False))
        self._count_local_error()

    def _remove(self, stream: Stream) -> None:
        stream.sendable = stream.deliverable = False
        del self._streams[stream.stream_id]
        self._engine.remove_stream(stream.stream_id)
        if stream.unacknowledged:
            self._outstanding[stream.stream_id] = stream.unacknowledged

    def _send_fields(self, stream_id: int, block: bytes, flags: int = 0) -> None:
        if self._table_update:
            block = self._table_update + block
            self._table_update = b""
        frames = wire.header_frames(stream_id, block, self._engine.max_outbound_frame_size, flags)
        self._output.append(frames)

    def _count_local_error(self) -> None:
        self._local_errors += 1
        if self._local_errors > self.settings.max_local_errors:
            raise Violation(ErrorCode.ENHANCE_YOUR_CALM, "the peer caused too many stream errors")

    def _count_empty_frame(self) -> None:
        self._empty_frames += 1
        if self._empty_frames > self.settings.max_empty_frames:
            raise Violation(ErrorCode.ENHANCE_YOUR_CALM, "the peer sent too many frames that carry nothing")

    # -- DATA -------------------------------------------------------------------------------------------

    def _data_began(self, stream_id: int, length: int, padded: int) -> bool:
        window = self._engine.window
        window.current_window_size -= length
        if window.current_window_size < 0:
            raise Violation(ErrorCode.FLOW_CONTROL_ERROR, "the peer overran the connection's window")
        stream = self._streams.get(stream_id)
        if stream is None or not stream.deliverable:
            self._unwanted_data(stream_id, length, stream)
            return False
        window = stream.window
        window.current_window_size -= length
        if window.current_window_size < 0:
            raise Violation(
                ErrorCode.FLOW_CONTROL_ERROR, f"the peer overran the window of stream {stream_id}"
            )
        stream.unacknowledged += length
        if self._empty_frames and length and not padded:
            self._empty_frames = 0
        return True

    def _unwanted_data(self, stream_id: int, length: int, stream: Stream | None) -> None:
        """DATA that nobody waits for: give its window back, and say so if the peer should have known."""
        if self._engine.is_idle(stream_id) or not stream_id:
            raise Violation(
                ErrorCode.PROTOCOL_ERROR, f"DATA came on stream {stream_id}, which was never opened"
            )
        if stream is not None and not stream.ended:
            raise Violation(ErrorCode.PROTOCOL_ERROR, f"DATA came on stream {stream_id} before its HEADERS")
        self._give_back(length)
        if stream is not None:
            self._reset_on_error(stream, ErrorCode.STREAM_CLOSED)
        elif self._engine.closed_by_peer(stream_id):
            self._output.append(wire.rst_stream(stream_id, ErrorCode.STREAM_CLOSED))
            self._count_local_error()

    def _payload_wanted(self, stream_id: int) -> bool:
        return stream_id in self._streams

    def _data_ended(self, stream_id: int, *, padding: int, empty: bool, end_stream: bool) -> None:
        stream = self._streams[stream_id]
        if padding:
            self._acknowledge(stream, padding)
        if end_stream:
            stream.machine.process_input(StreamInputs.RECV_END_STREAM)
            self._stream_ended(stream)
        elif empty:
            self._count_empty_frame()
        else:
            self._empty_frames = 0

    def _acknowledge(self, stream: Stream, count: int) -> None:
        """Give back to both windows what was taken from them, and no more than that."""
        count = min(count, stream.unacknowledged)
        if count > 0:
            stream.unacknowledged -= count
            self._give_back(count)
            increment = stream.window.process_bytes(count)
            if increment:
                self._output.append(wire.window_update(stream.stream_id, increment))

    def _give_back(self, count: int) -> None:
        """Give room back to the connection's window, when it is enough for a WINDOW_UPDATE."""
        increment = self._engine.window.process_bytes(count)
        if increment:
            self._output.append(wire.window_update(0, increment))

    # -- other frames -----------------------------------------------------------------------------------

    def _frame_received(self, kind: int, flags: int, stream_id: int, body: bytes) -> None:
        if kind == wire.WINDOW_UPDATE:
            self._window_update_received(stream_id, int.from_bytes(body, "big") & wire.LARGEST_WINDOW)
        elif kind in _FOR_THE_CONNECTION:
            if stream_id:
                raise Violation(
                    ErrorCode.PROTOCOL_ERROR, f"a frame of type {kind} came on stream {stream_id}"
                )
            if kind == wire.PING:
                self._ping_received(flags, body)
            elif kind == wire.SETTINGS:
                self._settings_received(flags, body)
            else:
                self._goaway_received(body)
        else:
            self._reset_frame_received(stream_id, int.from_bytes(body, "big"))

    def _block_received(self, stream_id: int, block: bytes, *, end_stream: bool) -> None:
        try:
            received = self._engine.receive_block(stream_id, block, end_stream=end_stream)
        except StreamError as error:
            stream = self._streams.get(stream_id)
            if stream is None:
                self._output.append(wire.rst_stream(stream_id, error.code))
                self._count_local_error()
            else:
                self._reset_on_error(stream, error.code)
            return
        if received is None:
            return
        if not received.trailers:
            self._fields_received(stream_id, received)
        elif sound_trailers(received.fields):
            self._stream_ended(self._streams[stream_id])
        else:
            self._reset_on_error(self._streams[stream_id], ErrorCode.PROTOCOL_ERROR)

    def _reset_frame_received(self, stream_id: int, code: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            if self._engine.is_idle(stream_id) or not stream_id:
                raise Violation(
                    ErrorCode.PROTOCOL_ERROR, "RST_STREAM came for a stream that was never opened"
                )
            return
        self._reset_by_peer(stream, code)
        self._reset_received(stream)

    def _reset_by_peer(self, stream: Stream, code: int) -> None:
        stream.machine.process_input(StreamInputs.RECV_RST_STREAM)
        self._remove(stream)
        self._events.append(StreamReset(stream.stream_id, code))

    def _window_update_received(self, stream_id: int, increment: int) -> None:
        if not increment:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE came with an increment of 0")
        if not stream_id:
            before = self._engine.outbound_flow_control_window
            if before + increment > wire.LARGEST_WINDOW:
                raise Violation(
                    ErrorCode.FLOW_CONTROL_ERROR, "the peer opened the connection's window too far"
                )
            self._engine.outbound_flow_control_window = before + increment
            if not before:
                self._events.append(WindowOpened(None))
            return
        stream = self._streams.get(stream_id)
        if stream is None:
            if self._engine.is_idle(stream_id):
                raise Violation(
                    ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE came for a stream that was never opened"
                )
            return
        before = stream.h2.outbound_flow_control_window
        if before + increment > wire.LARGEST_WINDOW:
            self._reset_on_error(stream, ErrorCode.FLOW_CONTROL_ERROR)
            return
        stream.h2.outbound_flow_control_window = before + increment
        if before <= 0 < before + increment:
            self._events.append(WindowOpened(stream_id))

    def _settings_received(self, flags: int, body: bytes) -> None:
        if flags & wire.ACK:
            # Our settings count as in force from the start, so there is nothing to do but to check.
            if body:
                raise Violation(ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS has a body")
            return
        if len(body) % 6:
            raise Violation(ErrorCode.FRAME_SIZE_ERROR, f"SETTINGS with {len(body)} bytes came")
        values = wire.read_settings(body)
        if any(
            identifier == wire.HEADER_TABLE_SIZE and value < wire.DEFAULT_TABLE_SIZE
            for identifier, value in values
        ):
            # Our header blocks need no table. Saying 0 once is below whatever the peer may choose.
            self._table_update = wire.TABLE_SIZE_ZERO
        before = self._engine.remote_settings.initial_window_size
        self._engine.receive_data(wire.settings([pair for pair in values if pair[0] in _SETTINGS_FOR_H2]))
        self._output.append(self._engine.data_to_send())
        self._count_reply()
        if self._engine.remote_settings.initial_window_size > before and self._streams:
            self._events.append(WindowOpened(None))

    def _ping_received(self, flags: int, opaque: bytes) -> None:
        if not flags & wire.ACK:
            self._output.append(wire.ping(opaque, wire.ACK))
            self._count_reply()
        elif opaque != DRAIN_OPAQUE:
            self._events.append(Pong(opaque))
        elif self._draining and not self._refusing:
            self._refuse_from_now()

    def _count_reply(self) -> None:
        self._replies += 1
        if self._replies > self.settings.max_queued_replies:
            raise Violation(
                ErrorCode.ENHANCE_YOUR_CALM, "the peer asks for more answers than it lets us send"
            )

    def _goaway_received(self, body: bytes) -> None:
        if len(body) < 8:
            raise Violation(ErrorCode.FRAME_SIZE_ERROR, f"GOAWAY with {len(body)} bytes came")
        last_stream_id = int.from_bytes(body[:4], "big") & wire.LARGEST_STREAM_ID
        self._peer_is_draining = True
        self._events.append(PeerDraining(last_stream_id, int.from_bytes(body[4:8], "big"), body[8:]))
        for stream in self._refused_above(last_stream_id):
            self._reset_by_peer(stream, ErrorCode.REFUSED_STREAM)

    # -- the end ----------------------------------------------------------------------------------------

    def _fail(self, code: int, reason: str) -> None:
        self._output.append(wire.goaway(self._last_processed, code))
        self._events.append(ConnectionFailed(int(code), reason))
        self._finish()

    def _finish(self) -> None:
        self._closed = True
        self._streams.clear()
        self._outstanding.clear()
