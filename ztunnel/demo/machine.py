"""One machine's worth of namespaces, processes and files, all of which goes away together.

`Machine.open` is a context manager. Whatever was made through the machine is removed when it closes: at the
end, on an exception, on Ctrl-C and on SIGTERM (`interruptible` turns both into exceptions). A machine whose
owner was killed outright cannot do that; the next one that opens sweeps up after it. How it knows: each
machine keeps a directory ``zt-<random>`` with a file that its owner holds locked, and the kernel gives up the
lock when the owner dies. The directory also lists the processes, by number and start time, since numbers are
reused. Only what is in such a directory, or has its name, is ever touched.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from ztunnel.demo import processes
from ztunnel.demo.namespaces import PUBLISHED, OwnedNamespace, unpublish
from ztunnel.demo.processes import Process

PREFIX = "zt-"
_OWNER = "owner"
_PROCESSES = "processes"


class InterruptedByError(SystemExit):
    """A signal asked this program to end. As an exit status: 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside the ``with``, SIGTERM, SIGHUP and SIGINT raise InterruptedByError once, so that clean-up runs.

    After the first of them the others are ignored: a second Ctrl-C does not cut the clean-up short.
    """
    caught = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(number: int, frame: FrameType | None) -> None:
        for other in caught:
            signal.signal(other, signal.SIG_IGN)
        raise InterruptedByError(number)

    previous = {number: signal.signal(number, interrupt) for number in caught}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Machine:
    """A set of namespaces and processes with one life. Made by `open`."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.name = directory.name
        self.namespaces: list[OwnedNamespace] = []
        self.processes: list[Process] = []
        self._stack = stack

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Machine]:
        """A new machine, empty; leftovers of dead ones are removed first."""
        sweep()
        with ExitStack() as stack:
            machine = cls(_make_directory(stack), stack)
            # The processes end first, then the namespaces they were in are given up, then the files.
            stack.callback(machine._close_namespaces)
            stack.callback(machine._stop_processes)
            yield machine

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call this when the machine closes, before its processes are stopped."""
        self._stack.callback(callback)

    def namespace(self, name: str) -> OwnedNamespace:
        """Make a network namespace ``<machine>-<name>``, published where that is allowed."""
        namespace = OwnedNamespace.make(f"{self.name}-{name}")
        self.namespaces.append(namespace)
        namespace.publish()
        return namespace

    def spawn(
        self,
        name: str,
        command: Sequence[str],
        *,
        namespace: OwnedNamespace | None = None,
        env: Mapping[str, str] | None = None,
        directory: Path | None = None,
        descriptors: Sequence[int] = (),
    ) -> Process:
        """Start a program; its output goes to ``<directory>/<name>.log``. See `processes.spawn`."""
        process = processes.spawn(
            name,
            command,
            log=self.directory / f"{name}.log",
            namespace=namespace,
            env=env,
            directory=directory,
            descriptors=descriptors,
        )
        self.processes.append(process)
        with (self.directory / _PROCESSES).open("a") as file:
            file.write(f"{process.pid} {_start_time(process.pid)}\n")
        return process

    def _stop_processes(self) -> None:
        for process in reversed(self.processes):
            process.stop()
        self.processes.clear()

    def _close_namespaces(self) -> None:
        for namespace in self.namespaces:
            namespace.close()
        self.namespaces.clear()


def _make_directory(stack: ExitStack) -> Path:
    directory = Path(tempfile.gettempdir()) / f"{PREFIX}{secrets.token_hex(4)}"
    directory.mkdir(mode=0o700)
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    # Locked before it gets its name: a sweep that runs at the same time never finds it unlocked.
    unnamed = directory / f"{_OWNER}.new"
    owner = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, owner)
    fcntl.flock(owner, fcntl.LOCK_EX)
    unnamed.rename(directory / _OWNER)
    return directory


def sweep() -> list[str]:
    """Remove what machines with dead owners left behind. Returns their names. Living ones are not touched."""
    removed = []
    for directory in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            owner = os.open(directory / _OWNER, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # not a machine, another user's, or one that is just being made or removed
        try:
            try:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            _remove(directory)
            removed.append(directory.name)
        finally:
            os.close(owner)
    return removed


def _remove(directory: Path) -> None:
    try:
        listed = (directory / _PROCESSES).read_text().splitlines()
    except OSError:
        listed = []
    for line in listed:
        pid, _, start_time = line.partition(" ")
        if pid.isdigit() and start_time and _start_time(int(pid)) == start_time:
            try:
                os.killpg(int(pid), signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass
    for path in PUBLISHED.glob(f"{directory.name}-*"):
        unpublish(path)
    shutil.rmtree(directory, ignore_errors=True)


def _start_time(pid: int) -> str:
    """Returns when a process started, in clock ticks since boot (proc(5), field 22).

    Empty when it is gone.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    # The second field, the program's name, may contain anything; fields are counted from its last bracket.
    return text.rpartition(")")[2].split()[19]
