"""What questions about a node cost its loop: the longest turn of a task while many connections are open.

usage: unshare -n sh -c 'ip link set lo up && python -m tests.bench.asked [CONNECTIONS]'    (as root)

One process is both ends, so half of the connections are outgoing and half are incoming; the sockets of the
clients and of the server are in it too. Printed for each question: the longest turn of any task, the longest
collection of garbage, which falls into some turn, and all turns together. It is CPU time, so other work on
the machine does not count, but the cache that it takes away does. The one long collection that becomes due
when so many connections have been opened is made before.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from time import thread_time
from typing import Any

import trio

from tests.support.data_plane import Control, echo, running_plane, server, via_socks
from ztunnel.messages import Topic
from ztunnel.sockets.descriptor_limit import raise_descriptor_limit


class Turns(trio.abc.Instrument):
    """Measures each turn of a task."""

    def __init__(self) -> None:
        self.longest = self.total = self.collecting = 0.0
        self.whose = ""
        self._began = self._collection = thread_time()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Called by trio."""
        self._began = thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Called by trio."""
        took = thread_time() - self._began
        self.total += took
        if took > self.longest:
            self.longest, self.whose = took, task.name

    def collected(self, phase: str, _info: dict[str, int]) -> None:
        """Called by the garbage collector."""
        if phase == "start":
            self._collection = thread_time()
        else:
            self.collecting = max(self.collecting, thread_time() - self._collection)


async def opened(port: int, count: int, stack: AsyncExitStack) -> None:
    """Open connections that stay until the stack closes, some at a time."""
    limit = trio.CapacityLimiter(50)

    async def one() -> None:
        async with limit:
            stream = await stack.enter_async_context(await via_socks(port))
            await stream.send_all(b"x")
            assert await stream.receive_some(1) == b"x"

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)


def questions(control: Control) -> dict[str, Callable[[], Awaitable[Any]]]:
    """The questions behind the admin pages."""
    return {
        "/debug/tasks": lambda: control.ask(Topic.TASKS),
        "/debug/sockets": lambda: control.ask(Topic.SOCKETS),
        "/debug/pool": lambda: control.ask(Topic.POOL),
        "/connections": lambda: control.ask(Topic.CONNECTIONS),
        "/connections?peer=": lambda: control.ask(Topic.CONNECTIONS, peer="default/local"),
        "/explain": lambda: control.ask(Topic.EXPLAIN, **{"from": "default/local", "to": "127.0.0.1:80"}),
        "/metrics": control.report,
    }


async def main(count: int) -> None:
    """Print the table."""
    raise_descriptor_limit()
    async with running_plane() as control, server(echo) as port, AsyncExitStack() as stack:
        await opened(port, count // 2, stack)
        began = thread_time()
        gc.collect()
        print(f"{count:,} connections; a collection of all: {1000 * (thread_time() - began):.0f} ms")
        print(f"{'question':<20} {'longest ms':>10} {'collection ms':>14} {'all ms':>8}  whose")
        for name, ask in questions(control).items():
            turns = Turns()
            trio.lowlevel.add_instrument(turns)
            gc.callbacks.append(turns.collected)
            await ask()
            gc.callbacks.remove(turns.collected)
            trio.lowlevel.remove_instrument(turns)
            longest, collecting = 1000 * turns.longest, 1000 * turns.collecting
            print(
                f"{name:<20} {longest:>10.1f} {collecting:>14.1f} {1000 * turns.total:>8.0f}  {turns.whose}"
            )


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 5_000)
