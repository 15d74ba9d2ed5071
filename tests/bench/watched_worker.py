"""The data plane of `tests.bench.hostile`: ``python -m tests.bench.watched_worker DESCRIPTOR``.

It is the worker of `ztunnel.dataplane.worker`, and notes how long its loop is busy between two looks at the
sockets: that is what others wait for. In CPU time, which other programs on the machine do not change. On
SIGUSR1 it writes percentiles to the file that ``BENCH_PASSES`` names.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from time import thread_time

import msgspec
import trio
from trio.abc import Instrument

from ztunnel.config.load_from_machine import load_from_machine
from ztunnel.config.model import Config
from ztunnel.dataplane.worker import _main
from ztunnel.observe.logging import setup_logging
from ztunnel.system.memory import spare_collector

VARIABLE = "BENCH_PASSES"


class Passes(Instrument):
    """Milliseconds of CPU time of each pass of the loop."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._began = thread_time()

    def after_io_wait(self, timeout: float) -> None:
        self._began = thread_time()

    def before_io_wait(self, timeout: float) -> None:
        self._times.append((thread_time() - self._began) * 1e3)

    def write(self, *_: object) -> None:
        """Say what there was since the last time."""
        times, self._times = sorted(self._times), []
        found = [times[len(times) * part // 1000] for part in (990, 999)]
        file = Path(os.environ[VARIABLE])
        draft = file.with_suffix(".new")
        draft.write_bytes(msgspec.json.encode(found))
        draft.rename(file)


async def watched(config: Config, descriptor: int) -> None:
    passes = Passes()
    signal.signal(signal.SIGUSR1, passes.write)
    trio.lowlevel.add_instrument(passes)
    await _main(config, descriptor)


if __name__ == "__main__":
    setup_logging(os.environ)
    spare_collector()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    trio.run(watched, load_from_machine(os.environ), int(sys.argv[1]))
