from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from functools import partial

import pytest
import trio
import trio.testing

from ztunnel.observe.sink import LINES_A_WRITE, Line, Sink

LINE = "x" * 99 + "\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(reader, False)
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            pass


def read_all(fd: int) -> bytes:
    got = b""
    while True:
        try:
            piece = os.read(fd, 1 << 20)
        except BlockingIOError:
            return got
        if not piece:
            return got
        got += piece


async def read_lines(fd: int, lines: int) -> list[bytes]:
    got = b""
    with trio.fail_after(5):
        while got.count(b"\n") < lines:
            await trio.lowlevel.wait_readable(fd)
            got += read_all(fd)
    return got.splitlines()


def test_without_a_task_lines_are_written_at_once(pipe):
    sink = Sink(pipe[1])
    sink.write("a\n")
    assert read_all(pipe[0]) == b"a\n"
    sink.close()


def test_the_descriptor_given_keeps_its_flags(pipe):
    sink = Sink(pipe[1])
    assert os.get_blocking(pipe[1])
    sink.close()
    os.write(pipe[1], b"still open")


def test_a_regular_file_is_appended_to(tmp_path):
    path = tmp_path / "log"
    path.write_text("before\n")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    sink = Sink(fd)
    sink.write("after\n")
    sink.close()
    os.close(fd)
    assert path.read_text() == "before\nafter\n"


def test_a_regular_file_keeps_its_position(tmp_path):
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"before\n")
    sink = Sink(fd)
    sink.write("after\n")
    sink.close()
    os.close(fd)
    assert path.read_text() == "before\nafter\n"


async def test_a_slow_reader_does_not_stall_until_the_queue_is_full(pipe, nursery):
    sink = Sink(pipe[1], lines=1000)
    await nursery.start(sink.run)
    for number in range(1000):
        sink.write(f"{number:098}\n")
        await trio.lowlevel.checkpoint()
    # the pipe holds 4096 bytes and nobody reads it
    assert sink.queued > 900
    lines = await read_lines(pipe[0], 1000)
    assert [int(line) for line in lines] == list(range(1000))
    nursery.cancel_scope.cancel()


async def test_a_full_queue_makes_the_writer_wait_and_drops_nothing(pipe, nursery):
    sink = Sink(pipe[1], lines=100)
    await nursery.start(sink.run)
    os.set_blocking(pipe[0], True)
    got: list[bytes] = []

    def read() -> None:
        data = b""
        while data.count(b"\n") < 2000:
            data += os.read(pipe[0], 65536)
        got.extend(data.splitlines())

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(2000):
        sink.write(f"{number}\n" + "")
        assert sink.queued <= 100
    with trio.fail_after(5):
        await trio.to_thread.run_sync(thread.join)
    assert [int(line) for line in got] == list(range(2000))
    nursery.cancel_scope.cancel()


async def test_lines_are_written_whole_and_not_more_than_a_pipe_takes_at_once(pipe, nursery, monkeypatch):
    sizes: list[bytes] = []
    write = os.write

    def spy(fd: int, data: bytes) -> int:
        sizes.append(data)
        return write(fd, data)

    sink = Sink(pipe[1])
    await nursery.start(sink.run)
    monkeypatch.setattr(os, "write", spy)
    for _ in range(300):
        sink.write("y\n")
    for _ in range(100):
        sink.write(LINE)
    lines = await read_lines(pipe[0], 400)
    assert len(lines) == 400
    assert max(map(len, sizes)) <= 4096
    assert max(data.count(b"\n") for data in sizes) == LINES_A_WRITE
    assert all(data.endswith(b"\n") for data in sizes)
    nursery.cancel_scope.cancel()


def later(text: str) -> Line:
    return lambda: f"{text}\n"


async def test_lines_are_written_at_once_unless_there_are_many(pipe, nursery, autojump_clock):
    sink = Sink(pipe[1])
    await nursery.start(sink.run)
    for number in range(200):
        sink.write(later(str(number)))
        await trio.testing.wait_all_tasks_blocked()
        assert read_all(pipe[0]) == b"%d\n" % number
        await trio.sleep(0.01)
    nursery.cancel_scope.cancel()


async def test_many_lines_are_written_together(pipe, nursery, autojump_clock):
    sink = Sink(pipe[1])
    await nursery.start(sink.run)
    for _ in range(100):
        sink.write(later("many"))
    await read_lines(pipe[0], 100)
    await trio.testing.wait_all_tasks_blocked()
    for letter in "ab":
        sink.write(later(letter))
        await trio.testing.wait_all_tasks_blocked()
    assert (read_all(pipe[0]), sink.queued) == (b"", 2)
    await trio.sleep(0.1)
    assert (read_all(pipe[0]), sink.queued) == (b"a\nb\n", 0)
    nursery.cancel_scope.cancel()


async def test_a_line_of_another_kind_waits_for_no_others(pipe, nursery, autojump_clock):
    sink = Sink(pipe[1], gather=1000)
    await nursery.start(sink.run)
    for _ in range(100):
        sink.write(later("many"))
    await read_lines(pipe[0], 100)
    await trio.testing.wait_all_tasks_blocked()
    sink.write(later("a"))
    await trio.testing.wait_all_tasks_blocked()
    assert read_all(pipe[0]) == b""
    sink.write("an error\n")
    await trio.testing.wait_all_tasks_blocked()
    assert read_all(pipe[0]) == b"a\nan error\n"
    nursery.cancel_scope.cancel()


