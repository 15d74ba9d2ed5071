"""Waiting for a socket that is waited for again and again: registered once, told by edges.

Trio tells the kernel anew for each wait. For a socket that lives as long as a connection and is waited for
with each message that is a system call and a few microseconds of Python each time. A `Watch` registers it
once, edge-triggered, and keeps what the kernel said until somebody asks.

An edge is told once. So a socket counts as readable until whoever reads it says that it is empty
(`Watch.emptied`), which a short read shows as well as EAGAIN: what comes later is a new edge. The end of the
peer's bytes is never forgotten: it may have come with the last bytes, and a short read did not see it.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import outcome
import trio

from ztunnel.loop.epoll import LoopEpoll, own

_READ = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_WRITE = select.EPOLLOUT
_ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Watch:
    """The readiness of one socket, ``sock``, which stays its owner's.

    `close` it before the socket, or use it with ``with``. One task at a time may wait for each direction.
    """

    __slots__ = ("_closed", "_ended", "_epoll", "_flags", "_readable", "_reader", "_writer", "sock")

    def __init__(self, sock: socket.socket) -> None:
        """Begin to watch. Should the kernel refuse to, the waits are Trio's."""
        self.sock = sock
        self._closed = False
        self._readable = self._ended = False
        self._reader: trio.lowlevel.Task | None = None
        self._writer: trio.lowlevel.Task | None = None
        self._flags = _READ
        self._epoll: LoopEpoll | None = own()
        if self._epoll is not None:
            try:
                self._epoll.add(sock.fileno(), self._flags, self._noticed)
            except (OSError, ValueError):
                self._epoll = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Watch no more; whoever waits gets trio.ClosedResourceError."""
        if self._closed:
            return
        self._closed = True
        descriptor = self.sock.fileno()
        if self._epoll is None:
            if descriptor >= 0:
                trio.lowlevel.notify_closing(self.sock)
            return
        if descriptor >= 0:
            self._epoll.remove(descriptor)
        for task in (self._reader, self._writer):
            if task is not None:
                closed = trio.ClosedResourceError("the socket is not watched any more")
                trio.lowlevel.reschedule(task, outcome.Error(closed))
        self._reader = self._writer = None

    def emptied(self) -> None:
        """A read has just found nothing, or less than it asked for."""
        self._readable = False

    def interrupt(self) -> None:
        """Have whoever waits in `readable` come back, though there is nothing to read."""
        if self._epoll is None:
            if not self._closed and self.sock.fileno() >= 0:
                trio.lowlevel.notify_closing(self.sock)
        elif self._reader is not None:
            reader, self._reader = self._reader, None
            trio.lowlevel.reschedule(reader)

    async def readable(self) -> None:
        """Wait until there may be something to read, an end or an error included; or for `interrupt`."""
        if self._epoll is None:
            await self._by_trio(trio.lowlevel.wait_readable)
            return
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check(self._reader)
        if self._readable or self._ended:
            return
        self._reader = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._reader_gives_up)

    async def writable(self) -> None:
        """Wait until there may be room to write, or an error."""
        if self._epoll is None:
            await self._by_trio(trio.lowlevel.wait_writable)
            return
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check(self._writer)
        # Asked for at the first wait, since few sockets are ever full; the kernel then says how it is.
        self._flags |= _WRITE
        self._epoll.modify(self.sock.fileno(), self._flags)
        self._writer = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._writer_gives_up)

    async def _by_trio(self, wait: Callable[[socket.socket], Awaitable[None]]) -> None:
        try:
            await wait(self.sock)
        except trio.ClosedResourceError:
            # Not closed: interrupted, which Trio has no other way to do.
            if self._closed:
                raise

    def _check(self, waiting: trio.lowlevel.Task | None) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the socket is not watched any more")
        if waiting is not None:
            raise trio.BusyResourceError("another task waits for this socket")

    def _reader_gives_up(self, _: object) -> trio.lowlevel.Abort:
        self._reader = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _writer_gives_up(self, _: object) -> trio.lowlevel.Abort:
        self._writer = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _noticed(self, flags: int) -> None:
        """The kernel's word."""
        if flags & _ENDED:
            self._ended = True
        if flags & ~_WRITE:
            self._readable = True
            if self._reader is not None:
                reader, self._reader = self._reader, None
                trio.lowlevel.reschedule(reader)
        if flags & ~select.EPOLLIN and self._writer is not None:
            writer, self._writer = self._writer, None
            trio.lowlevel.reschedule(writer)
