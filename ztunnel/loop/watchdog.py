"""Ends a process that can do nothing any more, so that it is started again.

Two things cannot be seen by the tasks of an event loop. The loop itself may stand still, because something in
it waits for ever. And a thread of a library may die, for lack of memory for instance: whoever waits for its
work waits for ever. Both at once: a thread that dies before it has begun lets `threading.Thread.start` wait
for ever, in the loop.

The loop is watched by a timer of the kernel (setitimer(2)), whose signal interrupts such a wait. A process
that was stopped for a while gets one signal when it goes on, not all that it has missed, so it is not taken
for one that hangs. The death of a thread is told by Python's hooks. The end is immediate: nothing is drained,
because nothing would be; the sockets of connections reset when the kernel closes them.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import NoReturn, Self

import trio

from ztunnel.errors import ZtunnelError

MISSES = 6
"""Signals in a row, without a turn of the loop between them, after which it hangs."""


class LoopHungError(ZtunnelError):
    """The event loop stands still."""

    code = "ZT-INT-007"


class ThreadDiedError(ZtunnelError):
    """A thread ended by an exception, or before it had begun."""

    code = "ZT-INT-008"


class Watchdog:
    """Watches the process while the ``with`` block runs; `run` is to run in the event loop meanwhile.

    limit: seconds without a turn of the loop.
    end: called with the error; in a program it does not return.

    Only the main thread may use it, and one at a time.
    """

    def __init__(self, limit: float, end: Callable[[ZtunnelError], None] | None = None) -> None:
        self._interval = limit / MISSES
        self._end = end or _end_process
        self._turned = True
        self._missed = 0
        # Made now, because later there may be no memory for it.
        self._hung = LoopHungError(
            f"The event loop has not turned for {limit:g} s; the process ends, to be started again."
        )

    async def run(self) -> None:
        """Show that the loop turns, until cancelled."""
        while True:
            self._turned = True
            await trio.sleep(self._interval / 2)

    def __enter__(self) -> Self:
        self._hooks = threading.excepthook, sys.unraisablehook
        threading.excepthook = self._thread_died
        sys.unraisablehook = self._unraisable
        self._handler = signal.signal(signal.SIGALRM, self._alarm)
        self._timer = signal.setitimer(signal.ITIMER_REAL, self._interval, self._interval)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._handler)
        signal.setitimer(signal.ITIMER_REAL, *self._timer)
        threading.excepthook, sys.unraisablehook = self._hooks

    def _alarm(self, _number: int, _frame: FrameType | None) -> None:
        if self._turned:
            self._turned = False
            self._missed = 0
            return
        self._missed += 1
        if self._missed >= MISSES:
            self._end(self._hung)

    def _thread_died(self, what: threading.ExceptHookArgs) -> None:
        name = what.thread.name if what.thread is not None else "?"
        self._died(f"The thread {name}", what.exc_type, what.exc_value)

    def _unraisable(self, what: sys.UnraisableHookArgs) -> None:
        # CPython's words for a thread that has not got as far as to its own code.
        if "in thread started by" in (what.err_msg or ""):
            self._died("A thread that had not begun yet", what.exc_type, what.exc_value)
        else:
            self._hooks[1](what)

    def _died(self, which: str, kind: type[BaseException], error: BaseException | None) -> None:
        text = f"{kind.__name__}: {error}" if error is not None and str(error) else kind.__name__
        self._end(ThreadDiedError(f"{which} has died ({text}); the process ends, to be started again."))


def _end_process(error: ZtunnelError) -> NoReturn:
    """Say on stderr what has happened, and where each thread is, and end with status 1."""
    try:
        os.write(2, f"Error: {error} ({error.code})\n".encode())
        faulthandler.dump_traceback(2, all_threads=True)
    finally:
        os._exit(1)
