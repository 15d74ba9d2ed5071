"""Authorization policies, decoded: there are few of them, and each connection reads several."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import NamedTuple

from ztunnel.model.policy import Authorization, Scope
from ztunnel.state.holders import Holders


class _Stored(NamedTuple):
    key: str
    policy: Authorization
    from_file: bool

    @property
    def place(self) -> tuple[Scope, str]:
        """What it applies to without being referred to: its block and key in the index."""
        scope = self.policy.scope
        return scope, self.policy.namespace if scope is Scope.NAMESPACE else ""


class PolicyIndex:
    """All policies by key, and those that apply without being referred to, by scope."""

    def __init__(self) -> None:
        self._policies: dict[str, _Stored] = {}
        self._by_place: Holders[str, _Stored] = Holders(itemgetter(0))

    def __len__(self) -> int:
        return len(self._policies)

    def keys(self) -> list[str]:
        """Returns the keys of all policies."""
        return list(self._policies)

    def get(self, key: str) -> Authorization | None:
        """Returns the policy stored under a key."""
        stored = self._policies.get(key)
        return None if stored is None else stored.policy

    def in_namespace(self, namespace: str) -> Sequence[Authorization]:
        """Returns the policies of scope NAMESPACE in a namespace."""
        return [stored.policy for stored in self._by_place.of(Scope.NAMESPACE, namespace)]

    def everywhere(self) -> Sequence[Authorization]:
        """Returns the policies of scope GLOBAL."""
        return [stored.policy for stored in self._by_place.of(Scope.GLOBAL, "")]

    def from_file(self, key: str) -> bool:
        """Returns whether the policy came from the local file."""
        stored = self._policies.get(key)
        return stored is not None and stored.from_file

    def insert(self, key: str, policy: Authorization, *, from_file: bool) -> None:
        """Stores a policy, in place of the one with this key; its scope may be another."""
        self.remove(key)
        stored = self._policies[key] = _Stored(key, policy, from_file)
        self._by_place.add(*stored.place, stored)

    def remove(self, key: str) -> bool:
        """Removes a policy. Returns whether there was one."""
        stored = self._policies.pop(key, None)
        if stored is not None:
            self._by_place.discard(*stored.place, stored)
        return stored is not None
