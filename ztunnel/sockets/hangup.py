"""Notices that a socket was reset while nobody reads or writes it.

A relay that waits for room on one side does not use the other side's socket meanwhile. Nobody would see a
reset of that socket, because an error shows only when the socket is used. So an epoll of the process watches
the sockets of all relays without asking for any event: the kernel reports errors anyway (epoll_ctl(2):
EPOLLERR). One task checks it at most once a second, so a watch costs only two system calls.

Only errors count. The end of a stream is no error: a client that has half-closed still wants its answer and
looks the same as one that is gone. An error ends nothing at once either: bytes that came before the reset are
still in the socket, and its reader finds the error after them. ``gone`` is for tasks that do not read.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Self

import trio

from ztunnel.bounds import DEFAULTS

_EVENTS = 256


class Hangup:
    """One watched socket, while the ``with`` block runs.

    gone: called when the socket has an error; it may be replaced meanwhile. happened: whether it was called.
    """

    __slots__ = ("_descriptor", "_hangups", "gone", "happened")

    def __init__(self, hangups: Hangups, descriptor: int, gone: Callable[[], None] | None) -> None:
        self.happened = False
        self.gone = gone
        self._hangups = hangups
        self._descriptor = descriptor

    def __enter__(self) -> Self:
        self._hangups.enter(self, self._descriptor)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hangups.leave(self, self._descriptor)

    def notice(self) -> None:
        """The socket has an error."""
        self.happened = True
        if self.gone is not None:
            self.gone()


class Hangups:
    """Watches sockets for all connections of a process while `run` runs. `close` it, or use it with ``with``.

    interval: seconds between two checks.
    """

    def __init__(self, interval: float = DEFAULTS.connection.hangup_interval) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Hangup] = {}
        self._interval = interval

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._watched)

    def close(self) -> None:
        """Close the epoll. Later watches do nothing."""
        self._epoll.close()

    def watch(self, sock: socket.socket, gone: Callable[[], None] | None = None) -> Hangup:
        """Returns a context manager. ``gone`` is called if ``sock`` has an error meanwhile."""
        return Hangup(self, sock.fileno(), gone)

    def enter(self, hangup: Hangup, descriptor: int) -> None:
        """Start a watch. A socket that the kernel refuses is not watched."""
        try:
            self._epoll.register(descriptor, select.EPOLLET)
        except (OSError, ValueError):
            return
        self._watched[descriptor] = hangup

    def leave(self, hangup: Hangup, descriptor: int) -> None:
        """End a watch. The socket may have been closed meanwhile, and its number reused."""
        if self._watched.get(descriptor) is hangup:
            del self._watched[descriptor]
            try:
                self._epoll.unregister(descriptor)
            except (OSError, ValueError):
                return

    async def run(self) -> None:
        """Check the sockets until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            self.look()
            await trio.sleep(self._interval)

    def look(self) -> None:
        """Call ``gone`` for the sockets that have an error now."""
        for descriptor, events in self._epoll.poll(0, _EVENTS):
            hangup = self._watched.get(descriptor)
            if events & select.EPOLLERR and hangup is not None:
                hangup.notice()
