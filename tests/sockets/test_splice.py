from __future__ import annotations

import errno
import os
import random
import socket
from contextlib import ExitStack

import pytest
import trio

from tests.support.namespaces import open_descriptors
from ztunnel.sockets.reset import close_with_reset
from ztunnel.sockets.splice import PipePool, splice_direction


def connection(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection, non-blocking."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        first = stack.enter_context(socket.create_connection(listener.getsockname()))
        second = stack.enter_context(listener.accept()[0])
    first.settimeout(0)
    second.settimeout(0)
    return first, second


class CopyPath:
    """client -> (source | sink) -> server, with a copy between source and sink."""

    def __init__(self, stack: ExitStack) -> None:
        self.client, self.source = connection(stack)
        self.sink, self.server = connection(stack)
        self.counted = 0

    def count(self, size: int) -> None:
        self.counted += size


@pytest.fixture(params=["splice", "refused splice", "no pipe"])
def path(request, monkeypatch):
    if request.param == "refused splice":

        def refuse(*_args, **_kwargs):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(os, "splice", refuse)
    elif request.param == "no pipe":
        monkeypatch.setattr(PipePool, "take", lambda _self: None)
    with ExitStack() as stack:
        yield CopyPath(stack)


async def read_all(sock: socket.socket) -> bytes:
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=os.dup(sock.fileno()))))
    data = bytearray()
    async with stream:
        async for chunk in stream:
            data += chunk
    return bytes(data)


async def write_all(sock: socket.socket, data: bytes, sizes: random.Random) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view[: sizes.choice((1, 100, 5000, 300_000))]) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
    sock.shutdown(socket.SHUT_WR)


async def test_bytes_arrive_unchanged_then_the_end_and_each_is_counted(path):
    sizes = random.Random(7)
    data = sizes.randbytes(6_000_000)
    received = []

    async def read() -> None:
        received.append(await read_all(path.server))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_all, path.client, data, sizes)
        nursery.start_soon(read)
        await splice_direction(path.source, path.sink, path.count)
    assert received[0] == data
    assert path.counted == len(data)


async def test_the_end_is_a_half_close(path):
    path.client.shutdown(socket.SHUT_WR)
    await splice_direction(path.source, path.sink, path.count)
    assert await read_all(path.server) == b""
    path.server.send(b"back")
    await trio.lowlevel.wait_readable(path.sink)
    assert path.sink.recv(10) == b"back"


async def test_a_reader_that_stalls_holds_up_the_writer(path):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(splice_direction, path.source, path.sink, path.count)
        sent = 0
        chunk = b"x" * 100_000
        for _ in range(1000):
            try:
                sent += path.client.send(chunk)
            except BlockingIOError:
                with trio.move_on_after(0.3) as scope:
                    await trio.lowlevel.wait_writable(path.client)
                if scope.cancelled_caught:
                    break
            await trio.lowlevel.checkpoint()
        else:
            pytest.fail("a hundred megabytes were taken without a reader")
        nursery.cancel_scope.cancel()
    assert path.counted <= sent


async def test_a_reset_of_the_source_is_an_error_and_not_an_end(path):
    close_with_reset(path.client)
    with pytest.raises(ConnectionResetError):
        await splice_direction(path.source, path.sink, path.count)
    with pytest.raises(BlockingIOError):
        path.server.recv(1)


async def test_a_reset_of_the_sink_is_an_error(path):
    close_with_reset(path.server)
    path.client.send(b"x")
    with pytest.raises(OSError) as caught:  # noqa: PT011 # which one depends on the moment
        await splice_direction(path.source, path.sink, path.count)
    assert caught.value.errno in {errno.EPIPE, errno.ECONNRESET}


async def test_an_idle_copy_holds_no_pipe_and_pipes_are_reused():
    with PipePool() as pool, ExitStack() as stack:
        paths = [CopyPath(stack) for _ in range(5)]
        async with trio.open_nursery() as nursery:
            for path in paths:
                nursery.start_soon(splice_direction, path.source, path.sink, path.count, pool)
            for path in paths:
                path.client.send(b"hello")
                await trio.lowlevel.wait_readable(path.server)
                assert path.server.recv(10) == b"hello"
            await trio.testing.wait_all_tasks_blocked()
            assert pool.idle == 1
            nursery.cancel_scope.cancel()


async def test_a_cancelled_copy_never_gives_back_a_pipe_with_bytes_in_it():
    before = open_descriptors()
    with PipePool() as pool, ExitStack() as stack:
        path = CopyPath(stack)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(splice_direction, path.source, path.sink, path.count, pool)
            for _ in range(200):
                try:
                    path.client.send(b"x" * 100_000)
                except BlockingIOError:
                    await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert pool.idle == 0
    assert open_descriptors() == before


def test_a_pool_keeps_so_many_and_none_when_closed():
    pool = PipePool(keep=1)
    first, second = pool.take(), pool.take()
    assert first is not None
    assert second is not None
    pool.give_back(first)
    pool.give_back(second)
    assert pool.idle == 1
    third = pool.take()
    assert third is first
    pool.close()
    pool.give_back(third)
    assert pool.idle == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(third.reader)


async def test_a_fast_pair_lets_other_tasks_run():
    """A source that always has something and a sink that always takes it must not hold the loop."""
    with ExitStack() as stack:
        path = CopyPath(stack)
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            nursery.start_soon(write_all, path.client, bytes(20_000_000), random.Random(1))
            nursery.start_soon(read_all, path.server)
            await splice_direction(path.source, path.sink, path.count)
            nursery.cancel_scope.cancel()
        assert turns > 10
