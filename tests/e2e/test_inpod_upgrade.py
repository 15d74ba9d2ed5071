"""A second ztunnel takes over on a node under traffic, again and again, and no connection fails.

Applications open connections without pause, in every direction that a ztunnel carries, while one node after
the other is upgraded.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import trio

from tests.e2e.pod import MeshPod, eventually
from tests.e2e.traffic import read_exactly, serve
from tests.e2e.two_nodes import TwoNodes, ended

ROUNDS = 5
AT_ONCE = 8
DEADLINE = 2


@dataclass
class Traffic:
    """What came of connections that were opened, by the way they took."""

    good: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    stop: trio.Event = field(default_factory=trio.Event)

    async def open_without_pause(self, name: str, source: MeshPod, address: str, port: int) -> None:
        number = 0
        while not self.stop.is_set():
            number += 1
            asked = f"{name} {number}".encode()
            began = time.monotonic()
            try:
                async with await source.connect(address, port) as stream:
                    await stream.send_all(asked)
                    assert await read_exactly(stream, len(asked)) == asked
                    await stream.send_eof()
                    assert await stream.receive_some(1) == b""
            except (OSError, trio.BrokenResourceError, trio.TooSlowError, AssertionError) as error:
                self.failures.append(f"{name} after {time.monotonic() - began:.3f} s: {error!r}")
            else:
                self.good[name] += 1

    async def goes_on(self, ways: Iterable[str]) -> None:
        """Wait until each of the ways has worked once more."""
        before = self.good.copy()
        await eventually(lambda: all(self.good[way] > before[way] for way in ways), "carrying traffic")


async def test_nodes_are_upgraded_one_after_the_other_and_no_connection_fails() -> None:
    with TwoNodes.open({"CONNECTION_TERMINATION_DEADLINE": f"{DEADLINE}s"}) as nodes:
        client, server, outside = nodes.client, nodes.server, nodes.outside
        traffic = Traffic()
        ways = {
            "tunnel": (client, server.ipv4, 8080),
            "tunnel over IPv6": (client, server.ipv6, 8080),
            "service": (client, nodes.vip, 80),
            "same node": (client, nodes.neighbour.ipv4, 8080),
            "into the mesh": (outside, server.ipv4, 8080),
            "out of the mesh": (client, outside.ipv4, 8080),
        }
        async with (
            serve(server, 8080) as application,
            serve(nodes.neighbour, 8080) as near,
            serve(outside, 8080) as far,
            trio.open_nursery() as nursery,
        ):
            for name, (source, address, port) in ways.items():
                for _ in range(AT_ONCE):
                    nursery.start_soon(traffic.open_without_pause, name, source, address, port)
            await traffic.goes_on(ways)
            for number in range(ROUNDS):
                old, _ = await nodes.node((client, server)[number % 2]).upgrade()
                await ended(old, DEADLINE + 5)
                await traffic.goes_on(ways)
            traffic.stop.set()
        assert traffic.failures == []
        assert application.failures + near.failures + far.failures == []
        print(f"{sum(traffic.good.values())} connections during {ROUNDS} upgrades: {dict(traffic.good)}")
