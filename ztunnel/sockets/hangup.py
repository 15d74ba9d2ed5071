"""Noticing that a socket was reset while nobody reads or writes it.

A relay that waits for room on one side leaves the other side's socket alone. A reset of that one would stay
unseen, since a socket tells of it only to who asks. So each relay has its sockets watched by an epoll of the
process that asks for nothing: the kernel reports errors all the same (epoll_ctl(2): EPOLLERR). One task looks
at it, at most once a second, so that a watch costs two system calls and no more.

Only an error counts. The end of a stream is none: a client that has half-closed still wants its answer, and
cannot be told from one that is gone. Nor does it end anything at once: bytes that came before the reset are
still in the socket, and who reads it finds the error behind them. ``gone`` is for those who do not read.
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
    """One socket being watched, while the ``with`` block runs.

    gone: called when the socket is found to have an error; may be changed meanwhile. happened: it was called.
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

    interval: seconds between two looks.
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
        """Close the epoll. Later watches watch nothing."""
        self._epoll.close()

    def watch(self, sock: socket.socket, gone: Callable[[], None] | None = None) -> Hangup:
        """Returns a context manager; ``gone`` is called when ``sock`` is found to have an error meanwhile."""
        return Hangup(self, sock.fileno(), gone)

    def enter(self, hangup: Hangup, descriptor: int) -> None:
        """Begin a watch; a socket that cannot be watched is not."""
        try:
            self._epoll.register(descriptor, select.EPOLLET)
        except (OSError, ValueError):
            return
        self._watched[descriptor] = hangup

    def leave(self, hangup: Hangup, descriptor: int) -> None:
        """End a watch. The socket may have been closed meanwhile, and its number be another's by now."""
        if self._watched.get(descriptor) is hangup:
            del self._watched[descriptor]
            try:
                self._epoll.unregister(descriptor)
            except (OSError, ValueError):
                return

    async def run(self) -> None:
        """Look after the sockets until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            self.look()
            await trio.sleep(self._interval)

    def look(self) -> None:
        """Tell of the sockets that have an error now."""
        for descriptor, events in self._epoll.poll(0, _EVENTS):
            hangup = self._watched.get(descriptor)
            if events & select.EPOLLERR and hangup is not None:
                hangup.notice()
