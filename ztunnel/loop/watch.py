"""Repeated waits for one socket: it is registered with the kernel once, edge-triggered.

Trio registers a socket again for each wait. For a socket that lives as long as a connection and is waited for
with each message, that costs a system call and a few microseconds of Python each time. A `Watch` registers it
once and remembers what the kernel has reported.

The kernel reports an edge only once. So a socket counts as readable until its reader says that it is empty
(`Watch.emptied`). A short read shows that as well as EAGAIN does: whatever comes later is a new edge. The end
of the peer's bytes is always remembered, because it may have come with the last bytes, where a short read
does not see it.

A task that waits may leave a handler with the watch, which the loop calls in its place. Most messages are
small and complete: they are read and passed on without a step of the task, which would cost more than the
message. The handler belongs to that wait: when the task is cancelled, woken or interrupted, it is gone.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import outcome
import trio

from ztunnel.loop.epoll import CALM, LoopEpoll, own

_READ = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_WRITE = select.EPOLLOUT
_ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class Watch:
    """The readiness of one socket, ``sock``, which the caller owns.

    `close` it before the socket, or use it with ``with``. One task at a time may wait for each direction.

    bulk: much data flows, so its reader may wait until others have run (`ztunnel.loop.bulk`).
    """

    __slots__ = (
        "_closed",
        "_ended",
        "_epoll",
        "_failed",
        "_flags",
        "_handler",
        "_readable",
        "_reader",
        "_urgent",
        "_writer",
        "bulk",
        "sock",
    )

    def __init__(self, sock: socket.socket) -> None:
        """Start to watch. If the kernel refuses, Trio's waits are used."""
        self.sock = sock
        self.bulk = False
        self._urgent = False
        self._closed = False
        self._readable = self._ended = False
        self._reader: trio.lowlevel.Task | None = None
        self._handler: Callable[[], bool] | None = None
        self._failed: Exception | None = None
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
        """End the watch. Tasks that wait get trio.ClosedResourceError."""
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
        self._reader = self._writer = self._handler = None

    @property
    def ended(self) -> bool:
        """Whether the kernel has reported that the peer sends no more. False while that is not known."""
        return self._ended

    def emptied(self) -> None:
        """Note that a read has found nothing, or less than it asked for."""
        self._readable = False

    def interrupt(self) -> None:
        """Wake the task in `readable`, although there may be nothing to read."""
        if self._epoll is None:
            if not self._closed and self.sock.fileno() >= 0:
                trio.lowlevel.notify_closing(self.sock)
        elif self._reader is not None:
            reader, self._reader, self._handler = self._reader, None, None
            trio.lowlevel.reschedule(reader)

    async def readable(self, handler: Callable[[], bool] | None = None) -> None:
        """Wait until there may be something to read, also an end or an error; or until `interrupt`.

        handler: called in place of waking the caller, unless the end of the peer's bytes has come. It returns
            True if it has read until the socket was empty (`emptied`): then the wait goes on. Otherwise the
            caller is woken. What it raises is raised here. It may not wait, nor close any socket. Without an
            epoll object of Trio's it is not called.
        """
        if self._epoll is None:
            await self._by_trio(trio.lowlevel.wait_readable)
            return
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check(self._reader)
        if self._readable or self._ended:
            return
        self._handler = handler
        self._reader = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._reader_gives_up)
        if self._urgent:
            self._urgent = False
            self._epoll.urgent -= 1
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    async def writable(self) -> None:
        """Wait until there may be room to write, or an error."""
        if self._epoll is None:
            await self._by_trio(trio.lowlevel.wait_writable)
            return
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check(self._writer)
        # Registered at the first wait, because few sockets are ever full. The kernel then reports the present
        # state.
        self._flags |= _WRITE
        self._epoll.modify(self.sock.fileno(), self._flags)
        self._writer = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._writer_gives_up)

    async def _by_trio(self, wait: Callable[[socket.socket], Awaitable[None]]) -> None:
        try:
            await wait(self.sock)
        except trio.ClosedResourceError:
            # Not closed but interrupted: Trio has no other way to wake this wait.
            if self._closed:
                raise

    def _check(self, waiting: trio.lowlevel.Task | None) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the socket is not watched any more")
        if waiting is not None:
            raise trio.BusyResourceError("another task waits for this socket")

    def _reader_gives_up(self, _: object) -> trio.lowlevel.Abort:
        self._reader = self._handler = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _writer_gives_up(self, _: object) -> trio.lowlevel.Abort:
        self._writer = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _noticed(self, flags: int) -> None:
        """The callback for the kernel's events."""
        if flags & _ENDED:
            self._ended = True
        if flags & ~_WRITE:
            self._readable = True
            if self._reader is not None:
                self._wake_reader(self._reader)
        if flags & ~select.EPOLLIN and self._writer is not None:
            writer, self._writer = self._writer, None
            trio.lowlevel.reschedule(writer)

    def _wake_reader(self, reader: trio.lowlevel.Task) -> None:
        """Wake the task that waits, unless its handler does all that is to do."""
        epoll = self._epoll
        assert epoll is not None
        if self._handler is not None and not self._ended:
            try:
                if self._handler() and not self._readable:
                    epoll.messages = CALM
                    return
            except Exception as error:  # noqa: BLE001  # raised in the task that waits
                self._failed = error
            if self._reader is not reader:
                return  # the handler has interrupted or cancelled the wait
        # Not kept, since it refers to this watch.
        self._reader = self._handler = None
        trio.lowlevel.reschedule(reader)
        if not self.bulk:
            # Its next step takes it back: a task that was rescheduled is not cancelled any more.
            self._urgent = True
            epoll.woken()
