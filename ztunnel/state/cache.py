"""A bounded memory of decoded values."""

from __future__ import annotations

from typing import Generic, TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")


class GenerationCache(Generic[_K, _V]):
    """Keeps at least the last ``size`` values that were used, and at most twice as many.

    Values live in a young and an old generation. One that is used moves to the young; when the young is full
    it becomes the old, and what was old is dropped. That costs one or two dict lookups a use, where an exact
    order of use would have to be kept up with each.
    """

    __slots__ = ("_old", "_size", "_young")

    def __init__(self, size: int) -> None:
        self._size = size
        self._young: dict[_K, _V] = {}
        self._old: dict[_K, _V] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: _K) -> _V | None:
        """Returns the value for a key, None when it is not (or no longer) known."""
        value = self._young.get(key)
        if value is None and self._old:
            value = self._old.pop(key, None)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: _K, value: _V) -> _V:
        """Remembers a value, which must not be None, and returns it."""
        if len(self._young) >= self._size:
            self._old = self._young
            self._young = {}
        self._young[key] = value
        return value

    def drop(self, key: _K) -> None:
        """Forgets a value, if there is one."""
        self._young.pop(key, None)
        self._old.pop(key, None)
