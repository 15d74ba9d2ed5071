"""Computes which connections would end differently if policies were added, changed or removed. Pure.

It runs `authorize` twice: on the mesh as it is, and on the mesh with the change. A ztunnel does not know the
labels of pods. A policy with a selector that is already in the mesh keeps the workloads that refer to it. A
new one selects by the labels that are known (the canonical name and revision); other labels are assumed to
match. `PolicyChange.notes` say where that was so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from ztunnel.decide.authorize import authorize
from ztunnel.decide.mesh_view import PolicyView
from ztunnel.decide.plans import PolicyFacts, Verdict
from ztunnel.explain.kubernetes import STATIC_STRICT, Converted, static_strict
from ztunnel.model.policy import Authorization, Scope
from ztunnel.model.workload import Workload

_NAME_LABELS = ("app", "app.kubernetes.io/name", "service.istio.io/canonical-name")
_REVISION_LABELS = ("version", "app.kubernetes.io/version", "service.istio.io/canonical-revision")


class DecidedConnection(msgspec.Struct, frozen=True):
    """One connection that policy decided, or would decide, at a pod of this mesh.

    ``open``: whether it is open.
    """

    id: str
    pod: Workload
    facts: PolicyFacts
    open: bool
    began_ago: float = 0.0


class Change(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A connection that would end differently. ``effect``: ``cut``, ``refused`` or ``allowed``."""

    effect: str
    connection: str
    pod: str
    client: str
    identity: str
    destination: str
    policy: str
    why: str
    age_seconds: float = 0.0


class PolicyChange:
    """A mesh with some policies added, replaced or removed.

    changed: the policies to add or replace. without: the keys (``namespace/name``) of those to remove. root:
        the root namespace.
    """

    def __init__(
        self, view: PolicyView, changed: Sequence[Converted], without: Iterable[str], root: str
    ) -> None:
        self.view = view
        self.notes: list[str] = [warning for one in changed for warning in one.warnings]
        self._root = root
        self._gone = frozenset(without)
        self._changed = {one.policy.key: one for one in changed if one.policy is not None}
        self._strictness = [one for one in changed if one.kind == "PeerAuthentication"]
        for key in sorted(self._gone):
            if view.policy(key) is None:
                self.notes.append(f"There is no policy {key} in this mesh, so nothing changes without it.")
        for one in changed:
            self._note_selector(one)

    def _note_selector(self, one: Converted) -> None:
        known = one.policy is not None and self.view.policy(one.policy.key) is not None
        if one.labels and known:
            self.notes.append(
                f"{one.kind} {one.key} is taken to select the workloads that it selects now, since their "
                "labels are not known to ztunnel."
            )
        elif one.labels:
            unknown = sorted(set(one.labels) - {*_NAME_LABELS, *_REVISION_LABELS})
            if unknown:
                self.notes.append(
                    f"{one.kind} {one.key} selects by {', '.join(unknown)}, which ztunnel does not know: it "
                    "is taken to fit."
                )
        if one.kind == "PeerAuthentication" and one.namespace == self._root and one.labels is None:
            self.notes.append(
                f"PeerAuthentication {one.key} is for the whole mesh: namespaces with one of their own keep "
                "that, which ztunnel cannot see."
            )

    def applied(self, workload: Workload) -> Workload:
        """Returns a workload with the policies to which it would refer."""
        keys = [key for key in workload.authorization_policies if key not in self._gone]
        for key, one in self._changed.items():
            new = self.view.policy(key) is None and key not in keys
            if new and _attached(one) and _selects(one, workload, self._root):
                keys.append(key)
        strict = f"{self._root}/{STATIC_STRICT}"
        for one in sorted(self._strictness, key=lambda each: _rank(each, self._root)):
            if one.strict is not None and _selects(one, workload, self._root):
                keys = [key for key in keys if key != strict]
                if one.strict:
                    keys.append(strict)
        return replace(workload, authorization_policies=tuple(keys))

    # The part of a mesh that `authorize` reads; everything else is unchanged.

    def policy(self, key: str) -> Authorization | None:
        """Returns the policy under a key, after the change."""
        if key in self._changed:
            return self._changed[key].policy
        if key in self._gone:
            return None
        if key == f"{self._root}/{STATIC_STRICT}":
            return self.view.policy(key) or static_strict(self._root)
        return self.view.policy(key)

    def namespace_policies(self, namespace: str) -> Sequence[Authorization]:
        """Returns the policies of a namespace, after the change."""
        return self._merged(
            self.view.namespace_policies(namespace),
            lambda one: one.scope is Scope.NAMESPACE and one.namespace == namespace,
        )

    def global_policies(self) -> Sequence[Authorization]:
        """Returns the policies of the whole mesh, after the change."""
        return self._merged(self.view.global_policies(), lambda one: one.scope is Scope.GLOBAL)

    def _merged(self, present: Sequence[Authorization], belongs: Any) -> Sequence[Authorization]:
        kept = [one for one in present if one.key not in self._gone and one.key not in self._changed]
        new = [one.policy for one in self._changed.values() if one.policy is not None and belongs(one.policy)]
        return (*kept, *new)

    def effects(self, connections: Iterable[DecidedConnection]) -> Iterable[Change]:
        """Returns the connections that would end differently."""
        for one in connections:
            before = authorize(self.view, one.pod, one.facts)
            after = authorize(self, self.applied(one.pod), one.facts)
            if before.allowed != after.allowed:
                yield _change(one, after)


def _change(one: DecidedConnection, after: Verdict) -> Change:
    effect = "allowed" if after.allowed else "cut" if one.open else "refused"
    clues = " ".join(clue.text for clue in after.clues[:3])
    return Change(
        effect,
        one.id,
        f"{one.pod.namespace}/{one.pod.name}",
        str(one.facts.source),
        "" if one.facts.identity is None else str(one.facts.identity),
        str(one.facts.destination),
        after.policy or "",
        clues or after.reason or "no policy forbids it",
        round(one.began_ago, 1),
    )


def _attached(one: Converted) -> bool:
    """Returns whether a policy applies only to workloads that refer to it."""
    return one.policy is not None and one.policy.scope is Scope.WORKLOAD_SELECTOR


def _rank(one: Converted, root: str) -> int:
    """Returns the order of a policy: mesh, namespace, workload."""
    if one.labels is not None:
        return 2
    return 0 if one.namespace == root else 1


def _selects(one: Converted, workload: Workload, root: str) -> bool:
    if one.namespace != workload.namespace and not (
        one.namespace == root and one.kind == "PeerAuthentication"
    ):
        return one.namespace == root and one.labels is not None and _fits(one.labels, workload)
    return one.labels is None or _fits(one.labels, workload)


def _fits(labels: Mapping[str, str], workload: Workload) -> bool:
    for key, value in labels.items():
        if key in _NAME_LABELS and workload.canonical_name not in ("", value):
            return False
        if key in _REVISION_LABELS and workload.canonical_revision not in ("", value):
            return False
    return True
