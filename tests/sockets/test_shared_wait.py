"""Several processes accept from one socket: one is woken for a connection, and a busy one is passed over."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest
import trio
import trio.testing

from ztunnel.loop import epoll
from ztunnel.model.address import SocketAddress
from ztunnel.sockets import shared_wait
from ztunnel.sockets.listen import Listener


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=64) as sock:
        sock.setblocking(False)
        yield sock


def connect(listening: socket.socket) -> socket.socket:
    return socket.create_connection(listening.getsockname())


async def test_it_returns_when_there_is_something(listening):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shared_wait.readable, listening)
        await trio.testing.wait_all_tasks_blocked()
        connect(listening).close()
    listening.accept()[0].close()
    shared_wait.closing(listening)


async def test_the_loop_rests_while_nobody_waits_for_a_readable_socket(listening):
    for _ in range(2):  # once more: what was taken out of the epoll is put in again
        with connect(listening):
            await shared_wait.readable(listening)
            loop = epoll.own()
            assert loop is not None
            await trio.testing.wait_all_tasks_blocked()
            assert listening.fileno() not in loop.callbacks
            await shared_wait.readable(listening)
            listening.accept()[0].close()
    shared_wait.closing(listening)


async def test_a_cancelled_wait_leaves_the_socket_usable(listening):
    with trio.move_on_after(0.01) as scope:
        await shared_wait.readable(listening)
    assert scope.cancelled_caught
    with connect(listening):
        await shared_wait.readable(listening)
    shared_wait.closing(listening)


async def test_two_tasks_cannot_wait_for_the_same_socket(listening):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shared_wait.readable, listening)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await shared_wait.readable(listening)
        nursery.cancel_scope.cancel()
    shared_wait.closing(listening)


async def test_whoever_waits_is_told_of_the_close(listening):
    listener = Listener(listening, SocketAddress(ip_address("127.0.0.1"), 1), transparent=False)

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await listener.readable()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        listener.close()
    with pytest.raises(trio.ClosedResourceError):
        await listener.readable()
    listener.close()


async def test_other_descriptors_are_served_as_before(listening):
    ours, theirs = trio.socket.socketpair()
    with ours, theirs, connect(listening):
        await shared_wait.readable(listening)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(theirs.send, b"x")
            assert await ours.recv(1) == b"x"
    shared_wait.closing(listening)


async def test_without_an_epoll_of_trio_the_wait_is_an_ordinary_one(listening, monkeypatch):
    monkeypatch.delattr(select, "EPOLLEXCLUSIVE")
    with connect(listening):
        await shared_wait.readable(listening)


@contextmanager
def child(work: Callable[[], None]) -> Iterator[int]:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_the_first_takes_all_until_it_is_busy(listening):
    """Two processes wait; each answers a connection with its name, and the word "busy" stops it for good."""

    def accepting(name: bytes, up: int) -> Callable[[], None]:
        async def serve() -> None:
            with trio.CancelScope():
                os.write(up, name)
                while True:
                    await shared_wait.readable(listening)
                    try:
                        connection, _ = listening.accept()
                    except BlockingIOError:
                        continue
                    with connection:
                        connection.setblocking(True)
                        connection.sendall(name)
                        if connection.recv(4) == b"busy":
                            time.sleep(600)  # noqa: ASYNC251  # the point of it

        return lambda: trio.run(serve)

    def served_by(word: bytes, idle: int) -> bytes:
        """Who takes a connection that comes while the process ``idle`` waits for one."""
        _wait_sleeping(idle)
        with connect(listening) as connection:
            connection.settimeout(60)
            name = connection.recv(1)
            connection.sendall(word)
            return name

    reader, up = os.pipe()
    with child(accepting(b"1", up)) as first:
        assert os.read(reader, 1) == b"1"
        # Its registration follows what it wrote; an answer shows that it is there.
        assert served_by(b"next", first) == b"1"
        with child(accepting(b"2", up)) as second:
            assert os.read(reader, 1) == b"2"
            _wait_sleeping(second)
            assert {served_by(b"next", first) for _ in range(30)} == {b"1"}
            assert served_by(b"busy", first) == b"1"
            assert {served_by(b"next", second) for _ in range(5)} == {b"2"}
    os.close(reader)
    os.close(up)


def _wait_sleeping(pid: int) -> None:
    """Until a process waits for something, that is, in its loop."""
    while True:
        with open(f"/proc/{pid}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] == "S":
                return
        time.sleep(0.01)
