"""The destination of log lines: a bounded queue before a file descriptor, and one task that writes it.

How it works. `Sink.write` only appends to a queue and wakes the writer task once. The task writes up to 16
lines with one call and waits until the descriptor is writable. So a slow reader of our stdout costs only
memory, up to the limit of the queue. When the queue is full, the caller of `write` itself writes and waits
until there is room: no line is dropped. Without a running writer task (before the loop starts, after it
ended, in commands without one) each line is written at once.

Lines of which there may be thousands a second are queued before they are rendered. While there are so many,
the task pauses between two writes, and renders and writes those of the pause together, which is cheaper. Any
other line ends the pause.

A write must not block the loop. Setting O_NONBLOCK on descriptor 1 would change it for all processes that
share the open file, for instance the shell that started us. So the file is opened again through
/proc/self/fd, with its own flags. If that is not possible (a socket, a pipe of another user), the descriptor
is written only while poll says that it takes at least PIPE_BUF bytes, and not more than that at a time. A
regular file is never reopened, because its position would be lost, and it never has to be waited for.

A full disk (or quota) may have space again a moment later: lines that cannot be written meanwhile are lost
and counted, and nobody waits. A descriptor whose reader is gone is not used again.

Not more than PIPE_BUF bytes are written to a pipe at a time, cut at ends of lines: such writes are atomic, so
processes that share a pipe do not mix their lines.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

import trio

from ztunnel.bounds import DEFAULTS

LINES_A_WRITE = 16
_MANY = 64
"""Lines within ``_WINDOW`` seconds that are many: some hundred connections a second."""
_WINDOW = 0.1
_PIPE_BYTES = 4096  # PIPE_BUF on Linux
_ANY_BYTES = 256 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOMEM)
"""The errors of a file that is full now and may have space later."""

Line: TypeAlias = str | Callable[[], str]
"""A line with its line break, or a function that renders it when it is written, perhaps in another thread."""


class Sink:
    """The lines for one descriptor, which the caller closes. What is opened here is closed here.

    lines: the limit of the queue. gather: seconds of a pause while there are many lines. now: returns
    seconds of a monotonic clock, used only to limit `close`.
    """

    def __init__(
        self,
        fd: int = 1,
        *,
        lines: int = DEFAULTS.log.queued_lines,
        gather: float = DEFAULTS.log.gather,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._capacity = lines
        self._gather = gather
        self._now = now
        self._queue: deque[Line] = deque()
        self._rest = b""  # a batch of which a part is written
        self._open_line = False  # the last written bytes do not end with a line break
        self._lost = 0
        self._dead = False
        self._patience: float | None = None  # how long a line may wait when no task writes it
        self._lock = threading.RLock()  # gRPC's threads log too
        self._token: trio.lowlevel.TrioToken | None = None
        self._thread = 0
        self._wake = trio.Event()
        self._hurry = trio.Event()  # the pause ends
        mode = os.fstat(fd).st_mode
        self._regular = stat.S_ISREG(mode)
        self._largest = _PIPE_BYTES if stat.S_ISFIFO(mode) else _ANY_BYTES
        self._fd, self._own = self._open(fd)
        self._ask_first = not self._own and not self._regular
        if self._ask_first:
            self._largest = _PIPE_BYTES

    def _open(self, fd: int) -> tuple[int, bool]:
        if not self._regular:
            try:
                return os.open(
                    f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
                ), True
            except OSError:
                pass
        return fd, False

    @property
    def queued(self) -> int:
        """Lines that wait to be written."""
        return len(self._queue)

    @property
    def lost(self) -> int:
        """How many lines a full disk did not take."""
        return self._lost

    def write(self, line: Line) -> None:
        """Write one line. Waits only when the queue is full or no task writes."""
        self._queue.append(line)
        if self._token is None:
            self._write_now()
            return
        if len(self._queue) > self._capacity:
            self._write_out(deadline=None, down_to=max(0, self._capacity - LINES_A_WRITE))
        if threading.get_ident() == self._thread:
            self._wake.set()
            if isinstance(line, str):
                self._hurry.set()
        else:
            try:
                self._token.run_sync_soon(self._wake_up, idempotent=True)
            except trio.RunFinishedError:
                self._write_now()

    def _write_now(self) -> None:
        """Before the loop runs, wait for the reader.

        When the process is about to end, wait at most a second, once.
        """
        if self._patience is None:
            self._write_out(deadline=None, down_to=0)
        elif not self.flush(self._patience):
            self._patience = 0.0

    def _wake_up(self) -> None:
        self._wake.set()
        self._hurry.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what is queued, until cancelled; then write the rest at once, for up to a second."""
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.get_ident()
        task_status.started()
        since, count, many = trio.current_time(), 0, False
        try:
            while True:
                await self._wake.wait()
                self._wake, self._hurry = trio.Event(), trio.Event()
                if trio.current_time() > since + _WINDOW:
                    since, count, many = trio.current_time(), 0, count >= _MANY
                count += len(self._queue)
                while self._queue or self._rest:
                    if self._attempt():
                        await trio.lowlevel.checkpoint()
                    else:
                        await trio.lowlevel.wait_writable(self._fd)
                if many or count >= _MANY:
                    with trio.move_on_after(self._gather):
                        await self._hurry.wait()
        finally:
            self._token = None
            self._patience = 1.0
            self._write_now()

    def flush(self, seconds: float) -> bool:
        """Write all that is queued, waiting up to so many seconds. Returns whether nothing is left."""
        self._write_out(deadline=self._now() + seconds, down_to=0)
        return not self._queue and not self._rest

    def close(self) -> None:
        """Flush for up to a second and close what this opened. Lines written later are lost."""
        self.flush(1.0)
        with self._lock:
            self._dead = True
            if self._own:
                self._own = False
                os.close(self._fd)

    def _write_out(self, *, deadline: float | None, down_to: int) -> None:
        with self._lock:
            while (len(self._queue) > down_to or self._rest) and not self._dead:
                if self._attempt():
                    continue
                left = None if deadline is None else deadline - self._now()
                if left is not None and left <= 0:
                    return
                self._poll(left)
            if self._dead:
                self._queue.clear()

    def _poll(self, seconds: float | None) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(None if seconds is None else max(0, seconds * 1000)))

    def _attempt(self) -> bool:
        """Write one batch, or the rest of the last one.

        Returns False when the descriptor takes nothing now.
        """
        with self._lock:
            if self._dead:
                self._queue.clear()
                self._rest = b""
                return True
            if self._ask_first and not self._poll(0):
                return False
            batch = self._rest or self._next_batch()
            try:
                written = os.write(self._fd, batch[: self._largest])
            except BlockingIOError:
                self._rest = batch
                return False
            except InterruptedError:
                self._rest = batch
                return True
            except OSError as error:
                # There is no other place to report it.
                if error.errno in _FULL:
                    self._lost += batch.count(b"\n") - (self._open_line and not self._rest)
                else:
                    self._dead = True
                self._rest = b""
                return True
            self._rest = batch[written:]
            self._open_line = not batch.startswith(b"\n", written - 1)
            return True

    def _next_batch(self) -> bytes:
        queue = self._queue
        lines: list[bytes] = [b"\n"] if self._open_line else []
        size = 0
        while queue and len(lines) < LINES_A_WRITE:
            first = queue[0]
            text = first if isinstance(first, str) else first()
            line = text.encode("utf-8", "backslashreplace")
            size += len(line)
            if lines and size > self._largest:
                queue[0] = text
                break
            lines.append(line)
            queue.popleft()
        return b"".join(lines)
