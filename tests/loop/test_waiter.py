"""One task waits for another."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from ztunnel.loop.waiter import Waiter


async def test_a_wake_up_ends_the_wait_and_is_not_kept():
    waiter = Waiter()
    woken = 0

    async def wait() -> None:
        nonlocal woken
        await waiter.park()
        woken += 1

    waiter.wake()  # nobody waits yet
    async with trio.open_nursery() as nursery:
        for expected in (1, 2):
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert woken == expected - 1
            waiter.wake()
            waiter.wake()
            await trio.testing.wait_all_tasks_blocked()
            assert woken == expected


async def test_a_wait_can_be_cancelled_and_leaves_the_place_free():
    waiter = Waiter()
    with trio.CancelScope() as scope:
        scope.cancel()
        await waiter.park()
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiter.park)
        await trio.testing.wait_all_tasks_blocked()
        waiter.wake()


async def test_a_second_task_is_refused():
    waiter = Waiter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waiter.park)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await waiter.park()
        waiter.wake()
