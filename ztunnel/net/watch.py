"""Watching one file that others replace: a mounted ConfigMap, an editor's save, a certificate's rotation.

How it works. The directory is watched, not the file: a ConfigMap is a symlink whose target's directory is
swapped, and editors rename a new file over the old. Whatever happens in the directory, the file's status
tells whether it has changed. The directory itself may be replaced too, of which its watch learns nothing when
a symlink leads to it, so both are looked at every few seconds besides.

The kernel's inotify is used directly, since its descriptor is something a trio task can wait for. watchfiles,
which wraps it, keeps a thread that wakes up twenty times a second and takes seconds to stop.

Sources: inotify(7); Kubernetes, "Mounted ConfigMaps are updated automatically".
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import trio

LOOK_AGAIN = 5.0
"""Seconds between two looks when nothing is reported."""

_MODIFY = 0x2
_ATTRIBUTES = 0x4
_CLOSE_WRITE = 0x8
_MOVED_FROM = 0x40
_MOVED_TO = 0x80
_CREATE = 0x100
_DELETE = 0x200
_DELETE_SELF = 0x400
_MOVE_SELF = 0x800
_ONLY_DIRECTORY = 0x1000000
_EVENTS = (
    _MODIFY
    | _ATTRIBUTES
    | _CLOSE_WRITE
    | _MOVED_FROM
    | _MOVED_TO
    | _CREATE
    | _DELETE
    | _DELETE_SELF
    | _MOVE_SELF
    | _ONLY_DIRECTORY
)
_BUFFER = 64 * 1024
_PATIENCE = 10
"""A file that never rests is reported after this many times the quiet time."""


class FileStatus(NamedTuple):
    """What tells one content of a file from the next without reading it."""

    device: int
    inode: int
    size: int
    changed: int

    @classmethod
    def of(cls, path: str) -> FileStatus | None:
        """The present status, through symlinks; None if there is no such file, or it cannot be looked at."""
        try:
            status = Path(path).stat()
        except (OSError, ValueError):
            return None
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


async def watch_file(
    path: str,
    changed: Callable[[], Awaitable[None]],
    *,
    seen: FileStatus | None,
    quiet: float = 0.2,
    look_again: float = LOOK_AGAIN,
) -> None:
    """Call ``changed`` each time the file has become another, or has gone or come. Runs until cancelled.

    ``seen`` is the status from before the content in use was read, so that no change in between is missed.
    ``quiet``: report only after so many seconds without a further event. A directory that does not exist, or
    that cannot be watched (no inotify instances left), is looked at every ``look_again`` seconds.
    """
    directory = str(Path(path).parent)
    while True:
        before = _identity(directory)
        with _DirectoryWatch(directory) as watch:
            while True:
                now = FileStatus.of(path)
                if now != seen:
                    seen = now
                    await changed()
                if not watch.is_open or _identity(directory) != before:
                    break
                with trio.move_on_after(look_again):
                    await watch.wait()
                    await watch.rest(quiet)
        if not watch.is_open:
            await trio.sleep(look_again)
        else:
            await trio.lowlevel.checkpoint()


def _identity(directory: str) -> tuple[int, int] | None:
    status = FileStatus.of(directory)
    return None if status is None else (status.device, status.inode)


class _DirectoryWatch:
    """An inotify descriptor for one directory; ``is_open`` is false if there can be none."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._descriptor = -1
        self.is_open = False

    def __enter__(self) -> Self:
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor >= 0:
            name = os.fsencode(self._directory)
            self.is_open = libc.inotify_add_watch(self._descriptor, name, _EVENTS) >= 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    async def wait(self) -> None:
        """Wait for an event, and forget it together with those beside it."""
        await trio.lowlevel.wait_readable(self._descriptor)
        try:
            while os.read(self._descriptor, _BUFFER):
                pass
        except BlockingIOError:
            return

    async def rest(self, quiet: float) -> None:
        """Wait until nothing has happened for ``quiet`` seconds, or for ten times as long."""
        with trio.move_on_after(quiet * _PATIENCE):
            while True:
                with trio.move_on_after(quiet) as silence:
                    await self.wait()
                if silence.cancelled_caught:
                    return
