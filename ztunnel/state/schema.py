"""The messages of the mesh as tables for `ztunnel.state.wire` (protos/workload.proto, authorization.proto).

A test holds these tables equal to the messages that betterproto2's compiler generated from the protos.
"""

from __future__ import annotations

from ztunnel.state.wire import Field, Kind, Schema, map_entry

ANY = Schema("Any", {1: Field("type_url"), 2: Field("value", Kind.BYTES)})
EMPTY = Schema("Empty", {})
UINT32_VALUE = Schema("UInt32Value", {1: Field("value", Kind.UINT32)})

EXTENSION = Schema("Extension", {1: Field("name"), 2: Field("config", Kind.MESSAGE, message=ANY)})
NETWORK_ADDRESS = Schema(
    "NetworkAddress",
    {1: Field("network"), 2: Field("address", Kind.BYTES), 3: Field("length", Kind.UINT32)},
)
NAMESPACED_HOSTNAME = Schema("NamespacedHostname", {1: Field("namespace"), 2: Field("hostname")})
GATEWAY_ADDRESS = Schema(
    "GatewayAddress",
    {
        1: Field("hostname", Kind.MESSAGE, message=NAMESPACED_HOSTNAME, oneof="destination"),
        2: Field("address", Kind.MESSAGE, message=NETWORK_ADDRESS, oneof="destination"),
        3: Field("hbone_mtls_port", Kind.UINT32),
    },
)
WEIGHTED_WAYPOINT = Schema(
    "WeightedWaypoint",
    {1: Field("destination", Kind.MESSAGE, message=GATEWAY_ADDRESS), 2: Field("weight", Kind.UINT32)},
)
PORT = Schema(
    "Port",
    {
        1: Field("service_port", Kind.UINT32),
        2: Field("target_port", Kind.UINT32),
        3: Field("app_protocol", Kind.ENUM),
    },
)
PORT_LIST = Schema("PortList", {1: Field("ports", Kind.MESSAGE, repeated=True, message=PORT)})
SERVICES_ENTRY = map_entry(PORT_LIST)
LOCALITY = Schema("Locality", {1: Field("region"), 2: Field("zone"), 3: Field("subzone")})
APPLICATION_TUNNEL = Schema(
    "ApplicationTunnel", {1: Field("protocol", Kind.ENUM), 2: Field("port", Kind.UINT32)}
)
LOAD_BALANCING = Schema(
    "LoadBalancing",
    {
        1: Field("routing_preference", Kind.ENUM, repeated=True),
        2: Field("mode", Kind.ENUM),
        3: Field("health_policy", Kind.ENUM),
    },
)
WORKLOAD = Schema(
    "Workload",
    {
        1: Field("name"),
        2: Field("namespace"),
        3: Field("addresses", Kind.BYTES, repeated=True),
        4: Field("network"),
        5: Field("tunnel_protocol", Kind.ENUM),
        6: Field("trust_domain"),
        7: Field("service_account"),
        8: Field("waypoint", Kind.MESSAGE, message=GATEWAY_ADDRESS),
        9: Field("node"),
        10: Field("canonical_name"),
        11: Field("canonical_revision"),
        12: Field("workload_type", Kind.ENUM),
        13: Field("workload_name"),
        14: Field("native_tunnel", Kind.BOOL),
        16: Field("authorization_policies", repeated=True),
        17: Field("status", Kind.ENUM),
        18: Field("cluster_id"),
        19: Field("network_gateway", Kind.MESSAGE, message=GATEWAY_ADDRESS),
        20: Field("uid"),
        21: Field("hostname"),
        22: Field("services", Kind.MAP, message=SERVICES_ENTRY),
        23: Field("application_tunnel", Kind.MESSAGE, message=APPLICATION_TUNNEL),
        24: Field("locality", Kind.MESSAGE, message=LOCALITY),
        25: Field("network_mode", Kind.ENUM),
        26: Field("extensions", Kind.MESSAGE, repeated=True, message=EXTENSION),
        27: Field("capacity", Kind.MESSAGE, message=UINT32_VALUE),
    },
)
SERVICE = Schema(
    "Service",
    {
        1: Field("name"),
        2: Field("namespace"),
        3: Field("hostname"),
        4: Field("addresses", Kind.MESSAGE, repeated=True, message=NETWORK_ADDRESS),
        5: Field("ports", Kind.MESSAGE, repeated=True, message=PORT),
        6: Field("subject_alt_names", repeated=True),
        7: Field("waypoint", Kind.MESSAGE, message=GATEWAY_ADDRESS),
        8: Field("load_balancing", Kind.MESSAGE, message=LOAD_BALANCING),
        9: Field("ip_families", Kind.ENUM),
        10: Field("extensions", Kind.MESSAGE, repeated=True, message=EXTENSION),
        11: Field("canonical", Kind.BOOL),
        12: Field("ingress_use_waypoint", Kind.BOOL),
        13: Field("weighted_waypoints", Kind.MESSAGE, repeated=True, message=WEIGHTED_WAYPOINT),
        14: Field("visibility", Kind.ENUM),
    },
)
ADDRESS = Schema(
    "Address",
    {
        1: Field("workload", Kind.MESSAGE, message=WORKLOAD, oneof="type"),
        2: Field("service", Kind.MESSAGE, message=SERVICE, oneof="type"),
    },
)

