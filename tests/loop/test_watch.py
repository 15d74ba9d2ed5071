"""Edges are told once; a watch makes of them what a task can wait for."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest
import trio
import trio.testing

from ztunnel.loop.watch import Watch


@pytest.fixture(params=["own epoll", "fallback"])
def pair(request, monkeypatch) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection; without an epoll of the loop's, too."""
    if request.param == "fallback":
        monkeypatch.delattr(select, "EPOLLEXCLUSIVE")
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        right.setblocking(False)
        yield left, right


def fill(sock: socket.socket) -> None:
    with suppress(BlockingIOError):
        while True:
            sock.send(bytes(65536))


def drain(sock: socket.socket) -> None:
    with suppress(BlockingIOError):
        while True:
            sock.recv(1 << 20)


async def test_a_reader_is_woken_by_each_message(pair):
    near, far = pair
    with Watch(near) as watch:

        async def read() -> None:
            for _ in range(3):
                watch.emptied()
                await watch.readable()
                assert near.recv(100) == b"word"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            for _ in range(3):
                await trio.testing.wait_all_tasks_blocked()
                far.send(b"word")


async def test_what_was_there_before_and_what_was_left_is_told(pair):
    near, far = pair
    far.send(b"two words")
    with Watch(near) as watch:
        await watch.readable()
        assert near.recv(3) == b"two"
        await watch.readable()  # nobody has said that it is empty
        assert near.recv(100) == b" words"
        watch.emptied()
        with trio.move_on_after(0.01) as scope:
            await watch.readable()
        assert scope.cancelled_caught


async def test_an_end_that_came_with_the_last_bytes_is_not_missed(pair):
    near, far = pair
    with Watch(near) as watch:
        far.send(b"last")
        far.shutdown(socket.SHUT_WR)
        await watch.readable()
        assert near.recv(100) == b"last"
        watch.emptied()
        with trio.fail_after(30):
            await watch.readable()
        assert near.recv(100) == b""


async def test_a_writer_is_woken_when_there_is_room(pair):
    near, far = pair
    with Watch(near) as watch:
        for _ in range(2):
            fill(near)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch.writable)
                await trio.testing.wait_all_tasks_blocked()
                drain(far)
            near.send(b"room")


async def test_both_directions_wait_at_once(pair):
    near, far = pair
    fill(near)
    with Watch(near) as watch:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.readable)
            nursery.start_soon(watch.writable)
            await trio.testing.wait_all_tasks_blocked()
            far.close()


async def test_a_close_is_told_to_whoever_waits(pair):
    near, _ = pair
    watch = Watch(near)

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await watch.readable()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        watch.close()
        watch.close()


async def test_one_task_at_a_time(pair):
    near, _ = pair
    with Watch(near) as watch:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.readable)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await watch.readable()
            nursery.cancel_scope.cancel()


async def test_afterwards_the_socket_is_trios_again_and_its_number_anybodys(pair):
    near, far = pair
    far.send(b"x")
    with Watch(near) as watch:
        await watch.readable()
    with trio.fail_after(30):
        await trio.lowlevel.wait_readable(near)
    number = near.fileno()
    Watch(near)  # not closed before its socket, which is a mistake
    near.close()
    other, third = socket.socketpair()
    with other, third:
        assert other.fileno() == number
        other.setblocking(False)
        third.send(b"y")
        with Watch(other) as watch, trio.fail_after(30):
            await watch.readable()
        assert other.recv(1) == b"y"


async def test_a_cancelled_wait_loses_nothing(pair):
    near, far = pair
    with Watch(near) as watch:
        with trio.move_on_after(0.01):
            await watch.readable()
        far.send(b"later")
        with trio.fail_after(30):
            await watch.readable()
        assert near.recv(10) == b"later"
