"""Much data, and many connections."""

from __future__ import annotations

import random

import pytest
import trio

from tests.e2e.conftest import StandardMesh
from tests.support.census import cpu_seconds
from tests.support.pod import eventually
from tests.support.traffic import read_all, read_exactly, receive_pattern, send_pattern, serve

VOLUME = 2 * 1024**3


@pytest.mark.slow
async def test_gigabytes_in_both_directions_at_once_are_exact(standard: StandardMesh) -> None:
    outcome: list[int] = []

    async def exchange(stream: trio.SocketStream, seed: int) -> None:
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await send_pattern(stream, VOLUME, random.Random(seed))
                await stream.send_eof()

            nursery.start_soon(send)
            outcome.append(await receive_pattern(stream))

    async def on_server(stream: trio.SocketStream) -> None:
        await exchange(stream, 1)

    before = cpu_seconds(standard.client, standard.server)
    async with (
        serve(standard.server, 8080, on_server) as application,
        await standard.client.connect(standard.server.ipv4, 8080) as stream,
    ):
        with trio.fail_after(240):
            await exchange(stream, 2)
            assert await stream.receive_some(1) == b""
            await eventually(lambda: len(outcome) == 2, "received by the server", timeout=60)
    assert application.failures == []
    assert outcome == [VOLUME, VOLUME]
    used = cpu_seconds(standard.client, standard.server) - before
    assert used / (2 * VOLUME / 1024**3) < 6, "CPU-seconds a GiB, both ztunnels together"
    for pod, direction in ((standard.client, "outbound"), (standard.server, "inbound")):
        entry = (await pod.logged(direction=direction, bytes_sent=VOLUME))[-1]
        assert entry["bytes_recv"] == VOLUME


@pytest.mark.parametrize("way", ["in", "out"])
async def test_plaintext_volume_is_exact_too(standard: StandardMesh, way: str) -> None:
    total = 200_000_000
    client, server = (
        (standard.outside, standard.server) if way == "in" else (standard.client, standard.outside)
    )

    async def echo_pattern(stream: trio.SocketStream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_pattern, stream, total, random.Random(4))
            assert await receive_pattern(stream, total) == total

    async with (
        serve(server, 8080, echo_pattern) as application,
        await client.connect(server.ipv4, 8080) as stream,
    ):
        with trio.fail_after(60):
            await echo_pattern(stream)
    assert application.failures == []


@pytest.mark.slow
async def test_a_thousand_connections_at_once(standard: StandardMesh) -> None:
    count = 1000
    streams: list[trio.SocketStream] = []
    limit = trio.CapacityLimiter(50)

    async def open_one(number: int) -> None:
        async with limit:
            stream = await standard.client.connect(standard.vip, 80, timeout=60)
            streams.append(stream)
            message = f"connection {number}".encode()
            await stream.send_all(message)
            assert await read_exactly(stream, len(message), timeout=60) == message

    async def use_again(number: int, stream: trio.SocketStream) -> None:
        async with stream:
            message = f"again {number}".encode() * 1000
            await stream.send_all(message)
            assert await read_exactly(stream, len(message), timeout=60) == message
            await stream.send_eof()
            assert await read_all(stream, timeout=60) == b""

    async with serve(standard.server, 8080) as application:
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                for number in range(count):
                    nursery.start_soon(open_one, number)
            assert len(streams) == count
            # All are open at the same time, and each is still usable.
            async with trio.open_nursery() as nursery:
                for number, stream in enumerate(streams):
                    nursery.start_soon(use_again, number, stream)
    assert application.failures == []
    assert len(application.peers) == count
