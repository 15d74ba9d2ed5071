"""Identities, certificates and connected pairs for the tests of TLS."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Self

import trio

from ztunnel.certs.fake_ca import IssuingCa
from ztunnel.model.certificate import Certificate
from ztunnel.model.identity import Identity
from ztunnel.tls.context import TlsContext, TlsOptions, client_context, server_context
from ztunnel.tls.socket_and_stream_tls import SocketTls
from ztunnel.tls.tls_errors import TlsHandshakeError

NOW = time.time()
DEADLINE = 10.0
CLIENT = Identity("cluster.local", "default", "client")
SERVER = Identity("cluster.local", "default", "server")
CA = IssuingCa(NOW)


def certificate(identity: Identity, ca: IssuingCa = CA, **options: object) -> Certificate:
    """Returns a certificate, valid for an hour unless ``options`` (of `IssuingCa.certify`) say otherwise."""
    arguments: dict[str, object] = {"not_before": NOW - 60, "not_after": NOW + 3600} | options
    return ca.certify(identity, **arguments)  # type: ignore[arg-type]  # keyword arguments by name


CLIENT_CERTIFICATE = certificate(CLIENT)
SERVER_CERTIFICATE = certificate(SERVER)
CLIENT_CONTEXT = client_context(CLIENT_CERTIFICATE, TlsOptions())
SERVER_CONTEXT = server_context(SERVER_CERTIFICATE, TlsOptions())


def sockets(buffer: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Yields two connected non-blocking TCP sockets. ``buffer``: the size of the kernel's buffers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client = socket.socket()
        if buffer is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
    if buffer is not None:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    for one in (client, server):
        one.setblocking(False)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client, server


class Pair:
    """A client and a server connection over loopback; ``with`` closes both."""

    def __init__(
        self,
        client: TlsContext = CLIENT_CONTEXT,
        server: TlsContext = SERVER_CONTEXT,
        expected: Sequence[str] = (str(SERVER),),
        buffer: int | None = None,
    ) -> None:
        ours, theirs = sockets(buffer)
        self.client = SocketTls(client, ours, expected)
        self.server = SocketTls(server, theirs)

    async def handshake(self) -> tuple[TlsHandshakeError | None, TlsHandshakeError | None]:
        """Returns the errors of client and server, after both handshakes at once."""
        failures: dict[str, TlsHandshakeError | None] = {"client": None, "server": None}

        async def one(name: str, connection: SocketTls) -> None:
            try:
                await connection.handshake(DEADLINE)
            except TlsHandshakeError as error:
                failures[name] = error
                connection.close_notify()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, "client", self.client)
            nursery.start_soon(one, "server", self.server)
        if failures == {"client": None, "server": None}:
            # Session tickets that nobody read would turn a close of the client's socket into a reset.
            assert self.client.try_receive() is None
            assert self.client.try_receive() is None
        return failures["client"], failures["server"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.close()
