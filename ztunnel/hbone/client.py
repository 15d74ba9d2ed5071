"""The end of a tunnel that opens streams."""

from __future__ import annotations

from collections.abc import Iterable

from ztunnel.hbone import wire
from ztunnel.hbone.connection import HboneConnection
from ztunnel.hbone.engine import FieldsReceived
from ztunnel.hbone.errors import CannotOpenStreamError, ErrorCode
from ztunnel.hbone.events import Responded
from ztunnel.hbone.fields import read_response
from ztunnel.hbone.settings import HboneSettings
from ztunnel.hbone.stream import Stream


class HboneClient(HboneConnection):
    """The end that opens tunnels. Preface, SETTINGS and WINDOW_UPDATE are in the output from the start."""

    def __init__(self, settings: HboneSettings | None = None) -> None:
        super().__init__(settings or HboneSettings(), client=True)
        self._next_stream_id = 1

    @property
    def can_open(self) -> bool:
        """Whether ``connect`` would succeed now.

        Not when the connection is closed or draining, a GOAWAY came, the ids are used up, or as many streams
        are open as the peer allows (its SETTINGS; no limit before they came).
        """
        return not self._obstacle()

    def connect(self, authority: str, fields: Iterable[tuple[wire.Text, wire.Text]]) -> int:
        """Send CONNECT: ``:method``, ``:authority``, then the fields in their order. Gives the stream id.

        Does not wait for the peer's SETTINGS. Raises CannotOpenStreamError when ``can_open`` is false.
        """
        obstacle = self._obstacle()
        if obstacle:
            raise CannotOpenStreamError(obstacle)
        stream_id = self._next_stream_id
        self._next_stream_id += 2
        stream = Stream(self._engine.open_stream(stream_id))
        stream.sendable = True
        self._streams[stream_id] = stream
        self._send_fields(stream_id, wire.connect_block(authority, fields))
        return stream_id

    def _obstacle(self) -> str:
        if self._closed:
            return "it is closed"
        if self._peer_is_draining:
            return "the peer is draining it"
        if self._draining:
            return "it is draining"
        if self._next_stream_id > wire.LARGEST_STREAM_ID:
            return "its stream ids are used up"
        if len(self._streams) >= self._engine.remote_settings.max_concurrent_streams:
            return "as many streams are open as the peer allows"
        return ""

    def _begin_drain(self) -> None:
        # A client's GOAWAY names streams that the server opened, and there are none: nothing to wait for.
        self._refuse_from_now()

    def _reset_received(self, stream: Stream) -> None:
        """A server may reset what it wants to."""

    def _refused_above(self, last_stream_id: int) -> list[Stream]:
        return [stream for stream_id, stream in self._streams.items() if stream_id > last_stream_id]

    def _fields_received(self, stream_id: int, received: FieldsReceived) -> None:
        stream = self._streams[stream_id]
        response = read_response(received.fields)
        if response is None:
            self._reset_on_error(stream, ErrorCode.PROTOCOL_ERROR)
        elif received.informational:
            self._count_empty_frame()
        else:
            self._empty_frames = 0
            stream.answered = stream.deliverable = True
            self._events.append(Responded(stream_id, response.status, response.headers))
            if received.ended:
                self._stream_ended(stream)
