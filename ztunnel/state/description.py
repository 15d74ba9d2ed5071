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
from ztunnel.state.kinds import TEXT, Field, Kind, Record, enumeration, many, needed
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

DEFAULT_SERVICE_ACCOUNT = "default"

_STATUS = enumeration(HealthStatus, "istio.workload.WorkloadStatus")
_PROTOCOL = enumeration(
    Protocol,
    "istio.workload.TunnelProtocol",
    NONE=Protocol.TCP,
    LEGACY_ISTIO_MTLS="unknown enum: unsupported tunnel protocol: legacy istio mtls",
)
_NETWORK_MODE = enumeration(NetworkMode, "istio.workload.NetworkMode")
_TUNNEL_PROTOCOL = enumeration(AppTunnelProtocol, "istio.workload.ApplicationTunnel.Protocol")
_WORKLOAD_TYPES = {0: "deployment", 1: "cronjob", 2: "pod", 3: "job"}
_WORKLOAD_TYPE = Kind(  # the file may have any
    file.text, read=lambda number: _WORKLOAD_TYPES.get(number, "deployment"), default=""
)
_OPTIONAL_PORT = Kind(
    lambda value, place: file.port(value, place) or None, lambda number: (number & 0xFFFF) or None
)

# -- workloads ---------------------------------------------------------------------------------------------

_APPLICATION_TUNNEL = Record(
    ApplicationTunnel,
    needed("protocol", _TUNNEL_PROTOCOL),
    Field("port", _OPTIONAL_PORT, always=True),
    closed=False,
)
_LOCALITY = Record(Locality, *(needed(name, TEXT) for name in Locality._fields), closed=False)

WORKLOAD = Record(
    Workload,
    needed("addresses", many(IP), json="workloadIps"),
    Field("waypoint", GATEWAY),
    Field("network_gateway", GATEWAY),
    Field("protocol", _PROTOCOL, wire="tunnel_protocol", always=True),
    Field("network_mode", _NETWORK_MODE, always=True),
    Field("uid", TEXT),
    Field("name", TEXT, always=True),
    needed("namespace", TEXT),
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
    Field("application_tunnel", _APPLICATION_TUNNEL.kind()),
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
    needed("workload_uid", TEXT),
    needed("ports", PORTS, json="port"),
    needed("status", _STATUS),
)
_WEIGHTED_WAYPOINT = Record(
    WeightedWaypoint,
    needed("destination", GATEWAY._replace(message=False)),
    needed("weight", NUMBER),
    closed=False,
)
_SCOPES = enumeration(
    LoadBalancerScope,
    "istio.workload.LoadBalancing.Scope",
    UNSPECIFIED_SCOPE="unknown enum: invalid target",
)
_MODE = enumeration(
    LoadBalancerMode, "istio.workload.LoadBalancing.Mode", UNSPECIFIED_MODE=LoadBalancerMode.STANDARD
)
_LOAD_BALANCER = Record(
    LoadBalancer,
    needed("routing_preferences", many(_SCOPES), wire="routing_preference"),
    needed("mode", _MODE),
    needed("health_policy", enumeration(HealthPolicy, "istio.workload.LoadBalancing.HealthPolicy")),
)
_FAMILIES = enumeration(
    IpFamilies,
    "istio.workload.IPFamilies",
    AUTOMATIC=None,
    IPV4_ONLY=IpFamilies.IPV4,
    IPV6_ONLY=IpFamilies.IPV6,
)
_VISIBILITY = enumeration(Visibility, "istio.workload.Service.Visibility", unknown=Visibility.PUBLIC)

SERVICE = Record(
    Service,
    needed("name", TEXT),
    needed("namespace", TEXT),
    needed("hostname", TEXT),
    # One list on the wire, addresses and ranges apart elsewhere.
    needed("vips", VIPS, wire="addresses"),
    Field("cidr_vips", CIDR_VIPS, wire="addresses"),
    needed("ports", PORTS),
    Field("subject_alt_names", many(TEXT), always=True),
    Field("waypoint", GATEWAY),
    Field("weighted_waypoints", many(_WEIGHTED_WAYPOINT.kind())),
    Field("load_balancer", _LOAD_BALANCER.kind(), wire="load_balancing"),
    Field("ip_families", _FAMILIES),
    Field("canonical", TRUTH, always=True),
    Field("visibility", _VISIBILITY, always=True),
    extra=(Field("endpoints", Kind(file.mapped(ENDPOINT.parse, file.text), default={})),),
)

# -- policies ----------------------------------------------------------------------------------------------

_SERVICE_ACCOUNT_MATCH = Record(
    ServiceAccountMatch,
    needed("namespace", TEXT),
    needed("service_account", TEXT, wire="serviceAccount"),
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
_SCOPE = enumeration(Scope, "istio.security.Scope")
_ACTION = enumeration(Action, "istio.security.Action")


# Rules are lists (rules) of lists (clauses) of lists (matches), of which the .proto makes messages. How a
# match from the wire is read depends on the action, so `ztunnel.state.convert` does it.
_CLAUSE = many(MATCH.kind())
_RULE = many(_CLAUSE)._replace(read=lambda rule: [clause.matches for clause in rule.clauses])

AUTHORIZATION = Record(
    Authorization,
    needed("name", TEXT),
    needed("namespace", TEXT),
    needed("scope", _SCOPE),
    needed("action", _ACTION),
    needed("rules", many(_RULE)),
    needed("dry_run", TRUTH),
)
