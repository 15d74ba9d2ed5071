"""Authorization policies, in the form in which they are evaluated.

rules (any) → clauses (all) → matches (any) → fields of a match (all) → values of a field (any; ``not_*``:
none).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, TypeAlias

from ztunnel.model.address import IPNetwork


class Scope(Enum):
    """Which workloads a policy applies to."""

    GLOBAL = "Global"
    NAMESPACE = "Namespace"
    WORKLOAD_SELECTOR = "WorkloadSelector"


class Action(Enum):
    """What a matching policy does."""

    ALLOW = "Allow"
    DENY = "Deny"


class StringMatchKind(Enum):
    """How a text is compared. Presence matches every non-empty text."""

    EXACT = "Exact"
    PREFIX = "Prefix"
    SUFFIX = "Suffix"
    PRESENCE = "Presence"


class StringMatch(NamedTuple):
    """A comparison with ``value``, which is empty for presence."""

    kind: StringMatchKind
    value: str = ""


class ServiceAccountMatch(NamedTuple):
    """A namespace and a service account, in whatever trust domain."""

    namespace: str
    service_account: str


@dataclass(frozen=True, slots=True)
class Match:
    """Fields that must all hold. An empty field allows everything; a match without any field never holds."""

    namespaces: tuple[StringMatch, ...] = ()
    not_namespaces: tuple[StringMatch, ...] = ()
    service_accounts: tuple[ServiceAccountMatch, ...] = ()
    not_service_accounts: tuple[ServiceAccountMatch, ...] = ()
    principals: tuple[StringMatch, ...] = ()
    not_principals: tuple[StringMatch, ...] = ()
    source_ips: tuple[IPNetwork, ...] = ()
    not_source_ips: tuple[IPNetwork, ...] = ()
    destination_ips: tuple[IPNetwork, ...] = ()
    not_destination_ips: tuple[IPNetwork, ...] = ()
    destination_ports: tuple[int, ...] = ()
    not_destination_ports: tuple[int, ...] = ()


Clause: TypeAlias = tuple[Match, ...]
Rule: TypeAlias = tuple[Clause, ...]


@dataclass(frozen=True, slots=True)
class Authorization:
    """One policy. ``key`` is ``namespace/name``."""

    name: str
    namespace: str
    scope: Scope
    action: Action
    rules: tuple[Rule, ...] = ()
    dry_run: bool = False

    @property
    def key(self) -> str:
        """The text by which workloads refer to the policy."""
        return f"{self.namespace}/{self.name}"
