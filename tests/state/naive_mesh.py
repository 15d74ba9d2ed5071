"""The mesh store again, as plainly as can be: everything kept as model values, every lookup a scan.

Endpoint changes of a delta are gathered, and joined to their services at its end, as in the existing
implementation. So the order of resources cannot matter here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ztunnel.messages import MeshDelta
from ztunnel.model.address import IPAddress, NamespacedHostname
from ztunnel.model.service import Endpoint, HealthPolicy, Service
from ztunnel.model.workload import HealthStatus, NetworkMode, Protocol, Workload
from ztunnel.state import convert
from ztunnel.state.convert import WorkloadParts
from ztunnel.state.kinds import RejectedError


def accepts(service: Service, endpoint: Endpoint) -> bool:
    balancer = service.load_balancer
    accepts_all = balancer is not None and balancer.health_policy is HealthPolicy.ALLOW_ALL
    return accepts_all or endpoint.status is HealthStatus.HEALTHY


def rank(workload: Workload) -> int:
    return 2 * ("//Pod/" in workload.uid) + (workload.protocol is Protocol.HBONE)


@dataclass
class NaiveMesh:
    """See the module. Lists are in store order."""

    node: str | None
    workloads: dict[str, WorkloadParts] = field(default_factory=dict)
    services: list[Service] = field(default_factory=list)
    endpoints: dict[NamespacedHostname, dict[str, Endpoint]] = field(default_factory=dict)
    staged: dict[NamespacedHostname, dict[str, Endpoint]] = field(default_factory=dict)
    # (network, ip) to (namespace to service), in order
    vips: dict[tuple[str, IPAddress], dict[str, NamespacedHostname]] = field(default_factory=dict)

    def apply(self, delta: MeshDelta) -> set[str]:
        """Returns the names of what is refused."""
        refused = set()
        pending: dict[tuple[NamespacedHostname, str], Endpoint | None] = {}
        for resource in delta.resources:
            try:
                parts = convert.address(resource.body, local=False)
            except RejectedError:
                refused.add(resource.name)
                continue
            if isinstance(parts, WorkloadParts):
                uid = parts.workload.uid
                self._remove_workload(uid, pending)
                self.workloads[uid] = parts
                for key, packed in parts.services:
                    pending[key, uid] = convert.unpack_endpoint(uid, packed)
            else:
                self._insert_service(parts.service)
        for name in delta.removed:
            if name in self.workloads:
                self._remove_workload(name, pending)
            elif name.count("/") == 1:
                self._remove_service(NamespacedHostname.parse(name))
        for (key, uid), endpoint in pending.items():
            self._join(key, uid, endpoint)
        return refused

    def service(self, key: NamespacedHostname) -> Service | None:
        return next((service for service in self.services if service.key == key), None)

    def by_address(self, network: str, ip: IPAddress) -> Workload | None:
        best = None
        for workload, _ in self.workloads.values():
            if (
                workload.network == network
                and ip in workload.addresses
                and workload.network_mode is not NetworkMode.HOST_NETWORK
                and (best is None or rank(workload) >= rank(best))
            ):
                best = workload
        return best

    def local(self, name: str, namespace: str, service_account: str) -> list[Workload]:
        return [
            workload
            for workload, _ in self.workloads.values()
            if (workload.name, workload.namespace, workload.service_account)
            == (name, namespace, service_account)
            and self.node in (None, workload.node)
        ]

    def _remove_workload(
        self, uid: str, pending: dict[tuple[NamespacedHostname, str], Endpoint | None]
    ) -> None:
        old = self.workloads.pop(uid, None)
        if old is not None:
            for key, _ in old.services:
                pending[key, uid] = None

    def _insert_service(self, service: Service) -> None:
        key = service.key
        endpoints = self.endpoints.get(key, {}) | self.staged.pop(key, {})
        self._remove_service(key)
        self.services.append(service)
        self.endpoints[key] = {
            uid: endpoint for uid, endpoint in endpoints.items() if accepts(service, endpoint)
        }
        for vip in service.vips:
            self.vips.setdefault((vip.network, vip.ip), {})[key.namespace] = key

    def _remove_service(self, key: NamespacedHostname) -> None:
        old = self.service(key)
        if old is not None:
            self.services.remove(old)
            del self.endpoints[key]
            for vip in old.vips:
                self.vips[vip.network, vip.ip].pop(key.namespace, None)

    def _join(self, key: NamespacedHostname, uid: str, endpoint: Endpoint | None) -> None:
        service = self.service(key)
        holder = self.staged.setdefault(key, {}) if service is None else self.endpoints[key]
        holder.pop(uid, None)
        if endpoint is not None and (service is None or accepts(service, endpoint)):
            holder[uid] = endpoint
        if service is None and not holder:
            del self.staged[key]
