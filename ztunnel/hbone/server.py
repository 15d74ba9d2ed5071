"""The server's end of a tunnel: a client connected to it and opens the streams."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from ztunnel.hbone import frames as wire
from ztunnel.hbone import work
from ztunnel.hbone.connection import DRAIN_OPAQUE, HboneConnection
from ztunnel.hbone.events import ConnectReceived, Event
from ztunnel.hbone.fields import read_request
from ztunnel.hbone.hbone_errors import ErrorCode, Violation
from ztunnel.hbone.header_block import HeaderBlock
from ztunnel.hbone.settings import HboneSettings
from ztunnel.hbone.stream import Stream
from ztunnel.hbone.stream_state import RECV_END, REQUEST_RECEIVED, SEND_ANSWER, SEND_END, StreamState
from ztunnel.hbone.windows import WindowBudget

HEADERS_TOO_LARGE = 431
"""Request Header Fields Too Large (RFC 6585 section 5)."""


class HboneServer(HboneConnection):
    """The server's end. SETTINGS and WINDOW_UPDATE are in the output from the start.

    Two limits protect against a peer that opens streams only to reset them (CVE-2023-44487, rapid reset).
    ``max_pending_resets`` limits the streams that are opened and reset within the bytes of one ``receive``.
    ``max_unanswered_resets`` limits how far the requests that were reset before the answer may outnumber
    those that were answered.
    """

    def __init__(self, settings: HboneSettings | None = None, budget: WindowBudget | None = None) -> None:
        super().__init__(settings or HboneSettings(), budget, client=False)
        self._unseen_above = 0
        self._unseen_resets = 0
        self._unanswered_resets = 0

    def receive(self, data: bytes | bytearray | memoryview, work_limit: int = sys.maxsize) -> list[Event]:
        """See `HboneConnection.receive`."""
        if data:
            self._unseen_above = self._last_processed
            self._unseen_resets = 0
        return super().receive(data, work_limit)

    def accept(self, stream_id: int, fields: Iterable[tuple[wire.Text, wire.Text]] = ()) -> bool:
        """Answer 200 with these fields. Returns False when the stream is gone or was answered before."""
        stream = self._to_be_answered(stream_id)
        if stream is None:
            return False
        stream.step(SEND_ANSWER)
        self._writer.headers(stream_id, wire.response_block(200, fields))
        return True

    def refuse(self, stream_id: int, status: int) -> bool:
        """Answer with a status and END_STREAM, then RST_STREAM(NO_ERROR).

        Returns False as ``accept`` does.
        """
        stream = self._to_be_answered(stream_id)
        if stream is None:
            return False
        self._answer_with_end(stream, status)
        return True

    def refuse_stream(self, stream_id: int) -> bool:
        """Send RST_STREAM(REFUSED_STREAM): the request was not processed, the client may try it elsewhere.

        Returns False as ``accept`` does.
        """
        stream = self._to_be_answered(stream_id)
        if stream is None:
            return False
        self._streams.reset(stream, ErrorCode.REFUSED_STREAM)
        return True

    def _to_be_answered(self, stream_id: int) -> Stream | None:
        stream = self._streams.open.get(stream_id)
        if stream is None or stream.state.answered:
            return None
        if self._unanswered_resets:
            self._unanswered_resets -= 1
        return stream

    def _answer_with_end(self, stream: Stream, status: int) -> None:
        stream.step(SEND_ANSWER)
        stream.step(SEND_END)
        self._writer.headers(stream.stream_id, wire.response_block(status), wire.END_STREAM)
        if stream.state.closed:
            self._streams.remove(stream)
        else:
            self._streams.reset(stream, ErrorCode.NO_ERROR)

    def _begin_drain(self) -> None:
        self._writer.goaway(wire.LARGEST_STREAM_ID, ErrorCode.NO_ERROR)
        self._writer.ping(DRAIN_OPAQUE)

    def request_received(self, stream_id: int, block: HeaderBlock, *, end_stream: bool) -> None:
        """See Role."""
        stream = self._streams.enter(stream_id, REQUEST_RECEIVED)
        self._abuse.useful()
        self._receiver.work += work.REFUSED
        if self._last_goaway_sent:
            # It crossed our last GOAWAY. REFUSED_STREAM tells the client that it may try another tunnel.
            self._streams.reset(stream, ErrorCode.REFUSED_STREAM)
            return
        if len(self._streams.open) > self.settings.max_concurrent_streams:
            self._streams.reset(stream, ErrorCode.REFUSED_STREAM)
            self._abuse.local_error()
            return
        if not block.fits:
            self._last_processed = stream_id
            if end_stream:
                stream.step(RECV_END)
            self._answer_with_end(stream, HEADERS_TOO_LARGE)
            self._abuse.local_error(self.settings.large_request_weight)
            return
        request = read_request(block.fields)
        if request is None:
            self._streams.reset(stream, ErrorCode.PROTOCOL_ERROR)
            self._abuse.local_error()
            return
        self._last_processed = stream_id
        self._receiver.work += work.REQUEST - work.REFUSED
        self._events.append(ConnectReceived(stream_id, request.method, request.authority, request.headers))
        if end_stream:
            self._streams.peer_ended(stream)

    def answer_received(self, stream: Stream, block: HeaderBlock, *, end_stream: bool) -> None:
        """See Role. A server gets no responses."""

    def reset_received(self, stream: Stream, state: StreamState) -> None:
        """See Role."""
        if state.answered:
            return
        self._unanswered_resets += 1
        if stream.stream_id > self._unseen_above:
            self._unseen_resets += 1
        if (
            self._unseen_resets > self.settings.max_pending_resets
            or self._unanswered_resets > self.settings.max_unanswered_resets
        ):
            raise Violation(
                ErrorCode.ENHANCE_YOUR_CALM, "the peer resets too many requests before their answer"
            )
