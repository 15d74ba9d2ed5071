"""Small messages pass a relay and its tunnel in the handlers of their sockets, and all others in tasks."""

from __future__ import annotations

import random
import select
from collections import Counter

import pytest
import trio
import trio.testing

from tests.support.relays import through_a_tunnel
from ztunnel.proxy.relay import FIRST_READ


class Steps(trio.abc.Instrument):
    """Counts the steps of tasks, by the tasks' names."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.counts[task.name] += 1


async def test_a_small_message_takes_no_step_of_a_task():
    async with through_a_tunnel() as (client, server, _, relay):
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
        assert relay.counted == {
            "client sent": 2005,
            "server received": 2005,
            "server sent": 2000,
            "client received": 2000,
        }


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
        async with through_a_tunnel() as (client, server, _, relay):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, client, "up")
                nursery.start_soon(receive, server, "up")
                nursery.start_soon(send, server, "down")
                nursery.start_soon(receive, client, "down")
            names = ("client sent", "server received", "server sent", "client received")
            assert relay.counted == dict.fromkeys(names, sum(sizes))
    assert got == sent
