"""A real tunnel inside one process: two ends, TLS and HTTP/2 on a socket pair."""

from __future__ import annotations

import socket
import time
from contextlib import asynccontextmanager

import trio

from ztunnel.bounds import DEFAULTS, TunnelBounds
from ztunnel.certs.fake_ca import FakeCa
from ztunnel.hbone import HboneClient, HboneServer, HboneSettings
from ztunnel.model.identity import Identity
from ztunnel.tls.context import TlsOptions, client_context, server_context
from ztunnel.tls.socket_and_stream_tls import SocketTls
from ztunnel.tunnel.client_tunnel import ClientStream, ClientTunnel
from ztunnel.tunnel.server_tunnel import ServerStream, ServerTunnel

CLIENT = Identity("cluster.local", "default", "client")
SERVER = Identity("cluster.local", "default", "server")


class TunnelPair:
    """Both ends of a tunnel. ``accepted`` returns the server's end of each stream that `open` made."""

    def __init__(
        self, client: ClientTunnel, server: ServerTunnel, accepted: trio.MemoryReceiveChannel[ServerStream]
    ) -> None:
        self.client = client
        self.server = server
        self._accepted = accepted

    async def accepted(self) -> ServerStream:
        """Returns the next request that the server's end has received, before it is answered."""
        return await self._accepted.receive()

    def cut(self) -> None:
        """Cut the connection between both ends."""
        tls = self.client.tls
        assert isinstance(tls, SocketTls)
        tls.socket.shutdown(socket.SHUT_RDWR)

    async def open(self) -> tuple[ClientStream, ServerStream]:
        """Returns the client's and the server's end of a new stream, which is accepted."""
        ours = self.client.open("10.0.0.1:80", [])
        theirs = await self._accepted.receive()
        theirs.accept()
        assert (await ours.wait_response()).status == 200
        return ours, theirs


@asynccontextmanager
async def tunnel_pair(
    settings: HboneSettings | None = None,
    wire: tuple[socket.socket, socket.socket] | None = None,
    bounds: TunnelBounds = DEFAULTS.tunnel,
):
    """Yields both ends of a tunnel, until the block ends.

    wire: the two ends of the connection between them, a socket pair unless given.
    """
    ca = FakeCa(time.time)
    left, right = wire or socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    options = TlsOptions()
    client_tls = SocketTls(client_context(await ca.issue(CLIENT), options, None), left, [str(SERVER)])
    server_tls = SocketTls(server_context(await ca.issue(SERVER), options, None), right)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client_tls.handshake, 10)
        nursery.start_soon(server_tls.handshake, 10)
    streams, accepted = trio.open_memory_channel[ServerStream](100)
    client = ClientTunnel(client_tls, HboneClient(settings), bounds)
    server = ServerTunnel(
        server_tls, HboneServer(settings), lambda stream, _: streams.send_nowait(stream), bounds
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        nursery.start_soon(server.run)
        yield TunnelPair(client, server, accepted)
        client.stop()
        server.stop()


def plain_pair() -> tuple[socket.socket, trio.SocketStream]:
    """Returns a TCP connection on loopback: our end (non-blocking, raw) and the application's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        application = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    ours.setblocking(False)
    return ours, trio.SocketStream(trio.socket.from_stdlib_socket(application))


async def outcome(stream: trio.SocketStream) -> tuple[bytes, str]:
    """Returns everything that arrives, and how it ended."""
    data = b""
    with trio.fail_after(10):
        while True:
            try:
                piece = await stream.receive_some()
            except trio.BrokenResourceError:
                return data, "reset"
            if not piece:
                return data, "end"
            data += piece