async def test_a_line_is_rendered_once_when_it_is_written(pipe, nursery):
    rendered: list[int] = []

    def render(number: int) -> str:
        rendered.append(number)
        return f"{number:098}\n"

    sink = Sink(pipe[1])
    await nursery.start(sink.run)
    for number in range(200):
        sink.write(partial(render, number))
    sink.write("last\n")
    assert rendered == []
    lines = await read_lines(pipe[0], 201)
    assert [*map(int, lines[:-1]), lines[-1]] == [*range(200), b"last"]
    assert rendered == list(range(200))
    nursery.cancel_scope.cancel()


async def test_a_line_longer_than_the_pipe_is_written_in_pieces(pipe, nursery):
    sink = Sink(pipe[1])
    await nursery.start(sink.run)
    long = "z" * 50_000 + "\n"
    sink.write(long)
    sink.write("end\n")
    assert await read_lines(pipe[0], 2) == [long.strip().encode(), b"end"]
    nursery.cancel_scope.cancel()


async def test_what_is_queued_is_written_when_the_task_is_cancelled(pipe):
    sink = Sink(pipe[1])
    async with trio.open_nursery() as nursery:
        await nursery.start(sink.run)
        sink.write("last words\n")
        nursery.cancel_scope.cancel()
    assert read_all(pipe[0]) == b"last words\n"


async def test_a_stuck_reader_does_not_hold_up_the_end_for_ever(pipe):
    times = iter(float(n) for n in range(1000))
    sink = Sink(pipe[1], now=lambda: next(times))
    async with trio.open_nursery() as nursery:
        await nursery.start(sink.run)
        for _ in range(500):
            sink.write(LINE)
        nursery.cancel_scope.cancel()
    assert sink.queued > 0
    sink.write("later\n")
    sink.close()


async def test_a_reader_that_goes_away_ends_nothing(pipe, nursery):
    sink = Sink(pipe[1])
    await nursery.start(sink.run)
    for _ in range(500):
        sink.write(LINE)
    await trio.testing.wait_all_tasks_blocked()
    os.close(pipe[0])
    await trio.testing.wait_all_tasks_blocked(0.01)
    sink.write(LINE)
    assert sink.queued == 0 or sink.flush(1)
    nursery.cancel_scope.cancel()


async def test_other_threads_may_write(pipe, nursery):
    sink = Sink(pipe[1])
    await nursery.start(sink.run)
    await trio.to_thread.run_sync(sink.write, "from a thread\n")
    assert await read_lines(pipe[0], 1) == [b"from a thread"]
    nursery.cancel_scope.cancel()


async def test_a_socket_is_never_blocked_on(nursery):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        sink = Sink(ours.fileno())
        assert os.get_blocking(ours.fileno())
        await nursery.start(sink.run)
        for number in range(5000):
            sink.write(f"{number:098}\n")
        await trio.testing.wait_all_tasks_blocked()
        assert sink.queued > 0
        lines = await read_lines(theirs.fileno(), 5000)
        assert [int(line) for line in lines] == list(range(5000))
        nursery.cancel_scope.cancel()


class SmallDisk:
    """A file whose disk has room for so many more bytes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fd: int) -> None:
        self.room = 1 << 20
        self.number = errno.ENOSPC
        real = os.write

        def write(to: int, data: bytes) -> int:
            if to != fd:
                return real(to, data)
            if not self.room:
                raise OSError(self.number, os.strerror(self.number))
            written = real(to, data[: self.room])
            self.room -= written
            return written

        monkeypatch.setattr(os, "write", write)


@pytest.mark.parametrize("room", [0, 1, 2, 3])
def test_a_full_disk_costs_what_is_written_meanwhile(tmp_path, monkeypatch, room: int):
    """Lines are lost and counted; when there is room again, the next one stands on a line of its own."""
    file = tmp_path / "log"
    with file.open("wb", buffering=0) as stream:
        disk = SmallDisk(monkeypatch, stream.fileno())
        sink = Sink(stream.fileno())
        sink.write("a\n")
        disk.room = room
        for line in ("bb\n", "cc\n", "dd\n"):
            sink.write(line)
        assert sink.lost == (2 if room == 3 else 3)
        assert sink.queued == 0
        disk.room = 1 << 20
        for line in ("ee\n", "ff\n"):
            sink.write(line)
        sink.close()
    begun = b"bb\n"[:room]
    assert file.read_bytes() == b"a\n" + begun + (b"" if room in (0, 3) else b"\n") + b"ee\nff\n"


async def test_nobody_waits_for_a_full_disk(tmp_path, monkeypatch):
    """With a task that writes as well: what comes while the disk is full is lost, not kept."""
    with (tmp_path / "log").open("wb", buffering=0) as stream:
        disk = SmallDisk(monkeypatch, stream.fileno())
        sink = Sink(stream.fileno(), lines=10)
        async with trio.open_nursery() as nursery:
            await nursery.start(sink.run)
            disk.room = 0
            for number in range(100):
                sink.write(f"{number}\n")
            await trio.testing.wait_all_tasks_blocked()
            assert (sink.queued, sink.lost) == (0, 100)
            disk.room = 1 << 20
            sink.write("again\n")
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        sink.close()
    assert (tmp_path / "log").read_bytes() == b"again\n"


def test_a_descriptor_that_nobody_reads_is_given_up(tmp_path, monkeypatch):
    with (tmp_path / "log").open("wb", buffering=0) as stream:
        disk = SmallDisk(monkeypatch, stream.fileno())
        disk.room, disk.number = 0, errno.EPIPE
        sink = Sink(stream.fileno())
        sink.write("a\n")
        disk.room = 1 << 20
        sink.write("b\n")
        sink.close()
    assert (tmp_path / "log").read_bytes() == b""
