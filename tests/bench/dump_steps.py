"""The longest steps of the loop while a config dump is fetched and connections are being set up.

usage (as root): unshare -n sh -c 'ip link set lo up && python -m tests.bench.dump_steps [WORKLOADS]'

One process, as with one worker: the data plane with the mesh, and the server of the dump. The clients of the
dump and of the connections are other processes. A step is what one task does between two waits; nothing else
runs meanwhile. It is measured in CPU time of the loop's thread, so other processes do not count, and the
collector of garbage counts in the step in which it runs.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import AsyncGenerator
from functools import partial
from itertools import count

import msgspec
import trio

from tests.bench.steps import application, drive
from tests.support import big_meshes
from tests.support.data_plane import Control, running_plane
from tests.support.serving import serving
from ztunnel.admin.config_dump import AdminProviders, config_dump
from ztunnel.admin.http import Request, Response
from ztunnel.messages import DumpChunk, DumpSection, DumpTaken, DumpWanted
from ztunnel.observe.logging import setup_logging, shutdown_logging
from ztunnel.slices import batches
from ztunnel.system.memory import GrowthWatch, spare_collector

AT_ONCE = 10_000
CONNECTIONS = 500
SHOWN = 8
_FETCH = "import sys, urllib.request as r; print(len(r.urlopen(sys.argv[1], timeout=600).read()))"


class Steps(trio.abc.Instrument):
    """The steps of all tasks: how many, and the longest of each task's name, in CPU milliseconds."""

    def __init__(self) -> None:
        self.count = 0
        self.longest: dict[str, float] = {}
        self._began = time.thread_time()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        del task
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        took = (time.thread_time() - self._began) * 1e3
        self.count += 1
        name = re.sub(r"[\d.]+:\d+", "…", task.name)
        self.longest[name] = max(took, self.longest.get(name, 0.0))


async def section(
    control: Control, numbers: count[int], wanted: DumpSection
) -> AsyncGenerator[tuple[msgspec.Raw, ...], None]:
    """A section of the dump, as the control side gets it."""
    number = next(numbers)
    await control.to_plane.send(DumpWanted(number, wanted))
    while True:
        chunk = await control.wait_for(DumpChunk, number=number)
        yield tuple(map(msgspec.Raw, chunk.items))
        if chunk.last:
            return
        await control.to_plane.send(DumpTaken(number))


async def measure(workloads: int) -> None:
    numbers = count(1 << 32)
    spare_collector()
    async with application() as port, running_plane() as control:
        growth = GrowthWatch(AT_ONCE)
        for resources in batches(big_meshes.sync(workloads).resources, AT_ONCE):
            await control.apply(*resources)
        growth.grown(workloads)
        of = partial(partial, section, control, numbers)
        providers = AdminProviders(
            {},
            {},
            policies=of(DumpSection.POLICIES),
            services=of(DumpSection.SERVICES),
            staged=of(DumpSection.STAGED_SERVICES),
            workloads=of(DumpSection.WORKLOADS),
        )

        async def dump(_request: Request) -> Response:
            return Response(200, config_dump(providers), "application/json")

        async with serving(dump) as served:
            await drive("connect", port, CONNECTIONS // 10)
            for title, fetches in (("connections alone", False), ("a dump and connections", True)):
                steps = Steps()
                trio.lowlevel.add_instrument(steps)
                async with trio.open_nursery() as nursery:
                    if fetches:
                        nursery.start_soon(fetch, served.port, nursery.cancel_scope)
                        nursery.start_soon(connect_forever, port)
                    else:
                        await drive("connect", port, CONNECTIONS)
                trio.lowlevel.remove_instrument(steps)
                print(f"{title}: {steps.count:,} steps; the longest by task, CPU ms:")
                for name, took in sorted(steps.longest.items(), key=lambda item: -item[1])[:SHOWN]:
                    print(f"  {took:6.2f}  {name}")


async def connect_forever(port: int) -> None:
    while True:
        await drive("connect", port, CONNECTIONS)


async def fetch(port: int, whole: trio.CancelScope) -> None:
    """Fetch the dump once, then end what runs beside it."""
    url = f"http://127.0.0.1:{port}/config_dump"
    done = await trio.run_process([sys.executable, "-c", _FETCH, url], capture_stdout=True)
    print(f"the dump has {int(done.stdout) / 1e6:.0f} MB")
    whole.cancel()


def main() -> None:
    with open(os.devnull, "w") as nowhere:
        setup_logging({"RUST_LOG": "info"}, fd=nowhere.fileno())
        trio.run(measure, int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
        shutdown_logging()


if __name__ == "__main__":
    main()
