"""What can happen on a tunnel: the events that ``HboneConnection.receive`` returns, in wire order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class ConnectReceived:
    """A request came (server only). The caller answers with ``accept``, ``refuse`` or ``refuse_stream``.

    ``method`` may be another than CONNECT; the caller answers that with 400. ``authority`` is the text of
    ``:authority``, "" when there is none; its characters and brackets are sound, but it may lack a port or
    have a bad one. ``headers`` are the ordinary fields in the order they came.
    """

    stream_id: int
    method: str
    authority: str
    headers: Headers


@dataclass(frozen=True, slots=True)
class Responded:
    """The final answer to a CONNECT came (client only). 1xx answers are passed over."""

    stream_id: int
    status: int
    headers: Headers


@dataclass(frozen=True, slots=True)
class DataReceived:
    """Payload came; never empty, and possibly a part of a frame.

    ``data`` is a view into the buffer that was given to ``receive``: whoever keeps it longer than that
    buffer stays unchanged must copy it. ``len(data)`` is what to ``acknowledge`` once it is consumed;
    padding is given back to the peer without the caller.
    """

    stream_id: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class StreamEnded:
    """The peer sends nothing more on this stream (END_STREAM, on DATA, on the answer or on trailers)."""

    stream_id: int


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The stream is gone in both directions.

    ``remote`` is true when the peer reset it (RST_STREAM, or GOAWAY with a lower last stream id: then the
    code is REFUSED_STREAM and a request may be tried elsewhere), false when the peer broke a rule on it
    and this side has sent RST_STREAM.
    """

    stream_id: int
    code: int
    remote: bool = True


@dataclass(frozen=True, slots=True)
class WindowOpened:
    """An exhausted window has room again: of one stream, or (``stream_id`` None) possibly of every stream."""

    stream_id: int | None


@dataclass(frozen=True, slots=True)
class PeerSettingsReceived:
    """The server's SETTINGS came and are in force; what it allows may have changed (client only).

    ``max_concurrent_streams`` is how many streams of ours it takes at a time; 2^32 when it names no limit.
    """

    max_concurrent_streams: int


@dataclass(frozen=True, slots=True)
class Pong:
    """The peer answered a ``ping``. ``opaque`` is the eight bytes that were sent."""

    opaque: bytes


@dataclass(frozen=True, slots=True)
class PeerDraining:
    """GOAWAY came, perhaps not for the first time. Streams up to ``last_stream_id`` live on.

    A StreamReset follows for each stream above it.
    """

    last_stream_id: int
    code: int
    debug: bytes


@dataclass(frozen=True, slots=True)
class ConnectionFailed:
    """The connection is over, and every open stream with it; no event follows.

    The peer broke the protocol (``code`` says how, and a GOAWAY with it is in the output), or the transport
    ended (``code`` NO_ERROR). ``reason`` is for a log line. No StreamReset is given for single streams.
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
