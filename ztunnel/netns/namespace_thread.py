"""The one thread that enters other network namespaces, to make sockets there.

A network namespace is a property of a thread. ``setns`` moves only the calling thread, and a socket always
stays in the namespace in which it was made; binding, connecting and using it works from everywhere. So only
the call of ``socket()`` has to happen inside a pod.

The thread that runs Trio must never move: after an exception, a signal handler or a forgotten return, every
later socket of the process would be in the wrong pod. It also starts all other threads, and a new thread
begins in the namespace of its creator. So one helper thread makes the visits, with these rules:

* It does nothing else. A visit is: ``setns`` to the namespace, make the sockets, ``setns`` back home. A
  thread has no await, so nothing can come in between, and it starts no thread.
* If entering fails, the thread is still at home, and the visit fails.
* If returning fails, the thread ends; nothing else of the process ran in it. Its sockets are handed over
  first, waiting visits fail, and the next visit starts a new thread. That begins at home, because its
  creator, Trio's thread, never moved.
* Each new thread checks that it begins at home, and refuses to work if it does not.

A visit takes about 13 µs of system calls, and 45 µs with the way to the thread and back through Trio's loop.
That is why `ztunnel.sockets.factories` makes several sockets in one visit.
"""

from __future__ import annotations

import ctypes
import os
import queue
import sys
import threading
from collections.abc import Callable
from typing import Final, Generic, NamedTuple, Self, TypeVar

import outcome
import trio

from ztunnel.bounds import DEFAULTS
from ztunnel.errors import ZtunnelError

T = TypeVar("T")

_CLONE_NEWNET: Final = 0x40000000
_OWN_NAMESPACE: Final = "/proc/thread-self/ns/net"


class NamespaceError(ZtunnelError, OSError):
    """A network namespace could not be entered. Its errno is that of the system call."""

    code = "ZT-NET-003"


class NamespaceThreadError(NamespaceError):
    """The thread that visits network namespaces has ended; a visit that waited for it did not take place."""

    code = "ZT-NET-004"


class NamespaceIdentity(NamedTuple):
    """Identifies a network namespace: inode and device of its file."""

    inode: int
    device: int

    @classmethod
    def of(cls, descriptor: int) -> NamespaceIdentity:
        """Returns the identity behind an open descriptor. Raises OSError."""
        status = os.fstat(descriptor)
        return cls(status.st_ino, status.st_dev)


def set_namespace(descriptor: int) -> None:
    """Move the calling thread into the network namespace of ``descriptor``. Raises OSError."""
    if sys.version_info >= (3, 12):
        os.setns(descriptor, os.CLONE_NEWNET)
    elif _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


_libc = ctypes.CDLL(None, use_errno=True)


class Visit(Generic[T]):
    """One piece of work in one namespace, and where its result goes. Made on Trio's thread."""

    __slots__ = ("_done", "_late", "_token", "_work", "descriptor")

    def __init__(
        self,
        descriptor: int,
        work: Callable[[], T],
        done: Callable[[outcome.Outcome[T]], None],
        late: Callable[[outcome.Outcome[T]], None],
    ) -> None:
        self.descriptor = descriptor
        self._work = work
        self._done = done
        self._late = late
        self._token = trio.lowlevel.current_trio_token()

    def work(self) -> outcome.Outcome[T]:
        """Do the work, on the helper thread, and keep its result."""
        return outcome.capture(self._work)

    def finish(self, result: outcome.Outcome[T]) -> None:
        """Deliver the result: to ``done`` on Trio's thread, or to ``late`` here if Trio has ended."""
        try:
            self._token.run_sync_soon(self._done, result)
        except trio.RunFinishedError:
            self._late(result)


class NamespaceThread:
    """The helper thread of a process, started at the first visit. Use as a context manager, or call `close`.

    Home is the namespace of the thread that makes this object, which has to be trio's. Raises OSError when it
    cannot be opened. end_seconds: `close` waits no longer for a visit that is under way.
    """

    def __init__(self, end_seconds: float = DEFAULTS.connection.visit_end) -> None:
        self._end_seconds = end_seconds
        self._home = os.open(_OWN_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
        self._home_identity = NamespaceIdentity.of(self._home)
        self._lock = threading.Lock()
        self._visits: queue.SimpleQueue[Visit[object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def home(self) -> NamespaceIdentity:
        """The namespace of the process."""
        return self._home_identity

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread after the visits in progress. Later visits raise `NamespaceThreadError`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            thread = self._thread
            if thread is None:
                os.close(self._home)
                return
            self._visits.put(None)
        # The thread closes its descriptor of the home namespace last. It may be the thread that calls this.
        if thread is not threading.current_thread():
            thread.join(self._end_seconds)

    def submit(self, visit: Visit[T]) -> None:
        """Queue a visit. Call it on Trio's thread only: a new thread begins in its creator's namespace."""
        with self._lock:
            if self._closed:
                raise NamespaceThreadError("The thread that visits network namespaces has been closed.")
            self._visits.put(visit)  # type: ignore[arg-type] # its result goes back to itself
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="network namespaces", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        if self._at_home():
            while (visit := self._visits.get()) is not None:
                result, returned = self._go(visit)
                if not returned:
                    self._end()
                    visit.finish(result)
                    return
                visit.finish(result)
                # An idle thread keeps nothing alive of its last visit.
                del visit, result
        self._end()

    def _at_home(self) -> bool:
        try:
            status = os.stat(_OWN_NAMESPACE)  # noqa: PTH116 # a path object would only be unwrapped again
        except OSError:
            return False
        return (status.st_ino, status.st_dev) == self._home_identity

    def _go(self, visit: Visit[object]) -> tuple[outcome.Outcome[object], bool]:
        """Returns the result of one visit, and whether the thread is back at home."""
        try:
            set_namespace(visit.descriptor)
        except OSError as error:
            failure = NamespaceError(error.errno, f"failed to enter network namespace: {error.strerror}")
            return outcome.Error(failure), True
        result = visit.work()
        try:
            set_namespace(self._home)
        except OSError:
            return result, False
        return result, True

    def _end(self) -> None:
        """End this thread's role: the next visit starts a new thread, and waiting visits fail."""
        with self._lock:
            self._thread = None
            self._refuse_waiting()
            if self._closed:
                os.close(self._home)

    def _refuse_waiting(self) -> None:
        while True:
            try:
                visit = self._visits.get_nowait()
            except queue.Empty:
                return
            if visit is not None:
                visit.finish(
                    outcome.Error(
                        NamespaceThreadError(
                            "The thread that visits network namespaces was not at home and was ended."
                        )
                    )
                )


class _ProcessThread:
    """The helper thread that all namespaces of a process share. It exists while one of them is open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._thread: NamespaceThread | None = None

    def acquire(self, end_seconds: float) -> NamespaceThread:
        with self._lock:
            if self._thread is None:
                self._thread = NamespaceThread(end_seconds)
            self._users += 1
            return self._thread

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.close()


process_thread = _ProcessThread()
