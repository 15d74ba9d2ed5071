"""Authorization policies, decoded: there are few of them, and each connection reads several."""

from __future__ import annotations

from collections.abc import Sequence

from ztunnel.model.policy import Authorization, Scope


class PolicyIndex:
    """All policies by key, and those that apply without being referred to, by scope."""

    def __init__(self) -> None:
        self._policies: dict[str, Authorization] = {}
        self._from_file: set[str] = set()
        self._by_namespace: dict[str, dict[str, Authorization]] = {}
        self._global: dict[str, Authorization] = {}

    def __len__(self) -> int:
        return len(self._policies)

    def keys(self) -> list[str]:
        """The keys of all policies."""
        return list(self._policies)

    def get(self, key: str) -> Authorization | None:
        """The policy stored under a key."""
        return self._policies.get(key)

    def in_namespace(self, namespace: str) -> Sequence[Authorization]:
        """The policies of scope NAMESPACE in a namespace."""
        policies = self._by_namespace.get(namespace)
        return tuple(policies.values()) if policies is not None else ()

    def everywhere(self) -> Sequence[Authorization]:
        """The policies of scope GLOBAL."""
        return tuple(self._global.values())

    def from_file(self, key: str) -> bool:
        """Whether the policy came from the local file."""
        return key in self._from_file

    def insert(self, key: str, policy: Authorization, *, from_file: bool) -> None:
        """Store a policy, in place of the one with this key; its scope may be another."""
        self.remove(key)
        self._policies[key] = policy
        if from_file:
            self._from_file.add(key)
        if policy.scope is Scope.GLOBAL:
            self._global[key] = policy
        elif policy.scope is Scope.NAMESPACE:
            self._by_namespace.setdefault(policy.namespace, {})[key] = policy

    def remove(self, key: str) -> bool:
        """Remove a policy. Returns whether there was one."""
        policy = self._policies.pop(key, None)
        if policy is None:
            return False
        self._from_file.discard(key)
        self._global.pop(key, None)
        policies = self._by_namespace.get(policy.namespace)
        if policies is not None:
            policies.pop(key, None)
            if not policies:
                del self._by_namespace[policy.namespace]
        return True
