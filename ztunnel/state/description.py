"""The mesh's messages, each described once: on the wire, in the model, in the dump and in the local file.

Reading (`convert`), the dump (`dump`) and the local file (`local`) follow from what stands here. How a
description is used is told in `ztunnel.state.kinds`, what a field can say about itself in its `Field`. The
numbers and wire types of fields stand in protos/ alone. Errors about the file list fields in the order in
which they stand here.
"""

from __future__ import annotations

from ztunnel.model.policy import Action, Authorization, Match, Scope, ServiceAccountMatch
from ztunnel.model.service import (
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
from ztunnel.state import local_reader as file
from ztunnel.state.kinds import TEXT, Field, Kind, Record, enumeration, many
from ztunnel.state.values import (
    CIDR_VIPS,
    GATEWAY,
    IP,
    NETWORK_MATCH,
    NUMBER,
    PORT,
    PORTS,
    SERVICES,
    STRING_MATCH,
    TRUTH,
    VIPS,
    WRAPPED_NUMBER,
)
from ztunnel.state.wire import numbers

DEFAULT_SERVICE_ACCOUNT = "default"

_STATUS = enumeration(HealthStatus, numbers("istio.workload.WorkloadStatus", HealthStatus))
_PROTOCOL = enumeration(
    Protocol,
    numbers(
        "istio.workload.TunnelProtocol",
        Protocol,
        NONE=Protocol.TCP,
        LEGACY_ISTIO_MTLS="unknown enum: unsupported tunnel protocol: legacy istio mtls",
    ),
)
_NETWORK_MODE = enumeration(NetworkMode, numbers("istio.workload.NetworkMode", NetworkMode))
_TUNNEL_PROTOCOL = enumeration(
    AppTunnelProtocol, numbers("istio.workload.ApplicationTunnel.Protocol", AppTunnelProtocol)
)
_WORKLOAD_TYPES = {0: "deployment", 1: "cronjob", 2: "pod", 3: "job"}
_WORKLOAD_TYPE = Kind(
    file.text, read=lambda number: _WORKLOAD_TYPES.get(number, "deployment"), default=""
)  # the file may have any

# -- workloads ---------------------------------------------------------------------------------------------

_APPLICATION_TUNNEL = Record(
    ApplicationTunnel,
    Field("protocol", _TUNNEL_PROTOCOL, required=True, always=True),
    Field(
        "port",
        Kind(lambda value, place: file.port(value, place) or None, lambda number: (number & 0xFFFF) or None),
        nullable=True,
        always=True,
    ),
    closed=False,
)
_LOCALITY = Record(
    Locality, *(Field(name, TEXT, required=True, always=True) for name in Locality._fields), closed=False
)

WORKLOAD = Record(
    Workload,
    Field("addresses", many(IP), json="workloadIps", required=True, always=True),
    Field("waypoint", GATEWAY, nullable=True),
    Field("network_gateway", GATEWAY, nullable=True),
    Field("protocol", _PROTOCOL, wire="tunnel_protocol", always=True),
    Field("network_mode", _NETWORK_MODE, always=True),
    Field("uid", TEXT),
    Field("name", TEXT, always=True),
    Field("namespace", TEXT, required=True, always=True),
    Field("trust_domain", TEXT, xds_default="cluster.local"),
    Field("service_account", TEXT, xds_default=DEFAULT_SERVICE_ACCOUNT),
    Field("network", TEXT),
    Field("workload_name", TEXT),
    Field("workload_type", _WORKLOAD_TYPE),
    Field("canonical_name", TEXT),
    Field("canonical_revision", TEXT),
    Field("hostname", TEXT),
    Field("node", TEXT),
    Field("native_tunnel", TRUTH),
    Field("application_tunnel", _APPLICATION_TUNNEL.kind(), nullable=True),
    Field("authorization_policies", many(TEXT)),
    Field("status", _STATUS, always=True),
    Field("cluster_id", TEXT, xds_default="Kubernetes", always=True),
    Field("locality", _LOCALITY.kind(default=UNKNOWN_LOCALITY)),
    Field("services", SERVICES, required=True),
    Field("capacity", WRAPPED_NUMBER, default=1, always=True),
)

# -- services ----------------------------------------------------------------------------------------------

ENDPOINT = Record(
    Endpoint,
    Field("workload_uid", TEXT, required=True, always=True),
    Field("ports", PORTS, json="port", required=True, always=True),
    Field("status", _STATUS, required=True, always=True),
)
_WEIGHTED_WAYPOINT = Record(
    WeightedWaypoint,
    Field("destination", GATEWAY._replace(message=False), required=True, always=True),
    Field("weight", NUMBER, required=True, always=True),
    closed=False,
)
_SCOPES = numbers(
    "istio.workload.LoadBalancing.Scope", LoadBalancerScope, UNSPECIFIED_SCOPE="unknown enum: invalid target"
)
_MODES = numbers(
    "istio.workload.LoadBalancing.Mode", LoadBalancerMode, UNSPECIFIED_MODE=LoadBalancerMode.STANDARD
)
_HEALTH_POLICIES = numbers("istio.workload.LoadBalancing.HealthPolicy", HealthPolicy)
_LOAD_BALANCER = Record(
    LoadBalancer,
    Field(
        "routing_preferences",
        many(enumeration(LoadBalancerScope, _SCOPES)),
        wire="routing_preference",
        required=True,
        always=True,
    ),
    Field("mode", enumeration(LoadBalancerMode, _MODES), required=True, always=True),
    Field("health_policy", enumeration(HealthPolicy, _HEALTH_POLICIES), required=True, always=True),
)
_FAMILIES = numbers(
    "istio.workload.IPFamilies",
    IpFamilies,
    AUTOMATIC=None,
    IPV4_ONLY=IpFamilies.IPV4,
    IPV6_ONLY=IpFamilies.IPV6,
)
_VISIBILITIES = numbers("istio.workload.Service.Visibility", Visibility)
_VISIBILITY = Kind(  # one that is not known yet restricts nothing
    file.variant(Visibility),
    lambda number: _VISIBILITIES.get(number, Visibility.PUBLIC),
    lambda visibility: visibility.value,
    default=Visibility.PUBLIC,
)

SERVICE = Record(
    Service,
    Field("name", TEXT, required=True, always=True),
    Field("namespace", TEXT, required=True, always=True),
    Field("hostname", TEXT, required=True, always=True),
    # One list on the wire, addresses and ranges apart elsewhere.
    Field("vips", VIPS, wire="addresses", required=True, always=True),
    Field("cidr_vips", CIDR_VIPS, wire="addresses"),
    Field("ports", PORTS, required=True, always=True),
    Field("subject_alt_names", many(TEXT), always=True),
    Field("waypoint", GATEWAY, nullable=True),
    Field("weighted_waypoints", many(_WEIGHTED_WAYPOINT.kind())),
    Field("load_balancer", _LOAD_BALANCER.kind(), wire="load_balancing", nullable=True),
    Field("ip_families", enumeration(IpFamilies, _FAMILIES), nullable=True),
    Field("canonical", TRUTH, always=True),
    Field("visibility", _VISIBILITY, always=True),
    extra=(Field("endpoints", Kind(file.mapped(ENDPOINT.parse), default={})),),
)

# -- policies ----------------------------------------------------------------------------------------------

_SERVICE_ACCOUNT_MATCH = Record(
    ServiceAccountMatch,
    Field("namespace", TEXT, required=True, always=True),
    Field("service_account", TEXT, wire="serviceAccount", required=True, always=True),
    closed=False,
)
MATCHES: tuple[tuple[str, Kind], ...] = (
    ("namespaces", STRING_MATCH),
    ("service_accounts", _SERVICE_ACCOUNT_MATCH.kind()),
    ("principals", STRING_MATCH),
    ("source_ips", NETWORK_MATCH),
    ("destination_ips", NETWORK_MATCH),
    ("destination_ports", PORT),
)
"""What a match compares: values of which one must hold, and under ``not_`` values of which none may."""

MATCH = Record(
    Match,
    *(Field(prefix + name, many(kind)) for name, kind in MATCHES for prefix in ("", "not_")),
    closed=False,
)
_SCOPE = enumeration(Scope, numbers("istio.security.Scope", Scope))
_ACTION = enumeration(Action, numbers("istio.security.Action", Action))


# Rules are lists (rules) of lists (clauses) of lists (matches), of which the .proto makes messages. How a
# match from the wire is read depends on the action, so `ztunnel.state.convert_policy` does it.
_CLAUSE = many(MATCH.kind())
_RULE = many(_CLAUSE)._replace(read=lambda rule: [clause.matches for clause in rule.clauses])

AUTHORIZATION = Record(
    Authorization,
    Field("name", TEXT, required=True, always=True),
    Field("namespace", TEXT, required=True, always=True),
    Field("scope", _SCOPE, required=True, always=True),
    Field("action", _ACTION, required=True, always=True),
    Field("rules", many(_RULE), required=True, always=True),
    Field("dry_run", TRUTH, required=True, always=True),
)
