"""A small HTTP/1 server for the node's own endpoints: readiness, metrics, admin.

h11 implements the protocol; this module adds limits and tasks. Each connection is one task that serves
requests one after the other. Everything that a client can make us hold or wait for is limited: size and time
of a request's head, its body, the time in which it must read a piece of our answer, the idle time, and the
number of connections. At that number the connection that has been idle for the longest time is closed for a
new one, so idle connections cannot shut out the kubelet.

A client may close its sending side after its request and still gets the answer: nothing is read while a
request is answered.

The body of an answer may come in pieces, and other tasks run in between. The head is sent with the first
piece, so a handler that fails before it is answered with 500.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeAlias
from urllib.parse import parse_qs, unquote

import h11
import trio

from ztunnel.bounds import DEFAULTS, AdminBounds
from ztunnel.observe.logging import get_logger

_READ = 16 * 1024

log = get_logger("hyper_util")

Body: TypeAlias = bytes | Iterable[bytes] | AsyncGenerator[bytes, None]


@dataclass(frozen=True, slots=True)
class Request:
    """One request. Header names are in lower case; of a repeated header the last one counts.

    query: parameters without a value are kept as empty strings.
    """

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Response:
    """One response. Without a content type that header is left out."""

    status: int = 200
    body: Body = b""
    content_type: str | None = None
    headers: Sequence[tuple[str, str]] = ()


Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


class HttpServer:
    """Serves one handler on some listeners.

    name: for logs and tasks. bounds: the limits for clients.
    """

    def __init__(self, name: str, handler: Handler, bounds: AdminBounds = DEFAULTS.admin) -> None:
        self._name = name
        self._handler = handler
        self.bounds = bounds
        self._capacity = bounds.connections
        self._open = 0
        self._idle: dict[_Connection, None] = {}
        self._room = trio.lowlevel.ParkingLot()
        self._stopping = False

    async def serve(
        self,
        listeners: Sequence[trio.SocketListener],
        stop: trio.Event,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until ``stop`` is set. Then close the listeners at once, finish current requests, and return.

        This call closes the listeners in every case.
        """
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    accepting.start_soon(self._accept, listener, connections, name=f"{self._name} server")
                task_status.started()
                await stop.wait()
                accepting.cancel_scope.cancel()
            self._stopping = True
            for connection in list(self._idle):
                connection.scope.cancel()

    async def _accept(self, listener: trio.SocketListener, connections: trio.Nursery) -> None:
        async with listener:
            while True:
                while self._open >= self._capacity:
                    oldest = next(iter(self._idle), None)
                    if oldest is not None:
                        del self._idle[oldest]
                        oldest.scope.cancel()
                    await self._room.park()
                try:
                    stream = await listener.accept()
                except OSError as error:
                    log.warning("accept failed", server=self._name, error=str(error))
                    # no descriptors are left: trying again at once would only use CPU
                    await trio.sleep(self.bounds.accept_pause)
                    continue
                self._open += 1
                connection = _Connection(self, stream)
                connections.start_soon(self._run, connection, name=f"{self._name} connection")

    async def _run(self, connection: _Connection) -> None:
        try:
            with connection.scope:
                await connection.run()
        except Exception as error:
            log.exception("connection failed", server=self._name, error=str(error))
        finally:
            connection.stream.socket.close()
            self._open -= 1
            self._room.unpark()

    async def answer(self, request: Request) -> Response:
        """For connections: returns the handler's response, or 500 with the error's text."""
        try:
            return await self._handler(request)
        except Exception as error:  # noqa: BLE001 - the client is told, and the server goes on
            return self.failed(request, error)

    def failed(self, request: Request, error: Exception) -> Response:
        """For connections: the response for a handler that failed."""
        log.warning("request failed", server=self._name, path=request.path, exc_info=error)
        return Response(500, (str(error) or type(error).__name__).encode(), "text/plain")

    def idle(self, connection: _Connection, *, now: bool) -> None:
        """For connections: while idle between requests they may be closed."""
        if now:
            self._idle[connection] = None
            if self._open >= self._capacity:
                self._room.unpark()
        else:
            self._idle.pop(connection, None)

    @property
    def stopping(self) -> bool:
        """Whether connections have to end after their current request."""
        return self._stopping


