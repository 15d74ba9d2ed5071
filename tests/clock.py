"""Virtual time for tests that also do real things: it stands still while a real thing is under way.

Trio's autojump clock jumps to the next deadline as soon as no task can run. It knows neither of threads
(reading a file is one, in trio) nor of bytes between two sockets. So on a busy machine a deadline
of a minute passes before a file has been read. The clock made here jumps when nothing real is under way.
"""

from __future__ import annotations

from math import inf

import trio
import trio.abc
import trio.testing

from ztunnel.loop.epoll import own

SETTLE_SECONDS = 0.02
"""How long everything has to be quiet, in real time, while tasks wait for sockets or other descriptors.

The kernel hands over what is sent to a local socket before the call returns or, under load, a moment later in
a thread of its own. This is that moment.
"""

_OWN_DESCRIPTORS = 1
"""Trio always waits for one itself: the one that other threads wake it by."""


def make_patient_clock() -> trio.testing.MockClock:
    """A clock for one `trio.run` that jumps once no thread runs and no descriptor has become ready."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    start = clock.start_clock

    def start_clock() -> None:
        start()
        trio.lowlevel.add_instrument(_Patience(clock))

    clock.start_clock = start_clock  # type: ignore[method-assign]  # the class is final; this is called inside the run
    return clock


class _Patience(trio.abc.Instrument):
    """Says after every step of a task how long the run must be idle before time may jump."""

    def __init__(self, clock: trio.testing.MockClock) -> None:
        self._clock = clock
        self._threads: trio.CapacityLimiter | None = None

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        patience = self._patience()
        if patience != self._clock.autojump_threshold:
            self._clock.autojump_threshold = patience

    def _patience(self) -> float:
        if self._threads is None:
            self._threads = trio.to_thread.current_default_thread_limiter()
        if self._threads.borrowed_tokens:
            return inf
        io = trio.lowlevel.current_statistics().io_statistics
        loop = own()
        watched = loop is not None and loop.callbacks
        if watched or io.tasks_waiting_read + io.tasks_waiting_write > _OWN_DESCRIPTORS:
            return SETTLE_SECONDS
        return 0
