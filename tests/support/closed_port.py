"""A port of loopback on which nobody answers.

It is taken all the time. A port that was free a moment ago may be another test's by now.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def closed_port(kind: int = socket.SOCK_STREAM) -> Iterator[int]:
    """Yields a port of 127.0.0.1 that refuses connections (SOCK_STREAM) or datagrams (SOCK_DGRAM)."""
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_DGRAM:
            # Connected, it takes nothing from any other peer, and the kernel refuses the rest.
            taken.connect(("127.0.0.1", 9))
        yield int(taken.getsockname()[1])
