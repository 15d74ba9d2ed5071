"""Traffic in the cluster as users have it: image-context/client.py in a pod, and what it says at its end."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.mesh import Tools

_CLIENT = Path(__file__).parent / "image-context" / "client.py"


@dataclass
class Outcome:
    """What a client saw. Counts are requests; for the stream, lines. ``slowest`` in seconds.

    failures: when each new connection that failed began and when it failed (Unix time).
    slow: new connections that took longer than half a second: when each began (Unix time), seconds for its
        name, for TCP's handshake, and in all.
    """

    new: int = 0
    new_failed: int = 0
    slowest: float = 0.0
    kept: int = 0
    kept_failed: int = 0
    slowest_kept: float = 0.0
    lines: int = 0
    stream_breaks: int = 0
    errors: list[str] = field(default_factory=list)
    failures: list[tuple[float, float]] = field(default_factory=list)
    slow: list[tuple[float, float, float, float]] = field(default_factory=list)

    def __str__(self) -> str:
        new = self.new + self.new_failed
        return (
            f"{self.new_failed} of {new} new connections failed, the slowest {self.slowest:.2f} s; "
            f"kept-alive cut {self.kept_failed} times, stream {self.stream_breaks} times"
        )

    @property
    def slow_words(self) -> str:
        """How many took longer than half a second, and what took most of it: DNS, or TCP's handshake."""
        names = sum(name > took / 2 for _, name, _, took in self.slow)
        handshakes = sum(handshake > took / 2 for _, _, handshake, took in self.slow)
        return f"{len(self.slow)} took longer than 0.5 s, {names} for DNS, {handshakes} for TCP's handshake"

    @property
    def gap(self) -> float:
        """Seconds from the first failed new connection to the last."""
        ends = [ended for _, ended in self.failures]
        return max(ends) - min(ends) if ends else 0.0


@contextmanager
def traffic(tools: Tools, *, seconds: float, rate: float, url: str = "http://web", pod: str = "deploy/sleep",
            namespace: str = "demo", until_done: bool = False) -> Iterator[Outcome]:  # fmt: skip
    """A client runs for that long, whatever the block does; the outcome is whole after the block.

    With ``until_done`` it ends with the block, and after that many seconds at the latest.
    """
    outcome = Outcome()
    stop = f"/tmp/stop-{time.monotonic_ns()}"
    command = [
        "kubectl",
        "-n",
        namespace,
        "exec",
        "-i",
        pod,
        "--",
        "python3",
        "-u",
        "-",
        url,
        str(seconds),
        str(rate),
        *([stop] if until_done else []),
    ]
    with (
        _CLIENT.open() as program,
        subprocess.Popen(
            command, stdin=program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=tools.env
        ) as process,
    ):
        try:
            yield outcome
            if until_done:
                tools.kubectl("-n", namespace, "exec", pod, "--", "touch", stop)
            said, _ = process.communicate(timeout=seconds + 90)
        except BaseException:
            process.kill()
            raise
    last = said.strip().splitlines()[-1] if said.strip() else ""
    try:
        result: dict[str, Any] = json.loads(last)
    except ValueError:
        raise AssertionError(f"the client did not come to its end: {said[-1500:]}") from None
    new, kept, stream = result["new"], result["kept"], result["stream"]
    outcome.new, outcome.new_failed, outcome.slowest = new["ok"], new["failed"], new["slowest"]
    outcome.kept, outcome.kept_failed, outcome.slowest_kept = kept["ok"], kept["failed"], kept["slowest"]
    outcome.lines, outcome.stream_breaks = stream["ok"], stream["failed"]
    outcome.slow = [(began, name, handshake, took) for began, name, handshake, took in result["slow"]]
    outcome.errors = [words for _, words in result["errors"]]
    outcome.failures = [(began, ended) for began, ended in result["failed"]]
