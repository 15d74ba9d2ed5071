"""Applications for tests: echo servers, exact transfers of gigabytes, half-close and reset."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from tests.support.pod import MeshPod

Handler = Callable[[trio.SocketStream], Awaitable[None]]

# A prime, so that no power-of-two chunk or buffer size ever lines up with it.
PERIOD = 4_194_301
_pattern = random.Random(20261123).randbytes(PERIOD)
_TWICE = memoryview(_pattern * 2)


def pattern(offset: int, length: int) -> memoryview:
    """Returns the bytes that belong at ``offset`` of every exact transfer; at most PERIOD of them."""
    assert length <= PERIOD
    start = offset % PERIOD
    return _TWICE[start : start + length]


async def send_pattern(
    stream: trio.SocketStream, total: int, chunks: random.Random, largest: int = 400_000
) -> None:
    """Send ``total`` bytes of the pattern in chunks of random sizes, 1 byte ones among them."""
    sent = 0
    while sent < total:
        size = min(total - sent, 1 if chunks.random() < 0.02 else chunks.randint(1, largest))
        await stream.send_all(pattern(sent, size))
        sent += size


async def receive_pattern(stream: trio.SocketStream, total: int | None = None) -> int:
    """Receive ``total`` bytes, or all until the end, and check them. Returns how many came."""
    received = 0
    while total is None or received < total:
        limit = 262_144 if total is None else min(262_144, total - received)
        data = await stream.receive_some(limit)
        if not data:
            break
        if pattern(received, len(data)) != data:
            raise AssertionError(f"the bytes from {received} to {received + len(data)} differ")
        received += len(data)
    return received


async def echo(stream: trio.SocketStream) -> None:
    """Send back what comes; end when the peer ends."""
    while data := await stream.receive_some(262_144):
        await stream.send_all(data)
    await stream.send_eof()


async def read_all(stream: trio.SocketStream, timeout: float = 30) -> bytes:
    """Returns everything up to the peer's end. Raises trio.BrokenResourceError on a reset."""
    data = bytearray()
    with trio.fail_after(timeout):
        while part := await stream.receive_some(65_536):
            data += part
    return bytes(data)


async def read_exactly(stream: trio.SocketStream, count: int, timeout: float = 30) -> bytes:
    """Returns ``count`` bytes. Raises AssertionError when the peer ends before."""
    data = bytearray()
    with trio.fail_after(timeout):
        while len(data) < count:
            part = await stream.receive_some(count - len(data))
            if not part:
                raise AssertionError(f"the peer ended after {bytes(data)!r}")
            data += part
    return bytes(data)


def reset(stream: trio.SocketStream) -> None:
    """Close with RST instead of FIN."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def refused_by(pod: MeshPod, address: str, port: int, *, say: bytes = b"", timeout: float = 30) -> str:
    """Returns how a connection that is to be refused ends: "end" or "reset".

    A reset may come so early that connecting or sending fails. Raises AssertionError when data comes.
    """
    try:
        stream = await pod.connect(address, port, timeout=timeout)
    except ConnectionResetError:
        return "reset"
    async with stream:
        try:
            await stream.send_all(say)
        except trio.BrokenResourceError:
            return "reset"
        return await ended_by(stream, timeout)


async def ended_by(stream: trio.SocketStream, timeout: float = 30) -> str:
    """Returns how the peer ended it: "end" or "reset". Raises AssertionError when it sends data instead."""
    try:
        with trio.fail_after(timeout):
            data = await stream.receive_some(65_536)
    except trio.BrokenResourceError as error:
        if not isinstance(error.__cause__, ConnectionResetError):
            raise
        return "reset"
    assert not data, data
    return "end"


class Server:
    """A listening application that remembers its connections."""

    def __init__(self) -> None:
        self.peers: list[tuple[str, int]] = []
        self.failures: list[BaseException] = []

    @property
    def peer_addresses(self) -> list[str]:
        """The clients' IP addresses in the order of their connections, with IPv4 unmapped."""
        return [address.removeprefix("::ffff:") for address, _ in self.peers]


@contextlib.asynccontextmanager
async def serve(
    pod: MeshPod, port: int, handler: Handler = echo, address: str = "::"
) -> AsyncIterator[Server]:
    """Run an application in a pod, until the block ends. Its connections are closed then.

    A handler's exceptions end its own connection and are kept in `Server.failures`.
    """
    server = Server()

    async def one(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                server.peers.append(stream.socket.getpeername()[:2])
                await handler(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError, AssertionError, OSError) as error:
                server.failures.append(error)

    listener = pod.listen(port, address)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, one, [listener])
        yield server
        nursery.cancel_scope.cancel()
