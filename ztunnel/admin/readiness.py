"""What the process waits for before it is ready, and the server that answers the kubelet's probe.

A kubelet's first probe may come in the middle of a start, which takes half a second. The answer "not ready"
would be a warning in the pod's events at every other start, and the next probe comes seconds later. So during
the start an answer waits for the outcome, for a little less than the second that a kubelet allows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import trio

from ztunnel.admin.http import Request, Response
from ztunnel.bounds import DEFAULTS
from ztunnel.observe.durations import duration_text
from ztunnel.observe.logging import get_logger

log = get_logger("readiness")


@dataclass(slots=True)
class _Task:
    since: float
    error: str | None = None


class Readiness:
    """Tasks by name. Ready means that none is pending; a task may become pending again.

    now: returns seconds of a monotonic clock. hold: seconds that an answer waits during the start, 0 for
        none. start: seconds after which the start counts as slow, and probes are answered at once.
    """

    def __init__(
        self,
        now: Callable[[], float] = time.monotonic,
        *,
        hold: float = 0.0,
        start: float = DEFAULTS.admin.probe_start,
    ) -> None:
        self._start = start
        self._now = now
        self._hold = hold
        self._begun = trio.Event()
        self._started = now()
        self._pending: dict[str, _Task] = {}
        self._remarks: dict[str, str] = {}

    @property
    def pending(self) -> list[str]:
        """The names of pending tasks, sorted."""
        return sorted(self._pending)

    @property
    def ready(self) -> bool:
        """Whether no task is pending."""
        return not self._pending

    def register(self, name: str) -> None:
        """Add a pending task. A registered one stays as it is."""
        self._pending.setdefault(name, _Task(self._now()))

    def complete(self, name: str) -> None:
        """The task is complete. Does nothing if it is not pending."""
        task = self._pending.pop(name, None)
        if task is None:
            return
        took = duration_text(self._now() - task.since, decimals=1)
        rest = len(self._pending)
        what = f"still awaiting {rest} tasks" if rest else "marking server ready"
        text = f"Task '{name}' complete ({took}), {what}"
        log.info(text)
        if not rest:
            self._begun.set()

    def uncomplete(self, name: str, error: str | None = None) -> None:
        """The task is pending again, because of ``error``."""
        if name not in self._pending:
            self._pending[name] = _Task(self._now())
            text = f"Task '{name}' is pending again, marking server not ready"
            log.info(text, error=error)
        self.failed(name, error)

    def failed(self, name: str, error: str | None) -> None:
        """An attempt at a pending task failed; its text is shown. Does nothing if the task is not pending."""
        task = self._pending.get(name)
        if task is not None and error is not None:
            task.error = error

    def remark(self, name: str, text: str | None) -> None:
        """Set a remark that is shown and does not affect readiness; None removes it."""
        if text is None:
            self._remarks.pop(name, None)
        else:
            self._remarks[name] = text

    def report(self) -> str:
        """Returns one line for each pending task: name, since when, last error. Then one for each remark."""
        now = self._now()
        lines = []
        for name in self.pending:
            task = self._pending[name]
            error = f", last error: {task.error}" if task.error else ""
            lines.append(f"{name}: pending for {duration_text(now - task.since, decimals=1)}{error}\n")
        lines += [f"{name}: {text}\n" for name, text in sorted(self._remarks.items())]
        return "".join(lines)

    async def handle(self, request: Request) -> Response:
        """``GET /healthz/ready``, in detail and at once with ``?verbose``."""
        if request.path != "/healthz/ready":
            return Response(404)
        if request.method != "GET":
            return Response(405)
        if "verbose" not in request.query:
            await self._wait_during_start()
        detail = self.report() if "verbose" in request.query else ""
        if self.ready:
            return Response(200, f"ready\n{detail}".encode(), "text/plain")
        text = f"not ready, pending: {', '.join(self.pending)}\n{detail}"
        return Response(500, text.encode(), "text/plain")

    async def _wait_during_start(self) -> None:
        left = self._started + self._start - self._now()
        if self.ready or left <= 0 or self._hold <= 0:
            return
        with trio.move_on_after(min(left, self._hold)):
            await self._begun.wait()
