"""The end of grpcio's threads, which comes a moment after that of the last channel and the last server.

Until then they hold descriptors, and the network namespace in which they were started: what dials later, from
a thread that is still there, dials in that namespace.
"""

from __future__ import annotations

import gc
import time
from pathlib import Path

_NAMES = ("event_engine", "lifeguard", "grpc_")
_SECONDS = 60.0


def grpc_threads() -> list[str]:
    """Returns the names of grpcio's own threads in this process."""
    names = []
    for task in Path("/proc/self/task").iterdir():
        try:
            name = (task / "comm").read_text().strip()
        except OSError:
            continue
        if name.startswith(_NAMES):
            names.append(name)
    return names


def wait_for_the_end_of_grpc() -> None:
    """Return once grpcio has no threads here. Raises AssertionError if a channel or a server stays open."""
    deadline = time.monotonic() + _SECONDS
    while left := grpc_threads():
        assert time.monotonic() < deadline, f"a channel or a server was not closed: {left}"
        gc.collect()
        time.sleep(0.01)
