"""The part of the mesh that decisions read.

`ztunnel.state.store.MeshStore` implements it; tests have their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from ztunnel.model.address import IPAddress
from ztunnel.model.policy import Authorization
from ztunnel.model.service import CidrVip, Endpoint, Service
from ztunnel.model.workload import Workload


class PolicyView(Protocol):
    """A read-only view of policies. No call blocks, and none raises for absence."""

    def policy(self, key: str) -> Authorization | None:
        """Returns the policy stored under ``namespace/name``."""

    def namespace_policies(self, namespace: str) -> Sequence[Authorization]:
        """Returns all policies of scope NAMESPACE in this namespace."""

    def global_policies(self) -> Sequence[Authorization]:
        """Returns all policies of scope GLOBAL."""


class MeshView(PolicyView, Protocol):
    """A read-only view of workloads, services and policies. No call blocks, and none raises for absence.

    Two calls made without an await between them see the same state.
    """

    def workload(self, uid: str) -> Workload | None:
        """Returns the workload with this uid."""

    def workload_by_address(self, network: str, ip: IPAddress) -> Workload | None:
        """Returns the best workload at an address: pods first, then HBONE before TCP, then the last inserted.

        Host-network workloads are never found by address.
        """

    def workload_by_hostname(self, namespace: str, hostname: str) -> Workload | None:
        """Returns a workload of this namespace that is known by hostname."""

    def local_workload(self, name: str, namespace: str, service_account: str) -> Workload | None:
        """Returns a workload of this node (of any node, if ours has no name) by the CNI's names."""

    def service(self, namespace: str, hostname: str) -> Service | None:
        """Returns the service with this key."""

    def services_by_vip(self, network: str, ip: IPAddress) -> Sequence[Service]:
        """Returns all services with exactly this virtual address, at most one a namespace, in store order."""

    def services_by_cidr(self, network: str, ip: IPAddress) -> Sequence[tuple[CidrVip, Service]]:
        """Returns all services with a range of this network that contains the address, in store order."""

    def services_by_hostname(self, hostname: str) -> Sequence[Service]:
        """Returns all services with exactly this hostname, at most one a namespace, in store order."""

    def endpoints(self, service: Service) -> Mapping[str, Endpoint]:
        """Returns the endpoints of a service by workload uid, already filtered by its health policy."""

    def services_of(self, workload: Workload) -> Iterable[Service]:
        """Returns the known services that have this workload as an endpoint, in the workload's order."""
