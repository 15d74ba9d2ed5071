"""The trio stream over TLS keeps every promise of trio's stream interfaces."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.tls.tls_peers import CLIENT_CONTEXT, DEADLINE, SERVER, SERVER_CONTEXT, Pair
from ztunnel.tls.tls_errors import TlsTruncatedError
from ztunnel.tls.tls_stream import TlsStream
from ztunnel.tls.transports import StreamTls


async def over_sockets(
    buffer: int | None = None, close_seconds: float = DEADLINE
) -> tuple[TlsStream, TlsStream]:
    pair = Pair(buffer=buffer)
    assert await pair.handshake() == (None, None)
    return (
        TlsStream(pair.client, close_seconds=close_seconds),
        TlsStream(pair.server, close_seconds=close_seconds),
    )


async def over_streams() -> tuple[TlsStream, TlsStream]:
    left, right = trio.testing.memory_stream_pair()
    return await shake(left, right)


async def over_lockstep_streams() -> tuple[TlsStream, TlsStream]:
    left, right = trio.testing.lockstep_stream_pair()
    return await shake(left, right)


async def shake(left, right) -> tuple[TlsStream, TlsStream]:
    client = StreamTls(CLIENT_CONTEXT, left, [str(SERVER)])
    server = StreamTls(SERVER_CONTEXT, right)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.handshake, DEADLINE)
        nursery.start_soon(server.handshake, DEADLINE)
    # A lockstep peer that does not read blocks even the close_notify.
    return TlsStream(client, close_seconds=0.01), TlsStream(server, close_seconds=0.01)


async def clogged_sockets() -> tuple[TlsStream, TlsStream]:
    client, server = await over_sockets(buffer=4096, close_seconds=0.05)
    with trio.move_on_after(0.05):
        while True:
            await client.send_all(bytes(65536))
    with trio.move_on_after(0.05):
        while True:
            await server.send_all(bytes(65536))
    return client, server


async def test_trios_own_checks_over_sockets():
    await trio.testing.check_half_closeable_stream(over_sockets, None)


async def test_trios_own_checks_over_streams():
    await trio.testing.check_half_closeable_stream(over_streams, None)


async def test_trios_own_checks_over_streams_that_block():
    await trio.testing.check_half_closeable_stream(over_lockstep_streams, over_lockstep_streams)


async def test_a_stalled_peer_blocks_sending_and_waiting():
    client, server = await over_sockets(buffer=4096)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_all, bytes(3_000_000))
        await trio.sleep(0.05)
        with pytest.raises(trio.BusyResourceError):
            await client.wait_send_all_might_not_block()
        got = 0
        while got < 3_000_000:
            got += len(await server.receive_some())
    with trio.fail_after(DEADLINE):
        await client.wait_send_all_might_not_block()
    await trio.aclose_forcefully(client)
    await trio.aclose_forcefully(server)


async def test_a_close_does_not_wait_for_ever_for_a_stalled_peer():
    client, server = await clogged_sockets()
    with trio.fail_after(DEADLINE):
        await client.aclose()
        await server.aclose()
    with pytest.raises(trio.ClosedResourceError):
        client.connection.try_receive()


async def test_a_cut_is_a_broken_resource_with_its_cause():
    client, server = await over_sockets()
    client.connection.close()
    with pytest.raises(trio.BrokenResourceError) as caught:
        await server.receive_some()
    assert isinstance(caught.value.__cause__, TlsTruncatedError)
    await server.aclose()


async def test_a_close_in_order_is_an_end():
    client, server = await over_sockets()
    await client.aclose()
    assert await server.receive_some() == b""
    await server.aclose()
