"""Notice that something in a directory has changed: inotify, waited for by trio itself.

Files of Kubernetes volumes are symlinks into a directory that is swapped as a whole, so watching a file
misses its changes. Watching the directory above and looking again after any event does not.

watchfiles was tried first. Under trio its wait runs in a thread that a cancellation reaches only when its
own timeout ends (measured: 60 s with a timeout of 60 s), and a short timeout is polling. inotify(7) is three
calls and a descriptor that trio can wait for; Python has no module for it, so they are made through ctypes.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Never

import trio

from ztunnel.bounds import DEFAULTS
from ztunnel.observe.logging import get_logger

# From <sys/inotify.h>.
_CHANGES: Final = (
    0x2  # IN_MODIFY
    | 0x4  # IN_ATTRIB
    | 0x8  # IN_CLOSE_WRITE
    | 0x40  # IN_MOVED_FROM
    | 0x80  # IN_MOVED_TO
    | 0x100  # IN_CREATE
    | 0x200  # IN_DELETE
    | 0x400  # IN_DELETE_SELF
    | 0x800  # IN_MOVE_SELF
)
_GONE: Final = 0x8000 | 0x800  # IN_IGNORED, IN_MOVE_SELF
# struct inotify_event without its name: wd, mask, cookie, len.
_EVENT: Final = struct.Struct("iIII")
_READ_SIZE: Final = 64 * 1024

log = get_logger("watch")


async def watch_directory(
    path: Path,
    look: Callable[[], Awaitable[None]],
    *,
    quiet_seconds: float = DEFAULTS.control.crl_quiet,
    retry_seconds: float = DEFAULTS.control.watch_retry,
) -> Never:
    """Call ``look`` when the watch begins, and after each group of changes in a directory (not below it).

    So no change is missed between a caller's first look and the watch. A directory that is missing, removed
    or replaced is looked for, and looked at, again and again until it can be watched. Ends by cancellation
    only.
    """
    warned = False
    while True:
        try:
            descriptor = _open(path)
        except OSError as error:
            if not warned:
                warned = True
                log.warn(
                    "cannot watch the directory, looking again from time to time", path=path, error=error
                )
            await look()
            await trio.sleep(retry_seconds)
            continue
        warned = False
        try:
            while True:
                await look()
                await trio.lowlevel.wait_readable(descriptor)
                await trio.sleep(quiet_seconds)
                if _drain(descriptor):
                    break
        finally:
            os.close(descriptor)


def _drain(descriptor: int) -> bool:
    """Read all events. Whether one says that the directory is gone from its path."""
    gone = False
    while True:
        try:
            data = os.read(descriptor, _READ_SIZE)
        except BlockingIOError:
            return gone
        while len(data) >= _EVENT.size:
            _, mask, _, length = _EVENT.unpack_from(data)
            gone = gone or bool(mask & _GONE)
            data = data[_EVENT.size + length :]


def _open(path: Path) -> int:
    """Returns an inotify descriptor that watches one directory. Raises OSError."""
    descriptor = _call("inotify_init1", os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _call("inotify_add_watch", descriptor, os.fsencode(path), _CHANGES)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _call(name: str, *arguments: int | bytes) -> int:
    result = int(getattr(_libc, name)(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


_libc: Final = ctypes.CDLL(None, use_errno=True)
