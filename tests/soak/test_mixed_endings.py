"""After connections of mixed endings the census is what it was; ``make census`` does it with 100,000."""

from __future__ import annotations

import gc
from collections import Counter
from random import Random

from tests.soak.mixed_endings import ENDINGS, Endings, difference
from tests.support.own_namespace import own_network_namespace  # noqa: F401 - used by pytest
from tests.support.pod import eventually
from ztunnel.tunnel.tunnel_stream import TunnelStream


async def test_nothing_is_left_of_connections_that_have_ended():
    random = Random(7)
    async with Endings.open() as endings:
        await endings.run(250, 8, random)
        base = await endings.census()
        await endings.run(250, 8, random)
        after = await endings.census()
        assert difference(base, after) == {}
        assert len(endings.ended) == len(ENDINGS)


async def test_a_connection_that_has_ended_is_freed_without_the_garbage_collector():
    """The collector sees an open connection once only (`ztunnel.system.memory`)."""
    random = Random(7)
    async with Endings.open() as endings:
        await endings.run(250, 8, random)
        gc.collect()
        gc.disable()
        try:
            base = of_connections()
            for ending in ENDINGS:
                await endings.run(40, 8, random, [ending])
                await eventually(lambda: not of_connections() - base, f"freed ({ending.__name__})")
        finally:
            gc.enable()


def of_connections() -> Counter[str]:
    """How many objects there are of each kind that belongs to one connection."""
    kinds = (type(one) for one in gc.get_objects())
    return Counter(
        kind.__qualname__
        for kind in kinds
        if str(kind.__module__).startswith("ztunnel.proxy.") or issubclass(kind, TunnelStream)
    )


async def test_what_is_left_would_be_found():
    async with Endings.open() as endings:
        base = await endings.census()
        open_one = await endings.leave_one_open()
        after = await endings.census()
        grown = difference(base, after)
        assert grown["tasks"]
        assert grown["descriptors: socket"]
        assert any("TunnelStream" in name or "ServerStream" in name for name in grown)
        await open_one.aclose()
