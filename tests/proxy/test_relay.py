"""The close table: how the end of one side shows at the other, a test a cell."""

from __future__ import annotations

import socket
import struct
from contextlib import asynccontextmanager

import pytest
import trio

from tests.support.relays import through_a_tunnel
from tests.support.tunnels import outcome, plain_pair, tunnel_pair
from ztunnel.hbone import ErrorCode, HboneSettings
from ztunnel.proxy.relay import relay_plain, relay_stream
from ztunnel.sockets.splice import PipePool

OUTCOMES = ("end", "reset")


def ignore(count: int) -> None:
    del count


async def send_until_refused(stream: trio.SocketStream) -> None:
    while True:
        await stream.send_all(bytes(100_000))


def reset(stream: trio.SocketStream) -> None:
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


@pytest.mark.parametrize("first", ["client", "server"])
async def test_a_half_close_arrives_as_a_half_close_and_the_other_direction_goes_on(first):
    async with through_a_tunnel() as (client, server, _, relay):
        one, other = (client, server) if first == "client" else (server, client)
        await one.send_all(b"request")
        await one.send_eof()
        assert await outcome(other) == (b"request", "end")
        await other.send_all(b"answer")
        await other.send_eof()
        assert await outcome(one) == (b"answer", "end")
    assert relay.results == {"client": None, "server": None}


@pytest.mark.parametrize("first", ["client", "server"])
async def test_a_reset_arrives_as_a_reset_after_what_came_before_it(first):
    async with through_a_tunnel() as (client, server, _, relay):
        one, other = (client, server) if first == "client" else (server, client)
        await one.send_all(b"before")
        assert await other.receive_some(100) == b"before"
        reset(one)
        assert await outcome(other) == (b"", "reset")
    assert relay.results == {"client": None, "server": None}


async def test_a_reset_does_not_overtake_what_was_sent_before_it(autojump_clock):
    async with through_a_tunnel() as (client, server, pair, _):
        [stream] = pair.server.streams.values()
        total = 3_000_000
        stream.send(bytes(total))
        stream.reset(ErrorCode.CANCEL)
        await trio.sleep(0.2)
        data, how = await outcome(client)
        assert (len(data), how) == (total, "reset")
        reset(server)


@pytest.mark.parametrize("first", ["client", "server"])
async def test_who_closed_and_still_gets_data_ends_the_stream_without_an_error(first):
    async with through_a_tunnel() as (client, server, _, relay):
        one, other = (client, server) if first == "client" else (server, client)
        await one.aclose()
        assert await outcome(other) == (b"", "end")
        with trio.fail_after(10), pytest.raises(trio.BrokenResourceError):
            await send_until_refused(other)
    assert relay.results == {"client": None, "server": None}


async def test_a_lost_tunnel_resets_both_applications_and_says_so():
    async with through_a_tunnel() as (client, server, pair, relay):
        await client.send_all(b"before")
        assert await server.receive_some(100) == b"before"
        pair.cut()
        assert await outcome(client) == (b"", "reset")
        assert await outcome(server) == (b"", "reset")
    assert relay.results == {
        "client": "send: destination disconnected before all data was written",
        "server": "receive: client disconnected before all data was written",
    }


async def test_a_stream_error_of_the_peer_is_told():
    async with through_a_tunnel() as (client, server, pair, relay):
        [stream] = pair.server.streams.values()
        stream.reset(ErrorCode.INTERNAL_ERROR)
        assert await outcome(client) == (b"", "reset")
        reset(server)
    assert relay.results["client"] == (
        "receive: io error: stream error received: unexpected internal error encountered"
    )


async def test_a_stalled_reader_holds_up_the_sender_and_nobody_else():
    settings = HboneSettings(stream_window=1 << 20)
    async with tunnel_pair(settings) as pair, trio.open_nursery() as nursery:
        ours, theirs = await pair.open()
        stalled_side, stalled = plain_pair()
        sender_side, sender = plain_pair()
        nursery.start_soon(_relay, stalled_side, ours, True)
        nursery.start_soon(_relay, sender_side, theirs, False)
        sent = 0
        with trio.move_on_after(2):
            while True:
                await sender.send_all(bytes(65_536))
                sent += 65_536
        held = sum(map(len, ours._inbox))
        assert 0 < held <= settings.stream_window
        # The neighbour on the same tunnel is not held up.
        ours, theirs = await pair.open()
        left_side, left = plain_pair()
        right_side, right = plain_pair()
        nursery.start_soon(_relay, left_side, ours, True)
        nursery.start_soon(_relay, right_side, theirs, False)
        await left.send_all(b"hello")
        with trio.fail_after(5):
            assert await right.receive_some(100) == b"hello"
        # And what was held up arrives whole once it is read.
        received = 0
        with trio.fail_after(30):
            while received < sent:
                received += len(await stalled.receive_some(1 << 20))
        for stream in (stalled, sender, left, right):
            await stream.aclose()


async def _relay(sock, stream, outbound):
    with sock:
        await relay_stream(
            sock,
            stream,
            sent_to_stream=lambda _: None,
            received_from_stream=lambda _: None,
            outbound=outbound,
        )


async def test_cancelling_a_relay_at_any_moment_leaves_the_tunnel_usable():
    async with tunnel_pair() as pair:
        for turn in range(30):
            ours, theirs = await pair.open()
            near, application = plain_pair()
            far, other = plain_pair()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_relay, near, ours, True)
                nursery.start_soon(_relay, far, theirs, False)

                async def load(stream=application):
                    try:
                        await send_until_refused(stream)
                    except (trio.BrokenResourceError, trio.ClosedResourceError):
                        return

                nursery.start_soon(load)
                for _ in range(turn):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            await application.aclose()
            await other.aclose()
            assert not pair.client.streams
        await trio.testing.wait_all_tasks_blocked(0.05)
        ours, theirs = await pair.open()
        near, application = plain_pair()
        far, other = plain_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_relay, near, ours, True)
            nursery.start_soon(_relay, far, theirs, False)
            await application.send_all(bytes(3_000_000))
            await application.send_eof()
            with trio.fail_after(20):
                data, how = await outcome(other)
            assert (len(data), how) == (3_000_000, "end")
            await other.aclose()
            await application.aclose()
        assert not pair.client.hbone.open_streams


@asynccontextmanager
async def plainly():
    client_side, client = plain_pair()
    server_side, server = plain_pair()
    results = []

    async def run():
        with PipePool() as pipes, client_side, server_side:
            results.append(
                await relay_plain(client_side, server_side, pipes=pipes, received=ignore, sent=ignore)
            )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield client, server, results
        await client.aclose()
        await server.aclose()
    assert len(results) == 1


@pytest.mark.parametrize("first", ["client", "server"])
async def test_plaintext_half_close(first):
    async with plainly() as (client, server, results):
        one, other = (client, server) if first == "client" else (server, client)
        await one.send_all(b"request")
        await one.send_eof()
        assert await outcome(other) == (b"request", "end")
        await other.send_all(b"answer")
        await other.send_eof()
        assert await outcome(one) == (b"answer", "end")
    assert results[0].error is None


@pytest.mark.parametrize("first", ["client", "server"])
async def test_plaintext_reset(first):
    async with plainly() as (client, server, results):
        one, other = (client, server) if first == "client" else (server, client)
        await one.send_all(b"before")
        assert await other.receive_some(100) == b"before"
        reset(one)
        assert await outcome(other) == (b"", "reset")
    assert results[0].error is None
