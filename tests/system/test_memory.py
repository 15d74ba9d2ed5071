"""Sparing the garbage collector."""

from __future__ import annotations

import gc
import weakref

from ztunnel.system.memory import GrowthWatch, _Survivors, release_unused_memory, spare_collector


class Node:
    """An object that can refer to itself, which only the collector can free."""

    def __init__(self) -> None:
        self.me = self


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


def test_what_survives_a_full_collection_is_not_traversed_again():
    spare_collector()
    kept = [[number] for number in range(1000)]
    before = gc.get_freeze_count()
    gc.collect(1)
    assert gc.get_freeze_count() <= before, "the young ones are not"
    gc.collect()
    assert gc.get_freeze_count() >= before + 1000
    assert kept
    spare_collector()
    assert len([one for one in gc.callbacks if isinstance(one, _Survivors)]) == 1


def test_a_cycle_that_was_frozen_before_it_was_garbage_is_freed_by_a_later_collection_of_all():
    gc.callbacks.append(_Survivors(3))
    node: Node | None = Node()
    freed = weakref.ref(node)
    gc.collect()
    node = None
    gc.collect()
    assert freed() is not None, "it is frozen"
    gc.collect()
    assert freed() is None


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
