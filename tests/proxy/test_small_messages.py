"""Small messages pass a relay and its tunnel in the handlers of their sockets, and all others in tasks."""

from __future__ import annotations

import random
import select
from collections import Counter
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.support.tunnels import plain_pair, tunnel_pair
from ztunnel.proxy.relay import FIRST_READ, relay_stream


class Steps(trio.abc.Instrument):
    """Counts the steps of tasks, by the tasks' names."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.counts[task.name] += 1


@asynccontextmanager
async def relayed():
    """Yields the client's and the server's stream, with a tunnel between them, and the bytes counted."""
    counted: Counter[str] = Counter()

    async def relay(sock, stream, *, outbound: bool) -> None:
        def count(name: str):
            return lambda number: counted.update({name: number})

        with sock:
            await relay_stream(
                sock,
                stream,
                sent_to_stream=count("up" if outbound else "down"),
                received_from_stream=count("received down" if outbound else "received up"),
                outbound=outbound,
            )

    async with tunnel_pair() as pair, trio.open_nursery() as nursery:
        ours, theirs = await pair.open()
        client_side, client = plain_pair()
        server_side, server = plain_pair()
        nursery.start_soon(lambda: relay(client_side, ours, outbound=True), name="relay")
        nursery.start_soon(lambda: relay(server_side, theirs, outbound=False), name="relay")
        async with client, server:
            yield client, server, counted


async def test_a_small_message_takes_no_step_of_a_task():
    async with relayed() as (client, server, counted):
        await client.send_all(b"first")
        assert await server.receive_some(100) == b"first"
        await trio.testing.wait_all_tasks_blocked(0.05)
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        with trio.fail_after(10):
            for number in range(20):
                word = bytes([number]) * 100
                await client.send_all(word)
                assert await server.receive_some(1000) == word
                await server.send_all(word)
                assert await client.receive_some(1000) == word
        trio.lowlevel.remove_instrument(steps)
        assert [*steps.counts] == [trio.lowlevel.current_task().name]
        assert counted == {"up": 2005, "received up": 2005, "down": 2000, "received down": 2000}


@pytest.mark.parametrize("loop", ["own epoll", "fallback"])
async def test_messages_of_all_sizes_arrive_whole_and_in_order(monkeypatch, loop: str):
    if loop == "fallback":
        monkeypatch.delattr(select, "EPOLLEXCLUSIVE")
    choice = random.Random(7)
    sizes = [1, FIRST_READ - 1, FIRST_READ, FIRST_READ + 1, 5, 3_000_000, 5, 5]
    sizes += [choice.randrange(1, 2 * FIRST_READ) for _ in range(100)]
    sent = {"up": bytearray(), "down": bytearray()}
    got = {"up": bytearray(), "down": bytearray()}

    async def send(stream: trio.SocketStream, name: str) -> None:
        pauses = random.Random(name)
        for size in sizes:
            data = pauses.randbytes(size)
            sent[name] += data
            await stream.send_all(data)
            for _ in range(pauses.choice([0, 0, 1, 20])):
                await trio.lowlevel.checkpoint()
        await stream.send_eof()

    async def receive(stream: trio.SocketStream, name: str) -> None:
        while data := await stream.receive_some(1 << 20):
            got[name] += data

    with trio.fail_after(30):
        async with relayed() as (client, server, counted):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, client, "up")
                nursery.start_soon(receive, server, "up")
                nursery.start_soon(send, server, "down")
                nursery.start_soon(receive, client, "down")
            total = sum(sizes)
            assert counted == {"up": total, "received up": total, "down": total, "received down": total}
    assert got == sent
