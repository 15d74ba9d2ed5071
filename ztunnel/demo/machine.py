"""The namespaces, processes and files of one demo or test, which are all removed together.

`Machine.open` is a context manager. Everything that was made through the machine is removed when it closes:
at the end, after an exception, on Ctrl-C and on SIGTERM (`interruptible` turns both into exceptions). A
machine whose owner was killed cannot do that; the next machine that opens removes its leftovers. Each machine
has a directory ``zt-<random>`` with a file that its owner keeps locked; the kernel releases the lock when the
owner dies. The directory also lists the processes by number and start time, because numbers are reused.
Nothing outside such a directory, or without its name, is ever touched.
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
    """A signal asked this program to end. Its exit status is 128 plus the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside the ``with``, SIGTERM, SIGHUP and SIGINT raise InterruptedByError once, so that clean-up runs.

    Further signals are ignored, so a second Ctrl-C does not interrupt the clean-up.
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
    """A set of namespaces and processes that end together. Made by `open`."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.name = directory.name
        self.namespaces: list[OwnedNamespace] = []
        self.processes: list[Process] = []
        self._stack = stack

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Machine]:
        """A new, empty machine. Leftovers of dead machines are removed first."""
        sweep()
        with ExitStack() as stack:
            machine = cls(_make_directory(stack), stack)
            # The processes end first, then their namespaces are closed, then the files are removed.
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
    # Locked before it gets its name, so another machine's clean-up never finds it unlocked.
    unnamed = directory / f"{_OWNER}.new"
    owner = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, owner)
    fcntl.flock(owner, fcntl.LOCK_EX)
    unnamed.rename(directory / _OWNER)
    return directory


def sweep() -> list[str]:
    """Remove the leftovers of machines whose owners are dead. Returns their names."""
    removed = []
    for directory in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            owner = os.open(directory / _OWNER, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # not a machine, another user's, or just being made or removed
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
