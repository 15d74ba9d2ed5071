"""The bounded memory of decoded values."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ztunnel.state.cache import GenerationCache


@settings(deadline=None)
@given(st.integers(1, 5), st.lists(st.tuples(st.sampled_from("gpd"), st.integers(0, 12)), max_size=80))
def test_recently_used_values_are_kept_and_the_number_is_bounded(size: int, uses: list[tuple[str, int]]):
    cache: GenerationCache[int, str] = GenerationCache(size)
    recent: list[int | None] = []
    for use, key in uses:
        if use == "d":
            cache.drop(key)
            # It keeps its place: what was forgotten before it does not come back because it is dropped.
            recent = [None if other == key else other for other in recent]
            assert cache.get(key) is None
            continue
        value = cache.get(key)
        assert value in (None, str(key))
        if key in recent[-size:]:
            assert value is not None
        if use == "p" or value is not None:
            cache.put(key, str(key))
            recent = [other for other in recent if other != key] + [key]
        assert len(cache) <= 2 * size


def test_a_dropped_value_is_gone_from_both_generations():
    cache: GenerationCache[str, int] = GenerationCache(1)
    cache.put("a", 1)
    cache.put("b", 2)
    cache.drop("a")
    assert cache.get("a") is None
    assert cache.get("b") == 2


def test_a_value_that_was_put_twice_is_dropped_altogether():
    cache: GenerationCache[str, int] = GenerationCache(1)
    for key, value in [("a", 1), ("b", 2), ("a", 3)]:
        cache.put(key, value)
    cache.drop("a")
    assert cache.get("a") is None


def test_the_newer_value_wins():
    cache: GenerationCache[str, int] = GenerationCache(1)
    for key, value in [("a", 1), ("b", 2), ("a", 3), ("c", 4)]:
        cache.put(key, value)
    assert cache.get("a") == 3


def test_the_last_values_are_kept_however_often_they_are_read():
    for size in range(1, 6):
        cache: GenerationCache[int, str] = GenerationCache(size)
        for key in range(4 * size):
            cache.put(key, str(key))
            last = range(max(0, key + 1 - size), key + 1)
            for _ in range(2):
                assert [cache.get(one) for one in last] == [str(one) for one in last]
