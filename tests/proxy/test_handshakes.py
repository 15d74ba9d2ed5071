"""How handshakes of clients take turns, and what an address owes whose handshakes come to nothing."""

from __future__ import annotations

from ipaddress import ip_address
from itertools import pairwise

import pytest
import trio
import trio.testing

from tests.support.logs import capture_logs
from ztunnel.bounds import ConnectionBounds
from ztunnel.proxy.handshakes import Handshake, Handshakes

HERE = ip_address("10.0.0.1")
THERE = ip_address("fd00::1")
BOUNDS = ConnectionBounds(handshakes_owed=3, handshake_pause=10.0)


class Clients:
    """Handshakes that were begun, and when."""

    def __init__(self, bounds: ConnectionBounds = BOUNDS) -> None:
        self.delayed = 0
        self.all = Handshakes(bounds, self._count)
        self.begun: list[tuple[int, float]] = []

    def _count(self) -> None:
        self.delayed += 1

    async def begin(self, number: int = 0, address=HERE) -> Handshake:
        handshake = self.all.begin(address)
        await handshake.turn()
        self.begun.append((number, trio.current_time()))
        return handshake

    async def owing(self, count: int) -> list[Handshake]:
        return [await self.begin() for _ in range(count)]


async def test_between_two_steps_the_loop_serves_others(autojump_clock: trio.testing.MockClock) -> None:
    handshakes = Handshakes(ConnectionBounds(), lambda: None)
    passes = 0
    steps: list[int] = []

    async def other() -> None:
        nonlocal passes
        while True:
            await trio.lowlevel.checkpoint()
            passes += 1

    async def client(number: int) -> None:
        handshake = handshakes.begin(ip_address(f"10.0.0.{number}"))
        for _ in range(2):
            await handshake.turn()
            steps.append(passes)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        async with trio.open_nursery() as clients:
            for number in range(20):
                clients.start_soon(client, number)
        nursery.cancel_scope.cancel()
    assert len(steps) == 40
    assert all(later > earlier for earlier, later in pairwise(steps))


async def test_who_owes_too_much_waits_in_order(autojump_clock: trio.testing.MockClock) -> None:
    clients = Clients()
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(clients.begin, number)
            await trio.testing.wait_all_tasks_blocked()
    assert [number for number, _ in clients.begun] == list(range(6))
    assert [at - start for _, at in clients.begun] == pytest.approx([0, 0, 0, 10, 20, 30])
    assert clients.delayed == 3


async def test_a_request_pays_at_once(autojump_clock: trio.testing.MockClock) -> None:
    clients = Clients()
    start = trio.current_time()
    owing = await clients.owing(3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clients.begin)
        await trio.testing.wait_all_tasks_blocked()
        assert len(clients.begun) == 3
        owing[0].paid()
        owing[0].paid()
    assert trio.current_time() == pytest.approx(start)
    # Two requests of one tunnel have paid for one handshake.
    await clients.begin()
    assert trio.current_time() - start == pytest.approx(10)


async def test_who_makes_handshakes_for_requests_never_waits(autojump_clock: trio.testing.MockClock) -> None:
    clients = Clients()
    start = trio.current_time()
    for _ in range(100):
        (await clients.begin()).paid()
    assert trio.current_time() == pytest.approx(start)
    assert clients.delayed == 0


async def test_a_tunnel_that_breaks_the_rules_is_owed_again(autojump_clock: trio.testing.MockClock) -> None:
    clients = Clients()
    for _ in range(3):
        handshake = await clients.begin()
        handshake.paid()
        handshake.abused()
        handshake.abused()
    start = trio.current_time()
    await clients.begin()
    assert trio.current_time() - start == pytest.approx(10)


async def test_addresses_do_not_wait_for_one_another(autojump_clock: trio.testing.MockClock) -> None:
    clients = Clients()
    start = trio.current_time()
    await clients.owing(3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clients.begin)
        await trio.testing.wait_all_tasks_blocked()
        await clients.begin(address=THERE)
        assert trio.current_time() == pytest.approx(start)


async def test_who_gives_up_while_it_waits_owes_nothing(autojump_clock: trio.testing.MockClock) -> None:
    clients = Clients()
    start = trio.current_time()
    await clients.owing(3)
    with trio.move_on_after(1):
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(clients.begin)
    await clients.begin()
    assert trio.current_time() - start == pytest.approx(10)


async def test_addresses_that_owe_nothing_are_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    clients = Clients()
    for number in range(1_000):
        await clients.begin(address=ip_address(number + 1))
        await trio.sleep(1)
    assert len(clients.all._accounts) < 250


async def test_there_is_a_line_a_second_at_most(autojump_clock: trio.testing.MockClock) -> None:
    clients = Clients()
    await clients.owing(3)
    with capture_logs("warn") as lines:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(clients.begin)
            await trio.testing.wait_all_tasks_blocked()
            assert len(lines) == 1
            nursery.cancel_scope.cancel()
        await trio.sleep(1)
        with trio.move_on_after(1):
            await clients.begin()
    assert [line.message for line in lines] == [
        "handshakes of a client wait, since many before them came to nothing"
    ] * 2
    assert clients.delayed == 11
