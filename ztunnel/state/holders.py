"""An index whose keys nearly always have one holder, stored as such; several are a dict of their own."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

_K = TypeVar("_K", bound=Hashable)
_H = TypeVar("_H")


class Holders(Generic[_K, _H]):
    """The holders of keys, in the order in which they came.

    Keys are spread over blocks, because one dict of 100,000 takes milliseconds when it grows. A block goes
    with its last key.

    identity: what tells the holders of a key apart. One that equals another takes its place.
    """

    __slots__ = ("_blocks", "_identity")

    def __init__(self, identity: Callable[[_H], Hashable]) -> None:
        self._identity = identity
        # By block, then by key: a holder, or a dict of holders by identity. No holder is a dict.
        self._blocks: dict[Hashable, dict[_K, Any]] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def __contains__(self, block: Hashable) -> bool:
        return block in self._blocks

    def keys(self, block: Hashable) -> list[_K]:
        """Returns the keys of a block, in no useful order."""
        return list(self._blocks.get(block, ()))

    def of(self, block: Hashable, key: _K) -> tuple[_H, ...]:
        """Returns the holders of a key."""
        keys = self._blocks.get(block)
        held = None if keys is None else keys.get(key)
        if held is None:
            return ()
        return tuple(held.values()) if isinstance(held, dict) else (held,)

    def add(self, block: Hashable, key: _K, holder: _H) -> None:
        """Adds a holder of a key."""
        keys = self._blocks.get(block)
        if keys is None:
            keys = self._blocks[block] = {}
        held = keys.setdefault(key, holder)
        if held is holder:
            return
        if not isinstance(held, dict):
            held = keys[key] = {self._identity(held): held}
        held[self._identity(holder)] = holder
        self._settle(block, key, held)

    def renew(self, block: Hashable, key: _K, holder: _H) -> None:
        """Puts a holder that is there after all others of its key."""
        held = self._blocks[block][key]
        if isinstance(held, dict):
            identity = self._identity(holder)
            held[identity] = held.pop(identity)

    def discard(self, block: Hashable, key: _K, holder: _H) -> None:
        """Takes a holder from a key, if it is one."""
        held = self._blocks.get(block, {}).get(key)
        if isinstance(held, dict):
            held.pop(self._identity(holder), None)
            self._settle(block, key, held)
        elif held is not None and self._identity(held) == self._identity(holder):
            keys = self._blocks[block]
            del keys[key]
            if not keys:
                del self._blocks[block]

    def _settle(self, block: Hashable, key: _K, held: dict[Hashable, _H]) -> None:
        """Stores the only one of a dict as such."""
        if len(held) == 1:
            (self._blocks[block][key],) = held.values()
