"""``python -m tests.bench.unasked``: what the answers to "why?" cost when nobody asks.

One process is both ends, as in `tests.bench.steps`. It carries batches of operations, alternately as it is
and with one part of the record keeping replaced by nothing: the history, the ids, the histograms, or all of
them. The parts are switched inside the process, batch by batch and in an order that changes, so other work on
the machine disturbs all alike. What counts is the CPU time of this process. Printed: how much lower the mean
of the batches is that other work disturbed least, a third of them, with twice its standard error.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

import trio

from tests.bench.steps import client, plane_and_application
from ztunnel.observe.logging import setup_logging, shutdown_logging
from ztunnel.observe.traffic import Histogram
from ztunnel.proxy.history import History
from ztunnel.proxy.report import ConnectionReport

BATCHES = {"connect": 20, "roundtrip": 400}
"""By operation: how many are one batch."""


def _nothing(*_: object, **__: object) -> None:
    pass


def _count_only(self: ConnectionReport, count: int) -> None:
    metrics = self._metrics
    assert metrics is not None
    metrics.add_sent(count)


PARTS: dict[str, tuple[tuple[type, str, Any], ...]] = {
    "history": ((History, "later", _nothing),),
    "ids": ((History, "id_of", lambda *_: ""),),
    "histograms": ((Histogram, "add", _nothing), (ConnectionReport, "sent", _count_only)),
}
"""By name: what stands in place of which attributes when this part is switched off."""
PARTS["all of them"] = tuple(switch for part in tuple(PARTS.values()) for switch in part)
AS_IT_IS = "as it is"


@contextmanager
def without(part: str) -> Iterator[None]:
    """Switch a part off while the block runs."""
    switches = PARTS.get(part, ())
    kept = [(owner, name, owner.__dict__[name]) for owner, name, _ in switches]
    for owner, name, instead in switches:
        setattr(owner, name, instead)
    try:
        yield
    finally:
        for owner, name, value in kept:
            setattr(owner, name, value)


async def batch(load: trio.Process) -> float:
    """Seconds of our CPU time for one batch of the client's."""
    assert load.stdin is not None
    assert load.stdout is not None
    before = time.process_time()
    await load.stdin.send_all(b"\n")
    if not await load.stdout.receive_some(1):
        raise RuntimeError("the client has ended")
    return time.process_time() - before


async def compare(operation: str, port: int, rounds: int, parts: list[str]) -> None:
    count = BATCHES[operation]
    command = [sys.executable, "-m", "tests.bench.unasked", "--client", operation, str(port), str(count)]
    load = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    times: dict[str, list[float]] = {name: [] for name in (AS_IT_IS, *parts)}
    order, random = list(times), Random(0)
    try:
        for _ in range(4):
            await batch(load)
        for _ in range(rounds):
            random.shuffle(order)
            gc.collect()
            for name in order:
                with without(name):
                    times[name].append(await batch(load) / count * 1e6)
    finally:
        load.kill()
        await load.wait()
    whole, whole_error = undisturbed(times[AS_IT_IS])
    print(f"{operation}: {whole:.1f} µs of CPU time, {rounds} rounds of {count}")
    for name in parts:
        less, error = undisturbed(times[name])
        saved, both = whole - less, 2 * math.hypot(error, whole_error)
        print(f"    {name:12} {saved:6.1f} ± {both:.1f} µs, {saved / whole * 100:5.2f} %")


def undisturbed(values: list[float]) -> tuple[float, float]:
    """The mean of the lower third, where other work disturbed least, and its standard error."""
    lowest = sorted(values)[: max(len(values) // 3, 2)]
    return statistics.fmean(lowest), statistics.stdev(lowest) / len(lowest) ** 0.5


async def run(operations: list[str], rounds: int, parts: list[str]) -> None:
    async with plane_and_application() as port:
        for operation in operations:
            await compare(operation, port, rounds, parts)


def serve_batches(operation: str, port: int, count: int) -> None:
    """The client's process: one batch for each line on stdin."""
    answer: Callable[[bytes], object] = sys.stdout.buffer.write
    for _ in sys.stdin:
        client(operation, port, count)
        answer(b".")
        sys.stdout.buffer.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.unasked", description=__doc__)
    parser.add_argument("--client", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=300, help="how often each is measured (default 300)")
    parser.add_argument("--only", choices=list(BATCHES), action="append", help="this operation alone")
    parser.add_argument("--part", choices=list(PARTS), action="append", help="switch off this part alone")
    options = parser.parse_args()
    if options.client:
        operation, port, count = options.client
        serve_batches(operation, int(port), int(count))
        return
    with open(os.devnull, "w") as nowhere:
        setup_logging({"RUST_LOG": "info", "LOG_FORMAT": "json"}, fd=nowhere.fileno())
        trio.run(run, options.only or list(BATCHES), options.rounds, options.part or list(PARTS))
        shutdown_logging()


if __name__ == "__main__":
    main()
