"""A client and a server of HBONE on h2, which can break every rule and see every frame."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import trio
from hyperframe.frame import GoAwayFrame

from tests.support.pod import MeshPod
from tests.support.raw_tls import RawTls, TlsAlertError, TlsChoices, TlsEndError

HBONE_PORT = 15008


def connect_headers(authority: str, **extra: str) -> list[tuple[str, str]]:
    """Returns the pseudo-headers of a CONNECT, then ``extra`` with ``_`` for ``-``."""
    return [
        (":method", "CONNECT"),
        (":authority", authority),
        *((name.replace("_", "-"), value) for name, value in extra.items()),
    ]


@dataclass
class RawStream:
    """What has come on one stream."""

    number: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int | None:
        value = dict(self.headers).get(":status")
        return None if value is None else int(value)


class PatientConnection(h2.connection.H2Connection):
    """h2 that goes on after a GOAWAY, which only announces that no new streams are served."""

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Any], list[h2.events.Event]]:
        state = self.state_machine.state
        result: tuple[list[Any], list[h2.events.Event]] = super()._receive_goaway_frame(frame)
        self.state_machine.state = state
        return result


class RawHbone:
    """One end of an HTTP/2 connection. Each `step` reads what the peer sends, and records it by stream."""

    def __init__(self, tls: RawTls, *, server: bool) -> None:
        self.tls = tls
        config = h2.config.H2Configuration(
            client_side=not server,
            header_encoding="utf-8",
            validate_outbound_headers=False,
            validate_inbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.h2 = PatientConnection(config)
        self.streams: dict[int, RawStream] = {}
        self.goaway: list[int] = []
        self.pings = 0
        self.acknowledge_data = True
        self._flushing = trio.Lock()

    async def start(self) -> None:
        self.h2.initiate_connection()
        await self.flush()

    async def flush(self) -> None:
        # Frames of two tasks must not get mixed up.
        async with self._flushing:
            data = self.h2.data_to_send()
            if data:
                await self.tls.send(data)

    async def step(self) -> None:
        """Wait for something from the peer. Raises TlsAlertError or TlsEndError when there is no more."""
        data = await self.tls.receive()
        for event in self.h2.receive_data(data):
            self._file(event)
        await self.flush()

    def _file(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived() | h2.events.ResponseReceived():
                stream = self._stream(event.stream_id)
                stream.headers = [(str(name), str(value)) for name, value in event.headers or ()]
            case h2.events.DataReceived():
                self._stream(event.stream_id).data += event.data or b""
                if self.acknowledge_data:
                    self.h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
            case h2.events.StreamEnded():
                self._stream(event.stream_id).ended = True
            case h2.events.StreamReset():
                self._stream(event.stream_id).reset = int(event.error_code or 0)
            case h2.events.ConnectionTerminated():
                self.goaway.append(int(event.error_code or 0))
            case h2.events.PingReceived():
                self.pings += 1

    def _stream(self, number: int | None) -> RawStream:
        assert number is not None
        return self.streams.setdefault(number, RawStream(number))

    async def until(self, condition: Callable[[], object], timeout: float = 30) -> None:
        """Read until a condition holds."""
        with trio.fail_after(timeout):
            while not condition():
                await self.step()

    async def request(
        self, headers: list[tuple[str, str]], *, end: bool = False, timeout: float = 30
    ) -> RawStream:
        """Send a request and wait for its answer or reset."""
        number = self.h2.get_next_available_stream_id()
        self.h2.send_headers(number, headers, end_stream=end)
        await self.flush()
        stream = self._stream(number)
        await self.until(lambda: stream.headers or stream.reset is not None, timeout)
        return stream

    async def connect(self, authority: str, **extra: str) -> RawStream:
        """Send a CONNECT; see `request`."""
        return await self.request(connect_headers(authority, **extra))

    async def send(self, stream: RawStream, data: bytes, *, end: bool = False, timeout: float = 30) -> None:
        """Send data as the window allows."""
        with trio.fail_after(timeout):
            view = memoryview(data)
            while view:
                room = min(
                    self.h2.local_flow_control_window(stream.number),
                    self.h2.max_outbound_frame_size,
                    len(view),
                )
                if room <= 0:
                    await self.step()
                    continue
                self.h2.send_data(stream.number, bytes(view[:room]))
                view = view[room:]
                await self.flush()
            if end:
                self.h2.end_stream(stream.number)
                await self.flush()

    async def exchange(self, stream: RawStream, data: bytes) -> bytes:
        """Send data and wait until as much has come back."""
        already = len(stream.data)
        await self.send(stream, data)
        await self.until(lambda: len(stream.data) >= already + len(data) or stream.ended)
        return bytes(stream.data[already:])


@contextlib.asynccontextmanager
async def raw_client(pod: MeshPod, address: str, choices: TlsChoices) -> AsyncIterator[RawHbone]:
    """Connect from a pod to ``address:15008``, TLS and HTTP/2 included. Raises what `RawTls` raises."""
    stream = await pod.connect(address, HBONE_PORT)
    try:
        tls = RawTls(stream, choices, server=False)
        await tls.handshake()
        client = RawHbone(tls, server=False)
        await client.start()
        yield client
        await tls.close()
    finally:
        with trio.move_on_after(1, shield=True):
            await stream.aclose()


class RawServer:
    """An HBONE server in a pod that no ztunnel serves, and the requests that it got."""

    def __init__(self) -> None:
        self.connections: list[RawHbone] = []
        self.failures: list[Exception] = []

    @property
    def requests(self) -> list[RawStream]:
        """All requests of all connections."""
        return [
            stream
            for connection in self.connections
            for stream in connection.streams.values()
            if stream.headers
        ]


Serve = Callable[[RawHbone], Awaitable[None]]


async def answer_all(connection: RawHbone, status: int = 200) -> None:
    """Answer each CONNECT, then echo what comes on it and end when it ends."""
    answered: set[int] = set()
    echoed: dict[int, int] = {}
    done: set[int] = set()
    while True:
        await connection.step()
        for number, stream in list(connection.streams.items()):
            if number not in answered and stream.headers:
                answered.add(number)
                connection.h2.send_headers(number, [(":status", str(status))], end_stream=status != 200)
            if status != 200 or stream.reset is not None or number in done:
                continue
            fresh = bytes(stream.data[echoed.get(number, 0) :])
            if fresh:
                echoed[number] = len(stream.data)
                await connection.flush()
                await connection.send(stream, fresh)
            if stream.ended:
                done.add(number)
                connection.h2.end_stream(number)
        await connection.flush()


@contextlib.asynccontextmanager
async def raw_server(
    pod: MeshPod, choices: TlsChoices, serve: Serve = answer_all
) -> AsyncIterator[RawServer]:
    """Run such a server on a pod's port 15008, until the block ends."""
    server = RawServer()

    async def one(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                tls = RawTls(stream, choices, server=True)
                await tls.handshake()
                connection = RawHbone(tls, server=True)
                server.connections.append(connection)
                await connection.start()
                await serve(connection)
            except (TlsAlertError, TlsEndError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
                server.failures.append(error)

    listener = pod.listen(HBONE_PORT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, one, [listener])
        yield server
        nursery.cancel_scope.cancel()
