"""Sparing the garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from ztunnel.system.memory import GrowthWatch, release_unused_memory, spare_collector


@pytest.fixture(autouse=True)
def unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_is_alive_is_out_of_the_collectors_sight_and_still_freed():
    before = gc.get_freeze_count()
    kept = [[number] for number in range(1000)]
    spare_collector()
    frozen = gc.get_freeze_count()
    assert frozen >= before + 1000
    kept.clear()
    assert gc.get_freeze_count() <= frozen - 1000


def test_the_collector_works_once_the_start_is_over():
    gc.disable()
    spare_collector()
    assert gc.isenabled()


def test_it_is_done_again_only_when_the_mesh_has_grown_by_half():
    watch = GrowthWatch(1000)
    kept: list[object] = []

    def freezes(size: int) -> bool:
        before = gc.get_freeze_count()
        kept.append([[] for _ in range(100)])
        watch.grown(size)
        return gc.get_freeze_count() >= before + 100

    sizes = (1, 1000, 1500, 1501, 2000, 2251, 2252, 100_000, 100_000, 10, 150_001)
    assert [size for size in sizes if freezes(size)] == [1501, 2252, 100_000, 150_001]


def test_giving_memory_back_needs_nothing():
    release_unused_memory()
