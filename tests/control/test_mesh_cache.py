"""The cache gives back what is in force, however it came about."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.control import mesh_cache as module
from ztunnel.control.mesh_cache import MeshCache
from ztunnel.messages import MeshDelta, Origin, Resource, ResourceKind


@pytest.fixture
def cache() -> Iterator[MeshCache]:
    made = MeshCache(10_000)
    yield made
    made.close()


def in_force(cache: MeshCache) -> dict[tuple[ResourceKind, Origin, str], bytes]:
    found = {}
    for delta in cache.deltas():
        assert not delta.removed
        assert 0 < len(delta.resources) <= module.CACHE_PART
        for one in delta.resources:
            key = (delta.kind, delta.origin, one.name)
            assert key not in found
            found[key] = one.body
    return found


def test_an_empty_one_has_nothing(cache):
    assert list(cache.deltas()) == []


def test_what_was_rejected_leaves_what_was_there(cache):
    cache.record(MeshDelta(1, ResourceKind.ADDRESS, (Resource("a", b"first"),)), frozenset())
    cache.record(
        MeshDelta(2, ResourceKind.ADDRESS, (Resource("a", b"bad"), Resource("b", b"good"))), frozenset({"a"})
    )
    address, xds = ResourceKind.ADDRESS, Origin.XDS
    assert in_force(cache) == {(address, xds, "a"): b"first", (address, xds, "b"): b"good"}


def test_many_come_in_parts(cache):
    many = tuple(Resource(f"cluster//Pod/ns/{number}", b"x" * (number % 7)) for number in range(5000))
    cache.record(MeshDelta(1, ResourceKind.ADDRESS, many), frozenset())
    assert [len(delta.resources) for delta in cache.deltas()] == [2000, 2000, 1000]
    assert {resource for delta in cache.deltas() for resource in delta.resources} == set(many)


deltas = st.builds(
    MeshDelta,
    number=st.just(0),
    kind=st.sampled_from(ResourceKind),
    resources=st.lists(
        st.builds(Resource, st.sampled_from(["a", "b/ü", "c"]), st.binary(max_size=200)), max_size=4
    ).map(tuple),
    removed=st.lists(st.sampled_from(["a", "b/ü", "d"]), max_size=2).map(tuple),
    origin=st.sampled_from(Origin),
)


@given(st.lists(deltas, max_size=30))
def test_it_is_what_a_dictionary_would_hold_and_stays_small(changes):
    cache = MeshCache(500)
    try:
        naive: dict[tuple[ResourceKind, Origin, str], bytes] = {}
        for delta in changes:
            cache.record(delta, frozenset({"c"}))
            naive |= {(delta.kind, delta.origin, one.name): one.body for one in delta.resources}
            naive = {key: body for key, body in naive.items() if key[2] != "c"}
            for name in delta.removed:
                naive.pop((delta.kind, delta.origin, name), None)
            assert in_force(cache) == naive
    finally:
        cache.close()


def test_what_is_replaced_again_and_again_does_not_fill_the_file(cache):
    body = b"x" * 1000
    for _ in range(5000):
        cache.record(MeshDelta(0, ResourceKind.ADDRESS, (Resource("a", body),)), frozenset())
    assert cache.size < 20_000
    assert in_force(cache) == {(ResourceKind.ADDRESS, Origin.XDS, "a"): body}