POLICY_ADDRESS = Schema("Address", {1: Field("address", Kind.BYTES), 2: Field("length", Kind.UINT32)})
SERVICE_ACCOUNT_MATCH = Schema("ServiceAccountMatch", {1: Field("namespace"), 2: Field("service_account")})
STRING_MATCH = Schema(
    "StringMatch",
    {
        1: Field("exact", oneof="match_type"),
        2: Field("prefix", oneof="match_type"),
        3: Field("suffix", oneof="match_type"),
        4: Field("presence", Kind.MESSAGE, message=EMPTY, oneof="match_type"),
    },
)
MATCH = Schema(
    "Match",
    {
        1: Field("namespaces", Kind.MESSAGE, repeated=True, message=STRING_MATCH),
        2: Field("not_namespaces", Kind.MESSAGE, repeated=True, message=STRING_MATCH),
        3: Field("principals", Kind.MESSAGE, repeated=True, message=STRING_MATCH),
        4: Field("not_principals", Kind.MESSAGE, repeated=True, message=STRING_MATCH),
        5: Field("source_ips", Kind.MESSAGE, repeated=True, message=POLICY_ADDRESS),
        6: Field("not_source_ips", Kind.MESSAGE, repeated=True, message=POLICY_ADDRESS),
        7: Field("destination_ips", Kind.MESSAGE, repeated=True, message=POLICY_ADDRESS),
        8: Field("not_destination_ips", Kind.MESSAGE, repeated=True, message=POLICY_ADDRESS),
        9: Field("destination_ports", Kind.UINT32, repeated=True),
        10: Field("not_destination_ports", Kind.UINT32, repeated=True),
        11: Field("service_accounts", Kind.MESSAGE, repeated=True, message=SERVICE_ACCOUNT_MATCH),
        12: Field("not_service_accounts", Kind.MESSAGE, repeated=True, message=SERVICE_ACCOUNT_MATCH),
        13: Field("extensions", Kind.MESSAGE, repeated=True, message=EXTENSION),
    },
)
CLAUSE = Schema("Clause", {2: Field("matches", Kind.MESSAGE, repeated=True, message=MATCH)})
RULE = Schema("Rule", {1: Field("clauses", Kind.MESSAGE, repeated=True, message=CLAUSE)})
AUTHORIZATION = Schema(
    "Authorization",
    {
        1: Field("name"),
        2: Field("namespace"),
        3: Field("scope", Kind.ENUM),
        4: Field("action", Kind.ENUM),
        5: Field("rules", Kind.MESSAGE, repeated=True, message=RULE),
        6: Field("dry_run", Kind.BOOL),
        7: Field("extensions", Kind.MESSAGE, repeated=True, message=EXTENSION),
    },
)
