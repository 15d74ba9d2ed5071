"""Connections with mixed endings, and a census before and after: ``python -m tests.soak.mixed_endings``.

A data plane in this process carries connections of all kinds, some at a time; each ends in one of the ways in
`ENDINGS`. The census counts what the process holds when all is quiet: descriptors, tasks, and objects of
ztunnel's own types. After a first round, which fills what is meant to stay (caches, metrics), it must be the
same after any number of connections. Exit status 0: it is. Wants root, for a network namespace of its own.
Figures: docs/measurements/soak.md.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from random import Random

import trio

from tests.support.census import open_descriptors
from tests.support.data_plane import CONFIG, Control, deny_port, running_plane, server, via_socks
from tests.support.other_side import until_none_is_open
from tests.support.own_namespace import enter_network_namespace
from tests.support.processes import own_memory
from tests.support.traffic import reset
from ztunnel.sockets.splice import Pipe, PipePool

HERE, OUTSIDE = "127.0.0.1", "127.0.0.2"
"""The pod itself, over HBONE both ways, and a destination that is not of the mesh."""

QUIET_CONFIG = replace(CONFIG, connection_history=0, pool_unused_release_timeout=0.2)
"""No connection is remembered, and no tunnel is idle for long."""

PIECE = bytes(20_000)


@dataclass
class Ports:
    """Where the applications are: one that echoes, one that resets, one that policy denies, and nobody."""

    echo: int
    resets: int
    denied: int
    nobody: int = 9


async def whole(ports: Ports, ip: str) -> None:
    """Sent, half-closed, answered."""
    async with await via_socks(ports.echo, ip) as stream:
        await stream.send_all(PIECE)
        await stream.send_eof()
        received = 0
        async for data in stream:
            received += len(data)
        assert received == len(PIECE)


async def left_at_once(ports: Ports, ip: str) -> None:
    """Closed without a byte."""
    await (await via_socks(ports.echo, ip)).aclose()


async def closed_in_the_middle(ports: Ports, ip: str) -> None:
    """Closed while the answer comes: what is unread makes it a reset."""
    async with await via_socks(ports.echo, ip) as stream:
        await stream.send_all(PIECE)
        await stream.receive_some(100)


async def reset_by_the_client(ports: Ports, ip: str) -> None:
    stream = await via_socks(ports.echo, ip)
    await stream.send_all(b"x")
    reset(stream)


async def reset_after_half_closing(ports: Ports, ip: str) -> None:
    stream = await via_socks(ports.echo, ip)
    await stream.send_all(PIECE)
    await stream.send_eof()
    reset(stream)


async def reset_by_the_server(ports: Ports, ip: str) -> None:
    async with await via_socks(ports.resets, ip) as stream:
        await stream.send_all(b"x")
        await stream.receive_some(100)


async def denied(ports: Ports, ip: str) -> None:
    del ip  # policy is asked at the receiving end
    async with await via_socks(ports.denied, HERE) as stream:
        await stream.receive_some(100)


async def taken_by_nobody(ports: Ports, ip: str) -> None:
    async with await via_socks(ports.nobody, ip) as stream:
        await stream.receive_some(100)


async def half_a_socks_request(ports: Ports, ip: str) -> None:
    del ports, ip
    async with await trio.open_tcp_stream(HERE, 15080) as stream:
        await stream.send_all(b"\x05\x01")


Ending = Callable[[Ports, str], Awaitable[None]]
ENDINGS: tuple[Ending, ...] = (
    whole,
    left_at_once,
    closed_in_the_middle,
    reset_by_the_client,
    reset_after_half_closing,
    reset_by_the_server,
    denied,
    taken_by_nobody,
    half_a_socks_request,
)


async def echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)


async def resets(stream: trio.SocketStream) -> None:
    await stream.receive_some(1)
    reset(stream)


class Endings:
    """Connections through a data plane. ``ended``: how many of each kind."""

    def __init__(self, control: Control, ports: Ports) -> None:
        self.control = control
        self.ended: Counter[str] = Counter()
        self._ports = ports

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[Endings]:
        """The data plane, the applications on both addresses, and the policy that denies one of them."""
        async with AsyncExitStack() as stack:
            control = await stack.enter_async_context(running_plane(QUIET_CONFIG))
            first = [await stack.enter_async_context(server(one, HERE)) for one in (echo, resets, echo)]
            ports = Ports(*first)
            for handler, port in zip((echo, resets, echo), first, strict=True):
                listeners = await trio.open_tcp_listeners(port, host=OUTSIDE)
                nursery = await stack.enter_async_context(trio.open_nursery())
                nursery.start_soon(trio.serve_listeners, partial(_forgiving, handler), listeners)
                stack.callback(nursery.cancel_scope.cancel)
            await control.policies(deny_port(ports.denied))
            yield cls(control, ports)

    async def run(
        self, count: int, at_once: int, random: Random, endings: Sequence[Ending] = ENDINGS
    ) -> None:
        """Make ``count`` connections, ``at_once`` at a time, and wait until none is open."""
        left = count

        async def one_after_the_other() -> None:
            nonlocal left
            while left:
                left -= 1
                ending = random.choice(endings)
                try:
                    with trio.fail_after(60):
                        await ending(self._ports, random.choice((HERE, OUTSIDE)))
                except (trio.BrokenResourceError, ConnectionResetError):
                    pass  # some of them are to end so
                self.ended[ending.__name__] += 1

        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(one_after_the_other)
        await until_none_is_open(self.control)

    async def leave_one_open(self) -> trio.SocketStream:
        """An established connection, for the caller to close."""
        stream = await via_socks(self._ports.echo)
        await stream.send_all(b"x")
        assert await stream.receive_some(1) == b"x"
        return stream

    async def census(self) -> Counter[str]:
        """What this process holds, once it changes no more (a minute at most)."""
        before: Counter[str] | None = None
        with trio.move_on_after(60):
            while (now := _count()) != before:
                before = now
                await trio.sleep(1)
        return now


async def _forgiving(
    handler: Callable[[trio.SocketStream], Awaitable[None]], stream: trio.SocketStream
) -> None:
    try:
        await handler(stream)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return


def _count() -> Counter[str]:
    gc.collect()
    found: Counter[str] = Counter()
    for text in open_descriptors(os.getpid()):
        found[f"descriptors: {text.partition(':')[0]}"] += 1
    found["tasks"] = trio.lowlevel.current_statistics().tasks_living
    for one in gc.get_objects():
        kind = type(one)
        if str(kind.__module__).startswith("ztunnel."):
            found[f"{kind.__module__}.{kind.__qualname__}"] += 1
        if isinstance(one, PipePool):
            # How many empty pipes it keeps depends on how many were in use at once; it keeps 16 at most.
            found["descriptors: pipe"] -= 2 * one.idle
            found[f"{Pipe.__module__}.{Pipe.__qualname__}"] -= one.idle
    return found


def difference(before: Counter[str], after: Counter[str]) -> dict[str, tuple[int, int]]:
    """What there is more of afterwards, with both numbers."""
    return {name: (before[name], number) for name, number in after.items() if number > before[name]}


async def main(connections: int, at_once: int, seed: int) -> int:
    """Returns the exit status."""
    random = Random(seed)
    async with Endings.open() as endings:
        began = time.monotonic()
        await endings.run(max(1000, 20 * at_once), at_once, random)
        base = await endings.census()
        _say(endings, "base", began)
        most = endings.ended.total() + connections
        while endings.ended.total() < most:
            await endings.run(min(10_000, most - endings.ended.total()), at_once, random)
            now = await endings.census()
            _say(endings, f"{len(difference(base, now))} grown", began)
        more = difference(base, now)
        for name, count in sorted(endings.ended.items()):
            print(f"{name.replace('_', ' ')}: {count}")
        print(f"{sum(base.values())} things counted before, {sum(now.values())} after")
        for name, (one, other) in sorted(more.items()):
            print(f"GREW: {name} from {one} to {other}")
        if not more:
            print("the census is back at its base")
    return 1 if more else 0


def _say(endings: Endings, what: str, began: float) -> None:
    print(
        f"{endings.ended.total()} connections, {time.monotonic() - began:.0f} s: {what}, "
        f"{sys.getallocatedblocks()} blocks, {own_memory(os.getpid()) / 1024:.1f} MB of own memory",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.soak.mixed_endings", description=__doc__)
    parser.add_argument("--connections", type=int, default=100_000)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with enter_network_namespace():
        sys.exit(trio.run(main, arguments.connections, arguments.at_once, arguments.seed))
