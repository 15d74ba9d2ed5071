"""The client's end of a tunnel, which opens the streams, and its streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from ztunnel.bounds import DEFAULTS, TunnelBounds
from ztunnel.hbone import Event, HboneClient, PeerSettingsReceived, Responded
from ztunnel.hbone.tunnel_state import TUNNEL_OPENING
from ztunnel.observe.logging import get_logger
from ztunnel.tls.tls_connection import TlsConnection
from ztunnel.tunnel.tunnel import Tunnel
from ztunnel.tunnel.tunnel_stream import TunnelStream

log = get_logger("proxy::h2::client")

PROBE_OPAQUE = b"ztprobe1"


class ClientStream(TunnelStream):
    """A stream that we opened. ``response``: the response to its CONNECT, None before it came."""

    __slots__ = ("response", "tunnel")

    def __init__(self, tunnel: ClientTunnel, stream_id: int) -> None:
        super().__init__(tunnel, stream_id)
        self.tunnel = tunnel
        self.response: Responded | None = None

    async def wait_response(self) -> Responded:
        """Wait for the response to our CONNECT. The caller limits the wait.

        Raises StreamClosedError when the stream or the tunnel ends before the response.
        """
        while self.response is None:
            self._raise_if_dead()
            await self._wake_reader.park()
        return self.response

    def responded(self, event: Responded) -> None:
        """The response to our CONNECT came (called by the tunnel's reader)."""
        self.response = event
        self._wake_reader.wake()


class ClientTunnel(Tunnel[HboneClient, ClientStream]):
    """A tunnel that we opened to another ztunnel.

    began: when it was made, on Trio's clock. answered: a CONNECT was answered, so the tunnel works.
    idle_since: when its last stream ended, on Trio's clock. on_change: called when there may be room for more
    streams than before.
    """

    def __init__(
        self, tls: TlsConnection, hbone: HboneClient, bounds: TunnelBounds = DEFAULTS.tunnel
    ) -> None:
        super().__init__(tls, hbone, bounds)
        self.answered = False
        self.began: float = trio.current_time()
        self.idle_since: float = trio.current_time()
        self.on_change: Callable[[], None] | None = None

    def open(self, authority: str, fields: Sequence[tuple[str, str]]) -> ClientStream:
        """Send a CONNECT and return its stream, which the caller closes.

        Raises CannotOpenStreamError when ``can_open`` is false.
        """
        stream = ClientStream(self, self.hbone.connect(authority, fields))
        self.streams[stream.id] = stream
        self.flush()
        return stream

    @property
    def can_open(self) -> bool:
        """Whether a new stream may be opened. The peer may still refuse it."""
        return self.hbone.can_open

    @property
    def room(self) -> int:
        """How many streams may be opened now (see `HboneClient.room`)."""
        return self.hbone.room

    @property
    def limit(self) -> int | None:
        """How many streams the peer takes at a time; None before its SETTINGS came."""
        return self.hbone.limit

    @property
    def opening(self) -> bool:
        """Whether the peer's SETTINGS have not come yet."""
        return self.hbone.state is TUNNEL_OPENING

    @property
    def congested(self) -> bool:
        """Whether the connection's window is nearly used up (see `HboneConnection.congested`)."""
        return self.hbone.congested

    def probe(self) -> None:
        """Send a PING. Any byte that comes back moves ``heard``."""
        self.hbone.ping(PROBE_OPAQUE)
        self.flush()

    def _own_event(self, event: Event) -> None:
        match event:
            case Responded():
                self.answered = True
                stream = self.streams.get(event.stream_id)
                if stream is not None:
                    stream.responded(event)
            case PeerSettingsReceived():
                self._changed()

    def _stream_forgotten(self) -> None:
        if not self.streams:
            self.idle_since = trio.current_time()
        self._changed()

    def _changed(self) -> None:
        if self.on_change is not None:
            self.on_change()

    def _ping_unanswered(self) -> None:
        log.warn("HBONE ping timeout/error")
