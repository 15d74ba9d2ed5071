"""Adds our own callbacks for some descriptors to Trio's epoll object.

How it works. Trio's epoll object is wrapped once for each loop. Our descriptors are registered in the same
kernel object, with flags that Trio does not use. Events of our descriptors go to a callback, all others to
Trio. A callback runs in the loop, between steps of tasks. It sets a flag, and reschedules the task that waits
or calls the handler that this task has left (`Watch.readable`); it closes no descriptor, since events of this
poll may still be to come. Each callback belongs to a task that waits, or to an object that a task closes.

Trio has no public access to its epoll object. If it cannot be had (another version, another system), `own`
returns None, and the caller uses Trio's ordinary waits, which are correct too, but slower.

A descriptor that is registered here must not be waited for through Trio.

While nothing but callbacks has had something to do, the wait goes on without a turn of Trio's loop: no task
can run, and no deadline has passed. Most messages are carried like this (docs/hot-path.md).

Between two turns of Trio's loop a task that moves bulk data may `look` whether others have something to do
(`ztunnel.loop.bulk`).
"""

from __future__ import annotations

import select
from collections.abc import Callable, Collection, Iterable, Sized
from typing import Any

import trio

_FEW = 64
CALM = 32
"""Pieces of bulk data that are small after a message: together 2 MiB, some milliseconds."""


class _Taken(tuple[tuple[int, int], ...]):
    """No event is left for Trio. True, because for Trio something false means a timeout."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


_NONE_LEFT = _Taken()


class LoopEpoll:
    """The wrapper. ``callbacks``: by descriptor; they are called with the flags of epoll(7).

    process: processes the events of Trio's own descriptors.
    runnable: the tasks that Trio's next turn will run.
    next_deadline, current_time: of the tasks, and now, both by Trio's clock.
    urgent: tasks that were woken, have not run yet, and should not wait for bulk data. A `Watch` counts them.
    messages: how many pieces of bulk data are still to be small, because somebody sends small messages.
    """

    def __init__(
        self,
        epoll: select.epoll,
        process: Callable[[Iterable[tuple[int, int]]], None],
        runnable: Sized,
        next_deadline: Callable[[], float],
        current_time: Callable[[], float],
    ) -> None:
        self._epoll = epoll
        self._process = process
        self._runnable = runnable
        self._next_deadline = next_deadline
        self._current_time = current_time
        self.urgent = 0
        self.messages = 0
        self.register = epoll.register
        self.unregister = epoll.unregister
        self.modify = epoll.modify
        self.close = epoll.close
        self.fileno = epoll.fileno
        self.callbacks: dict[int, Callable[[int], None]] = {}

    def poll(self, timeout: float, maxevents: int) -> Collection[tuple[int, int]]:
        """Like ``select.epoll.poll``, without the events that callbacks took.

        Waits again, for no longer than ``timeout`` and the next deadline, until Trio has something to do.
        """
        if not self.callbacks:
            return self._epoll.poll(timeout, maxevents)
        most = maxevents + _FEW
        left = timeout
        while events := self._epoll.poll(left, most):
            others = self._call(events)
            if others:
                return others
            if self._runnable:
                return _NONE_LEFT
            # Asked anew each time, because a callback may have set a deadline.
            left = min(self._next_deadline() - self._current_time(), timeout)
            if left <= 0:
                return _NONE_LEFT
        return events

    def look(self) -> bool:
        """Poll without waiting. Returns whether a task should run before more bulk data is moved."""
        if not self.urgent:
            others = self._call(self._epoll.poll(0, _FEW))
            if others:
                self._process(others)
                return True
        return self.urgent > 0

    def woken(self) -> None:
        """A task was woken that should not wait for bulk data. Its next step lowers ``urgent``."""
        self.urgent += 1
        self.messages = CALM

    def _call(self, events: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Call the callbacks of our descriptors. Returns the events of the others."""
        callbacks = self.callbacks
        others = []
        for event in events:
            callback = callbacks.get(event[0])
            if callback is None:
                others.append(event)
            else:
                callback(event[1])
        return others

    def add(self, descriptor: int, flags: int, callback: Callable[[int], None]) -> None:
        """Register a descriptor. An old registration of the same number is dropped. Raises OSError."""
        try:
            self._epoll.register(descriptor, flags)
        except FileExistsError:
            self._epoll.modify(descriptor, flags)
        self.callbacks[descriptor] = callback

    def remove(self, descriptor: int) -> None:
        """Undo `add`. Call it before the descriptor is closed."""
        if self.callbacks.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)


def own() -> LoopEpoll | None:
    """Returns the wrapper of the running loop; None if there is no epoll object to wrap."""
    try:
        runner: Any = trio._core._run.GLOBAL_RUN_CONTEXT.runner  # noqa: SLF001
        manager = runner.io_manager
        epoll = manager._epoll  # noqa: SLF001
        if type(epoll) is LoopEpoll:
            return epoll
        if type(epoll) is not select.epoll or not hasattr(select, "EPOLLEXCLUSIVE"):
            return None
        # The queue and the deadlines live as long as the loop.
        wrapped = LoopEpoll(
            epoll,
            manager.process_events,
            runner.runq,
            runner.deadlines.next_deadline,
            runner.clock.current_time,
        )
    except AttributeError:
        return None
    manager._epoll = wrapped  # noqa: SLF001
    return wrapped
