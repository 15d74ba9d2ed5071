"""Tunnels are reused, up to their limit, and never by another identity or for another server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from tests.support.mesh import Mesh
from tests.support.pod import MeshPod
from tests.support.raw_hbone import RawHbone, RawServer, answer_all, raw_server
from tests.support.raw_tls import KeyPair, TlsChoices
from tests.support.traffic import read_all, read_exactly


@dataclass
class PoolMesh:
    """Two pods served by ztunnel, and one whose HBONE server is played by the test."""

    mesh: Mesh
    client: MeshPod
    other: MeshPod
    server: MeshPod

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[RawServer]:
        choices = TlsChoices(KeyPair.load(self.mesh.root).issue(self.server.identity))
        async with raw_server(self.server, choices) as server:
            yield server


@pytest.fixture(scope="module")
def pool_mesh() -> Iterator[PoolMesh]:
    environment = {"POOL_MAX_STREAMS_PER_CONNECTION": "3", "POOL_UNUSED_RELEASE_TIMEOUT": "1s"}
    with Mesh.open(environment=environment) as mesh:
        client = mesh.node("a").pod("client")
        other = mesh.node("a").pod("other")
        server = mesh.node("b").pod("server", captured=False)
        mesh.start()
        yield PoolMesh(mesh, client, other, server)


async def use(pod: MeshPod, server: MeshPod, stack: AsyncExitStack, port: int = 8080) -> trio.SocketStream:
    """An established connection with a byte exchanged, open until the stack closes."""
    stream = await stack.enter_async_context(await pod.connect(server.ipv4, port))
    await stream.send_all(b"x")
    assert await read_exactly(stream, 1) == b"x"
    return stream


async def test_one_handshake_serves_many_streams(pool_mesh: PoolMesh) -> None:
    async with pool_mesh.serving() as server, AsyncExitStack() as stack:
        for port in (8080, 8080, 9090):
            await use(pool_mesh.client, pool_mesh.server, stack, port)
        assert len(server.connections) == 1
        assert [dict(request.headers)[":authority"] for request in server.requests] == [
            f"{pool_mesh.server.ipv4}:{port}" for port in (8080, 8080, 9090)
        ]


async def test_ended_streams_make_room_for_new_ones_in_the_same_tunnel(pool_mesh: PoolMesh) -> None:
    async with pool_mesh.serving() as server:
        for _ in range(10):
            async with await pool_mesh.client.connect(pool_mesh.server.ipv4, 8080) as stream:
                await stream.send_all(b"x")
                await read_exactly(stream, 1)
                await stream.send_eof()
                assert await read_all(stream) == b""
        assert len(server.connections) == 1
        assert len(server.requests) == 10


async def test_a_full_tunnel_is_followed_by_another(pool_mesh: PoolMesh) -> None:
    async with pool_mesh.serving() as server, AsyncExitStack() as stack:
        for _ in range(7):
            await use(pool_mesh.client, pool_mesh.server, stack)
        assert sorted(len(connection.streams) for connection in server.connections) == [1, 3, 3]


async def test_a_burst_of_connections_makes_few_handshakes(pool_mesh: PoolMesh) -> None:
    async with pool_mesh.serving() as server, AsyncExitStack() as stack, trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(use, pool_mesh.client, pool_mesh.server, stack)
    assert len(server.connections) == 2


async def test_identities_never_share_a_tunnel(pool_mesh: PoolMesh) -> None:
    async with pool_mesh.serving() as server, AsyncExitStack() as stack:
        for pod in (pool_mesh.client, pool_mesh.other):
            await use(pod, pool_mesh.server, stack)
        presented = {connection.tls.peer_uri() for connection in server.connections}
    assert presented == {pool_mesh.client.identity, pool_mesh.other.identity}
    addresses = {
        pool_mesh.client.identity: pool_mesh.client.ipv4,
        pool_mesh.other.identity: pool_mesh.other.ipv4,
    }
    for connection in server.connections:
        (request,) = connection.streams.values()
        address = addresses[connection.tls.peer_uri()]
        assert dict(request.headers)["forwarded"].startswith(f'for="{address}:')


async def test_an_unused_tunnel_is_given_up_after_its_time(pool_mesh: PoolMesh) -> None:
    goaways: list[int] = []
    ended = trio.Event()

    async def note_the_end(connection: RawHbone) -> None:
        try:
            await answer_all(connection)
        finally:
            goaways.extend(connection.goaway)
            ended.set()

    choices = TlsChoices(KeyPair.load(pool_mesh.mesh.root).issue(pool_mesh.server.identity))
    async with raw_server(pool_mesh.server, choices, note_the_end) as server:
        async with AsyncExitStack() as stack:
            await use(pool_mesh.client, pool_mesh.server, stack)
        with trio.fail_after(10):
            await ended.wait()
        assert goaways == [0], "NO_ERROR"
        async with AsyncExitStack() as stack:
            await use(pool_mesh.client, pool_mesh.server, stack)
        assert len(server.connections) == 2


async def test_after_a_goaway_open_streams_go_on_and_new_ones_get_a_new_tunnel(pool_mesh: PoolMesh) -> None:
    async with pool_mesh.serving() as server, AsyncExitStack() as stack:
        first = await use(pool_mesh.client, pool_mesh.server, stack)
        connection = server.connections[0]
        # Written by hand, since h2 refuses to send data after its own GOAWAY.
        await connection.tls.send(
            (8).to_bytes(3, "big") + b"\x07\x00" + bytes(4) + (2**31 - 1).to_bytes(4, "big") + bytes(4)
        )
        await first.send_all(b"y")
        assert await read_exactly(first, 1) == b"y"
        await use(pool_mesh.client, pool_mesh.server, stack)
        assert len(server.connections) == 2
        await first.send_all(b"z")
        assert await read_exactly(first, 1) == b"z"


async def test_a_dead_tunnel_is_replaced(pool_mesh: PoolMesh) -> None:
    async with pool_mesh.serving() as server, AsyncExitStack() as stack:
        await use(pool_mesh.client, pool_mesh.server, stack)
        await server.connections[0].tls.stream.aclose()
        await trio.sleep(0.2)
        await use(pool_mesh.client, pool_mesh.server, stack)
        assert len(server.connections) == 2
