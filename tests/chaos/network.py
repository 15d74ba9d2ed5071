"""Faults of the network: nftables rules in the server's pod, and a relay on the wire of a node."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from random import Random

import trio

from tests.chaos.scene import Fault, Scene
from tests.support.pod import MeshPod
from tests.support.wire_relay import WireRelay

_tables = count()


def _nft(pod: MeshPod, text: str) -> None:
    with pod.pod.namespace.entered():
        subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True, capture_output=True)


@asynccontextmanager
async def _dropping(pod: MeshPod, rule: str) -> AsyncIterator[None]:
    """Packets of a pod that match are lost, on their way in and out."""
    chains = "".join(
        f"chain {hook} {{ type filter hook {hook} priority -400; policy accept; "
        f'{"iifname" if hook == "prerouting" else "oifname"} != "lo" {rule} drop; }}\n'
        for hook in ("prerouting", "postrouting")
    )
    table = f"inet chaos{next(_tables)}"
    _nft(pod, f"table {table} {{\n{chains}}}\n")
    try:
        yield
    finally:
        _nft(pod, f"delete table {table}\n")


def loss(percent: int) -> Fault:
    """Packets of the server's pod are lost at random."""

    @asynccontextmanager
    async def fault(scene: Scene, _: Random) -> AsyncIterator[None]:
        async with _dropping(scene.mesh.server, f"numgen random mod 100 < {percent}"):
            yield

    return fault


@asynccontextmanager
async def partition(scene: Scene, _: Random) -> AsyncIterator[None]:
    """Nothing gets to the server's pod, or from it."""
    async with _dropping(scene.mesh.server, "meta l4proto tcp"):
        yield


@asynccontextmanager
async def mtu_black_hole(scene: Scene, _: Random) -> AsyncIterator[None]:
    """Small packets pass, large ones are lost without a word."""
    async with _dropping(scene.mesh.server, "meta length > 900"):
        yield


def relayed(delay: Callable[[Random], float], twice: float = 0.0) -> Fault:
    """Each packet between a node and all others takes so long, and arrives twice at times."""

    @asynccontextmanager
    async def fault(scene: Scene, random: Random) -> AsyncIterator[None]:
        node = scene.some_node(random).node
        with WireRelay.between(scene.mesh.mesh.network, node, random) as relay:
            relay.delay = lambda: delay(random)
            relay.twice = twice
            async with trio.open_nursery() as nursery:
                nursery.start_soon(relay.run)
                try:
                    yield
                finally:
                    nursery.cancel_scope.cancel()

    return fault


FAULTS: dict[str, Fault] = {
    "packets lost, 5 %": loss(5),
    "packets lost, 30 %": loss(30),
    "packets delayed": relayed(lambda _: 0.15),
    "packets reordered": relayed(lambda random: random.choice([0.0, 0.0, 0.005, 0.02])),
    "packets doubled": relayed(lambda random: random.uniform(0, 0.002), twice=0.3),
    "partition": partition,
    "MTU black hole": mtu_black_hole,
}
