"""The configuration as one frozen value.

The defaults of the fields are the defaults of the product: ``Config()`` is what an empty environment
gives, apart from what is read from the machine (files, number of CPUs). Durations are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple, TypeAlias

from ztunnel.model.address import SocketAddress
from ztunnel.model.identity import Identity

DEFAULT_ROOT_CERT = "./var/run/secrets/istio/root-cert.pem"
DEFAULT_TOKEN = "./var/run/secrets/tokens/istio-token"  # noqa: S105 - a path, not a token
DEFAULT_MESH_CONFIG = "./etc/istio/config/mesh"


class ProxyMode(Enum):
    """Whom this process serves. The value is the text of the admin dump."""

    SHARED = "Shared"
    DEDICATED = "Dedicated"


class WorkloadInfo(NamedTuple):
    """The names by which one workload is known."""

    name: str
    namespace: str
    service_account: str


class Localhost(NamedTuple):
    """Listen on 127.0.0.1, and on ::1 too if ``ipv6`` and the loopback interface has it.

    ``str()`` gives ``localhost:15000``.
    """

    ipv6: bool
    port: int

    def __str__(self) -> str:
        return f"localhost:{self.port}"


ListenAddress: TypeAlias = SocketAddress | Localhost


@dataclass(frozen=True, slots=True)
class RootFile:
    """Roots are read from this file whenever they are needed."""

    path: str


@dataclass(frozen=True, slots=True)
class RootStatic:
    """Roots are this PEM text, which may hold none: then no peer is trusted."""

    pem: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class RootSystem:
    """Roots are those of the operating system. Shown as ``Default`` in the dump."""


RootCert: TypeAlias = RootFile | RootStatic | RootSystem


@dataclass(frozen=True, slots=True)
class TokenFile:
    """The token is read from this file at each request, since it rotates."""

    path: str


@dataclass(frozen=True, slots=True)
class TokenStatic:
    """The token itself. Never shown."""

    token: str = field(repr=False)


AuthSource: TypeAlias = TokenFile | TokenStatic


@dataclass(frozen=True, slots=True)
class LocalFile:
    """Local workloads, policies and services are in this file."""

    path: str


@dataclass(frozen=True, slots=True)
class LocalStatic:
    """Local workloads, policies and services are this YAML text."""

    text: str = field(repr=False)


LocalXdsSource: TypeAlias = LocalFile | LocalStatic


@dataclass(frozen=True, slots=True)
class SocketConfig:
    """TCP options of dialled sockets and of those accepted on 15001 and 15006."""

    keepalive_enabled: bool = True
    keepalive_time: float = 180.0
    keepalive_interval: float = 180.0
    keepalive_retries: int = 9
    user_timeout_enabled: bool = False

    @property
    def user_timeout(self) -> float:
        """Seconds for TCP_USER_TIMEOUT, if it is enabled."""
        return self.keepalive_time + self.keepalive_retries * self.keepalive_interval


_ANY = IPv6Address("::")
_ADMIN = Localhost(ipv6=True, port=15000)
_STATS = SocketAddress(_ANY, 15020)
_READINESS = SocketAddress(_ANY, 15021)
_INBOUND = SocketAddress(_ANY, 15008)
_PLAINTEXT = SocketAddress(_ANY, 15006)
_OUTBOUND = SocketAddress(_ANY, 15001)
_DNS = Localhost(ipv6=True, port=15053)


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that the environment decides. See `ztunnel.config.load.load_config` for the variables.

    What each field means where the name does not say it:

    window_size, connection_window_size, frame_size: HTTP/2 of HBONE, in bytes.
    packet_mark: SO_MARK of our sockets, None for none.
    enable_orig_src: IP_TRANSPARENT on listeners; None means best effort.
    self_termination_deadline: how long a drain waits for connections.
    xds_address, ca_address: ``https://host:port``, None when there is no such server.
    xds_headers, ca_headers: additional gRPC metadata; values may be secret.
    proxy_metadata: without the prefix ``ISTIO_META_``; node_metadata_json: the parsed ``ISTIO_METAJSON_*``.
    enable_response_baggage: "enhanced baggage", the request's for labels and our own on the answer.
    crl_path: None when revocation lists are off.
    fake_ca_root: a file with the built-in CA's root and key, for several ztunnels to share; None: its own.
    workload_wait: how long a connection waits for its local workload to appear from xDS.
    metrics_max_series: series a traffic family may have before further ones are counted as overflow.
    metrics_series_ttl: after how long a series without connections may be dropped.
    metrics_drop_labels: traffic labels whose value is always ``unknown``.
    connection_history: how many connections that have ended are remembered.
    tls_accelerator: whether TLS records go through the compiled part, where it is available.
    warnings: what is odd about the environment but no error, to be logged at start.
    """

    proxy: bool = True
    dns_proxy: bool = True
    proxy_mode: ProxyMode = ProxyMode.SHARED
    proxy_workload_info: WorkloadInfo | None = None
    proxy_args: str = ""

    network: str = ""
    local_node: str | None = None
    local_ip: str = "1.1.1.1"
    cluster_id: str = "Kubernetes"
    cluster_domain: str = "cluster.local"
    pod_name: str = ""
    pod_namespace: str = ""
    ztunnel_identity: Identity | None = None
    ztunnel_workload: WorkloadInfo | None = None
    istio_version: str = "unknown"
    proxy_metadata: Mapping[str, str] = field(default_factory=dict)
    node_metadata_json: Mapping[str, Any] = field(default_factory=dict)

    admin_addr: ListenAddress = _ADMIN
    stats_addr: ListenAddress = _STATS
    readiness_addr: ListenAddress = _READINESS
    inbound_addr: SocketAddress = _INBOUND
    inbound_plaintext_addr: SocketAddress = _PLAINTEXT
    outbound_addr: SocketAddress = _OUTBOUND
    socks5_addr: SocketAddress | None = None
    dns_proxy_addr: ListenAddress = _DNS
    illegal_ports: frozenset[int] = frozenset({15001, 15006, 15008})
    ipv6_enabled: bool = True

    inpod_uds: str = "/var/run/ztunnel/ztunnel.sock"
    inpod_port_reuse: bool = True
    packet_mark: int | None = 1337
    enable_orig_src: bool | None = None
    localhost_app_tunnel: bool = True
    socket_config: SocketConfig = field(default_factory=SocketConfig)

    window_size: int = 4 * 1024 * 1024
    connection_window_size: int = 16 * 1024 * 1024
    frame_size: int = 1024 * 1024
    pool_max_streams_per_conn: int = 100
    pool_unused_release_timeout: float = 300.0
    enable_response_baggage: bool = True

    xds_address: str | None = "https://localhost:15012"
    xds_root_cert: RootCert = RootFile(DEFAULT_ROOT_CERT)
    xds_headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    xds_on_demand: bool = False
    alt_xds_hostname: str | None = None
    local_xds: LocalXdsSource | None = None
    prefered_service_namespace: str | None = None

    ca_address: str | None = "https://localhost:15012"
    ca_root_cert: RootCert = RootFile(DEFAULT_ROOT_CERT)
    ca_headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    alt_ca_hostname: str | None = None
    auth: AuthSource | None = None
    secret_ttl: float = 86_400.0
    fake_ca: bool = False
    fake_ca_root: str | None = None
    tls12_enabled: bool = False
    pqc: bool = False
    crl_path: str | None = None

    self_termination_deadline: float = 5.0
    num_worker_threads: int = 2
    authz_policy_info_logging: bool = False
    workload_wait: float = 5.0
    metrics_max_series: int = 100_000
    metrics_series_ttl: float = 3600.0
    metrics_drop_labels: frozenset[str] = frozenset()
    connection_history: int = 10_000
    tls_accelerator: bool = True
    warnings: tuple[str, ...] = ()

    @property
    def node_id(self) -> str:
        """How this process names itself to xDS. The tail is literal, as istiod expects."""
        return (
            f"ztunnel~{self.local_ip}~{self.pod_name}.{self.pod_namespace}"
            f"~{self.pod_namespace}.svc.cluster.local"
        )

    @property
    def wildcard(self) -> IPv6Address | IPv4Address:
        """The address that means all: of both families, or of IPv4 alone."""
        return _ANY if self.ipv6_enabled else IPv4Address(0)
