"""The client's end of a tunnel: it connected, and it opens the streams."""

from __future__ import annotations

from collections.abc import Iterable

from ztunnel.hbone import frames as wire
from ztunnel.hbone.connection import HboneConnection
from ztunnel.hbone.engine import UNLIMITED
from ztunnel.hbone.events import PeerSettingsReceived, Responded
from ztunnel.hbone.fields import read_response
from ztunnel.hbone.hbone_errors import CannotOpenStreamError, ErrorCode, Violation
from ztunnel.hbone.header_block import HeaderBlock
from ztunnel.hbone.settings import HboneSettings
from ztunnel.hbone.stream import Stream
from ztunnel.hbone.stream_state import REQUEST_SENT, StreamState
from ztunnel.hbone.tunnel_state import TUNNEL_OPENING
from ztunnel.hbone.windows import WindowBudget


class HboneClient(HboneConnection):
    """The client's end. Preface, SETTINGS and WINDOW_UPDATE are in the output from the start."""

    def __init__(self, settings: HboneSettings | None = None, budget: WindowBudget | None = None) -> None:
        super().__init__(settings or HboneSettings(), budget, client=True)
        self._next_stream_id = 1
        # So many streams were open when the peer refused one, whatever its SETTINGS allow.
        self._refused_at = UNLIMITED

    @property
    def can_open(self) -> bool:
        """Whether ``connect`` would succeed now.

        False when the connection is closed, silent or draining, when a GOAWAY came, when the stream ids are
        used up, and when as many streams are open as the peer's SETTINGS allow. Before the SETTINGS come
        there is no limit.
        """
        return not self._obstacle()

    @property
    def room(self) -> int:
        """How many streams may be opened now and are likely to be accepted.

        The first stream of a connection may be opened at once. The peer's SETTINGS say how many more it
        takes; until they come the answer is 0. If the peer refuses a stream within its own limit
        (REFUSED_STREAM), the number of streams that were open then is the limit until new SETTINGS come.
        """
        if self._obstacle():
            return 0
        if self._state is TUNNEL_OPENING:
            return 1 if self._next_stream_id == 1 else 0
        return max(0, min(self._engine.max_concurrent_streams, self._refused_at) - len(self._streams.open))

    @property
    def limit(self) -> int | None:
        """How many streams the peer takes at a time: 2^32 if it names no limit, None before its SETTINGS."""
        return self._engine.max_concurrent_streams if self._engine.known else None

    def connect(self, authority: str, fields: Iterable[tuple[wire.Text, wire.Text]]) -> int:
        """Send CONNECT: ``:method``, ``:authority``, then the fields in their order. Returns the stream id.

        Does not wait for the peer's SETTINGS. Raises CannotOpenStreamError when ``can_open`` is false.
        """
        obstacle = self._obstacle()
        if obstacle:
            raise CannotOpenStreamError(obstacle)
        stream_id = self._next_stream_id
        self._next_stream_id += 2
        self._streams.enter(stream_id, REQUEST_SENT)
        self._writer.headers(stream_id, wire.connect_block(authority, fields))
        return stream_id

    def _obstacle(self) -> str:
        state = self._state
        if not state.opens:
            if state.closed:
                return "it is closed"
            if self._peer_is_draining:
                return "the peer is draining it"
            return "it is draining" if state.writes else "nothing can be written any more"
        if self._next_stream_id > wire.LARGEST_STREAM_ID:
            return "its stream ids are used up"
        if len(self._streams.open) >= self._engine.max_concurrent_streams:
            return "as many streams are open as the peer allows"
        return ""

    def _begin_drain(self) -> None:
        # A client's GOAWAY is about streams that the server opened. There are none, so one GOAWAY is enough.
        self._send_last_goaway()

    def settings_received(self) -> None:
        """See Role."""
        super().settings_received()
        self._refused_at = UNLIMITED
        self._events.append(PeerSettingsReceived(self._engine.max_concurrent_streams))

    def goaway_received(self, last_stream_id: int, code: int, debug: bytes) -> None:
        """See Role."""
        super().goaway_received(last_stream_id, code, debug)
        for stream in list(self._streams.open.values()):
            if stream.stream_id > last_stream_id:
                self._streams.reset_by_peer(stream, ErrorCode.REFUSED_STREAM)

    def request_received(self, stream_id: int, block: HeaderBlock, *, end_stream: bool) -> None:
        """See Role."""
        raise Violation(ErrorCode.PROTOCOL_ERROR, f"the server opened stream {stream_id}")

    def answer_received(self, stream: Stream, block: HeaderBlock, *, end_stream: bool) -> None:
        """See Role."""
        response = read_response(block.fields)
        if response is None:
            self._streams.reset_on_error(stream, ErrorCode.PROTOCOL_ERROR)
            return
        self._abuse.useful()
        self._events.append(Responded(stream.stream_id, response.status, response.headers))
        if end_stream:
            self._streams.peer_ended(stream)

    def reset_received(self, stream: Stream, state: StreamState) -> None:
        """See Role."""
        if stream.reset_code == ErrorCode.REFUSED_STREAM and not state.answered:
            self._refused_at = len(self._streams.open)
