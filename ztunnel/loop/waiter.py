"""The wait of one task for another: cheaper than a `trio.lowlevel.ParkingLot`, which keeps a dict."""

from __future__ import annotations

import trio


class Waiter:
    """A place where at most one task waits until another task wakes it."""

    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None

    async def park(self) -> None:
        """Wait for the next `wake`. Raises trio.BusyResourceError when another task waits here."""
        if self._task is not None:
            raise trio.BusyResourceError("another task waits here")
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._gives_up)

    def wake(self) -> None:
        """Wake the task that waits. Without one this does nothing, also not for a task that comes later."""
        task = self._task
        if task is not None:
            self._task = None
            trio.lowlevel.reschedule(task)

    def _gives_up(self, _: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED
