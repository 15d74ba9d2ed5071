"""The h2 connection underneath: HPACK, SETTINGS, stream states, flow-control books.

``Engine`` is h2's ``H2Connection`` with what a tunnel needs otherwise:

- Header blocks come as bytes, not as hyperframe's objects, and go straight to HPACK and the stream's state
  machine: 10 µs less for each of the two that open a tunnel.
- Header fields are delivered as they came. What is wrong with one request resets one stream; h2 would end
  the connection (that is also why ``content-length`` is not looked at: it has no meaning for a CONNECT).
- A late header block for a stream that this side reset is read, for HPACK's sake, and dropped. The peer
  has not seen the reset yet, so this is nobody's mistake.
- Concurrent streams are counted by ``HboneServer``, which refuses one stream where h2 would end the
  connection; here counting would cost a walk over all streams for each new one.
- GOAWAY never comes here. h2 moves to CLOSED on it and then refuses to send or receive DATA, but a GOAWAY
  leaves the streams up to its last stream id alive (RFC 9113 section 6.8).

It leans on names that h2 does not call public. pyproject.toml holds h2 below its next major version, and
``tests/hbone/test_equivalence.py`` compares this with the stock ``H2Connection``, frame by frame.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

from h2.config import H2Configuration
from h2.connection import (
    AllowedStreamIDs,
    ConnectionInputs,
    H2Connection,
    _decode_headers,
)
from h2.events import TrailersReceived
from h2.exceptions import ProtocolError, StreamClosedError
from h2.frame_buffer import FrameBuffer
from h2.settings import SettingCodes, Settings
from h2.stream import H2Stream, StreamClosedBy, StreamInputs
from h2.utilities import is_informational_response
from h2.windows import WindowManager

from ztunnel.hbone.errors import ErrorCode
from ztunnel.hbone.literals import plain_fields
from ztunnel.hbone.settings import HboneSettings
from ztunnel.hbone.wire import DEFAULT_WINDOW


class StreamError(Exception):
    """The peer broke a rule on one stream, which is to be reset with ``code``. Stays in this package."""

    def __init__(self, stream_id: int, code: ErrorCode) -> None:
        super().__init__(stream_id, code)
        self.stream_id = stream_id
        self.code = code


class FieldsReceived(NamedTuple):
    """What a header block was. ``fields`` are not checked yet."""

    fields: list[tuple[bytes, bytes]]
    ended: bool
    informational: bool
    trailers: bool


class Engine(H2Connection):
    """h2 for one tunnel. Our settings count as in force from the start; nothing waits for the peer's ACK."""

    # h2 remembers how each stream ended, 65,536 of them. What a peer can be late with is far less.
    MAX_CLOSED_STREAMS: ClassVar[int] = 1024  # type: ignore[misc]  # h2 does not mark its own as ClassVar

    def __init__(self, settings: HboneSettings, *, client: bool) -> None:
        super().__init__(
            H2Configuration(
                client_side=client,
                header_encoding=None,
                validate_inbound_headers=False,
                normalize_inbound_headers=False,
            )
        )
        header_list = settings.client_max_header_list_size if client else settings.server_max_header_list_size
        self.local_settings = Settings(
            client=client,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: settings.stream_window,
                SettingCodes.MAX_FRAME_SIZE: settings.frame_size,
                SettingCodes.MAX_HEADER_LIST_SIZE: header_list,
            },
        )
        self.decoder.max_header_list_size = header_list
        self.max_inbound_frame_size = settings.frame_size
        self.window = WindowManager(DEFAULT_WINDOW)
        self.window.window_opened(settings.connection_window - DEFAULT_WINDOW)
        self._inbound_flow_control_window_manager = self.window
        # The preface was checked and taken off before anything comes here.
        self.incoming_buffer = FrameBuffer(server=False)

    def open_stream(self, stream_id: int) -> H2Stream:
        """Enter a stream that this side opens with a request."""
        self.state_machine.process_input(ConnectionInputs.SEND_HEADERS)
        stream = self._begin_new_stream(stream_id, AllowedStreamIDs.ODD)
        stream.state_machine.process_input(StreamInputs.SEND_HEADERS)
        return stream

    def remove_stream(self, stream_id: int) -> None:
        """Drop a closed stream, remembering how it was closed."""
        stream = self.streams.pop(stream_id)
        self._closed_streams[stream_id] = stream.closed_by

    def closed_by_peer(self, stream_id: int) -> bool:
        """Whether the peer knows that the stream is closed: it ended or reset it, and both sides are done."""
        closed_by = self._closed_streams.get(stream_id)
        return closed_by is not None and closed_by is not StreamClosedBy.SEND_RST_STREAM

    def is_idle(self, stream_id: int) -> bool:
        """Whether the stream was never opened."""
        return stream_id > (
            self.highest_outbound_stream_id
            if self._stream_id_is_outbound(stream_id)
            else self.highest_inbound_stream_id
        )

    def receive_block(self, stream_id: int, block: bytes, *, end_stream: bool) -> FieldsReceived | None:
        """Read a header block and move its stream on. None when there is nothing to do but that.

        Raises StreamError when the block does not fit the stream's state, and h2's ProtocolError when it ends
        the connection: it cannot be decoded, is too large, or its stream id cannot be.
        """
        fields: Any = plain_fields(block, self.decoder.max_header_list_size)
        if fields is None:
            fields = _decode_headers(self.decoder, block)
        self.state_machine.process_input(ConnectionInputs.RECV_HEADERS)
        stream = self.streams.get(stream_id)
        if stream is None:
            if not self.is_idle(stream_id):
                self._late_headers(stream_id)
                return None
            if self.config.client_side:
                raise ProtocolError(f"HEADERS came for stream {stream_id}, which was never opened")
            stream = self._begin_new_stream(stream_id, AllowedStreamIDs.ODD)
        machine = stream.state_machine
        informational = self.config.client_side and is_informational_response(fields)
        input_ = StreamInputs.RECV_INFORMATIONAL_HEADERS if informational else StreamInputs.RECV_HEADERS
        try:
            [event] = machine.process_input(input_)
        except StreamClosedError:
            raise StreamError(stream_id, ErrorCode.STREAM_CLOSED) from None
        except ProtocolError:
            machine.stream_closed_by = StreamClosedBy.SEND_RST_STREAM
            raise StreamError(stream_id, ErrorCode.PROTOCOL_ERROR) from None
        trailers = isinstance(event, TrailersReceived)
        if (informational and end_stream) or (trailers and not end_stream):
            raise StreamError(stream_id, ErrorCode.PROTOCOL_ERROR)
        if end_stream:
            machine.process_input(StreamInputs.RECV_END_STREAM)
        return FieldsReceived(fields, end_stream, informational, trailers)

    def _late_headers(self, stream_id: int) -> None:
        """HEADERS came for a closed stream (RFC 9113 section 5.1)."""
        closed_by = self._closed_streams.get(stream_id)
        if closed_by is StreamClosedBy.SEND_RST_STREAM:
            return
        if closed_by is StreamClosedBy.RECV_RST_STREAM:
            raise StreamError(stream_id, ErrorCode.STREAM_CLOSED)
        raise StreamClosedError(stream_id)
