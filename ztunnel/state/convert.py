"""From the bytes of one workload or service to its model value.

What is refused, and with which text, is part of the protocol: the control plane sees the text in a NACK.
An object from the local file is kept as the same bytes, but empty fields get no defaults, each address with
a length is a range, and two things that the protobuf messages have no field for travel as extensions (which
are ignored in what the control plane sends).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple, TypeVar

from ztunnel.model.address import GatewayAddress, IPAddress, IPNetwork, NamespacedHostname, NetworkAddress
from ztunnel.model.service import (
    CidrVip,
    Endpoint,
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
    UNKNOWN_LOCALITY,
    ApplicationTunnel,
    AppTunnelProtocol,
    HealthStatus,
    Locality,
    NetworkMode,
    Protocol,
    Workload,
)
from ztunnel.state import schema
from ztunnel.state.wire import Fields, Schema, WireError, decode

DEFAULT_TRUST_DOMAIN = "cluster.local"
DEFAULT_SERVICE_ACCOUNT = "default"
DEFAULT_CLUSTER_ID = "Kubernetes"

WORKLOAD_TYPE_EXTENSION = "ztunnel.local/workload-type"
ENDPOINT_EXTENSION = "ztunnel.local/endpoint"

_E = TypeVar("_E", bound=Enum)

_PROTOCOLS: Mapping[int, Protocol] = {0: Protocol.TCP, 1: Protocol.HBONE}
_LEGACY_ISTIO_MTLS = 2
_STATUSES: Mapping[int, HealthStatus] = {0: HealthStatus.HEALTHY, 1: HealthStatus.UNHEALTHY}
_NETWORK_MODES: Mapping[int, NetworkMode] = {0: NetworkMode.STANDARD, 1: NetworkMode.HOST_NETWORK}
_TUNNELS: Mapping[int, AppTunnelProtocol] = {0: AppTunnelProtocol.NONE, 1: AppTunnelProtocol.PROXY}
_WORKLOAD_TYPES: Mapping[int, str] = {0: "deployment", 1: "cronjob", 2: "pod", 3: "job"}
_FAMILIES: Mapping[int, IpFamilies] = {1: IpFamilies.IPV4, 2: IpFamilies.IPV6, 3: IpFamilies.DUAL}
_MODES: Mapping[int, LoadBalancerMode] = {
    0: LoadBalancerMode.STANDARD,
    1: LoadBalancerMode.STRICT,
    2: LoadBalancerMode.FAILOVER,
    3: LoadBalancerMode.PASSTHROUGH,
}
_HEALTH_POLICIES: Mapping[int, HealthPolicy] = {0: HealthPolicy.ONLY_HEALTHY, 1: HealthPolicy.ALLOW_ALL}
_UNSPECIFIED_SCOPE = 0
_SCOPES: Mapping[int, LoadBalancerScope] = {
    1: LoadBalancerScope.REGION,
    2: LoadBalancerScope.ZONE,
    3: LoadBalancerScope.SUBZONE,
    4: LoadBalancerScope.NODE,
    5: LoadBalancerScope.CLUSTER,
    6: LoadBalancerScope.NETWORK,
}


class RejectedError(ValueError):
    """A resource is refused; ``str()`` is the reason for the NACK.

    ``undecodable``: the bytes are no message at all; such reasons come last in a NACK.
    """

    def __init__(self, reason: str, *, undecodable: bool = False) -> None:
        super().__init__(reason)
        self.undecodable = undecodable


class WorkloadParts(NamedTuple):
    """A workload, and the services it belongs to, each with what it is there (`pack_endpoint`)."""

    workload: Workload
    services: tuple[tuple[NamespacedHostname, bytes], ...]


class ServiceParts(NamedTuple):
    """A service, and the endpoints that the local file gives it itself (never set by xDS)."""

    service: Service
    endpoints: Mapping[str, Endpoint]


class WrittenIPv4Network(IPv4Network):
    """A network that keeps the host bits it was written with, for the dump: ``11.0.0.1/8``."""

    def __init__(self, ip: IPv4Address, length: int) -> None:
        super().__init__((ip, length), strict=False)
        self.written = f"{ip}/{length}"

    def __str__(self) -> str:
        return self.written


class WrittenIPv6Network(IPv6Network):
    """A network that keeps the host bits it was written with, for the dump."""

    def __init__(self, ip: IPv6Address, length: int) -> None:
        super().__init__((ip, length), strict=False)
        self.written = f"{ip}/{length}"

    def __str__(self) -> str:
        return self.written


def decode_fields(message: Schema, body: bytes) -> Fields:
    """Read a message to its fields. Raises RejectedError, with the text that goes into a NACK."""
    try:
        return decode(message, body)
    except WireError as error:
        raise RejectedError(f"decode: {error}", undecodable=True) from None


def unknown_enumeration(number: int) -> RejectedError:
    """The refusal of a number that an enumeration does not have."""
    return RejectedError(f"decode error: unknown enumeration value {number}")


def pack_endpoint(ports: Mapping[int, int], status: HealthStatus) -> bytes:
    """What a workload is as an endpoint, as few bytes. Many endpoints are the same and share them."""
    pairs = [_PORT_PAIR.pack(service_port, target) for service_port, target in ports.items()]
    return (HEALTHY if status is HealthStatus.HEALTHY else UNHEALTHY) + b"".join(pairs)


def unpack_endpoint(uid: str, packed: bytes) -> Endpoint:
    """The endpoint that a workload is, from what `pack_endpoint` made."""
    status = HealthStatus.HEALTHY if packed[:1] == HEALTHY else HealthStatus.UNHEALTHY
    return Endpoint(uid, dict(_PORT_PAIR.iter_unpack(packed[1:])), status)


HEALTHY, UNHEALTHY = b"\0", b"\1"
_PORT_PAIR = struct.Struct("<HH")


def ip_from_bytes(octets: bytes) -> IPAddress:
    """An address from its 4 or 16 bytes. Raises RejectedError."""
    if len(octets) == 4:
        return IPv4Address(octets)
    if len(octets) == 16:
        return IPv6Address(octets)
    raise RejectedError(f"failed to parse address, had {len(octets)} bytes")


def network_from_bytes(octets: bytes, length: int) -> IPNetwork:
    """A network from an address and a prefix length, host bits kept. Raises RejectedError."""
    ip = ip_from_bytes(octets)
    return written_network(ip, length)


def written_network(ip: IPAddress, length: int) -> IPNetwork:
    """The network of an address and a prefix length; it prints with the host bits. Raises RejectedError."""
    if not 0 <= length <= ip.max_prefixlen:
        raise RejectedError("invalid cidr: invalid IP prefix length")
    # The stock class is smaller, and pickles and compares as such; most networks have no host bits.
    if isinstance(ip, IPv4Address):
        network = IPv4Network((ip, length), strict=False)
        return network if network.network_address == ip else WrittenIPv4Network(ip, length)
    network6 = IPv6Network((ip, length), strict=False)
    return network6 if network6.network_address == ip else WrittenIPv6Network(ip, length)


def namespaced_hostname(key: str) -> NamespacedHostname:
    """The key of a service from ``namespace/hostname``. Raises RejectedError."""
    try:
        return NamespacedHostname.parse(key)
    except ValueError as error:
        raise RejectedError(str(error)) from None


def port_map(ports: Iterable[Fields]) -> dict[int, int]:
    """Service ports to target ports. Numbers are cut to 16 bits, and the last of equal ones wins."""
    return {port.get("service_port", 0) & 0xFFFF: port.get("target_port", 0) & 0xFFFF for port in ports}


def gateway(fields: Fields) -> GatewayAddress:
    """A waypoint or network gateway. Raises RejectedError when it refers to nothing."""
    port = fields.get("hbone_mtls_port", 0) & 0xFFFF
    hostname = fields.get("hostname")
    if hostname is not None:
        key = NamespacedHostname(hostname.get("namespace", ""), hostname.get("hostname", ""))
        return GatewayAddress(key, port)
    address = fields.get("address")
    if address is None:
        raise RejectedError("nonempty gateway address is missing address")
    ip = ip_from_bytes(address.get("address", b""))
    return GatewayAddress(NetworkAddress(address.get("network", ""), ip), port)


def workload(fields: Fields, *, local: bool) -> WorkloadParts:
    """A workload from its fields. ``local``: it is from the local file. Raises RejectedError."""
    get = fields.get
    number = get("tunnel_protocol", 0)
    if number == _LEGACY_ISTIO_MTLS:
        raise RejectedError("unknown enum: unsupported tunnel protocol: legacy istio mtls")
    protocol = _known(_PROTOCOLS, number)
    status = _known(_STATUSES, get("status", 0))
    services = tuple(
        (namespaced_hostname(key), pack_endpoint(port_map(ports.get("ports", ())), status))
        for key, ports in get("services", {}).items()
    )
    capacity = get("capacity")
    waypoint = get("waypoint")
    network_gateway = get("network_gateway")
    tunnel = get("application_tunnel")
    locality = get("locality")
    value = Workload(
        uid=get("uid", ""),
        name=get("name", ""),
        namespace=get("namespace", ""),
        addresses=tuple([ip_from_bytes(octets) for octets in get("addresses", ())]),
        hostname=get("hostname", ""),
        network=get("network", ""),
        protocol=protocol,
        trust_domain=get("trust_domain") or ("" if local else DEFAULT_TRUST_DOMAIN),
        service_account=get("service_account") or ("" if local else DEFAULT_SERVICE_ACCOUNT),
        waypoint=None if waypoint is None else gateway(waypoint),
        network_gateway=None if network_gateway is None else gateway(network_gateway),
        node=get("node", ""),
        canonical_name=get("canonical_name", ""),
        canonical_revision=get("canonical_revision", ""),
        workload_type=_workload_type(fields, local=local),
        workload_name=get("workload_name", ""),
        native_tunnel=get("native_tunnel", False),
        application_tunnel=None if tunnel is None else _application_tunnel(tunnel),
        services=tuple([key for key, _ in services]),
        authorization_policies=tuple(get("authorization_policies", ())),
        status=status,
        cluster_id=get("cluster_id") or ("" if local else DEFAULT_CLUSTER_ID),
        locality=UNKNOWN_LOCALITY if locality is None else _locality(locality),
        network_mode=_known(_NETWORK_MODES, get("network_mode", 0)),
        capacity=1 if capacity is None else capacity.get("value", 0),
    )
    return WorkloadParts(value, services)


def service(fields: Fields, *, local: bool) -> ServiceParts:
    """A service from its fields. ``local``: it is from the local file. Raises RejectedError."""
    get = fields.get
    vips: list[NetworkAddress] = []
    ranges: list[CidrVip] = []
    for address in get("addresses", ()):
        network = address.get("network", "")
        ip = ip_from_bytes(address.get("address", b""))
        length = address.get("length")
        if length is None or (length == ip.max_prefixlen and not local):
            vips.append(NetworkAddress(network, ip))
        else:
            ranges.append(CidrVip(network, written_network(ip, length)))
    waypoint = get("waypoint")
    load_balancing = get("load_balancing")
    families = get("ip_families", 0)
    value = Service(
        name=get("name", ""),
        namespace=get("namespace", ""),
        hostname=get("hostname", ""),
        vips=tuple(vips),
        cidr_vips=tuple(ranges),
        ports=port_map(get("ports", ())),
        subject_alt_names=tuple(get("subject_alt_names", ())),
        waypoint=None if waypoint is None else gateway(waypoint),
        weighted_waypoints=tuple(
            WeightedWaypoint(gateway(weighted.get("destination", {})), weighted.get("weight", 0))
            for weighted in get("weighted_waypoints", ())
        ),
        load_balancer=None if load_balancing is None else _load_balancer(load_balancing),
        ip_families=None if families == 0 else _known(_FAMILIES, families),
        canonical=get("canonical", False),
        visibility=Visibility.NAMESPACE if get("visibility", 0) == 1 else Visibility.PUBLIC,
    )
    return ServiceParts(value, _own_endpoints(fields) if local else {})


def address(body: bytes, *, local: bool) -> WorkloadParts | ServiceParts:
    """What the bytes of an ``istio.workload.Address`` hold. Raises RejectedError."""
    fields = decode_fields(schema.ADDRESS, body)
    if "workload" in fields:
        return workload(fields["workload"], local=local)
    if "service" in fields:
        return service(fields["service"], local=local)
    raise RejectedError("unknown address type")


def _known(names: Mapping[int, _E], number: int) -> _E:
    value = names.get(number)
    if value is None:
        raise unknown_enumeration(number)
    return value


def _locality(fields: Fields) -> Locality:
    return Locality(fields.get("region", ""), fields.get("zone", ""), fields.get("subzone", ""))


def _application_tunnel(fields: Fields) -> ApplicationTunnel:
    protocol = _known(_TUNNELS, fields.get("protocol", 0))
    return ApplicationTunnel(protocol, (fields.get("port", 0) & 0xFFFF) or None)


def _load_balancer(fields: Fields) -> LoadBalancer:
    preferences = fields.get("routing_preference", ())
    if _UNSPECIFIED_SCOPE in preferences:
        raise RejectedError("unknown enum: invalid target")
    return LoadBalancer(
        routing_preferences=tuple(_known(_SCOPES, number) for number in preferences),
        mode=_known(_MODES, fields.get("mode", 0)),
        health_policy=_known(_HEALTH_POLICIES, fields.get("health_policy", 0)),
    )


def _workload_type(fields: Fields, *, local: bool) -> str:
    if local:
        return "".join(
            str(value, "utf-8", "replace") for value in _extensions(fields, WORKLOAD_TYPE_EXTENSION)
        )
    return _WORKLOAD_TYPES.get(fields.get("workload_type", 0), "deployment")


def _extensions(fields: Fields, name: str) -> list[bytes]:
    return [
        extension.get("config", {}).get("value", b"")
        for extension in fields.get("extensions", ())
        if extension.get("name") == name
    ]


def _own_endpoints(fields: Fields) -> dict[str, Endpoint]:
    """The endpoints of a service of the local file: each is a small Workload under its key as name."""
    endpoints = {}
    for packed in _extensions(fields, ENDPOINT_EXTENSION):
        own = decode_fields(schema.WORKLOAD, packed)
        ports = own.get("services", {}).get("", {}).get("ports", ())
        status = _known(_STATUSES, own.get("status", 0))
        endpoints[own.get("name", "")] = Endpoint(own.get("uid", ""), port_map(ports), status)
    return endpoints
