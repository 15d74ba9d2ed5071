"""Trio's epoll object, with callbacks of ours for some descriptors.

How it works. Trio's epoll object is wrapped once for a loop. Descriptors of ours are registered in the same
kernel object, with flags that Trio does not use; what ``poll`` gives for them goes to a callback, the rest is
Trio's. A callback runs in the loop, between steps of tasks: it may reschedule a task and note something, and
nothing else. Each belongs to a task that waits, or to an object that a task closes.

Trio has no public way to its epoll object. Where it is not to be had (another version, another system) `own`
gives None, and the caller falls back on Trio's ordinary waits, which are right too, and slower.

A descriptor must not be waited for through Trio while it is registered here.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

import trio

_FEW = 64


class _Taken(list[tuple[int, int]]):
    """Events that are left for Trio; true even when none are, since an empty list means a timeout to Trio."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


class LoopEpoll:
    """The wrapper. ``callbacks`` are by descriptor, and get the flags of epoll(7)."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self.register = epoll.register
        self.unregister = epoll.unregister
        self.modify = epoll.modify
        self.close = epoll.close
        self.fileno = epoll.fileno
        self.callbacks: dict[int, Callable[[int], None]] = {}

    def poll(self, timeout: float, maxevents: int) -> list[tuple[int, int]]:
        """As of ``select.epoll``, without the events that callbacks took."""
        callbacks = self.callbacks
        if not callbacks:
            return self._epoll.poll(timeout, maxevents)
        events = self._epoll.poll(timeout, maxevents + _FEW)
        if not events:
            return events
        others = _Taken()
        for event in events:
            callback = callbacks.get(event[0])
            if callback is None:
                others.append(event)
            else:
                callback(event[1])
        return others

    def add(self, descriptor: int, flags: int, callback: Callable[[int], None]) -> None:
        """Register a descriptor; what was left of one with the same number is forgotten. Raises OSError."""
        try:
            self._epoll.register(descriptor, flags)
        except FileExistsError:
            self._epoll.modify(descriptor, flags)
        self.callbacks[descriptor] = callback

    def remove(self, descriptor: int) -> None:
        """Undo `add`; to be called before the descriptor is closed."""
        if self.callbacks.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)


def own() -> LoopEpoll | None:
    """Returns the wrapper of the loop that runs; None where there is no epoll to wrap."""
    runner: Any = getattr(trio._core._run.GLOBAL_RUN_CONTEXT, "runner", None)  # noqa: SLF001
    manager: Any = getattr(runner, "io_manager", None)
    epoll = getattr(manager, "_epoll", None)
    if not hasattr(select, "EPOLLEXCLUSIVE"):
        return None
    if isinstance(epoll, LoopEpoll):
        return epoll
    if type(epoll) is not select.epoll:
        return None
    wrapped = LoopEpoll(epoll)
    manager._epoll = wrapped  # noqa: SLF001
    return wrapped
