"""A server on a free loopback port for one test, and plain ways to talk to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from typing import Any, NamedTuple

import h11
import trio

from ztunnel.admin.http import Handler, HttpServer
from ztunnel.admin.servers import open_listeners
from ztunnel.bounds import AdminBounds
from ztunnel.model.address import SocketAddress


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


class Served:
    def __init__(self, port: int, stop: trio.Event) -> None:
        self.port = port
        self.stop = stop

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)

    async def ask(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        stream = await self.connect()
        async with stream:
            return await exchange(stream, method, target, headers, body)


async def exchange(
    stream: trio.SocketStream,
    method: str,
    target: str,
    headers: Mapping[str, str] | None = None,
    body: bytes = b"",
    *,
    connection: h11.Connection | None = None,
) -> Answer:
    """One request on an open connection."""
    client = h11.Connection(h11.CLIENT) if connection is None else connection
    fields = [("host", "localhost"), *(headers or {}).items()]
    if body:
        fields.append(("content-length", str(len(body))))
    sent = client.send(h11.Request(method=method, target=target, headers=fields)) or b""
    if body:
        sent += client.send(h11.Data(data=body)) or b""
    await stream.send_all(sent + (client.send(h11.EndOfMessage()) or b""))
    response: h11.Response | None = None
    got = b""
    with trio.fail_after(10):
        while True:
            event = client.next_event()
            if event is h11.NEED_DATA:
                client.receive_data(await stream.receive_some(65536))
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                got += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert response is not None
                named = {name.decode(): value.decode() for name, value in response.headers}
                return Answer(response.status_code, named, got)


@asynccontextmanager
async def serving(handler: Handler, **bounds: Any) -> AsyncIterator[Served]:
    listeners = open_listeners("test", SocketAddress(IPv4Address("127.0.0.1"), 0))
    stop = trio.Event()
    server = HttpServer("test", handler, AdminBounds(**bounds))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, listeners, stop)
        yield Served(listeners[0].socket.getsockname()[1], stop)
        nursery.cancel_scope.cancel()
