"""Edges are told once; a watch makes of them what a task can wait for."""

from __future__ import annotations

import select
import socket
import weakref
from collections.abc import Iterator
from contextlib import suppress

import pytest
import trio
import trio.testing

from ztunnel.loop.watch import Watch


@pytest.fixture
def own_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a connection, with an epoll of the loop's."""
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        right.setblocking(False)
        yield left, right


@pytest.fixture(params=["own epoll", "fallback"])
def pair(
    request, monkeypatch, own_pair: tuple[socket.socket, socket.socket]
) -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection; without an epoll of the loop's, too."""
    if request.param == "fallback":
        monkeypatch.delattr(select, "EPOLLEXCLUSIVE")
    return own_pair


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


class Handler:
    """Reads what is there, and notes it. full: says that more is to be read. raises: after it has read."""

    def __init__(self, watch: Watch, *, full: bool = False, raises: Exception | None = None) -> None:
        self.watch = watch
        self.full = full
        self.raises = raises
        self.read: list[bytes] = []

    def __call__(self) -> bool:
        self.read.append(self.watch.sock.recv(100))
        if self.raises is not None:
            raise self.raises
        if not self.full:
            self.watch.emptied()
        return not self.full


async def test_a_handler_reads_message_after_message_while_its_task_waits(own_pair):
    near, far = own_pair
    with Watch(near) as watch:
        handler = Handler(watch)
        woken = trio.Event()

        async def wait() -> None:
            await watch.readable(handler)
            woken.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            for number in range(1, 4):
                await trio.testing.wait_all_tasks_blocked()
                far.send(b"word")
                with trio.fail_after(5):
                    while len(handler.read) < number:
                        await trio.lowlevel.checkpoint()
            assert not woken.is_set()
            handler.full = True
            far.send(b"more")
            with trio.fail_after(5):
                await woken.wait()
        assert handler.read == [b"word"] * 3 + [b"more"]
        # The handler belonged to that wait.
        watch.emptied()
        far.send(b"last")
        with trio.fail_after(5):
            await watch.readable()
        assert near.recv(100) == b"last"
        assert handler.read[-1] == b"more"


async def test_what_a_handler_raises_is_raised_where_its_task_waits(own_pair):
    near, far = own_pair
    with Watch(near) as watch:
        handler = Handler(watch, raises=OSError("broken"))
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(OSError, match="broken"):
                    await watch.readable(handler)

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            far.send(b"word")
        # And only there.
        with trio.fail_after(5):
            await watch.readable()


@pytest.mark.parametrize("raises", [None, OSError("broken")], ids=["and returns", "and raises"])
@pytest.mark.parametrize("how", ["interrupt", "cancel"])
async def test_a_handler_may_end_the_wait_itself(own_pair, how: str, raises: Exception | None):
    near, far = own_pair
    with Watch(near) as watch:
        scope = trio.CancelScope()
        handler = Handler(watch, full=True, raises=raises)

        def end() -> bool:
            watch.interrupt() if how == "interrupt" else scope.cancel()
            return handler()

        async def wait() -> None:
            with scope:
                if raises is not None and how == "interrupt":
                    with pytest.raises(OSError, match="broken"):
                        await watch.readable(end)
                else:
                    await watch.readable(end)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            far.send(b"word")
        assert handler.read == [b"word"]
        assert scope.cancelled_caught == (how == "cancel")


@pytest.mark.parametrize("how", ["woken", "interrupt", "cancel", "close"])
async def test_a_wait_that_has_ended_leaves_no_handler(own_pair, how: str):
    near, far = own_pair
    watch = Watch(near)
    handler = Handler(watch, full=True)
    read, gone = handler.read, weakref.ref(handler)
    scope = trio.CancelScope()

    async def wait(handler: Handler) -> None:
        with scope, suppress(trio.ClosedResourceError):
            await watch.readable(handler)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, handler)
        del handler
        await trio.testing.wait_all_tasks_blocked()
        if how == "woken":
            far.send(b"word")
        else:
            {"interrupt": watch.interrupt, "cancel": scope.cancel, "close": watch.close}[how]()
    # A handler refers to its watch: kept there, both would be left to the garbage collector.
    assert gone() is None
    assert read == ([b"word"] if how == "woken" else [])
    far.send(b"more")
    for _ in range(3):
        await trio.lowlevel.checkpoint()
    assert near.recv(100) == b"more"
    watch.close()


async def test_the_end_is_for_the_task_and_not_for_the_handler(own_pair):
    near, far = own_pair
    with Watch(near) as watch:
        handler = Handler(watch)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.readable, handler)
            await trio.testing.wait_all_tasks_blocked()
            far.send(b"word")
            far.shutdown(socket.SHUT_WR)
        assert handler.read == []
        assert watch.ended
        assert near.recv(100) == b"word"


async def test_what_a_handler_leaves_is_not_lost(own_pair):
    near, far = own_pair
    with Watch(near) as watch:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.readable, lambda: True)  # although nothing was read
            await trio.testing.wait_all_tasks_blocked()
            far.send(b"word")
        assert near.recv(100) == b"word"
