"""What decisions read of the mesh. `ztunnel.state.store.MeshStore` is the real one; tests write their own."""

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
        """The policy stored under ``namespace/name``."""

    def namespace_policies(self, namespace: str) -> Sequence[Authorization]:
        """All policies of scope NAMESPACE in this namespace."""

    def global_policies(self) -> Sequence[Authorization]:
        """All policies of scope GLOBAL."""


class MeshView(PolicyView, Protocol):
    """A read-only view of workloads, services and policies. No call blocks, and none raises for absence.

    Two calls made without an await between them see the same state.
    """

    def workload(self, uid: str) -> Workload | None:
        """The workload with this uid."""

    def workload_by_address(self, network: str, ip: IPAddress) -> Workload | None:
        """The best workload at an address: pods before others, HBONE before TCP, the last inserted wins.

        Host-network workloads are never found by address.
        """

    def workload_by_hostname(self, namespace: str, hostname: str) -> Workload | None:
        """A workload of this namespace that is known by hostname."""

    def local_workload(self, name: str, namespace: str, service_account: str) -> Workload | None:
        """A workload of this node (of any node, when ours has no name) by the names that the CNI knows."""

    def service(self, namespace: str, hostname: str) -> Service | None:
        """The service with this key."""

    def services_by_vip(self, network: str, ip: IPAddress) -> Sequence[Service]:
        """All services with exactly this virtual address, at most one a namespace, in store order."""

    def services_by_cidr(self, network: str, ip: IPAddress) -> Sequence[tuple[CidrVip, Service]]:
        """All services with a range of this network that contains the address, in store order."""

    def services_by_hostname(self, hostname: str) -> Sequence[Service]:
        """All services with exactly this hostname, at most one a namespace, in store order."""

    def endpoints(self, service: Service) -> Mapping[str, Endpoint]:
        """The endpoints of a service by workload uid, already filtered by its health policy."""

    def services_of(self, workload: Workload) -> Iterable[Service]:
        """The known services that list this workload's uid among their endpoints, in the workload's order."""
