"""Plaintext to plaintext: bytes go from socket to socket through a pipe and never enter Python.

``splice`` moves pages from a socket into a pipe and on into the other socket. A direction takes a pipe from
the `PipePool` when its source has something, and gives it back, empty, before it waits for more: so an idle
connection holds no pipe, and what can be under way in a direction is one pipe full. While the destination
does not take it, the source is not read, and its peer is held up by TCP.

Where there is no ``splice`` (a seccomp filter) or no descriptor for a pipe, the bytes are read and written
instead.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import Self

import trio

from ztunnel.errors import ZtunnelError
from ztunnel.net.addresses import os_error_text

_PIPE_BYTES = 1 << 18
_ROUNDS_WITHOUT_CHECKPOINT = 16
_SPLICE_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
_SMALLEST_READ = 1 << 12
_LARGEST_READ = 1 << 18

# The peer is gone: for a copy that is an end like another.
_ENDED = frozenset({errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE})
_NO_SPLICE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM})


class CopyPhase(Enum):
    """What a copy was doing when it failed."""

    READ = "read"
    WRITE = "write"
    SHUTDOWN = "shutdown"


class CopyError(ZtunnelError):
    """One direction ended by an error other than its peer's going away.

    phase: what it was doing; cause: the system's error. ``str()`` is ``io error: {text}``.
    """

    code = "ZT-NET-005"

    def __init__(self, phase: CopyPhase, cause: OSError) -> None:
        super().__init__(f"io error: {os_error_text(cause)}")
        self.phase = phase
        self.cause = cause


class Pipe:
    """A pipe and the number of bytes in it. ``close`` it, or give it back to its pool."""

    __slots__ = ("capacity", "held", "reader", "writer")

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0
        try:
            self.capacity = fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        except OSError:  # over the user's share of pipe memory
            self.capacity = fcntl.fcntl(self.writer, fcntl.F_GETPIPE_SZ)

    def close(self) -> None:
        """Close both ends; what is in it is lost."""
        os.close(self.reader)
        os.close(self.writer)


class PipePool:
    """Empty pipes for all copies of a process. Use as a context manager, or `close` it."""

    def __init__(self, keep: int = 16) -> None:
        self._keep = keep
        self._idle: list[Pipe] = []
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def idle(self) -> int:
        """How many pipes are kept for the next ones who ask."""
        return len(self._idle)

    def close(self) -> None:
        """Close the idle pipes; those in use are closed when they come back."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def take(self) -> Pipe | None:
        """An empty pipe, or None when there is no descriptor for one."""
        if self._idle:
            return self._idle.pop()
        try:
            return Pipe()
        except OSError:
            return None

    def give_back(self, pipe: Pipe) -> None:
        """Keep a pipe for the next one; one that is not empty, or one too many, is closed."""
        if pipe.held or self._closed or len(self._idle) >= self._keep:
            pipe.close()
        else:
            self._idle.append(pipe)


async def copy_plain(
    source: socket.socket, destination: socket.socket, pool: PipePool, count: Callable[[int], None]
) -> None:
    """Copy until the source ends, then half-close the destination. Closes neither.

    count: called with the number of bytes after each successful write. A peer that is gone is an end
    without an error. Raises `CopyError` for any other failure, after the half-close; a failure of the
    half-close itself takes the place of the first.
    """
    try:
        await _copy(source, destination, pool, count)
    finally:
        try:
            destination.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno not in {errno.ENOTCONN, errno.EBADF}:
                raise CopyError(CopyPhase.SHUTDOWN, error) from error


async def _copy(
    source: socket.socket, destination: socket.socket, pool: PipePool, count: Callable[[int], None]
) -> None:
    rounds = 0
    while True:
        pipe = pool.take()
        if pipe is None:
            await _copy_by_reading(source, destination, count)
            return
        try:
            blocked = False
            while not blocked:
                try:
                    moved = os.splice(source.fileno(), pipe.writer, pipe.capacity, flags=_SPLICE_FLAGS)
                except BlockingIOError:
                    blocked = True
                    continue
                except OSError as error:
                    if error.errno in _NO_SPLICE:
                        break
                    _end_or_raise(CopyPhase.READ, error)
                    return
                if moved == 0:
                    return
                pipe.held = moved
                if not await _empty(pipe, destination, count):
                    return
                rounds += 1
                if rounds % _ROUNDS_WITHOUT_CHECKPOINT == 0:
                    await trio.lowlevel.checkpoint()
        finally:
            pool.give_back(pipe)
        if not blocked:
            await _copy_by_reading(source, destination, count)
            return
        await trio.lowlevel.wait_readable(source)


async def _empty(pipe: Pipe, destination: socket.socket, count: Callable[[int], None]) -> bool:
    """Bring what the pipe holds to the destination. False when that is gone."""
    while pipe.held:
        try:
            moved = os.splice(pipe.reader, destination.fileno(), pipe.held, flags=_SPLICE_FLAGS)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(destination)
            continue
        except OSError as error:
            _end_or_raise(CopyPhase.WRITE, error)
            return False
        pipe.held -= moved
        count(moved)
    return True


async def _copy_by_reading(
    source: socket.socket, destination: socket.socket, count: Callable[[int], None]
) -> None:
    """The same with a buffer, which grows with what arrives."""
    size = _SMALLEST_READ
    buffer = bytearray(size)
    rounds = 0
    while True:
        try:
            received = source.recv_into(buffer)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(source)
            continue
        except OSError as error:
            _end_or_raise(CopyPhase.READ, error)
            return
        if received == 0:
            return
        with memoryview(buffer) as view:
            if not await _write(view[:received], destination, count):
                return
        if received == size and size < _LARGEST_READ:
            size *= 2
            buffer = bytearray(size)
        rounds += 1
        if rounds % _ROUNDS_WITHOUT_CHECKPOINT == 0:
            await trio.lowlevel.checkpoint()


async def _write(data: memoryview, destination: socket.socket, count: Callable[[int], None]) -> bool:
    """Write it all. False when the destination is gone."""
    sent = 0
    while sent < len(data):
        try:
            moved = destination.send(data[sent:])
        except BlockingIOError:
            await trio.lowlevel.wait_writable(destination)
            continue
        except OSError as error:
            _end_or_raise(CopyPhase.WRITE, error)
            return False
        sent += moved
        count(moved)
    return True


def _end_or_raise(phase: CopyPhase, error: OSError) -> None:
    if error.errno not in _ENDED:
        raise CopyError(phase, error) from error
