"""The server's end of a tunnel, to which a peer connected, and its streams."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ztunnel.bounds import DEFAULTS, TunnelBounds
from ztunnel.hbone import ConnectReceived, Event, HboneServer
from ztunnel.tls.tls_connection import TlsConnection
from ztunnel.tunnel.tunnel import Tunnel
from ztunnel.tunnel.tunnel_stream import TunnelStream


class ServerStream(TunnelStream):
    """A stream that the peer opened. The connection answers it with `accept` or `refuse`."""

    __slots__ = ("tunnel",)

    def __init__(self, tunnel: ServerTunnel, stream_id: int) -> None:
        super().__init__(tunnel, stream_id)
        self.tunnel = tunnel

    def accept(self, fields: Iterable[tuple[str, str]] = ()) -> None:
        """Answer 200 with these fields. Does nothing on a stream that is closed or was answered."""
        self.tunnel.hbone.accept(self.id, fields)
        self.tunnel.flush()

    def refuse(self, status: int) -> None:
        """Answer with a status and close the stream. Does nothing if it is closed or was answered."""
        self.tunnel.hbone.refuse(self.id, status)
        self.tunnel.flush()


class ServerTunnel(Tunnel[HboneServer, ServerStream]):
    """A tunnel that a peer opened to us.

    on_connect: called by the reader for each CONNECT that arrives. It must not wait; it may start tasks.
    """

    def __init__(
        self,
        tls: TlsConnection,
        hbone: HboneServer,
        on_connect: Callable[[ServerStream, ConnectReceived], None],
        bounds: TunnelBounds = DEFAULTS.tunnel,
    ) -> None:
        super().__init__(tls, hbone, bounds)
        self._on_connect = on_connect

    def _own_event(self, event: Event) -> None:
        match event:
            case ConnectReceived():
                if self.hbone.draining or (self.many and self.tls.peer_closed):
                    # A peer that sends many requests and goes would not see one of the connections.
                    self.hbone.refuse_stream(event.stream_id)
                    return
                if not self.hbone.is_open(event.stream_id):
                    # The same bytes had a reset for it: there is nothing to answer.
                    return
                stream = ServerStream(self, event.stream_id)
                self.streams[stream.id] = stream
                self._on_connect(stream, event)
