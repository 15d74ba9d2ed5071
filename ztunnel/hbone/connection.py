"""The interface of a tunnel, client and server. (API first; the body follows.)"""

from __future__ import annotations

from collections.abc import Iterable

from ztunnel.hbone.events import Event
from ztunnel.hbone.settings import HboneSettings


class HboneConnection:
    """One HTTP/2 connection that carries CONNECT tunnels, without I/O: bytes in, events and bytes out.

    After any call, ``take_output`` may have something to write. No method but ``HboneClient.connect`` raises
    for what a peer did or for a stream that is gone meanwhile: such calls do nothing.
    """

    settings: HboneSettings

    def receive(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """Take bytes from the transport, in any pieces. DATA payload comes out as views into ``data``."""
        raise NotImplementedError

    def receive_eof(self) -> list[Event]:
        """The transport ended. Gives ConnectionFailed unless the connection was closed already."""
        raise NotImplementedError

    def take_output(self) -> list[bytes | memoryview]:
        """What to write next, in order; the caller owns the list. Payload is not copied: see ``send_data``."""
        raise NotImplementedError

    # Streams
    @property
    def open_streams(self) -> int:
        """Streams that are not closed in both directions."""
        raise NotImplementedError

    @property
    def stream_ids(self) -> list[int]:
        """The ids of the open streams."""
        raise NotImplementedError

    def is_open(self, stream_id: int) -> bool:
        """Whether at least one direction of the stream is open."""
        raise NotImplementedError

    def can_send(self, stream_id: int) -> bool:
        """Whether this side may still send on the stream (a server: only after ``accept``)."""
        raise NotImplementedError

    def can_receive(self, stream_id: int) -> bool:
        """Whether the peer may still send on the stream."""
        raise NotImplementedError

    def send_window(self, stream_id: int) -> int:
        """Bytes that ``send_data`` would take now, the smaller of both windows; 0 when the stream cannot send."""
        raise NotImplementedError

    def send_data(self, stream_id: int, data: bytes | bytearray | memoryview) -> int:
        """Frame as much of ``data`` as the windows allow; returns how many bytes were taken.

        The output holds views of ``data``: it must stay unchanged until the output is written.
        """
        raise NotImplementedError

    def end_stream(self, stream_id: int) -> None:
        """Send END_STREAM. The other direction goes on."""
        raise NotImplementedError

    def reset(self, stream_id: int, code: int) -> None:
        """Send RST_STREAM. What was received and not acknowledged is given back to the connection window."""
        raise NotImplementedError

    def acknowledge(self, stream_id: int, count: int) -> None:
        """The consumer took ``count`` payload bytes. Also due for data that outlived its stream."""
        raise NotImplementedError

    def discard(self, stream_id: int) -> None:
        """Whoever held what was received on the stream has dropped it: acknowledges all that is outstanding."""
        raise NotImplementedError

    # Connection
    def ping(self, opaque: bytes) -> None:
        """Send PING with eight bytes. Pong brings them back."""
        raise NotImplementedError

    def start_drain(self) -> None:
        """Begin a graceful end: GOAWAY(2^31-1) and a PING, on its answer GOAWAY(last processed id).

        Streams that come after the second GOAWAY are refused without the caller; those between the two are
        delivered, and the caller may ``accept`` them or call ``HboneServer.refuse_stream``.
        """
        raise NotImplementedError

    def close(self, code: int) -> None:
        """Send GOAWAY with the last processed id and end the connection; only ``take_output`` is left to do."""
        raise NotImplementedError

    @property
    def draining(self) -> bool:
        """Whether ``start_drain`` was called."""
        raise NotImplementedError

    @property
    def drained(self) -> bool:
        """Whether the drain is complete: the second GOAWAY is out, and no stream is open."""
        raise NotImplementedError

    @property
    def peer_is_draining(self) -> bool:
        """Whether a GOAWAY came."""
        raise NotImplementedError

    @property
    def closed(self) -> bool:
        """Whether the connection is over: ``close`` was called, or ConnectionFailed was given."""
        raise NotImplementedError


class HboneClient(HboneConnection):
    """The end that opens tunnels. Preface, SETTINGS and WINDOW_UPDATE are in the output from the start."""

    def __init__(self, settings: HboneSettings | None = None) -> None:
        self.settings = settings or HboneSettings()

    @property
    def can_open(self) -> bool:
        """Whether ``connect`` would succeed now: not closed, no GOAWAY, ids left, below the peer's stream limit."""
        raise NotImplementedError

    def connect(self, authority: str, fields: Iterable[tuple[str, str]]) -> int:
        """Send a CONNECT with these fields, in order, after ``:method`` and ``:authority``; returns the stream id.

        Does not wait for the peer's SETTINGS. Raises CannotOpenStreamError when ``can_open`` is false.
        """
        raise NotImplementedError


class HboneServer(HboneConnection):
    """The end that is connected to. SETTINGS and WINDOW_UPDATE are in the output from the start."""

    def __init__(self, settings: HboneSettings | None = None) -> None:
        self.settings = settings or HboneSettings()

    def accept(self, stream_id: int, fields: Iterable[tuple[str, str]] = ()) -> bool:
        """Answer 200 with these fields. False when the stream is gone or was answered already."""
        raise NotImplementedError

    def refuse(self, stream_id: int, status: int) -> bool:
        """Answer with a status and END_STREAM, then RST_STREAM(NO_ERROR). False as for ``accept``."""
        raise NotImplementedError

    def refuse_stream(self, stream_id: int) -> bool:
        """RST_STREAM(REFUSED_STREAM): nothing was done for this request, it may be tried elsewhere."""
        raise NotImplementedError
