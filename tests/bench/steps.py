"""``make bench-steps``: what a round trip and a new connection cost, step by step, in less than a minute.

One process is both ends: application → 15001 (SOCKS5 here, so that it runs anywhere) → tunnel → 15008 →
application. Clients and the application that answers are other processes, so what is counted is the data
plane's alone. For each operation:

- CPU time, user and system, and how often Trio stepped a task, spawned one, and took a turn of its loop;
- containers allocated, and system calls (with strace, in a run of their own);
- where the user time goes: a profile by part of the program, as shares of the measured time. A profiler makes
  calls dearer than they are, so compare shares with shares.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import os
import pstats
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.bench import load
from tests.support.data_plane import running_plane
from ztunnel.observe.logging import setup_logging, shutdown_logging

SOCKS = ("127.0.0.1", 15080)
_HERE = "/ztunnel/"
_PARTS = (
    ("trio", "/trio/"),
    ("trio", "/outcome/"),
    ("h2, hpack", "/h2/"),
    ("h2, hpack", "/hpack/"),
    ("OpenSSL binding", "/OpenSSL/"),
    ("OpenSSL binding", "/cryptography/"),
    ("logging library", "/structlog/"),
)


class Counting(trio.abc.Instrument):
    """What Trio does."""

    def __init__(self) -> None:
        self.spawned = self.steps = self.turns = 0

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        del task
        self.spawned += 1

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        del task
        self.steps += 1

    def before_io_wait(self, timeout: float) -> None:
        del timeout
        self.turns += 1


@dataclass
class Cost:
    """Of one operation: microseconds, and how many."""

    user: float
    system: float
    spawned: float
    steps: float
    turns: float
    containers: float


def via_socks(port: int) -> socket.socket:
    """A connection to an application on loopback through the data plane."""
    connection = socket.create_connection(SOCKS, timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(
        b"\x05\x01\x00\x05\x01\x00\x01" + socket.inet_aton("127.0.0.1") + port.to_bytes(2, "big")
    )
    load.exactly(connection, 12)
    return connection


def client(operation: str, port: int, count: int) -> None:
    """The load: run in a process of its own."""
    if operation == "connect":
        for _ in range(count):
            with via_socks(port) as connection:
                connection.sendall(b"ex")
                load.exactly(connection, 1)
    elif operation == "roundtrip":
        with via_socks(port) as connection:
            connection.sendall(b"e")
            for _ in range(count):
                connection.sendall(bytes(load.MESSAGE))
                load.exactly(connection, load.MESSAGE)
    else:
        with via_socks(port) as connection:
            connection.sendall(b"s")
            left = count * 16384
            data = memoryview(bytes(load.CHUNK))
            while left:
                left -= connection.send(data[: min(left, load.CHUNK)])
            connection.shutdown(socket.SHUT_WR)
            load.exactly(connection, 8)


async def drive(operation: str, port: int, count: int) -> None:
    """Run the load to its end."""
    command = [sys.executable, "-m", "tests.bench.steps", "--client", operation, str(port), str(count)]
    await trio.run_process(command)


async def measure(operation: str, port: int, count: int) -> Cost:
    """What one operation costs; the start of the client is in it, hence many operations."""
    await drive(operation, port, max(count // 20, 1))
    counting = Counting()
    gc.collect()
    collections = gc.get_stats()[0]["collections"]
    before = resource.getrusage(resource.RUSAGE_SELF)
    trio.lowlevel.add_instrument(counting)
    await drive(operation, port, count)
    trio.lowlevel.remove_instrument(counting)
    after = resource.getrusage(resource.RUSAGE_SELF)
    made = (gc.get_stats()[0]["collections"] - collections) * gc.get_threshold()[0]
    return Cost(
        (after.ru_utime - before.ru_utime) * 1e6 / count,
        (after.ru_stime - before.ru_stime) * 1e6 / count,
        counting.spawned / count,
        counting.steps / count,
        counting.turns / count,
        made / count,
    )


def part_of(path: str) -> str:
    """To which part of the program a file belongs."""
    for name, mark in _PARTS:
        if mark in path:
            return name
    if _HERE in path:
        inside = path.rpartition(_HERE)[2]
        return f"ztunnel/{inside.partition('/')[0]}"
    return "C and the standard library" if path != "~" else "system calls, OpenSSL, built-ins"


async def profile(operation: str, port: int, count: int, functions: int) -> list[tuple[str, float]]:
    """Shares of the profiled time by part, the largest first. functions: how many of them are printed too."""
    profiler = cProfile.Profile()
    profiler.enable()
    await drive(operation, port, count)
    profiler.disable()
    if functions:
        profiler.dump_stats(f"/tmp/bench-steps-{os.getpid()}-{operation}")
        pstats.Stats(profiler).strip_dirs().sort_stats("tottime").print_stats(functions)
    times: dict[str, float] = {}
    for (path, _, name), (_, _, own, _, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        if "epoll" in name and "poll" in name.rpartition("'")[0]:
            continue  # waiting
        part = part_of(path)
        times[part] = times.get(part, 0) + own
    total = sum(times.values())
    return sorted(((part, own / total) for part, own in times.items()), key=lambda item: -item[1])


def system_calls(operation: str, port: int, count: int) -> dict[str, int]:
    """Attach strace to this process while the load runs. Empty without strace."""
    if shutil.which("strace") is None:
        return {}
    with tempfile.NamedTemporaryFile() as out:
        # The threads that there are, and not the client's process.
        threads = [word for thread in os.listdir("/proc/self/task") for word in ("-p", thread)]
        client_process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.steps", "--client", operation, str(port), str(count), "wait"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert client_process.stdout is not None
        client_process.stdout.readline()
        tracer = subprocess.Popen(["strace", "-c", *threads, "-o", out.name], stderr=subprocess.PIPE)
        assert tracer.stderr is not None
        tracer.stderr.readline()
        client_process.communicate(b"\n")
        tracer.terminate()
        tracer.communicate()
        calls = {}
        for line in Path(out.name).read_text().splitlines():
            found = re.match(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", line)
            if found and found[2] != "total":
                calls[found[2]] = int(found[1])
    return calls


OPERATIONS = {"roundtrip": 3000, "connect": 500, "bulk, 16 KiB": 16384}
"""By name: how many are measured."""


@asynccontextmanager
async def application() -> AsyncIterator[int]:
    """An application in another process. Yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "tests.bench.load", "serve", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    await trio.to_thread.run_sync(process.stdout.readline)
    try:
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@asynccontextmanager
async def plane_and_application() -> AsyncIterator[int]:
    """A data plane in this process, and an application in another. Yields the application's port."""
    async with application() as port, running_plane():
        yield port


