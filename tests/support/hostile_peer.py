"""A peer of port 15008 that sends any bytes after a valid handshake, over TLS or through a plain port."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tests.support.data_plane import INFO, Control
from ztunnel.model.identity import Identity
from ztunnel.tls.context import TlsOptions, client_context
from ztunnel.tls.socket_and_stream_tls import SocketTls
from ztunnel.tls.tls_errors import TlsError

PEER = Identity("cluster.local", "default", "stranger")
SERVER = Identity("cluster.local", INFO.namespace, INFO.service_account)


async def dial(
    control: Control,
    identity: Identity = PEER,
    *,
    receive_buffer: int | None = None,
    source: str | None = None,
) -> SocketTls:
    """Returns a TLS connection to 15008 as some workload of the mesh; the caller closes it.

    receive_buffer: bytes that our kernel takes while nobody reads, and with them the server's; None for the
        system's choice, which is some megabytes.
    source: the address to connect from; None for the system's choice.
    """
    context = client_context(await control.ca.issue(identity), TlsOptions())
    sock = socket.socket()
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    if source is not None:
        sock.bind((source, 0))
    sock.connect(("127.0.0.1", 15008))
    sock.setblocking(False)
    tls = SocketTls(context, sock, [str(SERVER)])
    try:
        await tls.handshake(10)
    except BaseException:
        tls.close()
        raise
    return tls


async def send_all(tls: SocketTls, data: bytes) -> None:
    """Send everything. Raises OSError, TlsError when the other end is gone."""
    view = memoryview(data)
    while view:
        sent = tls.try_send(view)
        view = view[sent:]
        if not sent:
            await tls.wait_sendable()


async def receive(tls: SocketTls) -> bytes:
    """Returns what comes next, ``b""`` at the end. Raises OSError; TlsError if close_notify is missing."""
    while (data := tls.try_receive()) is None:
        await tls.wait_receivable()
    return data


@asynccontextmanager
async def plain_port(control: Control) -> AsyncIterator[int]:
    """Runs a plain TCP port. Each of its connections gets its own TLS connection to 15008."""

    async def one(plain: trio.SocketStream) -> None:
        tls = await dial(control)
        try:
            async with plain, trio.open_nursery() as nursery:
                nursery.start_soon(_there, plain, tls)
                await _back(plain, tls)
                nursery.cancel_scope.cancel()
        finally:
            tls.close_notify()
            tls.close()

    async def _there(plain: trio.SocketStream, tls: SocketTls) -> None:
        try:
            while data := await plain.receive_some(65_536):
                await send_all(tls, data)
            tls.close_notify()
        except (OSError, TlsError, trio.BrokenResourceError):
            return

    async def _back(plain: trio.SocketStream, tls: SocketTls) -> None:
        try:
            while data := await receive(tls):
                await plain.send_all(data)
            await plain.send_eof()
        except (OSError, TlsError, trio.BrokenResourceError):
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, one, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()
