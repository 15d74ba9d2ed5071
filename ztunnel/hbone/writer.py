"""Collects the frames to be sent, in order, until the driver takes them."""

from __future__ import annotations

from ztunnel.hbone import frames as wire
from ztunnel.hbone.hbone_errors import ErrorCode, Violation
from ztunnel.hbone.settings import HboneSettings


class FrameWriter:
    """The output of one connection. Payload is not copied.

    frame_size: the largest DATA frame that is sent, in bytes: the smaller of the peer's limit and ours.
    """

    __slots__ = (
        "_max_replies",
        "_muted",
        "_output",
        "_own_frame_size",
        "_peer_frame_size",
        "_replies",
        "_table_update",
        "frame_size",
    )

    def __init__(self, settings: HboneSettings) -> None:
        self._output: list[bytes | memoryview] = []
        self._own_frame_size = settings.frame_size
        self._peer_frame_size = self.frame_size = wire.DEFAULT_FRAME_SIZE
        self._max_replies = settings.max_queued_replies
        self._replies = 0
        self._table_update = b""
        self._muted = False

    def take(self) -> list[bytes | memoryview]:
        """Returns what to write next. The list belongs to the caller."""
        output, self._output = self._output, []
        self._replies = 0
        return [] if self._muted else output

    def mute(self) -> None:
        """Drop the output, now and from now on."""
        self._muted = True
        self._output.clear()

    # -- what the peer allows ---------------------------------------------------------------------------

    def peer_frame_size(self, size: int) -> None:
        """The peer takes frames of up to ``size`` bytes."""
        self._peer_frame_size = size
        self.frame_size = min(size, self._own_frame_size)

    def table_was_shrunk(self) -> None:
        """The peer made its header table smaller; the next header block has to acknowledge it (RFC 7541 4.2).

        Our header blocks need no table, so they announce a table of 0 bytes, which every limit allows.
        """
        self._table_update = wire.TABLE_SIZE_ZERO

    # -- frames -----------------------------------------------------------------------------------------

    def opening(self, settings: HboneSettings, *, client: bool) -> None:
        """The first frames: the preface (clients), SETTINGS, and WINDOW_UPDATE for the connection."""
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
                    (wire.MAX_HEADER_LIST_SIZE, settings.header_list_size(client=client)),
                )
            ),
        ]
        increment = settings.connection_window - wire.DEFAULT_WINDOW
        if increment:
            opening.append(wire.window_update(0, increment))
        self._output.append(b"".join(opening))

    def headers(self, stream_id: int, block: bytes, flags: int = 0) -> None:
        """HEADERS, and CONTINUATION if the block is larger than the peer's frame size."""
        if self._table_update:
            block = self._table_update + block
            self._table_update = b""
        self._output.append(wire.header_frames(stream_id, block, self._peer_frame_size, flags))

    def data(self, stream_id: int, view: memoryview) -> None:
        """DATA, in as many frames as needed. The caller has checked the windows."""
        output = self._output
        size, largest = len(view), self.frame_size
        if size <= largest:
            output.append(wire.data_header(stream_id, size))
            output.append(view)
            return
        for start in range(0, size, largest):
            part = view[start : start + largest]
            output.append(wire.data_header(stream_id, len(part)))
            output.append(part)

    def end(self, stream_id: int) -> None:
        """An empty DATA with END_STREAM."""
        self._output.append(wire.data_header(stream_id, 0, wire.END_STREAM))

    def reset(self, stream_id: int, code: int) -> None:
        """RST_STREAM."""
        self._output.append(wire.rst_stream(stream_id, code))

    def window_update(self, stream_id: int, increment: int) -> None:
        """WINDOW_UPDATE; stream 0 is the connection."""
        self._output.append(wire.window_update(stream_id, increment))

    def ping(self, opaque: bytes) -> None:
        """PING with eight bytes."""
        self._output.append(wire.ping(opaque))

    def goaway(self, last_stream_id: int, code: int) -> None:
        """GOAWAY."""
        self._output.append(wire.goaway(last_stream_id, code))

    def pong(self, opaque: bytes) -> None:
        """The answer to the peer's PING. Raises Violation when too many answers wait already."""
        self._output.append(wire.ping(opaque, wire.ACK))
        self._count_reply()

    def settings_ack(self, acknowledgement: bytes) -> None:
        """The answer to the peer's SETTINGS. Raises Violation when too many answers wait already."""
        self._output.append(acknowledgement)
        self._count_reply()

    def _count_reply(self) -> None:
        self._replies += 1
        if self._replies > self._max_replies:
            raise Violation(
                ErrorCode.ENHANCE_YOUR_CALM, "the peer asks for more answers than it lets us send"
            )
