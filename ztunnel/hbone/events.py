"""The events that ``HboneConnection.receive`` returns, in wire order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class ConnectReceived:
    """A request came (server only). The caller answers with ``accept``, ``refuse`` or ``refuse_stream``.

    ``method`` may be other than CONNECT; the caller answers that with 400. ``authority`` is the text of
    ``:authority``, "" if there is none. Its characters and brackets were checked; its port was not and may be
    missing. ``headers`` are the fields that are not pseudo-header fields, in the order in which they came.
    """

    stream_id: int
    method: str
    authority: str
    headers: Headers


@dataclass(frozen=True, slots=True)
class Responded:
    """The final response to a CONNECT came (client only). 1xx responses give no event."""

    stream_id: int
    status: int
    headers: Headers


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Payload came: at least one byte, and perhaps only a part of a frame.

    ``data`` is a view into the buffer that was given to ``receive``; copy it before that buffer changes. The
    caller acknowledges ``len(data)`` bytes once they are consumed. Padding needs no acknowledgement.
    """

    stream_id: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The peer sends nothing more on this stream: END_STREAM came, on DATA, the response or trailers."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The stream is closed in both directions.

    ``remote`` is true when the peer ended it: by RST_STREAM, or by GOAWAY with a lower last stream id. In the
    second case ``code`` is REFUSED_STREAM, and the request may be tried on another tunnel. ``remote`` is
    false when the peer broke a rule on the stream and this side has sent RST_STREAM.
    """

    stream_id: int
    code: int
    remote: bool = True


@dataclass(frozen=True, slots=True)
class WindowOpened:
    """A send window that was used up has room again: that of one stream, or of all (``stream_id`` None)."""

    stream_id: int | None


@dataclass(frozen=True, slots=True)
class PeerSettingsReceived:
    """The server's SETTINGS came and are in force (client only).

    ``max_concurrent_streams``: how many of our streams the server takes at a time; 2^32 if it names no limit.
    """

    max_concurrent_streams: int


@dataclass(frozen=True, slots=True)
class Pong:
    """The peer answered a ``ping``. ``opaque``: the eight bytes that were sent."""

    opaque: bytes


@dataclass(frozen=True, slots=True)
class PeerDraining:
    """GOAWAY came; there may be several of them. Streams up to ``last_stream_id`` continue.

    A StreamReset follows for each stream above it.
    """

    last_stream_id: int
    code: int
    debug: bytes


@dataclass(frozen=True, slots=True)
class ConnectionFailed:
    """The connection has ended, and all its streams. No event follows, and no StreamReset for single streams.

    Either the peer broke the protocol: then ``code`` says how, and a GOAWAY with it is in the output. Or the
    transport ended: then ``code`` is NO_ERROR. ``reason`` is for a log line.
    """

    code: int
    reason: str


Event: TypeAlias = (
    ConnectReceived
    | Responded
    | DataReceived
    | StreamEnded
    | StreamReset
    | WindowOpened
    | PeerSettingsReceived
    | Pong
    | PeerDraining
    | ConnectionFailed
)