async def run(scale: float, wanted: Callable[[str], bool], *, profiled: bool, functions: int) -> None:
    async with plane_and_application() as port:
        print(f"{'':14}{'user µs':>9}{'system':>8}{'tasks':>7}{'steps':>7}{'turns':>7}{'containers':>12}")
        for name, full in OPERATIONS.items():
            if not wanted(name):
                continue
            operation = name.partition(",")[0]
            count = int(full * scale)
            cost = await measure(operation, port, count)
            print(
                f"{name:14}{cost.user:9.0f}{cost.system:8.0f}{cost.spawned:7.1f}"
                f"{cost.steps:7.1f}{cost.turns:7.1f}{cost.containers:12.0f}"
            )
            if profiled:
                calls = await trio.to_thread.run_sync(system_calls, operation, port, count // 5)
                shown = sorted(calls.items(), key=lambda item: -item[1])[:12]
                print(f"{'':4}calls: " + ", ".join(f"{n} {c / (count // 5):.1f}" for n, c in shown))
                for part, share in (await profile(operation, port, count, functions))[:14]:
                    print(f"{'':4}{share * 100:5.1f} %  {part}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.steps", description=__doc__)
    parser.add_argument("--client", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--scale", type=float, default=1, help="how many operations, 1 is all (default 1)")
    parser.add_argument("--only", default="", help="only operations whose name contains this")
    parser.add_argument("--functions", type=int, default=0, help="also the functions that take most, so many")
    parser.add_argument("--plain", action="store_true", help="costs alone, without calls and profile")
    options = parser.parse_args()
    if options.client:
        operation, port, count, *wait = options.client
        if wait:
            print("there", flush=True)
            sys.stdin.readline()
        client(operation, int(port), int(count))
        return
    with open(os.devnull, "w") as nowhere:
        setup_logging({"RUST_LOG": "info", "LOG_FORMAT": "json"}, fd=nowhere.fileno())
        trio.run(
            lambda: run(
                options.scale,
                lambda name: options.only in name,
                profiled=not options.plain,
                functions=options.functions,
            )
        )
        shutdown_logging()


if __name__ == "__main__":
    main()
