"""Services: hostnames and virtual addresses with endpoints behind them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from ztunnel.model.address import GatewayAddress, IPNetwork, NamespacedHostname, NetworkAddress
from ztunnel.model.workload import HealthStatus


class LoadBalancerMode(Enum):
    """How a service uses its routing preferences."""

    STANDARD = "Standard"
    STRICT = "Strict"
    FAILOVER = "Failover"
    PASSTHROUGH = "Passthrough"


class HealthPolicy(Enum):
    """Which endpoints a service keeps, by their health."""

    ONLY_HEALTHY = "OnlyHealthy"
    ALLOW_ALL = "AllowAll"


class LoadBalancerScope(Enum):
    """A property that an endpoint shares with the client, or not."""

    REGION = "Region"
    ZONE = "Zone"
    SUBZONE = "Subzone"
    NODE = "Node"
    CLUSTER = "Cluster"
    NETWORK = "Network"


@dataclass(frozen=True, slots=True)
class LoadBalancer:
    """How to choose among a service's endpoints."""

    routing_preferences: tuple[LoadBalancerScope, ...]
    mode: LoadBalancerMode
    health_policy: HealthPolicy


class IpFamilies(Enum):
    """The IP versions on which a service is offered."""

    DUAL = "Dual"
    IPV4 = "IPv4"
    IPV6 = "IPv6"


class Visibility(Enum):
    """Which namespaces can see a service."""

    PUBLIC = "Public"
    NAMESPACE = "Namespace"


class CidrVip(NamedTuple):
    """A virtual address range."""

    network: str
    cidr: IPNetwork


@dataclass(frozen=True, slots=True)
class WeightedWaypoint:
    """One of several waypoints; a connection chooses one by weight."""

    destination: GatewayAddress
    weight: int


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A workload behind a service. ``ports`` maps service ports to this workload's own target ports."""

    workload_uid: str
    ports: Mapping[int, int]
    status: HealthStatus = HealthStatus.HEALTHY


@dataclass(frozen=True, slots=True)
class Service:
    """One service, as the control plane describes it, without its endpoints (the store adds those).

    ports: service ports to target ports. Target 0 is a named port, which each endpoint maps itself.
    """

    name: str
    namespace: str
    hostname: str
    vips: tuple[NetworkAddress, ...] = ()
    cidr_vips: tuple[CidrVip, ...] = ()
    ports: Mapping[int, int] = field(default_factory=dict)
    subject_alt_names: tuple[str, ...] = ()
    waypoint: GatewayAddress | None = None
    weighted_waypoints: tuple[WeightedWaypoint, ...] = ()
    load_balancer: LoadBalancer | None = None
    ip_families: IpFamilies | None = None
    canonical: bool = False
    visibility: Visibility = Visibility.PUBLIC

    @property
    def key(self) -> NamespacedHostname:
        """The key under which the service is stored and referred to."""
        return NamespacedHostname(self.namespace, self.hostname)
