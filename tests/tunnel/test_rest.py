"""Tunnels that pause at the same time pause the longer, so that together they get no more than a quarter."""

from __future__ import annotations

from itertools import pairwise

import pytest
import trio

from ztunnel.tunnel.rest import give_way, rest

WORK = 0.001
"""Seconds of a turn."""

PAUSE = 4 * WORK


@pytest.mark.parametrize(("tunnels", "share"), [(1, 0.2), (2, 0.25), (50, 0.25)])
async def test_what_so_many_tunnels_get_of_the_cpu(
    tunnels: int, share: float, autojump_clock: trio.testing.MockClock
) -> None:
    """Each works for a millisecond and pauses, again and again; they work one at a time."""
    worked = 0.0
    cpu = trio.Lock()

    async def tunnel() -> None:
        nonlocal worked
        while True:
            async with cpu:
                await trio.sleep(WORK)
            worked += WORK
            await rest(PAUSE)

    with trio.move_on_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(tunnels):
                nursery.start_soon(tunnel)
    assert worked / 10 == pytest.approx(share, abs=0.02)


async def test_one_has_its_turn_at_a_time(autojump_clock: trio.testing.MockClock) -> None:
    """Also when all are due: then each waits for the one before, and the loop looks at sockets between."""
    turns: list[float] = []

    async def tunnel() -> None:
        await rest(PAUSE)
        turns.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(tunnel)
    assert len(turns) == 20
    assert all(later - earlier >= 0.99 * PAUSE for earlier, later in pairwise(turns))


async def test_a_cancelled_pause_holds_nobody_up(autojump_clock: trio.testing.MockClock) -> None:
    with trio.move_on_after(150):
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(rest, 100.0)
    began = trio.current_time()
    await rest(4.0)
    assert trio.current_time() - began == pytest.approx(4.0)


async def test_one_tunnel_with_small_pieces_goes_on_at_a_time(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever pauses for useless work does not hold it up."""
    passes = 0
    turns: list[int] = []

    async def count() -> None:
        nonlocal passes
        while True:
            await trio.lowlevel.checkpoint()
            passes += 1

    async def tunnel() -> None:
        for _ in range(5):
            await give_way()
            turns.append(passes)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(rest, 100.0)
        nursery.start_soon(count)
        async with trio.open_nursery() as tunnels:
            for _ in range(20):
                tunnels.start_soon(tunnel)
        nursery.cancel_scope.cancel()
    assert len(turns) == 100
    assert all(later > earlier for earlier, later in pairwise(turns))
