"""Network namespaces, and making sockets inside them.

A socket always stays in the namespace in which it was made. `ztunnel.netns.namespace_thread` enters the
namespace and comes back safely.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable
from typing import Self, TypeVar

import outcome
import trio

from ztunnel.bounds import DEFAULTS
from ztunnel.netns.namespace_thread import (
    NamespaceError,
    NamespaceIdentity,
    NamespaceThread,
    Visit,
    process_thread,
)

T = TypeVar("T")


class Namespace:
    """An open network namespace. It owns its descriptor: `close` it, or use it as a context manager.

    thread: the thread that enters it; None is the one that the process keeps while such a namespace is open.
    end_seconds: when the last of these is closed, it waits no longer for a visit that is under way.
    """

    def __init__(
        self,
        descriptor: int,
        thread: NamespaceThread | None = None,
        end_seconds: float = DEFAULTS.connection.visit_end,
    ) -> None:
        """Take over ``descriptor``. Raises OSError when it is not open; the caller still owns it then.

        With the process's thread, call it on Trio's thread.
        """
        self.identity = NamespaceIdentity.of(descriptor)
        self._shares_thread = thread is None
        self._thread = process_thread.acquire(end_seconds) if thread is None else thread
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._visits = 0
        self._closed = False

    @classmethod
    def duplicate(cls, descriptor: int, thread: NamespaceThread | None = None) -> Namespace:
        """Open the namespace on a descriptor of its own. The caller still owns ``descriptor``.

        Raises OSError.
        """
        own = os.dup(descriptor)
        try:
            return cls(own, thread)
        except BaseException:
            os.close(own)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor after the visits in progress, since its number may be reused at once."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if self._visits:
                return
        self._give_up()

    def visit(
        self,
        work: Callable[[], T],
        done: Callable[[outcome.Outcome[T]], None],
        discard: Callable[[T], None],
    ) -> None:
        """Call ``work`` inside the namespace on the helper thread, and return at once.

        Call it on Trio's thread.

        ``work`` must only make sockets. ``done`` gets its outcome on Trio's thread; if Trio has ended by
        then, ``discard`` gets the value on the helper thread. Raises NamespaceThreadError, and OSError
        (EBADF) when this namespace is closed.
        """
        with self._lock:
            if self._closed:
                raise NamespaceError(errno.EBADF, "failed to enter network namespace: it has been closed")
            self._visits += 1

        def finished(result: outcome.Outcome[T]) -> None:
            self._release()
            done(result)

        def late(result: outcome.Outcome[T]) -> None:
            self._release()
            if isinstance(result, outcome.Value):
                discard(result.value)

        try:
            self._thread.submit(Visit(self._descriptor, work, finished, late))
        except BaseException:
            self._release()
            raise

    async def run(self, work: Callable[[], T], discard: Callable[[T], None] = lambda _: None) -> T:
        """Call ``work`` inside the namespace, wait for its result and return it.

        When the wait is cancelled and ``work`` still succeeds, ``discard`` gets its result. Raises what
        ``work`` raises, `NamespaceError`, and `NamespaceThreadError`.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        task = trio.lowlevel.current_task()
        abandoned = False

        def done(result: outcome.Outcome[T]) -> None:
            if not abandoned:
                trio.lowlevel.reschedule(task, result)
            elif isinstance(result, outcome.Value):
                discard(result.value)

        def abandon(_: object) -> trio.lowlevel.Abort:
            nonlocal abandoned
            abandoned = True
            return trio.lowlevel.Abort.SUCCEEDED

        self.visit(work, done, discard)
        result: T = await trio.lowlevel.wait_task_rescheduled(abandon)
        return result

    async def sockets(self, family: int, kind: int, count: int = 1) -> list[socket.socket]:
        """Make ``count`` non-blocking sockets, all or none; the caller closes them. Raises OSError."""
        return await self.run(lambda: make_sockets(family, kind, count), close_sockets)

    def _release(self) -> None:
        with self._lock:
            self._visits -= 1
            if not self._closed or self._visits:
                return
        self._give_up()

    def _give_up(self) -> None:
        os.close(self._descriptor)
        if self._shares_thread:
            process_thread.release()


def make_sockets(family: int, kind: int, count: int) -> list[socket.socket]:
    """Make non-blocking sockets in the calling thread's namespace; all or none. Raises OSError."""
    made: list[socket.socket] = []
    try:
        while len(made) < count:
            # The flag saves a system call compared with setblocking.
            made.append(socket.socket(family, kind | socket.SOCK_NONBLOCK))
    except BaseException:
        close_sockets(made)
        raise
    return made


def close_sockets(sockets: list[socket.socket]) -> None:
    """Close them all."""
    for sock in sockets:
        sock.close()


async def ipv6_enabled_on_loopback(namespace: Namespace) -> bool:
    """Returns whether a socket can be bound to ``::1`` in the namespace.

    It tries to do so with a temporary UDP socket. This covers every reason: no IPv6 in the kernel, IPv6 off
    for the namespace or its loopback, loopback down. Raises NamespaceError when the namespace cannot be
    entered.
    """
    return await namespace.run(_can_bind_ipv6_loopback)


def own_ipv6_enabled_on_loopback() -> bool:
    """Returns the same for the namespace of the calling thread."""
    return _can_bind_ipv6_loopback()


def _can_bind_ipv6_loopback() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True
