"""A second ztunnel takes over on a node under traffic: nobody notices, and the old one says how it gets on.

Two nodes, each with one ztunnel at the beginning. Applications open connections without pause, in every
direction that a ztunnel carries, while one node after the other is upgraded.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import pytest
import trio

from tests.e2e.census import take_census
from tests.e2e.mesh import Mesh
from tests.e2e.node_deployment import NodeDeployment, NodeZtunnel
from tests.e2e.pod import MeshPod, eventually
from tests.e2e.traffic import read_exactly, serve
from ztunnel.demo.dedicated import Ztunnel

ROUNDS = 5
AT_ONCE = 8
DEADLINE = 2


@dataclass
class TwoNodes:
    """Client and neighbour on the first node, the server on the second, and a pod outside the mesh there."""

    mesh: Mesh
    deployment: NodeDeployment
    client: MeshPod
    neighbour: MeshPod
    server: MeshPod
    outside: MeshPod
    vip: str

    def ztunnels(self, pod: MeshPod) -> NodeZtunnel:
        return self.deployment.nodes[pod.pod.node.name]


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[TwoNodes]:
    deployment = NodeDeployment()
    with Mesh.open(
        deployment=deployment, environment={"CONNECTION_TERMINATION_DEADLINE": f"{DEADLINE}s"}
    ) as mesh:
        client = mesh.node("a").pod("client")
        neighbour = mesh.node("a").pod("neighbour")
        server = mesh.node("b").pod("server")
        outside = mesh.node("b").pod("outside", captured=False, registered=False)
        vip = mesh.service("web", ports={80: 8080}, endpoints=[server])
        mesh.start()
        yield TwoNodes(mesh, deployment, client, neighbour, server, outside, vip)
        name = mesh.machine.name
    census = take_census(name)
    assert census.empty, census


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


async def ended(ztunnel: Ztunnel) -> None:
    """Wait until it has ended, as it should."""
    await eventually(lambda: ztunnel.process.returncode is not None, "ended", DEADLINE + 5)
    assert ztunnel.process.returncode == 0, ztunnel.process.output()[-4000:]


async def test_nodes_are_upgraded_one_after_the_other_and_no_connection_fails(two_nodes: TwoNodes) -> None:
    client, server, outside = two_nodes.client, two_nodes.server, two_nodes.outside
    traffic = Traffic()
    ways = {
        "tunnel": (client, server.ipv4, 8080),
        "tunnel over IPv6": (client, server.ipv6, 8080),
        "service": (client, two_nodes.vip, 80),
        "same node": (client, two_nodes.neighbour.ipv4, 8080),
        "into the mesh": (outside, server.ipv4, 8080),
        "out of the mesh": (client, outside.ipv4, 8080),
    }
    async with (
        serve(server, 8080) as application,
        serve(two_nodes.neighbour, 8080) as near,
        serve(outside, 8080) as far,
        trio.open_nursery() as nursery,
    ):
        for name, (source, address, port) in ways.items():
            for _ in range(AT_ONCE):
                nursery.start_soon(traffic.open_without_pause, name, source, address, port)
        await traffic.goes_on(ways)
        for number in range(ROUNDS):
            old, _ = await two_nodes.ztunnels((client, server)[number % 2]).upgrade()
            await ended(old)
            assert "Traceback" not in old.process.output()
            await traffic.goes_on(ways)
        traffic.stop.set()
    assert traffic.failures == []
    assert not application.failures + near.failures + far.failures
    print(f"{sum(traffic.good.values())} connections during {ROUNDS} upgrades: {dict(traffic.good)}")
