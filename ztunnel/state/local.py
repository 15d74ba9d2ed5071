"""The local file: workloads, services and policies without a control plane, or beside one.

`parse` reads the YAML text, `deltas` says what is to be put into force: all of it at first, and after a
change of the file only the difference, removals included. The file takes back only what is still its own,
not what xDS has replaced meanwhile. Whoever watches the file keeps the last good `LocalConfig` when a new
text is broken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ztunnel.messages import MeshDelta, Origin, Resource, ResourceKind
from ztunnel.model.address import GatewayAddress, NamespacedHostname, NetworkAddress
from ztunnel.model.policy import (
    Action,
    Authorization,
    Match,
    Scope,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)
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
from ztunnel.state.dump import policy_json, ports_json, service_json, workload_json
from ztunnel.state.encode import encode_policy, encode_service, encode_workload
from ztunnel.state.local_reader import (
    LocalConfigError,
    Reader,
    address,
    listed,
    mapped,
    network,
    number,
    port,
    ports,
    problem,
    text,
    truth,
    variant,
    wrong_type,
)
from ztunnel.state.local_yaml import Tagged, YamlError, read_yaml

__all__ = [
    "LocalConfig",
    "LocalConfigError",
    "LocalService",
    "LocalWorkload",
    "deltas",
    "parse",
    "static_config",
]


class LocalWorkload(NamedTuple):
    """A workload of the file, and the services that it is an endpoint of, with its port maps."""

    workload: Workload
    services: Mapping[str, Mapping[int, int]]


class LocalService(NamedTuple):
    """A service of the file, and the endpoints that the file gives it itself."""

    service: Service
    endpoints: Mapping[str, Endpoint]


@dataclass(frozen=True, slots=True)
class LocalConfig:
    """All that the file says, in its order."""

    workloads: tuple[LocalWorkload, ...] = ()
    services: tuple[LocalService, ...] = ()
    policies: tuple[Authorization, ...] = ()


def parse(source: str) -> LocalConfig:
    """Read the text of the file. Empty text is an empty file. Raises LocalConfigError."""
    try:
        value = read_yaml(source)
    except YamlError as error:
        raise LocalConfigError(str(error)) from None
    file = Reader({} if value is None else value, "", ("workloads", "policies", "services"))
    return LocalConfig(
        workloads=file.nullable("workloads", listed(read_workload)) or (),
        policies=file.nullable("policies", listed(read_policy)) or (),
        services=file.nullable("services", listed(read_service)) or (),
    )


def deltas(config: LocalConfig, previous: LocalConfig | None, numbers: Iterator[int]) -> list[MeshDelta]:
    """What turns a store that holds ``previous`` into one that holds ``config``; the empty list for nothing.

    ``numbers`` gives each delta its number.
    """
    result = []
    for kind, resources_of in ((ResourceKind.ADDRESS, _addresses), (ResourceKind.AUTHORIZATION, _policies)):
        resources = resources_of(config)
        before = {} if previous is None else resources_of(previous)
        changed = tuple(Resource(name, body) for name, body in resources.items() if before.get(name) != body)
        removed = tuple(name for name in before if name not in resources)
        if changed or removed:
            result.append(MeshDelta(next(numbers), kind, changed, removed, Origin.LOCAL))
    return result


def static_config(config: LocalConfig | None) -> dict[str, list[dict[str, Any]]]:
    """The ``staticConfig`` part of ``/config_dump``: what the file says, without what was made of it."""
    if config is None:
        config = LocalConfig()
    return {
        "policies": [policy_json(policy) for policy in config.policies],
        "services": [service_json(service, own) for service, own in config.services],
        "workloads": [
            workload_json(workload)
            | {"services": {key: ports_json(ports_of) for key, ports_of in services.items()}}
            for workload, services in config.workloads
        ],
    }


def _addresses(config: LocalConfig) -> dict[str, bytes]:
    """The bytes of workloads and services by the names under which they are removed."""
    workloads = {
        workload.uid: encode_workload(workload, services, local=True)
        for workload, services in config.workloads
    }
    services = {str(service.key): encode_service(service, own) for service, own in config.services}
    return workloads | services


def _policies(config: LocalConfig) -> dict[str, bytes]:
    return {policy.key: encode_policy(policy) for policy in config.policies}


WORKLOAD_FIELDS = (
    "workloadIps",
    "waypoint",
    "networkGateway",
    "protocol",
    "networkMode",
    "uid",
    "name",
    "namespace",
    "trustDomain",
    "serviceAccount",
    "network",
    "workloadName",
    "workloadType",
    "canonicalName",
    "canonicalRevision",
    "hostname",
    "node",
    "nativeTunnel",
    "applicationTunnel",
    "authorizationPolicies",
    "status",
    "clusterId",
    "locality",
    "services",
    "capacity",
)
SERVICE_FIELDS = (
    "name",
    "namespace",
    "hostname",
    "vips",
    "cidrVips",
    "ports",
    "endpoints",
    "subjectAltNames",
    "waypoint",
    "weightedWaypoints",
    "loadBalancer",
    "ipFamilies",
    "canonical",
    "visibility",
)


def read_workload(value: Any, place: str) -> LocalWorkload:
    """A workload of the file. Raises LocalConfigError, which names the ``place``."""
    read = Reader(value, place, WORKLOAD_FIELDS)
    addresses = read.required("workloadIps", listed(address))
    namespace = read.required("namespace", text)
    services = read.required("services", mapped(ports))
    for key in services:
        _namespaced_hostname(key, read.at("services"))
    workload = Workload(
        uid=read.optional("uid", text, ""),
        name=read.optional("name", text, ""),
        namespace=namespace,
        addresses=addresses,
        hostname=read.optional("hostname", text, ""),
        network=read.optional("network", text, ""),
        protocol=read.optional("protocol", variant(Protocol), Protocol.TCP),
        trust_domain=read.optional("trustDomain", text, ""),
        service_account=read.optional("serviceAccount", text, ""),
        waypoint=read.nullable("waypoint", _gateway),
        network_gateway=read.nullable("networkGateway", _gateway),
        node=read.optional("node", text, ""),
        canonical_name=read.optional("canonicalName", text, ""),
        canonical_revision=read.optional("canonicalRevision", text, ""),
        workload_type=read.optional("workloadType", text, ""),
        workload_name=read.optional("workloadName", text, ""),
        native_tunnel=read.optional("nativeTunnel", truth, default=False),
        application_tunnel=read.nullable("applicationTunnel", _application_tunnel),
        authorization_policies=read.optional("authorizationPolicies", listed(text), ()),
        status=read.optional("status", variant(HealthStatus), HealthStatus.HEALTHY),
        cluster_id=read.optional("clusterId", text, ""),
        locality=read.optional("locality", _locality, UNKNOWN_LOCALITY),
        network_mode=read.optional("networkMode", variant(NetworkMode), NetworkMode.STANDARD),
        capacity=read.optional("capacity", number, 1),
    )
    return LocalWorkload(workload, services)


def read_service(value: Any, place: str) -> LocalService:
    """A service of the file, in the shape of the dump too. Raises LocalConfigError."""
    read = Reader(value, place, SERVICE_FIELDS)
    service = Service(
        name=read.required("name", text),
        namespace=read.required("namespace", text),
        hostname=read.required("hostname", text),
        vips=read.required("vips", listed(_network_address)),
        ports=read.required("ports", ports),
        cidr_vips=read.optional("cidrVips", listed(_cidr_vip), ()),
        subject_alt_names=read.optional("subjectAltNames", listed(text), ()),
        waypoint=read.nullable("waypoint", _gateway),
        weighted_waypoints=read.optional("weightedWaypoints", listed(_weighted_waypoint), ()),
        load_balancer=read.nullable("loadBalancer", _load_balancer),
        ip_families=read.nullable("ipFamilies", variant(IpFamilies)),
        canonical=read.optional("canonical", truth, default=False),
        visibility=read.optional("visibility", variant(Visibility), Visibility.PUBLIC),
    )
    return LocalService(service, read.optional("endpoints", mapped(_endpoint), {}))


def _endpoint(value: Any, place: str) -> Endpoint:
    read = Reader(value, place, ("workloadUid", "port", "status"))
    return Endpoint(
        workload_uid=read.required("workloadUid", text),
        ports=read.required("port", ports),
        status=read.required("status", variant(HealthStatus)),
    )


def _gateway(value: Any, place: str) -> GatewayAddress:
    read = Reader(value, place, ("destination", "hboneMtlsPort"))
    return GatewayAddress(
        destination=read.required("destination", _destination),
        hbone_mtls_port=read.required("hboneMtlsPort", port),
    )


def _destination(value: Any, place: str) -> NetworkAddress | NamespacedHostname:
    """An address if what follows the first slash is one, else the name of a service."""
    first, _, rest = text(value, place).partition("/")
    try:
        return NetworkAddress(first, address(rest, place))
    except LocalConfigError:
        return _namespaced_hostname(value, place)


def _namespaced_hostname(value: str, place: str) -> NamespacedHostname:
    try:
        return NamespacedHostname.parse(value)
    except ValueError as error:
        raise problem(place, str(error)) from None


def _network_address(value: Any, place: str) -> NetworkAddress:
    name, slash, ip = text(value, place).partition("/")
    if not slash:
        raise problem(place, f"`{value}` is not network/ip; the network may be empty: `/{value}`")
    return NetworkAddress(name, address(ip, place))


def _cidr_vip(value: Any, place: str) -> CidrVip:
    read = Reader(value, place, None)
    return CidrVip(read.required("network", text), read.required("cidr", network))


def _weighted_waypoint(value: Any, place: str) -> WeightedWaypoint:
    read = Reader(value, place, None)
    return WeightedWaypoint(read.required("destination", _gateway), read.required("weight", number))


def _load_balancer(value: Any, place: str) -> LoadBalancer:
    read = Reader(value, place, ("routingPreferences", "mode", "healthPolicy"))
    return LoadBalancer(
        routing_preferences=read.required("routingPreferences", listed(variant(LoadBalancerScope))),
        mode=read.required("mode", variant(LoadBalancerMode)),
        health_policy=read.required("healthPolicy", variant(HealthPolicy)),
    )


def _application_tunnel(value: Any, place: str) -> ApplicationTunnel:
    read = Reader(value, place, None)
    protocol = read.required("protocol", variant(AppTunnelProtocol))
    return ApplicationTunnel(protocol, read.nullable("port", port) or None)


def _locality(value: Any, place: str) -> Locality:
    read = Reader(value, place, None)
    return Locality(*(read.required(name, text) for name in Locality._fields))


def read_policy(value: Any, place: str) -> Authorization:
    """A policy of the file, in the shape of the dump too. Raises LocalConfigError."""
    read = Reader(value, place, ("name", "namespace", "scope", "action", "rules", "dryRun"))
    return Authorization(
        name=read.required("name", text),
        namespace=read.required("namespace", text),
        scope=read.required("scope", variant(Scope)),
        action=read.required("action", variant(Action)),
        rules=read.required("rules", listed(listed(listed(_match)))),
        dry_run=read.required("dryRun", truth),
    )


def _match(value: Any, place: str) -> Match:
    read = Reader(value, place, None)
    return Match(**{field: read.optional(name, reader, ()) for name, (field, reader) in _MATCH.items()})


def _string_match(value: Any, place: str) -> StringMatch:
    """A tagged text, or the form of the dump: a mapping of one member."""
    if isinstance(value, Mapping) and len(value) == 1:
        ((tag, given),) = value.items()
    elif isinstance(value, Tagged):
        tag, given = value
    else:
        raise wrong_type(value, "a string match: !Exact, !Prefix, !Suffix or !Presence", place)
    kind = variant(StringMatchKind)(tag, place)
    if kind is not StringMatchKind.PRESENCE:
        return StringMatch(kind, text(given, place))
    if given not in (None, "", [], {}):
        raise wrong_type(given, "an empty sequence", place)
    return StringMatch(kind)


def _service_account(value: Any, place: str) -> ServiceAccountMatch:
    read = Reader(value, place, None)
    return ServiceAccountMatch(read.required("namespace", text), read.required("serviceAccount", text))


_KINDS: Mapping[str, tuple[str, Callable[[Any, str], Any]]] = {
    "namespaces": ("namespaces", _string_match),
    "principals": ("principals", _string_match),
    "serviceAccounts": ("service_accounts", _service_account),
    "sourceIps": ("source_ips", network),
    "destinationIps": ("destination_ips", network),
    "destinationPorts": ("destination_ports", port),
}
_MATCH: Mapping[str, tuple[str, Callable[[Any, str], Any]]] = {
    **{name: (field, listed(read)) for name, (field, read) in _KINDS.items()},
    **{
        f"not{name[0].upper()}{name[1:]}": (f"not_{field}", listed(read))
        for name, (field, read) in _KINDS.items()
    },
}
