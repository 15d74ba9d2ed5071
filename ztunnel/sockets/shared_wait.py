"""Waits for a socket that several processes wait for, so that only one of them is woken.

How it works. A listening socket that is shared with other processes is registered in Trio's own epoll with
EPOLLEXCLUSIVE. The kernel goes through the processes in the order of registration and wakes the first one
that is waiting in ``epoll_wait`` at that moment; it skips one that is busy. So one worker takes all
connections as long as it keeps up, and others help when it does not.

Trio's own registration cannot do that: it uses EPOLLONESHOT, which the kernel refuses together with
EPOLLEXCLUSIVE. An epoll of ours that Trio waits for counts as a waiter that is never busy, so all processes
would be woken each time. `ztunnel.loop.epoll` explains how the socket gets into Trio's epoll. Where that is
not possible, Trio's ordinary wait is used, which is correct too and wakes all processes.

While no task waits, a socket that stays readable is removed from the epoll, or the loop would spin. It is
also removed before it is closed: the kernel does not do that while another process has it open.
"""

from __future__ import annotations

import select
import socket
from weakref import WeakKeyDictionary

import outcome
import trio

from ztunnel.loop.epoll import LoopEpoll, own


class _Waiting:
    """A socket in the epoll, and the task that waits for it (None while none does)."""

    __slots__ = ("descriptor", "epoll", "task")

    def __init__(self, epoll: LoopEpoll, descriptor: int) -> None:
        self.epoll = epoll
        self.descriptor = descriptor
        self.task: trio.lowlevel.Task | None = None
        epoll.add(descriptor, select.EPOLLIN | select.EPOLLEXCLUSIVE, self.noticed)

    def noticed(self, _flags: int) -> None:
        """The kernel reported an event; another process may have taken the connection."""
        if self.task is None:
            self.epoll.remove(self.descriptor)
        else:
            task, self.task = self.task, None
            trio.lowlevel.reschedule(task)


_sockets: WeakKeyDictionary[socket.socket, _Waiting] = WeakKeyDictionary()


async def readable(sock: socket.socket) -> None:
    """Wait until the socket may be readable; another process may be faster. Raises ClosedResourceError.

    Only one task at a time may wait for a socket.
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
    """Call it before the socket is closed. A task that waits gets ClosedResourceError."""
    waiting = _sockets.pop(sock, None)
    if waiting is None:
        trio.lowlevel.notify_closing(sock)
        return
    waiting.epoll.remove(waiting.descriptor)
    if waiting.task is not None:
        closed = trio.ClosedResourceError("the socket was closed")
        trio.lowlevel.reschedule(waiting.task, outcome.Error(closed))
