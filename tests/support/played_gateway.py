"""A network gateway and the endpoint behind it, in one server: the two tunnels of double HBONE."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tests.support.data_plane import Control
from ztunnel.hbone import ConnectReceived, ErrorCode, HboneServer
from ztunnel.model.identity import Identity
from ztunnel.tls.context import TlsOptions, server_context
from ztunnel.tls.socket_and_stream_tls import SocketTls, StreamTls
from ztunnel.tls.tls_errors import TlsError
from ztunnel.tunnel.server_tunnel import ServerStream, ServerTunnel
from ztunnel.tunnel.stream_transport import StreamTransport

GATEWAY = Identity("cluster.local", "default", "gateway")
ENDPOINT = Identity("cluster.local", "default", "web")


class _Held(StreamTransport):
    """A stream from which nothing more is read once ``held`` is set."""

    held = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self.held:
            await trio.sleep_forever()
        return await super().receive_some(max_bytes)


class PlayedGateway:
    """Accepts one outer tunnel and one stream in it. ``inner``: yields the inner stream, accepted."""

    def __init__(self, nursery: trio.Nursery, control: Control) -> None:
        self._nursery = nursery
        self._control = control
        self._streams, self.inner = trio.open_memory_channel[ServerStream](1)
        self._outer: ServerStream | None = None
        self._transport: _Held | None = None

    def hold(self) -> None:
        """Read nothing more of the inner tunnel."""
        assert self._transport is not None
        self._transport.held = True

    def reset(self) -> None:
        """Reset the outer stream."""
        assert self._outer is not None
        self._outer.reset(ErrorCode.CANCEL)

    def cut(self) -> None:
        """Cut the connection of the outer tunnel."""
        assert self._outer is not None
        tls = self._outer.tunnel.tls
        assert isinstance(tls, SocketTls)
        tls.socket.shutdown(socket.SHUT_RDWR)

    async def serve(self, stream: trio.SocketStream) -> None:
        certificate = await self._control.ca.issue(GATEWAY)
        sock = socket.socket(fileno=stream.socket.detach())
        tls = SocketTls(server_context(certificate, TlsOptions(), None), sock)
        await tls.handshake(30)
        await ServerTunnel(tls, HboneServer(), self._on_outer).run()

    def _on_outer(self, stream: ServerStream, request: ConnectReceived) -> None:
        self._outer = stream
        stream.accept()
        self._nursery.start_soon(self._inside, stream)

    async def _inside(self, stream: ServerStream) -> None:
        certificate = await self._control.ca.issue(ENDPOINT)
        self._transport = _Held(stream)
        tls = StreamTls(server_context(certificate, TlsOptions(), None), self._transport)
        try:
            await tls.handshake(30)
            await ServerTunnel(tls, HboneServer(), self._on_inner).run()
        except (OSError, TlsError):
            pass
        finally:
            stream.close()

    def _on_inner(self, stream: ServerStream, request: ConnectReceived) -> None:
        stream.accept()
        self._streams.send_nowait(stream)


@asynccontextmanager
async def played_gateway(control: Control, ip: str) -> AsyncIterator[PlayedGateway]:
    """Run it at ip:15008."""
    listeners = await trio.open_tcp_listeners(15008, host=ip)
    async with trio.open_nursery() as nursery:
        gateway = PlayedGateway(nursery, control)
        nursery.start_soon(trio.serve_listeners, gateway.serve, listeners)
        yield gateway
        nursery.cancel_scope.cancel()
