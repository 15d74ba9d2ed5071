"""Keys with one holder or several, beside lists that are kept as plainly as can be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ztunnel.state.holders import Holders

Holder = tuple[str, int]
keys = st.tuples(st.sampled_from("xy"), st.integers(0, 2))
holders = st.tuples(st.sampled_from("abc"), st.integers(0, 1))
deeds = st.lists(st.tuples(st.sampled_from(["add", "renew", "discard"]), keys, holders), max_size=40)


class Plain:
    """The holders of each key in a list."""

    def __init__(self) -> None:
        self.lists: dict[tuple[str, int], list[Holder]] = {}

    def of(self, key: tuple[str, int]) -> list[Holder]:
        return self.lists.get(key, [])

    def add(self, key: tuple[str, int], holder: Holder) -> None:
        held = self.lists.setdefault(key, [])
        for number, other in enumerate(held):
            if other[0] == holder[0]:
                held[number] = holder
                return
        held.append(holder)

    def renew(self, key: tuple[str, int], holder: Holder) -> None:
        held = self.of(key)
        found = next(other for other in held if other[0] == holder[0])
        held.remove(found)
        held.append(found)

    def discard(self, key: tuple[str, int], holder: Holder) -> None:
        self.lists[key] = [other for other in self.of(key) if other[0] != holder[0]]


@given(deeds)
def test_it_is_a_list_for_each_key(what: list[tuple[str, tuple[str, int], Holder]]):
    index: Holders[int, Holder] = Holders(lambda holder: holder[0])
    plain = Plain()
    for deed, (block, key), holder in what:
        if deed == "renew" and holder[0] not in [other[0] for other in plain.of((block, key))]:
            continue
        getattr(index, deed)(block, key, holder)
        getattr(plain, deed)((block, key), holder)
        held = {place: found for place, found in plain.lists.items() if found}
        for block_, key_ in plain.lists:
            assert list(index.of(block_, key_)) == plain.of((block_, key_))
        for name in "xy":
            assert sorted(index.keys(name)) == sorted(number for at, number in held if at == name)
            assert (name in index) == any(at == name for at, _ in held)
        assert len(index) == len({at for at, _ in held})


def test_one_holder_is_stored_as_such():
    index: Holders[int, str] = Holders(str)
    index.add("x", 1, "one")
    index.add("x", 1, "two")
    index.discard("x", 1, "one")
    assert index._blocks == {"x": {1: "two"}}
    index.discard("x", 1, "two")
    assert index._blocks == {}
