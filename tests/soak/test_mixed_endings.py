"""After connections of mixed endings the census is what it was; ``make census`` does it with 100,000."""

from __future__ import annotations

from random import Random

from tests.soak.mixed_endings import ENDINGS, Endings, difference
from tests.support.own_namespace import own_network_namespace  # noqa: F401 - used by pytest


async def test_nothing_is_left_of_connections_that_have_ended():
    random = Random(7)
    async with Endings.open() as endings:
        await endings.run(250, 8, random)
        base = await endings.census()
        await endings.run(250, 8, random)
        after = await endings.census()
        assert difference(base, after) == {}
        assert len(endings.ended) == len(ENDINGS)


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