class _Connection:
    def __init__(self, server: HttpServer, stream: trio.SocketStream) -> None:
        self.server = server
        self.stream = stream
        self.scope = trio.CancelScope()
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=server.bounds.head_bytes)

    async def run(self) -> None:
        """Serve requests until one side wants to end."""
        try:
            first = True
            while await self._one_request(first=first):
                self._h11.start_next_cycle()
                first = False
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass  # the client is gone, or too slow

    async def _one_request(self, *, first: bool) -> bool:
        try:
            request = await self._head(first=first)
            if request is None:
                return False
            response = await self.server.answer(request)
            await self._write(request, response)
            await self._skip_body()
        except h11.RemoteProtocolError as error:
            await self._refuse(error.error_status_hint)
            return False
        return self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE

    async def _head(self, *, first: bool) -> Request | None:
        bounds = self.server.bounds
        deadline = trio.current_time() + (bounds.head_timeout if first else bounds.idle_timeout)
        started = first
        while True:
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                if not started and self._h11.trailing_data[0]:
                    started = True
                    deadline = trio.current_time() + bounds.head_timeout
                if not await self._receive(deadline, idle=not started):
                    return None
                continue
            if isinstance(event, h11.Request):
                if event.http_version not in (b"1.0", b"1.1"):
                    raise h11.RemoteProtocolError("HTTP/1 only", error_status_hint=505)
                return _request(event)
            return None

    async def _receive(self, deadline: float, *, idle: bool) -> bool:
        if idle and self.server.stopping:
            return False
        if idle:
            self.server.idle(self, now=True)
        try:
            with trio.fail_at(deadline):
                data = await self.stream.receive_some(_READ)
        finally:
            if idle:
                self.server.idle(self, now=False)
        self._h11.receive_data(data)
        return bool(data)

    async def _write(self, request: Request, response: Response) -> None:
        async with aclosing(_pieces(response.body)) as pieces:
            try:
                piece = await anext(pieces, b"")
            except Exception as error:  # noqa: BLE001 - as for a handler that fails
                response = self.server.failed(request, error)
                piece = response.body if isinstance(response.body, bytes) else b""
            await self._write_pieces(request, response, piece, pieces)

    async def _write_pieces(
        self, request: Request, response: Response, piece: bytes, pieces: AsyncIterator[bytes]
    ) -> None:
        headers = list(response.headers)
        if response.content_type is not None:
            headers.insert(0, ("content-type", response.content_type))
        if isinstance(response.body, bytes):
            headers.append(("content-length", str(len(piece))))
        if self.server.stopping:
            headers.append(("connection", "close"))
        head = self._h11.send(_head(response.status, headers)) or b""
        silent = request.method == "HEAD"
        await self._send(head + (b"" if silent else self._data(piece)))
        while not silent and (piece := await anext(pieces, b"")):
            await self._send(self._data(piece))
        await self._send(self._h11.send(h11.EndOfMessage()) or b"")

    def _data(self, piece: bytes) -> bytes:
        return (self._h11.send(h11.Data(data=piece)) or b"") if piece else b""

    async def _send(self, data: bytes) -> None:
        if data:
            with trio.fail_after(self.server.bounds.write_timeout):
                await self.stream.send_all(data)

    async def _skip_body(self) -> None:
        """Read the body of a request if it is small.

        Otherwise the connection is closed after the response.
        """
        bounds = self.server.bounds
        deadline = trio.current_time() + bounds.head_timeout
        taken = 0
        while self._h11.their_state is h11.SEND_BODY and taken <= bounds.body_bytes:
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                if self._h11.they_are_waiting_for_100_continue or not await self._receive(
                    deadline, idle=False
                ):
                    return
            elif isinstance(event, h11.Data):
                taken += len(event.data)

    async def _refuse(self, status: int) -> None:
        if self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        headers = [("content-length", "0"), ("connection", "close")]
        await self._send(self._h11.send(_head(status, headers)) or b"")
        await self._send(self._h11.send(h11.EndOfMessage()) or b"")
        # closing with unread input would reset the connection before the client saw the answer
        with trio.move_on_after(self.server.bounds.refusal_linger):
            await self.stream.send_eof()
            while await self.stream.receive_some(_READ):
                pass


def _head(status: int, headers: list[tuple[str, str]]) -> h11.Response:
    return h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode())


async def _pieces(body: Body) -> AsyncGenerator[bytes, None]:
    if isinstance(body, bytes):
        yield body
    elif isinstance(body, AsyncGenerator):
        async with aclosing(body):
            async for piece in body:
                if piece:
                    yield piece
    else:
        for piece in body:
            if piece:
                yield piece


def _request(event: h11.Request) -> Request:
    target = event.target.decode("latin-1")
    if "://" in target.partition("?")[0]:
        # the form meant for proxies, which servers must accept too (RFC 9112 section 3.2.2)
        target = "/" + target.partition("://")[2].partition("/")[2]
    path, _, query_text = target.partition("?")
    try:
        query = parse_qs(query_text, keep_blank_values=True, max_num_fields=100)
    except ValueError as error:
        raise h11.RemoteProtocolError("too many parameters") from error
    return Request(
        method=event.method.decode("ascii"),
        path=unquote(path),
        query={key: values[-1] for key, values in query.items()},
        headers={name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers},
    )


def no_delay(listener: trio.SocketListener) -> None:
    """Set TCP_NODELAY on a listener: Linux copies it to accepted sockets."""
    listener.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


__all__: list[Any] = ["Body", "Handler", "HttpServer", "Request", "Response", "no_delay"]
