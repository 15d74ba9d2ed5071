"""Workloads: pods and other processes with addresses."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from ztunnel.model.address import GatewayAddress, IPAddress, NamespacedHostname
from ztunnel.model.identity import Identity


class Protocol(Enum):
    """How a workload is reached (``tunnel_protocol`` on the wire)."""

    TCP = "TCP"
    HBONE = "HBONE"


class NetworkMode(Enum):
    """Whether a workload's addresses are its own or its node's."""

    STANDARD = "Standard"
    HOST_NETWORK = "HostNetwork"


class HealthStatus(Enum):
    """Health of a workload, and of an endpoint made from it."""

    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"


class AppTunnelProtocol(Enum):
    """What a sandwiched application expects before the bytes of a connection."""

    NONE = "NONE"
    PROXY = "PROXY"


@dataclass(frozen=True, slots=True)
class ApplicationTunnel:
    """The application is reached at ``port`` (None: the requested one), with ``protocol`` before it."""

    protocol: AppTunnelProtocol
    port: int | None


class Locality(NamedTuple):
    """Where a workload runs. Empty fields are unknown, and equal each other."""

    region: str = ""
    zone: str = ""
    subzone: str = ""


UNKNOWN_LOCALITY = Locality()


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload as the control plane describes it. ``uid`` is its key."""

    uid: str
    name: str = ""
    namespace: str = ""
    addresses: tuple[IPAddress, ...] = ()
    hostname: str = ""
    network: str = ""
    protocol: Protocol = Protocol.TCP
    trust_domain: str = ""
    service_account: str = ""
    waypoint: GatewayAddress | None = None
    network_gateway: GatewayAddress | None = None
    node: str = ""
    canonical_name: str = ""
    canonical_revision: str = ""
    workload_type: str = "deployment"
    workload_name: str = ""
    native_tunnel: bool = False
    application_tunnel: ApplicationTunnel | None = None
    services: tuple[NamespacedHostname, ...] = ()
    authorization_policies: tuple[str, ...] = ()
    status: HealthStatus = HealthStatus.HEALTHY
    cluster_id: str = ""
    locality: Locality = UNKNOWN_LOCALITY
    network_mode: NetworkMode = NetworkMode.STANDARD
    capacity: int = 1

    @property
    def identity(self) -> Identity:
        """The SPIFFE identity that this workload's certificate carries."""
        return Identity(self.trust_domain, self.namespace, self.service_account)
