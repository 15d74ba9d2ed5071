"""No connection gets a tunnel that was dialled for another identity, whatever happens in between.

A pool is driven through random interleavings: connections of several identities to addresses that are reused
by other workloads, dials that take their time or fail, peers that show their limits late, tunnels that are
lost, retired and evicted. A tunnel knows for which key it was dialled; each connection checks what it was
given, at the moment at which it opens its stream.
"""

from __future__ import annotations

from random import Random
from typing import Any

import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.clock import make_patient_clock
from tests.tunnel.test_pool import FakeTunnel
from ztunnel.model.address import SocketAddress
from ztunnel.model.identity import Identity
from ztunnel.tunnel.failures import DialError, TunnelLostError
from ztunnel.tunnel.pool import Pool, PoolDrainingError, PoolKey

SOURCES = [Identity("cluster.local", "ns", name) for name in ("a", "b", "c")]
CONNECTIONS = 40


class Labelled(FakeTunnel):
    """A tunnel that knows who it is."""

    def __init__(self, key: PoolKey) -> None:
        super().__init__()
        self.key = key


class World:
    """A mesh of few addresses, whose workloads come and go; and a pool in it."""

    def __init__(self, random: Random, nursery: trio.Nursery) -> None:
        self.random = random
        self.tunnels: list[Labelled] = []
        self.served = 0
        self.generation = dict.fromkeys(("10.0.0.1", "10.0.0.2", "10.0.0.3"), 0)
        self.pool = Pool(nursery, self.dial, max_streams=3, idle_timeout=5)  # type: ignore[arg-type]  # fakes
        self.nursery = nursery

    async def dial(self, key: PoolKey) -> Labelled:
        await trio.sleep(self.random.choice([0, 0, 0.01, 0.3]))
        if self.random.random() < 0.15:
            raise DialError("refused", elsewhere=True)
        tunnel = Labelled(key)
        tunnel.limit = self.random.choice([None, 1, 2, 100])
        self.tunnels.append(tunnel)
        return tunnel

    def key(self) -> PoolKey:
        """A connection of anybody's, to whoever is at an address now."""
        ip = self.random.choice(list(self.generation))
        number = self.generation[ip]
        source = self.random.choice(SOURCES)
        return PoolKey(
            source,
            (f"spiffe://cluster.local/ns/ns/sa/{ip}-{number}",),
            SocketAddress.parse("10.0.0.9:1").ip,
            SocketAddress.parse(f"{ip}:15008"),
            f"{ip}-{number}",
        )

    async def connect(self) -> None:
        key = self.key()
        with trio.move_on_after(self.random.choice([0.005, 0.2, 20])):
            try:
                tunnel: Any = await self.pool.tunnel(key)
            except (DialError, TunnelLostError, PoolDrainingError):
                return
            assert tunnel.key == key
            number = tunnel.open()
            self.served += 1
            try:
                await trio.sleep(self.random.choice([0, 0.02, 1]))
            finally:
                if number in tunnel.streams:
                    tunnel.close(number)

    async def disturb(self) -> None:
        """Something happens to a workload or a tunnel."""
        ip = self.random.choice(list(self.generation))
        tunnel = self.random.choice(self.tunnels) if self.tunnels else None
        match self.random.randrange(5):
            case 0:
                self.pool.evict(f"{ip}-{self.generation[ip]}")
                self.generation[ip] += 1
            case 1:
                self.generation[ip] += 1  # the mesh was told later
            case 2 if tunnel is not None:
                self.pool.retire(tunnel.key, tunnel)  # type: ignore[arg-type]  # a fake
            case 3 if tunnel is not None:
                tunnel.failure = "lost"
                tunnel.stop()
            case 4 if tunnel is not None:
                tunnel.settings(self.random.choice([0, 1, 2, 100]))
        await trio.sleep(self.random.choice([0, 0.01, 0.1]))


async def live(seed: int) -> World:
    async with trio.open_nursery() as tunnels:
        world = World(Random(seed), tunnels)
        async with trio.open_nursery() as connections:
            for _ in range(CONNECTIONS):
                connections.start_soon(world.connect)
                if world.random.random() < 0.7:
                    await world.disturb()
        kept: list[Any] = world.pool.tunnels()
        for key, tunnel in kept:
            assert tunnel.key == key
        world.pool.close()
        tunnels.cancel_scope.cancel()
    return world


@given(st.integers(0, 2**32))
def test_a_tunnel_serves_only_whom_it_was_dialled_for(seed: int):
    world = trio.run(live, seed, clock=make_patient_clock())
    assert world.served >= CONNECTIONS // 10
    assert len({tunnel.key.source for tunnel in world.tunnels}) > 1
