"""Small random meshes, and a request to route in each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from random import Random
from typing import TypeVar

from tests.support.fake_mesh import HBONE, ILLEGAL_PORTS, TCP, FakeMesh
from ztunnel.decide.plans import OutboundPlan, OutboundRequest, Refusal
from ztunnel.decide.route import route
from ztunnel.model.address import GatewayAddress, NamespacedHostname, NetworkAddress, SocketAddress
from ztunnel.model.service import (
    CidrVip,
    HealthPolicy,
    IpFamilies,
    LoadBalancer,
    LoadBalancerMode,
    LoadBalancerScope,
    Service,
    Visibility,
    WeightedWaypoint,
)
from ztunnel.model.workload import (
    ApplicationTunnel,
    AppTunnelProtocol,
    HealthStatus,
    NetworkMode,
    Workload,
)

T = TypeVar("T")

# Few values of each kind, so that workloads, services and references often meet.
IPS = [
    ip_address(text)
    for text in ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "fd00::1", "fd00::2", "127.0.0.1")
]
NAMESPACES = ["default", "other"]
NETWORKS = ["", "", "far"]
HOSTNAMES = ["a.example.com", "b.example.com"]
SANS = ["spiffe://td/ns/default/sa/x", "spiffe://td/ns/default/sa/y", "not spiffe"]
RANGES = [ip_network("10.0.0.0/30"), ip_network("0.0.0.0/0")]
PORTS = [80, 8080, 15001, 15006, 15008]


@dataclass(frozen=True)
class Case:
    mesh: FakeMesh
    request: OutboundRequest
    seed: int

    def route(self) -> OutboundPlan | Refusal:
        return route(self.mesh, self.request, Random(self.seed), illegal_ports=ILLEGAL_PORTS)


class Builder:
    """Builds a mesh at random. With Hypothesis's `Random` an example is shrunk; a seeded one is fast."""

    def __init__(self, random: Random) -> None:
        self.random = random

    def some(self, values: Sequence[T], most: int) -> list[T]:
        return self.random.sample(values, min(self.random.randint(0, most), len(values)))

    def maybe(self, make: Callable[[], T]) -> T | None:
        return make() if self.random.random() < 0.5 else None

    def reference(self) -> GatewayAddress:
        choose = self.random.choice
        destination: NetworkAddress | NamespacedHostname
        if self.random.random() < 0.7:
            destination = NetworkAddress(choose(NETWORKS), choose(IPS))
        else:
            destination = NamespacedHostname(choose(NAMESPACES), choose(HOSTNAMES))
        return GatewayAddress(destination, choose([15008, 15008, 15008, 80, 15001]))

    def port_map(self) -> dict[int, int]:
        return {
            port: self.random.choice([0, 8080, 8080, 15008, 15001])
            for port in self.some([80, 80, 8080, 15008], 3)
        }

    def service(self, index: int) -> Service:
        random = self.random
        balancing = LoadBalancer(
            tuple(self.some(list(LoadBalancerScope), 2)),
            random.choice(list(LoadBalancerMode)),
            random.choice(list(HealthPolicy)),
        )
        return Service(
            name=f"service-{index}",
            namespace=random.choice(NAMESPACES),
            hostname=random.choice(HOSTNAMES),
            vips=tuple(NetworkAddress(random.choice(NETWORKS), ip) for ip in self.some(IPS, 2)),
            cidr_vips=tuple(CidrVip(random.choice(NETWORKS), net) for net in self.some(RANGES, 1)),
            ports={80: 8080} | self.port_map(),
            subject_alt_names=tuple(self.some(SANS, 2)),
            waypoint=self.reference() if random.random() < 0.3 else None,
            weighted_waypoints=tuple(
                WeightedWaypoint(self.reference(), random.randint(0, 3)) for _ in self.some([1, 2, 3, 4], 1)
            ),
            load_balancer=random.choice([None, balancing]),
            ip_families=random.choice([None, *IpFamilies]),
            canonical=random.random() < 0.3,
            visibility=random.choice([Visibility.PUBLIC, *Visibility]),
        )

    def workload(self, index: int, mesh: FakeMesh) -> Workload:
        random = self.random
        tunnel = ApplicationTunnel(random.choice(list(AppTunnelProtocol)), random.choice([None, 15088]))
        return mesh.add_workload(
            f"workload-{index}",
            " ".join(str(ip) for ip in self.some(IPS, 2)),
            random.choice([HBONE, HBONE, TCP]),
            behind=tuple(self.some(list(mesh.services.values()), 2)),
            ports=self.port_map(),
            namespace=random.choice(NAMESPACES),
            network=random.choice(NETWORKS),
            service_account=random.choice(["one", "two"]),
            trust_domain="td",
            waypoint=self.maybe(self.reference),
            network_gateway=self.maybe(self.reference),
            hostname=random.choice(["", *HOSTNAMES]),
            capacity=random.choice([1, 1, 0, 5]),
            status=random.choice([HealthStatus.HEALTHY, *HealthStatus]),
            network_mode=random.choice([NetworkMode.STANDARD, *NetworkMode]),
            native_tunnel=random.random() < 0.5,
            application_tunnel=random.choice([None, None, tunnel]),
        )

    def case(self) -> Case:
        random = self.random
        mesh = FakeMesh()
        for index in range(random.randint(0, 3)):
            service = self.service(index)
            mesh.services[service.key] = service
            mesh.members[service.key] = {}
        workloads = [self.workload(index, mesh) for index in range(random.randint(1, 5))]
        source = random.choice(workloads)
        request = OutboundRequest(
            source,
            SocketAddress(random.choice(IPS), 40000),
            SocketAddress(random.choice(IPS), random.choice([80, 80, 80, *PORTS])),
            random.choice([source.network, source.network, "far"]),
        )
        return Case(mesh, request, random.randint(0, 2**32))
