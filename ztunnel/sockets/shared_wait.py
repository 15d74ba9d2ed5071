"""Waiting for a socket that several processes wait for, so that one of them is woken and not all.

How it works. A listening socket that is shared with other processes is put into Trio's own epoll with
EPOLLEXCLUSIVE. Of all processes that have it there, the kernel goes through those that came first, and wakes
the first that waits in ``epoll_wait`` just then: one that is busy is passed over. So one worker takes all
connections as long as it keeps up, and the next ones help when it does not.

Trio's epoll cannot do that by itself: it registers with EPOLLONESHOT, which the kernel refuses together with
EPOLLEXCLUSIVE; and an epoll of ours that Trio waits for counts as a waiter that is never busy, so all
processes would be woken each time. So Trio's epoll object is wrapped once: what its ``poll`` gives for our
descriptors is taken out and wakes our tasks, the rest is Trio's. Where that is not to be had (another I/O
manager, a test's) the wait is Trio's ordinary one, which is right too and wakes everybody.

While nobody waits, a socket that stays readable is taken out of the epoll, or the loop would spin. It is also
taken out before it is closed: the kernel would not do so while another process has it open.
"""

from __future__ import annotations

import select
import socket
from typing import Any

import outcome
import trio

_FEW = 16


class _Epoll:
    """Trio's epoll, but for the descriptors in ``waiting``: None where no task waits for one."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self.register = epoll.register
        self.unregister = epoll.unregister
        self.modify = epoll.modify
        self.close = epoll.close
        self.fileno = epoll.fileno
        self.waiting: dict[int, trio.lowlevel.Task | None] = {}

    def poll(self, timeout: float, maxevents: int) -> list[tuple[int, int]]:
        """As of ``select.epoll``; ours are taken out, and their tasks are woken."""
        waiting = self.waiting
        events = self._epoll.poll(timeout, maxevents + min(len(waiting), _FEW))
        if not waiting or not events:
            return events
        others = []
        for event in events:
            descriptor = event[0]
            if descriptor not in waiting:
                others.append(event)
                continue
            task = waiting[descriptor]
            if task is None:
                del waiting[descriptor]
                self._epoll.unregister(descriptor)
            else:
                waiting[descriptor] = None
                trio.lowlevel.reschedule(task)
        return others


def _epoll() -> _Epoll | None:
    """The wrapped epoll of the loop that runs; None where there is none to wrap."""
    # Trio has no public way to its epoll; the fallback serves if this one goes.
    runner: Any = getattr(trio._core._run.GLOBAL_RUN_CONTEXT, "runner", None)  # noqa: SLF001
    manager: Any = getattr(runner, "io_manager", None)
    epoll = getattr(manager, "_epoll", None)
    if isinstance(epoll, _Epoll):
        return epoll
    if not hasattr(select, "EPOLLEXCLUSIVE") or type(epoll) is not select.epoll:
        return None
    wrapped = _Epoll(epoll)
    manager._epoll = wrapped  # noqa: SLF001
    return wrapped


async def readable(sock: socket.socket) -> None:
    """Wait until the socket is readable, or another process was quicker. Raises ClosedResourceError.

    One task at a time waits for a socket.
    """
    epoll = _epoll()
    if epoll is None:
        await trio.lowlevel.wait_readable(sock)
        return
    await trio.lowlevel.checkpoint_if_cancelled()
    descriptor = sock.fileno()
    if descriptor not in epoll.waiting:
        epoll.register(descriptor, select.EPOLLIN | select.EPOLLEXCLUSIVE)
    elif epoll.waiting[descriptor] is not None:
        raise trio.BusyResourceError("another task waits for this socket")
    epoll.waiting[descriptor] = trio.lowlevel.current_task()

    def abort(_: object) -> trio.lowlevel.Abort:
        epoll.waiting[descriptor] = None
        return trio.lowlevel.Abort.SUCCEEDED

    await trio.lowlevel.wait_task_rescheduled(abort)


def closing(sock: socket.socket) -> None:
    """To be called before the socket is closed: who waits for it gets a ClosedResourceError."""
    epoll = _epoll()
    descriptor = sock.fileno()
    if epoll is None:
        trio.lowlevel.notify_closing(sock)
        return
    if descriptor not in epoll.waiting:
        return
    task = epoll.waiting.pop(descriptor)
    epoll.unregister(descriptor)
    if task is not None:
        trio.lowlevel.reschedule(task, outcome.Error(trio.ClosedResourceError("the socket was closed")))
