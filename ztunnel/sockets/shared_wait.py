"""Waiting for a socket that several processes wait for, so that one of them is woken and not all.

How it works. A listening socket that is shared with other processes is put into Trio's own epoll with
EPOLLEXCLUSIVE. Of all processes that have it there, the kernel goes through those that came first, and wakes
the first that waits in ``epoll_wait`` just then: one that is busy is passed over. So one worker takes all
connections as long as it keeps up, and the next ones help when it does not.

Trio's epoll cannot do that by itself: it registers with EPOLLONESHOT, which the kernel refuses together with
EPOLLEXCLUSIVE; and an epoll of ours that Trio waits for counts as a waiter that is never busy, so all
processes would be woken each time. See `ztunnel.loop.epoll` for how a socket gets there all the same; where
that cannot be the wait is Trio's ordinary one, which is right too and wakes everybody.

While nobody waits, a socket that stays readable is taken out of the epoll, or the loop would spin. It is also
taken out before it is closed: the kernel would not do so while another process has it open.
"""

from __future__ import annotations

import select
import socket
from weakref import WeakKeyDictionary

import outcome
import trio

from ztunnel.loop.epoll import LoopEpoll, own


class _Waiting:
    """A socket in the epoll, and the task that waits for it, None while none does."""

    __slots__ = ("descriptor", "epoll", "task")

    def __init__(self, epoll: LoopEpoll, descriptor: int) -> None:
        self.epoll = epoll
        self.descriptor = descriptor
        self.task: trio.lowlevel.Task | None = None
        epoll.add(descriptor, select.EPOLLIN | select.EPOLLEXCLUSIVE, self.noticed)

    def noticed(self, _flags: int) -> None:
        """There is something, perhaps."""
        if self.task is None:
            self.epoll.remove(self.descriptor)
        else:
            task, self.task = self.task, None
            trio.lowlevel.reschedule(task)


_sockets: WeakKeyDictionary[socket.socket, _Waiting] = WeakKeyDictionary()


async def readable(sock: socket.socket) -> None:
    """Wait until the socket is readable, or another process was quicker. Raises ClosedResourceError.

    One task at a time waits for a socket.
    """
    epoll = own()
    if epoll is None:
        await trio.lowlevel.wait_readable(sock)
        return
    await trio.lowlevel.checkpoint_if_cancelled()
    waiting = _sockets.get(sock)
    if waiting is None or waiting.epoll.callbacks.get(waiting.descriptor) != waiting.noticed:
        waiting = _sockets[sock] = _Waiting(epoll, sock.fileno())
    elif waiting.task is not None:
        raise trio.BusyResourceError("another task waits for this socket")
    waiting.task = trio.lowlevel.current_task()

    def abort(_: object) -> trio.lowlevel.Abort:
        waiting.task = None
        return trio.lowlevel.Abort.SUCCEEDED

    await trio.lowlevel.wait_task_rescheduled(abort)


def closing(sock: socket.socket) -> None:
    """To be called before the socket is closed: who waits for it gets a ClosedResourceError."""
    waiting = _sockets.pop(sock, None)
    if waiting is None:
        trio.lowlevel.notify_closing(sock)
        return
    waiting.epoll.remove(waiting.descriptor)
    if waiting.task is not None:
        closed = trio.ClosedResourceError("the socket was closed")
        trio.lowlevel.reschedule(waiting.task, outcome.Error(closed))
