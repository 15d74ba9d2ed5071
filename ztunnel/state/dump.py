"""The mesh part of ``/config_dump``, as values that JSON can hold.

Each function is a generator, so that a mesh of 100,000 workloads is never built in memory: whoever asks for
the dump takes some objects, lets connections be served, and goes on. What is removed meanwhile is left out;
what is added meanwhile may be. Readers (istioctl among them) depend on the shapes: a field is left out or
not exactly as in the existing implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import heapify, heappop
from typing import Any, TypeAlias

from ztunnel.model.address import GatewayAddress, IPNetwork
from ztunnel.model.policy import Authorization, Match, ServiceAccountMatch, StringMatch, StringMatchKind
from ztunnel.model.service import Endpoint, Service
from ztunnel.model.workload import UNKNOWN_LOCALITY, Workload
from ztunnel.state.store import MeshStore

Json: TypeAlias = dict[str, Any]


def dump_workloads(store: MeshStore) -> Iterator[Json]:
    """All workloads, sorted by uid."""
    for uid in _sorted(store.workloads.uids()):
        workload = store.workloads.read(uid)
        if workload is not None:
            yield workload_json(workload)


def dump_services(store: MeshStore) -> Iterator[Json]:
    """All services with their endpoints, sorted by hostname, those of one hostname in store order."""
    for hostname in _sorted(store.services.hostnames()):
        for key in [entry.key for entry in store.services.by_hostname(hostname)]:
            entry = store.services.entry(key)
            if entry is not None:
                yield service_json(store.services.read(entry), store.services.read_endpoints(entry))


def dump_policies(store: MeshStore) -> Iterator[Json]:
    """All policies, sorted by the key under which they are stored."""
    for key in _sorted(store.policies.keys()):
        policy = store.policies.get(key)
        if policy is not None:
            yield policy_json(policy)


def dump_staged(store: MeshStore) -> Iterator[tuple[str, Json]]:
    """The endpoints of services that were not received, as (``namespace/hostname``, endpoints by uid)."""
    for key in sorted(store.services.staged_keys()):
        yield str(key), endpoints_json(store.services.staged(key))


def workload_json(workload: Workload) -> Json:
    """One workload. Empty fields are left out, but for those that readers expect."""
    tunnel = workload.application_tunnel
    optional: Json = {
        "applicationTunnel": tunnel and {"port": tunnel.port, "protocol": tunnel.protocol.value},
        "authorizationPolicies": list(workload.authorization_policies),
        "canonicalName": workload.canonical_name,
        "canonicalRevision": workload.canonical_revision,
        "hostname": workload.hostname,
        "locality": None if workload.locality == UNKNOWN_LOCALITY else workload.locality._asdict(),
        "nativeTunnel": workload.native_tunnel,
        "network": workload.network,
        "networkGateway": gateway_json(workload.network_gateway),
        "node": workload.node,
        "serviceAccount": workload.service_account,
        "services": [str(key) for key in workload.services],
        "trustDomain": workload.trust_domain,
        "uid": workload.uid,
        "waypoint": gateway_json(workload.waypoint),
        "workloadName": workload.workload_name,
        "workloadType": workload.workload_type,
    }
    return {
        "capacity": workload.capacity,
        "clusterId": workload.cluster_id,
        "name": workload.name,
        "namespace": workload.namespace,
        "networkMode": workload.network_mode.value,
        "protocol": workload.protocol.value,
        "status": workload.status.value,
        "workloadIps": [str(ip) for ip in workload.addresses],
        **_given(optional),
    }


def service_json(service: Service, endpoints: Mapping[str, Endpoint]) -> Json:
    """One service with its endpoints."""
    balancer = service.load_balancer
    optional: Json = {
        "cidrVips": [{"cidr": str(vip.cidr), "network": vip.network} for vip in service.cidr_vips],
        "ipFamilies": service.ip_families and service.ip_families.value,
        "loadBalancer": balancer
        and {
            "healthPolicy": balancer.health_policy.value,
            "mode": balancer.mode.value,
            "routingPreferences": [scope.value for scope in balancer.routing_preferences],
        },
        "waypoint": gateway_json(service.waypoint),
        "weightedWaypoints": [
            {"destination": gateway_json(weighted.destination), "weight": weighted.weight}
            for weighted in service.weighted_waypoints
        ],
    }
    return {
        "canonical": service.canonical,
        "endpoints": endpoints_json(endpoints),
        "hostname": service.hostname,
        "name": service.name,
        "namespace": service.namespace,
        "ports": ports_json(service.ports),
        "subjectAltNames": list(service.subject_alt_names),
        "vips": [str(vip) for vip in service.vips],
        "visibility": service.visibility.value,
        **_given(optional),
    }


def endpoints_json(endpoints: Mapping[str, Endpoint]) -> Json:
    """The endpoints of a service by workload uid, sorted."""
    return {
        uid: {
            "port": ports_json(endpoint.ports),
            "status": endpoint.status.value,
            "workloadUid": endpoint.workload_uid,
        }
        for uid, endpoint in sorted(endpoints.items())
    }


def ports_json(ports: Mapping[int, int]) -> dict[str, int]:
    """A port map; the names of members of a JSON object are texts."""
    return {str(port): target for port, target in ports.items()}


def gateway_json(gateway: GatewayAddress | None) -> Json | None:
    """A waypoint or network gateway."""
    if gateway is None:
        return None
    return {"destination": str(gateway.destination), "hboneMtlsPort": gateway.hbone_mtls_port}


def policy_json(policy: Authorization) -> Json:
    """One policy."""
    return {
        "action": policy.action.value,
        "dryRun": policy.dry_run,
        "name": policy.name,
        "namespace": policy.namespace,
        "rules": [[[_match(match) for match in clause] for clause in rule] for rule in policy.rules],
        "scope": policy.scope.value,
    }


def _match(match: Match) -> Json:
    return _given(
        {
            name: [shape(value) for value in getattr(match, field)]
            for name, (field, shape) in MATCH_FIELDS.items()
        }
    )


def _string(match: StringMatch) -> Json:
    return {match.kind.value: [] if match.kind is StringMatchKind.PRESENCE else match.value}


def _service_account(match: ServiceAccountMatch) -> Json:
    return {"namespace": match.namespace, "serviceAccount": match.service_account}


def _network(network: IPNetwork) -> str:
    return str(network)


def _port(port: int) -> int:
    return port


MATCH_FIELDS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "destinationIps": ("destination_ips", _network),
    "destinationPorts": ("destination_ports", _port),
    "namespaces": ("namespaces", _string),
    "notDestinationIps": ("not_destination_ips", _network),
    "notDestinationPorts": ("not_destination_ports", _port),
    "notNamespaces": ("not_namespaces", _string),
    "notPrincipals": ("not_principals", _string),
    "notServiceAccounts": ("not_service_accounts", _service_account),
    "notSourceIps": ("not_source_ips", _network),
    "principals": ("principals", _string),
    "serviceAccounts": ("service_accounts", _service_account),
    "sourceIps": ("source_ips", _network),
}
"""The members of a match by their names in JSON: the field of the model, and the shape of one value."""


def _given(members: Json) -> Json:
    """Without the members that are empty."""
    return {name: value for name, value in members.items() if value}


def _sorted(keys: Iterable[str]) -> Iterator[str]:
    """The keys in order. Unlike `sorted`, this does the work bit by bit, as they are taken."""
    heap = list(keys)
    heapify(heap)
    while heap:
        yield heappop(heap)
