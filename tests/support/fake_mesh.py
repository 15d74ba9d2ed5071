"""A mesh in memory for tests of decisions: plain dictionaries, and methods that fill them.

    mesh = FakeMesh()
    web = mesh.add_service("web", "10.96.0.1", ports={80: 8080})
    mesh.add_workload("web-1", "10.0.0.2", HBONE, behind=web)

It implements `ztunnel.decide.mesh_view.MeshView` in the simplest way: without indexes, in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

from ztunnel.model.address import GatewayAddress, IPAddress, NamespacedHostname, NetworkAddress, SocketAddress
from ztunnel.model.policy import Action, Authorization, Rule, Scope
from ztunnel.model.service import (
    CidrVip,
    Endpoint,
    HealthPolicy,
    LoadBalancer,
    LoadBalancerMode,
    LoadBalancerScope,
    Service,
    WeightedWaypoint,
)
from ztunnel.model.workload import HealthStatus, NetworkMode, Protocol, Workload

TCP = Protocol.TCP
HBONE = Protocol.HBONE
ILLEGAL_PORTS = frozenset({15001, 15006, 15008})


def at(text: str) -> SocketAddress:
    """Returns an address, as in ``at("10.0.0.1:80")``."""
    return SocketAddress.parse(text)


def by_address(ip: str, port: int = 15008, network: str = "") -> GatewayAddress:
    """Returns a reference to a gateway by address."""
    return GatewayAddress(NetworkAddress(network, ip_address(ip)), port)


def by_hostname(namespace: str, hostname: str, port: int = 15008) -> GatewayAddress:
    """Returns a reference to a gateway by the hostname of its service, or of a workload."""
    return GatewayAddress(NamespacedHostname(namespace, hostname), port)


def balancer(
    mode: LoadBalancerMode,
    *preferences: LoadBalancerScope,
    health_policy: HealthPolicy = HealthPolicy.ONLY_HEALTHY,
) -> LoadBalancer:
    return LoadBalancer(preferences, mode, health_policy)


def weighted(*destinations: tuple[GatewayAddress, int]) -> tuple[WeightedWaypoint, ...]:
    return tuple(WeightedWaypoint(destination, weight) for destination, weight in destinations)


class FakeMesh:
    """A `MeshView` that tests fill."""

    def __init__(self) -> None:
        self.workloads: dict[str, Workload] = {}
        self.services: dict[NamespacedHostname, Service] = {}
        self.members: dict[NamespacedHostname, dict[str, Endpoint]] = {}
        self.policies: dict[str, Authorization] = {}

    # Building

    def add_workload(
        self,
        name: str,
        addresses: str = "",
        protocol: Protocol = TCP,
        *,
        namespace: str = "default",
        behind: Service | tuple[Service, ...] = (),
        ports: Mapping[int, int] | None = None,
        **fields: Any,
    ) -> Workload:
        """Add a workload. ``addresses``: separated by blanks. ``behind``: its services, with ``ports``."""
        services = (behind,) if isinstance(behind, Service) else behind
        workload = Workload(
            uid=fields.pop("uid", f"cluster//Pod/{namespace}/{name}"),
            name=name,
            namespace=namespace,
            addresses=tuple(ip_address(text) for text in addresses.split()),
            protocol=protocol,
            trust_domain=fields.pop("trust_domain", "cluster.local"),
            service_account=fields.pop("service_account", name),
            services=tuple(service.key for service in services),
            **fields,
        )
        self.workloads.pop(workload.uid, None)
        self.workloads[workload.uid] = workload
        for service in services:
            balancing = self.services[service.key].load_balancer
            if workload.status is HealthStatus.HEALTHY or (
                balancing is not None and balancing.health_policy is HealthPolicy.ALLOW_ALL
            ):
                self.members[service.key][workload.uid] = Endpoint(workload.uid, ports or {}, workload.status)
        return workload

    def add_service(
        self,
        name: str,
        vips: str = "",
        *,
        namespace: str = "default",
        ports: Mapping[int, int] | None = None,
        network: str = "",
        cidrs: str = "",
        **fields: Any,
    ) -> Service:
        """Add a service. ``vips`` and ``cidrs``: separated by blanks, on ``network``."""
        service = Service(
            name=name,
            namespace=namespace,
            hostname=fields.pop("hostname", f"{name}.{namespace}.svc.cluster.local"),
            vips=tuple(NetworkAddress(network, ip_address(text)) for text in vips.split()),
            cidr_vips=tuple(CidrVip(network, ip_network(text)) for text in cidrs.split()),
            ports={80: 8080} if ports is None else ports,
            **fields,
        )
        self.services[service.key] = service
        self.members.setdefault(service.key, {})
        return service

    def change(self, service: Service, **fields: Any) -> Service:
        """Replace fields of a service. It keeps its endpoints."""
        changed = replace(service, **fields)
        self.services[service.key] = changed
        return changed

    def add_policy(
        self,
        name: str,
        action: Action,
        *rules: Rule,
        scope: Scope = Scope.NAMESPACE,
        namespace: str = "default",
        dry_run: bool = False,
    ) -> Authorization:
        policy = Authorization(name, namespace, scope, action, rules, dry_run)
        self.policies[policy.key] = policy
        return policy

    # MeshView

    def workload(self, uid: str) -> Workload | None:
        return self.workloads.get(uid)

    def workload_by_address(self, network: str, ip: IPAddress) -> Workload | None:
        best: Workload | None = None
        for workload in self.workloads.values():
            if (
                workload.network == network
                and ip in workload.addresses
                and workload.network_mode is not NetworkMode.HOST_NETWORK
                and (best is None or _rank(workload) >= _rank(best))
            ):
                best = workload
        return best

    def workload_by_hostname(self, namespace: str, hostname: str) -> Workload | None:
        for workload in self.workloads.values():
            if workload.hostname == hostname and workload.namespace == namespace:
                return workload
        return None

    def local_workload(self, name: str, namespace: str, service_account: str) -> Workload | None:
        for workload in self.workloads.values():
            if (workload.name, workload.namespace, workload.service_account) == (
                name,
                namespace,
                service_account,
            ):
                return workload
        return None

    def service(self, namespace: str, hostname: str) -> Service | None:
        return self.services.get(NamespacedHostname(namespace, hostname))

    def services_by_vip(self, network: str, ip: IPAddress) -> Sequence[Service]:
        return [service for service in self.services.values() if NetworkAddress(network, ip) in service.vips]

    def services_by_cidr(self, network: str, ip: IPAddress) -> Sequence[tuple[CidrVip, Service]]:
        return [
            (vip, service)
            for service in self.services.values()
            for vip in service.cidr_vips
            if vip.network == network and ip in vip.cidr
        ]

    def services_by_hostname(self, hostname: str) -> Sequence[Service]:
        return [service for service in self.services.values() if service.hostname == hostname]

    def endpoints(self, service: Service) -> Mapping[str, Endpoint]:
        return self.members[service.key]

    def services_of(self, workload: Workload) -> Iterable[Service]:
        return [self.services[key] for key in workload.services if workload.uid in self.members.get(key, {})]

    def policy(self, key: str) -> Authorization | None:
        return self.policies.get(key)

    def namespace_policies(self, namespace: str) -> Sequence[Authorization]:
        return [
            policy
            for policy in self.policies.values()
            if policy.scope is Scope.NAMESPACE and policy.namespace == namespace
        ]

    def global_policies(self) -> Sequence[Authorization]:
        return [policy for policy in self.policies.values() if policy.scope is Scope.GLOBAL]


def _rank(workload: Workload) -> int:
    return 2 * ("//Pod/" in workload.uid) + (workload.protocol is HBONE)
