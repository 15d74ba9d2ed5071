"""The process from which workers are forked: single-threaded, without the control side's libraries.

How it works. Before the control side loads its own libraries (most of all grpcio), the process forks once.
The child keeps the modules of the data plane, and waits. For each worker the control side sends it one end of
a socketpair; it forks, and the new process runs a data plane over that socket. So a worker starts in a few
milliseconds and shares the memory of all modules with the others. Forking from the control process itself
would copy the locks of its threads in an arbitrary state. All live objects are frozen before (`gc.freeze`),
so that no garbage collection writes to shared memory pages.

Workers are its children: it reports to the control side how they end. It ends with the control side, whose
end closes the socket.
"""

from __future__ import annotations

import array
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Self

import msgspec

from ztunnel.bounds import DEFAULTS, ControlBounds
from ztunnel.config.model import Config
from ztunnel.dataplane.worker import run as run_worker
from ztunnel.system.memory import spare_collector

_LARGEST = 4096
_ENDED = msgspec.msgpack.Decoder(tuple[int, int])


class ForkServer:
    """The control side's handle of the process. A context manager, which ends the process."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self.sock = sock
        self._pid = pid
        self._by_itself: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()
        os.waitpid(self._pid, 0)  # it waits no longer than `ControlBounds.workers_end`

    def order(self, worker: socket.socket) -> None:
        """Ask for a worker that communicates over this socket, which the caller closes. Does not wait.

        If the fork server has ended, the worker is started as a program of its own; that takes a second and
        more memory.
        """
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [worker.fileno()]))]
        try:
            self.sock.sendmsg([b"w"], rights)
        except OSError:
            self._by_itself = [process for process in self._by_itself if process.poll() is None]
            command = [sys.executable, "-m", "ztunnel.dataplane.worker", str(worker.fileno())]
            self._by_itself.append(subprocess.Popen(command, pass_fds=[worker.fileno()]))  # noqa: S603

    def told(self) -> list[tuple[int, int]]:
        """Returns the ids of processes that have ended since, with exit status, or minus the signal's number.

        To be called when ``sock`` is readable. Raises EOFError when the process is gone.
        """
        found: list[tuple[int, int]] = []
        while True:
            try:
                data = self.sock.recv(_LARGEST, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            except OSError as error:
                raise EOFError from error
            if not data:
                if found:
                    return found
                raise EOFError
            found.append(_ENDED.decode(data))


def start_fork_server(
    config: Config, private: Sequence[socket.socket] = (), bounds: ControlBounds = DEFAULTS.control
) -> ForkServer:
    """Fork the process. Call it before there is a thread and before grpcio is imported.

    private: sockets that the child closes.
    """
    spare_collector()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        for sock in (ours, *private):
            sock.close()
        _ends_the_process(partial(_serve, config, theirs, bounds.workers_end))
    theirs.close()
    return ForkServer(ours, pid)


def _ends_the_process(work: Callable[[], None]) -> None:
    """Run the code of a forked process and end it; never return into the code that forked."""
    status = 1
    try:
        work()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001  # the outermost frame of a process
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def _serve(config: Config, control: socket.socket, patience: float) -> None:
    """Fork a worker for each request, and report the ends of workers, until the control side has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    workers: set[int] = set()
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        selector.register(reader, selectors.EVENT_READ)
        while True:
            ready = {key.fd for key, _ in selector.select()}
            if reader in ready:
                os.read(reader, _LARGEST)
                _tell_of_ended(control, workers)
            if control.fileno() in ready:
                descriptor = _order(control)
                if descriptor is None:
                    _end(workers, reader, patience)
                    return
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    selector.close()
                    control.close()
                    os.close(reader)
                    os.close(writer)
                    _ends_the_process(partial(run_worker, config, descriptor))
                workers.add(pid)
                os.close(descriptor)


def _order(control: socket.socket) -> int | None:
    """Returns the descriptor of the next worker's socket, None when no more will come."""
    try:
        data, ancillary, _, _ = control.recvmsg(1, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    except OSError:
        return None
    if not data:
        return None
    [(_, _, payload)] = ancillary
    (descriptor,) = array.array("i", payload)
    return descriptor


def _ended(workers: set[int]) -> Iterator[tuple[int, int]]:
    """Returns the workers that have ended since the last call: process id and status."""
    while workers:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        workers.discard(pid)
        yield pid, os.waitstatus_to_exitcode(status)


def _tell_of_ended(control: socket.socket, workers: set[int]) -> None:
    for ended in _ended(workers):
        try:
            control.send(msgspec.msgpack.encode(ended))
        except OSError:
            return


def _end(workers: set[int], children: int, patience: float) -> None:
    """The control side is gone, which workers see for themselves; those that do not are killed.

    children: readable when one has ended. patience: seconds until then.
    """
    deadline = time.monotonic() + patience
    while True:
        for _ in _ended(workers):
            pass
        left = deadline - time.monotonic()
        if not workers or left <= 0:
            break
        if select.select([children], [], [], left)[0]:
            os.read(children, _LARGEST)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
