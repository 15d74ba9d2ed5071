"""Child processes of a machine: started in a namespace, their output in a file, waited for by events."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ztunnel.demo.namespaces import OwnedNamespace

T = TypeVar("T")

_LOG_TAIL = 4000
_POLL_INTERVAL = 0.02


class ProcessEndedError(RuntimeError):
    """A process that was waited for ended instead. The text has the end of its output."""


class NotReadyError(RuntimeError):
    """A condition was not met in time. The text has the end of the process's output."""


class Process:
    """A running program. `stop` ends it; otherwise the machine that started it does."""

    def __init__(
        self, name: str, popen: subprocess.Popen[bytes], log: Path, namespace: OwnedNamespace | None
    ) -> None:
        self.name = name
        self.log = log
        self.namespace = namespace
        self._popen = popen
        self._pidfd = os.pidfd_open(popen.pid)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._popen.poll()

    def output(self) -> str:
        """Returns all that it has written so far, to standard output and standard error."""
        return self.log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        """Send a signal. Does nothing when the process has ended."""
        try:
            self._popen.send_signal(number)
        except ProcessLookupError:
            pass

    def wait(self, timeout: float) -> int:
        """Returns the exit status, once it has ended. Raises NotReadyError after ``timeout`` seconds."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise NotReadyError(
                f"{self.name} still runs after {timeout} s. The end of its output:\n{self._tail()}"
            ) from None

    def wait_until(self, condition: Callable[[], T | None], *, what: str, timeout: float) -> T:
        """Try a condition until it returns something other than None or False. Returns that.

        It waits for the end of the process between two tries, so that is noticed at once (ProcessEndedError).
        Raises NotReadyError, with ``what`` in the text, after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        while True:
            result = condition()
            if result is not None and result is not False:
                return result
            if poller.poll(_POLL_INTERVAL * 1000) and self.returncode is not None:
                # Its last words may have come after the try.
                result = condition()
                if result is not None and result is not False:
                    return result
                raise ProcessEndedError(
                    f"{self.name} ended with status {self.returncode}. The end of its output:\n{self._tail()}"
                )
            if time.monotonic() > deadline:
                raise NotReadyError(
                    f"{self.name}: not {what} within {timeout} s. The end of its output:\n{self._tail()}"
                )

    def stop(self, grace: float = 0.0) -> int:
        """End it by SIGTERM, and by SIGKILL after ``grace`` seconds. Returns the exit status."""
        if grace > 0 and self.returncode is None:
            self.signal(signal.SIGTERM)
            try:
                self._popen.wait(grace)
            except subprocess.TimeoutExpired:
                pass
        if self.returncode is None:
            self._kill_session()
        status = self._popen.wait()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        return status

    def _kill_session(self) -> None:
        # Each process leads a session of its own, so this reaches its children too.
        try:
            os.killpg(self._popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def _tail(self) -> str:
        return self.output()[-_LOG_TAIL:]


def spawn(
    name: str,
    command: Sequence[str],
    *,
    log: Path,
    namespace: OwnedNamespace | None = None,
    env: Mapping[str, str] | None = None,
    directory: Path | None = None,
    descriptors: Sequence[int] = (),
) -> Process:
    """Start a program in a namespace, in a session of its own, with its output appended to ``log``.

    ``env`` replaces the environment; ``descriptors`` are open in it under the same numbers. Raises OSError
    when the program cannot be started.
    """

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(  # noqa: S603 - the commands are ours, no shell is involved
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                cwd=directory,
                start_new_session=True,
                pass_fds=descriptors,
            )

    if namespace is None:
        return Process(name, start(), log, None)
    # A child starts in the namespace of the thread that forks it.
    with namespace.entered():
        popen = start()
    return Process(name, popen, log, namespace)


def run(
    command: Sequence[str],
    *,
    namespace: OwnedNamespace | None = None,
    text_input: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 30.0,
) -> subprocess.CompletedProcess[str]:
    """Run a program in a namespace to its end; its output is captured, its status is not checked.

    Raises OSError when it cannot be started, and subprocess.TimeoutExpired (the program is killed) after
    ``timeout`` seconds.
    """

    def execute() -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603 - the commands are ours, no shell is involved
            list(command),
            input=text_input,
            stdin=None if text_input is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=None if env is None else dict(env),
            timeout=timeout,
            check=False,
        )

    if namespace is None:
        return execute()
    with namespace.entered():
        return execute()
