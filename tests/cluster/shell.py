"""Running programs, and files that remember them from one `make` to the next."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class CommandFailed(Exception):
    """A program ended with another status than 0; its last words are the message."""


def run(
    *command: str | Path,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout: float = 300.0,
    check: bool = True,
    cwd: Path | None = None,
    both: bool = False,
) -> str:
    """What the program says on standard output; with ``both`` what it says on standard error before it.

    Raises CommandFailed when it fails (with `check`), and subprocess.TimeoutExpired after `timeout` seconds.
    """
    done = subprocess.run(
        [str(each) for each in command],
        env=env,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=cwd,
    )
    if check and done.returncode:
        words = (done.stderr or done.stdout).strip()[-3000:]
        raise CommandFailed(
            f"{' '.join(str(each) for each in command)[:400]}: status {done.returncode}\n{words}"
        )
    return done.stderr + done.stdout if both else done.stdout


def until(what: str, seconds: float, ready: Callable[[], bool], every: float = 0.2) -> float:
    """Waits until `ready` answers true.

    Returns how long that took, in seconds. Raises TimeoutError that names `what`.
    """
    started = time.monotonic()
    while not ready():
        if time.monotonic() - started > seconds:
            raise TimeoutError(f"{what}: not after {seconds:.0f} s")
        time.sleep(every)
    return time.monotonic() - started


def _ticks(pid: int) -> str | None:
    """When the process started, in clock ticks since boot: with the number, this names a process for good."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


class Daemon:
    """A process that outlives the command that started it.

    Its file in the state directory says which process it is.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def start(self, command: Sequence[str | Path], log: Path, cwd: Path | None = None) -> None:
        """Starts it in a session of its own, with both outputs appended to `log`, unless it runs already."""
        if self.pid() is not None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            process = subprocess.Popen(
                [str(each) for each in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                cwd=cwd,
            )
        self._file.write_text(json.dumps({"pid": process.pid, "started": _ticks(process.pid)}))

    def pid(self) -> int | None:
        """Its process id, or None when it does not run."""
        try:
            known = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return None
        pid: int = known["pid"]
        started = _ticks(pid)
        if started is None or started != known["started"] or _is_zombie(pid):
            return None
        return pid

    def stop(self, first: signal.Signals = signal.SIGTERM, patience: float = 10.0) -> None:
        """Ends it: by `first`, and by SIGKILL after `patience` seconds."""
        pid = self.pid()
        if pid is not None:
            os.kill(pid, first)
            try:
                until("end of process", patience, lambda: self.pid() is None, every=0.05)
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                until("end of a killed process", 30, lambda: self.pid() is None, every=0.05)
        self._file.unlink(missing_ok=True)


def _is_zombie(pid: int) -> bool:
    try:
        os.waitpid(pid, os.WNOHANG)  # our own child, when this process started it
    except ChildProcessError:
        pass
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True
