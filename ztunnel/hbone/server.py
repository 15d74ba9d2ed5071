"""The end of a tunnel that is connected to."""

from __future__ import annotations

from collections.abc import Iterable

from h2.stream import StreamInputs

from ztunnel.hbone import wire
from ztunnel.hbone.connection import HboneConnection
from ztunnel.hbone.engine import FieldsReceived
from ztunnel.hbone.errors import ErrorCode, Violation
from ztunnel.hbone.events import ConnectReceived, Event
from ztunnel.hbone.fields import read_request
from ztunnel.hbone.inbound import DRAIN_OPAQUE
from ztunnel.hbone.settings import HboneSettings
from ztunnel.hbone.stream import Stream


class HboneServer(HboneConnection):
    """The end that is connected to. SETTINGS and WINDOW_UPDATE are in the output from the start.

    Two limits stand against a peer that opens streams only to reset them (CVE-2023-44487): how many it
    may reset within the bytes of one ``receive``, before the caller could see them at all, and by how many
    the requests that it reset unanswered may outnumber those that it let this side answer.
    """

    def __init__(self, settings: HboneSettings | None = None) -> None:
        super().__init__(settings or HboneSettings(), client=False)
        self._unseen_above = 0
        self._unseen_resets = 0
        self._unanswered_resets = 0

    def receive(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """Take bytes from the transport, in any pieces. DATA payload comes out as views into ``data``."""
        self._unseen_above = self._last_processed
        self._unseen_resets = 0
        return super().receive(data)

    def accept(self, stream_id: int, fields: Iterable[tuple[wire.Text, wire.Text]] = ()) -> bool:
        """Answer 200 with these fields. False when the stream is gone or was answered already."""
        stream = self._to_be_answered(stream_id)
        if stream is None:
            return False
        stream.machine.process_input(StreamInputs.SEND_HEADERS)
        stream.sendable = True
        self._send_fields(stream_id, wire.response_block(200, fields))
        return True

    def refuse(self, stream_id: int, status: int) -> bool:
        """Answer with a status and END_STREAM, then RST_STREAM(NO_ERROR). False as for ``accept``."""
        stream = self._to_be_answered(stream_id)
        if stream is None:
            return False
        stream.machine.process_input(StreamInputs.SEND_HEADERS)
        stream.machine.process_input(StreamInputs.SEND_END_STREAM)
        self._send_fields(stream_id, wire.response_block(status), wire.END_STREAM)
        if stream.h2.closed:
            self._remove(stream)
        else:
            self._reset(stream, ErrorCode.NO_ERROR)
        return True

    def refuse_stream(self, stream_id: int) -> bool:
        """RST_STREAM(REFUSED_STREAM): nothing was done for this request, it may be tried elsewhere."""
        stream = self._to_be_answered(stream_id)
        if stream is None:
            return False
        self._reset(stream, ErrorCode.REFUSED_STREAM)
        return True

    def _to_be_answered(self, stream_id: int) -> Stream | None:
        stream = self._streams.get(stream_id)
        if stream is None or stream.answered:
            return None
        stream.answered = True
        if self._unanswered_resets:
            self._unanswered_resets -= 1
        return stream

    def _begin_drain(self) -> None:
        self._output.append(wire.goaway(wire.LARGEST_STREAM_ID, ErrorCode.NO_ERROR))
        self._output.append(wire.ping(DRAIN_OPAQUE))

    def _refused_above(self, last_stream_id: int) -> list[Stream]:
        # A client's GOAWAY names streams that the server opened, and there are none.
        return []

    def _reset_received(self, stream: Stream) -> None:
        if stream.answered:
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

    def _fields_received(self, stream_id: int, received: FieldsReceived) -> None:
        stream = Stream(self._engine.streams[stream_id])
        self._streams[stream_id] = stream
        self._empty_frames = 0
        if self._refusing:
            # It was on its way when the last GOAWAY was; the client knows that it may try elsewhere.
            self._reset(stream, ErrorCode.REFUSED_STREAM)
            return
        if len(self._streams) > self.settings.max_concurrent_streams:
            self._reset(stream, ErrorCode.REFUSED_STREAM)
            self._count_local_error()
            return
        request = read_request(received.fields)
        if request is None:
            self._reset(stream, ErrorCode.PROTOCOL_ERROR)
            self._count_local_error()
            return
        stream.deliverable = True
        self._last_processed = stream_id
        self._events.append(ConnectReceived(stream_id, request.method, request.authority, request.headers))
        if received.ended:
            self._stream_ended(stream)
