"""A client that sets connections up one after the other and writes down how long each took.

usage: python -m tests.bench.setups HOST PORT FILE SECONDS-BETWEEN

Each line of the file is the time at which a connection was begun (seconds of the monotonic clock, which all
processes of a machine share) and what it took until the first byte had come back, or ``failed`` and why. It
goes on until it is killed.
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from typing import NamedTuple

TIMEOUT = 10.0


class Setup(NamedTuple):
    """One connection: when it was begun, and the seconds until its first answer."""

    began: float
    took: float


def read(path: Path) -> tuple[list[Setup], list[str]]:
    """The connections in a file, and the failures."""
    setups, failures = [], []
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            continue  # the last one is just being written
        began, _, took = line.rstrip().partition(" ")
        if took.startswith("failed"):
            failures.append(line.rstrip())
        else:
            setups.append(Setup(float(began), float(took)))
    return setups, failures


def once(host: str, port: int) -> float:
    """Seconds from connect to the first byte back from an echo server that expects an ``e`` first."""
    began = time.monotonic()
    with socket.create_connection((host, port), timeout=TIMEOUT) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(b"ex")
        if connection.recv(1) != b"x":
            raise ConnectionError("the connection ended before the answer")
        return time.monotonic() - began


def main(arguments: list[str]) -> None:
    host, port, path, pause = arguments
    with Path(path).open("a", buffering=1) as file:
        while True:
            began = time.monotonic()
            try:
                file.write(f"{began:.6f} {once(host, int(port)):.6f}\n")
            except OSError as error:
                file.write(f"{began:.6f} failed {error}\n")
            time.sleep(float(pause))


if __name__ == "__main__":
    main(sys.argv[1:])
