"""Half-close, end and reset arrive at the other side as what they were, and all data before them."""

from __future__ import annotations

import itertools
import random

import pytest
import trio

from tests.e2e.conftest import StandardMesh
from tests.support.traffic import (
    ended_by,
    read_all,
    read_exactly,
    receive_pattern,
    reset,
    send_pattern,
    serve,
)

PATHS = ["HBONE", "plaintext in", "plaintext out"]


def path(standard: StandardMesh, name: str):
    """Client and server for each way that a connection can take."""
    return {
        "HBONE": (standard.client, standard.server),
        "plaintext in": (standard.outside, standard.server),
        "plaintext out": (standard.client, standard.outside),
    }[name]


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize("first", ["client", "server"])
async def test_after_one_side_has_half_closed_the_other_still_sends(
    standard: StandardMesh, way: str, first: str
) -> None:
    client_pod, server_pod = path(standard, way)
    seen = bytearray()
    total = 1_000_000

    async def early(stream: trio.SocketStream) -> None:
        """Half-close first, after the first bytes; the opposite direction stays open for the pattern."""
        await stream.send_all(b"bye")
        await stream.send_eof()
        assert await receive_pattern(stream) == total

    async def late(stream: trio.SocketStream) -> None:
        seen.extend(await read_all(stream))
        await send_pattern(stream, total, random.Random(2))
        await stream.send_eof()

    on_server, on_client = (early, late) if first == "server" else (late, early)
    async with (
        serve(server_pod, 8080, on_server) as application,
        await client_pod.connect(server_pod.ipv4, 8080) as stream,
    ):
        with trio.fail_after(20):
            await on_client(stream)
            # Both directions are over, so the server has closed; nothing but the end may come.
            if first == "client":
                assert await ended_by(stream) == "end"
    assert bytes(seen) == b"bye"
    assert application.failures == []


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize(("who", "how"), list(itertools.product(["client", "server"], ["end", "reset"])))
async def test_how_one_side_ends_is_how_the_other_sees_it(
    standard: StandardMesh, way: str, who: str, how: str
) -> None:
    client_pod, server_pod = path(standard, way)
    outcome: list[str] = []
    finished = trio.Event()

    async def leave(stream: trio.SocketStream) -> None:
        await stream.send_all(b"last words")
        await read_exactly(stream, 5)
        if how == "reset":
            reset(stream)
        else:
            await stream.aclose()

    async def stay(stream: trio.SocketStream) -> None:
        # What was sent before the end comes in full, whatever the end.
        assert await read_exactly(stream, 10) == b"last words"
        await stream.send_all(b"heard")
        outcome.append(await ended_by(stream))
        finished.set()

    on_server, on_client = (leave, stay) if who == "server" else (stay, leave)
    async with (
        serve(server_pod, 8080, on_server) as application,
        await client_pod.connect(server_pod.ipv4, 8080) as stream,
    ):
        with trio.fail_after(20):
            await on_client(stream)
            await finished.wait()
    assert outcome == [how]
    assert application.failures == []


async def test_an_applications_reset_is_no_error_in_the_log(standard: StandardMesh) -> None:
    client, server = standard.client, standard.server
    before = len(client.access_log()), len(server.access_log())

    async def wait(stream: trio.SocketStream) -> None:
        await stream.send_all(b"x")
        assert await ended_by(stream) == "reset"

    async with serve(server, 8080, wait) as application:
        async with await client.connect(server.ipv4, 8080) as stream:
            await read_exactly(stream, 1)
            reset(stream)
        outbound = (await client.logged(count=before[0] + 1))[-1]
        inbound = (await server.logged(count=before[1] + 1))[-1]
    assert "error" not in outbound
    assert "error" not in inbound
    assert application.failures == []


async def test_a_reset_stream_leaves_its_neighbours_in_the_tunnel_alone(standard: StandardMesh) -> None:
    async with serve(standard.server, 8080):
        streams = [await standard.client.connect(standard.server.ipv4, 8080) for _ in range(5)]
        for stream in streams:
            await stream.send_all(b"1")
            await read_exactly(stream, 1)
        reset(streams[2])
        for index in (0, 1, 3, 4):
            await streams[index].send_all(b"still here")
            assert await read_exactly(streams[index], 10) == b"still here"
            await streams[index].aclose()


async def test_data_sent_just_before_an_end_is_complete(standard: StandardMesh) -> None:
    total = 3_000_000

    async def send_and_close(stream: trio.SocketStream) -> None:
        await send_pattern(stream, total, random.Random(3))

    async with serve(standard.server, 8080, send_and_close):
        for _ in range(3):
            async with await standard.client.connect(standard.server.ipv4, 8080) as stream:
                assert await receive_pattern(stream) == total
