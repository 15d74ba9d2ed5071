"""Load balancing: chooses the service, its endpoint, the port and the address.

There are two lookups of an address with opposite precedence, as in Istio's ztunnel; they must stay apart.
`find_address` says what an address *is* and prefers the workload. The code that chooses who *receives* a
connection (`route`, and references to gateways) asks for the service first. Randomness is a parameter; an
endpoint is chosen with a probability proportional to its capacity.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable
from enum import Enum
from itertools import accumulate
from random import Random
from typing import NamedTuple, TypeAlias

from ztunnel.decide.mesh_view import MeshView
from ztunnel.decide.plans import Resolve
from ztunnel.model.address import IPAddress, SocketAddress
from ztunnel.model.service import (
    Endpoint,
    IpFamilies,
    LoadBalancerMode,
    LoadBalancerScope,
    Service,
    Visibility,
)
from ztunnel.model.workload import Protocol, Workload

HBONE_PORT = 15008
"""The port on which every workload of the mesh listens for tunnels."""


class SelectionMode(Enum):
    """What endpoints are chosen for: to receive connections, or to be a waypoint (ports may be missing)."""

    STANDARD = "standard"
    WAYPOINT = "waypoint"


class Selected(NamedTuple):
    """An endpoint that was chosen, and the port at which its workload serves the service's port."""

    workload: Workload
    endpoint: Endpoint
    port: int


Candidate: TypeAlias = tuple[Workload, Endpoint, int]
"""The parts of a `Selected`: a plain tuple, because there may be thousands for one connection."""


def is_visible(service: Service, namespace: str | None) -> bool:
    """Returns whether clients of a namespace see a service. None sees everything."""
    return namespace is None or service.visibility is Visibility.PUBLIC or service.namespace == namespace


def best_service(
    candidates: Iterable[Service], namespace: str | None, preferred_namespace: str | None = None
) -> Service | None:
    """Returns the service that a client of ``namespace`` means, among several with one hostname or address.

    Of those it can see: the first in its own namespace; else the last canonical one; else the last one in
    ``preferred_namespace``; else the first. None when there is none.
    """
    first = canonical = preferred = None
    for service in candidates:
        if not is_visible(service, namespace):
            continue
        if service.namespace == namespace:
            return service
        if first is None:
            first = service
        if service.canonical:
            canonical = service
        if preferred_namespace and service.namespace == preferred_namespace:
            preferred = service
    return canonical or preferred or first


def service_by_address(view: MeshView, network: str, ip: IPAddress, namespace: str | None) -> Service | None:
    """Returns the best service with this virtual address, or else with a range around it.

    Ranges count only when no service with exactly this address is visible: the first of those with the
    highest (in the client's namespace, prefix length, canonical).
    """
    service = best_service(view.services_by_vip(network, ip), namespace)
    if service is not None:
        return service
    best: tuple[bool, int, bool] | None = None
    for vip, candidate in view.services_by_cidr(network, ip):
        rank = (candidate.namespace == namespace, vip.cidr.prefixlen, candidate.canonical)
        if is_visible(candidate, namespace) and (best is None or rank > best):
            best, service = rank, candidate
    return service


def find_address(
    view: MeshView, network: str, ip: IPAddress, namespace: str | None
) -> Workload | Service | None:
    """Returns the workload with this address, else the best service with it for clients of ``namespace``."""
    return view.workload_by_address(network, ip) or service_by_address(view, network, ip, namespace)


def is_passthrough(service: Service) -> bool:
    """Whether a connection to the service's virtual address goes to that address, without load balancing."""
    balancer = service.load_balancer
    return balancer is not None and balancer.mode is LoadBalancerMode.PASSTHROUGH


def target_port(service: Service, endpoint: Endpoint, workload: Workload, port: int) -> int | None:
    """Returns the workload's own port behind a port of the service, None when it cannot be known.

    The endpoint's mapping; else the service's target port; else, for a workload whose application tunnel has
    a port of its own, the service's port itself.
    """
    target = endpoint.ports.get(port) or service.ports.get(port)
    if target:
        return target
    tunnel = workload.application_tunnel
    return port if tunnel is not None and tunnel.port else None


def select_endpoint(
    view: MeshView,
    service: Service,
    port: int,
    source: Workload,
    mode: SelectionMode,
    *,
    random: Random,
    avoid: Collection[str] = (),
) -> Selected | str:
    """Choose the endpoint of a service that gets a connection from ``source`` to ``port``.

    ``avoid`` holds workload uids and dialled ``ip:port`` texts that are passed over while others are left;
    the load balancing mode still bounds who these others can be. Returns a sentence when there is none.
    """
    target = service.ports.get(port)
    if target is None and mode is SelectionMode.STANDARD:
        return f"Service {service.key} has no port {port}."
    endpoints = view.endpoints(service)
    if not endpoints:
        return f"Service {service.key} has no endpoints (or no healthy ones)."
    # This loop runs over all endpoints for each connection, so what is the same for all is decided before it.
    find = view.workload
    standard = mode is SelectionMode.STANDARD
    usable: list[Candidate] = []
    for uid, endpoint in endpoints.items():
        workload = find(uid)
        if workload is None or not (workload.addresses or can_be_reached(workload, source)):
            continue
        own_port = endpoint.ports.get(port) or target
        if not standard:
            if target is None and workload.application_tunnel is None:
                continue
            own_port = own_port or target_port(service, endpoint, workload, port)
        if own_port:
            usable.append((workload, endpoint, own_port))
    if not usable:
        return f"None of the {len(endpoints)} endpoints of service {service.key} can serve its port {port}."
    chosen = None
    if avoid:
        chosen = _choose(service, source, not_avoided(usable, avoid), random)
    if chosen is None:
        chosen = _choose(service, source, usable, random)
    if chosen is None:
        mode_name = service.load_balancer.mode.value if service.load_balancer else "Standard"
        return (
            f"None of the {len(usable)} usable endpoints of service {service.key} "
            f"qualifies: its load balancing mode is {mode_name}, and capacity 0 gets nothing."
        )
    return Selected(*chosen)


def can_be_reached(workload: Workload, source: Workload) -> bool:
    """Whether a workload without addresses can be reached: by hostname, or through its network gateway."""
    return bool(workload.hostname) or (
        workload.network != source.network and workload.network_gateway is not None
    )


def not_avoided(usable: list[Candidate], avoid: Collection[str]) -> list[Candidate]:
    """Returns the candidates that ``avoid`` names neither by uid nor by the address to dial."""
    left = [one for one in usable if one[0].uid not in avoid]
    # Formatting each address costs ten times the rest, and mostly only uids are avoided.
    if any(_is_socket_address(text) for text in avoid):
        left = [one for one in left if not _address_avoided(one, avoid)]
    return left


def _is_socket_address(text: str) -> bool:
    try:
        SocketAddress.parse(text)
    except ValueError:
        return False
    return True


def _address_avoided(candidate: Candidate, avoid: Collection[str]) -> bool:
    workload, _, port = candidate
    if workload.protocol is Protocol.HBONE:
        port = HBONE_PORT
    return any(str(SocketAddress(ip, port)) in avoid for ip in workload.addresses)


def qualified(service: Service, source: Workload, usable: list[Candidate]) -> list[Candidate]:
    """Returns the candidates that the load balancing mode allows for a connection."""
    balancer = service.load_balancer
    if balancer is None or balancer.mode is LoadBalancerMode.STANDARD:
        return usable
    strict = balancer.mode is LoadBalancerMode.STRICT
    return _best_ranked(usable, balancer.routing_preferences, source, strict=strict)


def _choose(service: Service, source: Workload, usable: list[Candidate], random: Random) -> Candidate | None:
    usable = qualified(service, source, usable)
    # An endpoint of capacity 0 leaves no gap between two sums, so it is never chosen.
    sums = list(accumulate(candidate[0].capacity for candidate in usable))
    if not sums or sums[-1] <= 0:
        return None
    return usable[bisect_right(sums, random.randrange(sums[-1]))]


_SCOPE_VALUES: dict[LoadBalancerScope, Callable[[Workload], str]] = {
    LoadBalancerScope.REGION: lambda workload: workload.locality.region,
    LoadBalancerScope.ZONE: lambda workload: workload.locality.zone,
    LoadBalancerScope.SUBZONE: lambda workload: workload.locality.subzone,
    LoadBalancerScope.NODE: lambda workload: workload.node,
    LoadBalancerScope.CLUSTER: lambda workload: workload.cluster_id,
    LoadBalancerScope.NETWORK: lambda workload: workload.network,
}


def _best_ranked(
    usable: list[Candidate], preferences: tuple[LoadBalancerScope, ...], source: Workload, *, strict: bool
) -> list[Candidate]:
    wanted = [(scope, _SCOPE_VALUES[scope], _SCOPE_VALUES[scope](source)) for scope in preferences]
    best_rank = -1
    best: list[Candidate] = []
    for candidate in usable:
        matches, rank = _rank(candidate[0], wanted)
        if strict and matches != len(wanted):
            continue
        if rank > best_rank:
            best_rank, best = rank, [candidate]
        elif rank == best_rank:
            best.append(candidate)
    return best


def _rank(
    workload: Workload, wanted: list[tuple[LoadBalancerScope, Callable[[Workload], str], str]]
) -> tuple[int, int]:
    """Returns how many scopes match, and the rank that comes of it.

    The first mismatch ends the count. Network as the first preference is special: a mismatch there does not
    end it, and a match weighs as much as all others, so that any endpoint of our network beats the rest.
    """
    matches = 0
    bonus = 0
    for index, (scope, value_of, value) in enumerate(wanted):
        network_first = index == 0 and scope is LoadBalancerScope.NETWORK
        if value_of(workload) == value:
            matches += 1
            if network_first:
                bonus = len(wanted) - 1
        elif not network_first:
            break
    return matches, matches + bonus


def choose_ip(
    workload: Workload, families: IpFamilies | None, target: IPAddress
) -> IPAddress | Resolve | None:
    """Returns the address of a workload to dial for a connection to ``target``.

    ``target`` itself if the workload has it; else its first address of ``target``'s family, else its first
    one, of those that ``families`` allows; else, for a workload with a hostname, what to resolve. None when
    it has nothing to dial (reachable only through its network gateway, if at all).
    """
    if target in workload.addresses:
        return target
    first = None
    for ip in workload.addresses:
        if is_allowed_family(ip, families):
            if ip.version == target.version:
                return ip
            first = first or ip
    if first is not None:
        return first
    if workload.hostname:
        return Resolve(workload.hostname, workload.uid, target.version, families)
    return None


def is_allowed_family(ip: IPAddress, families: IpFamilies | None) -> bool:
    """Whether a service with these families (None: any) is offered on an address of this IP version."""
    if families is IpFamilies.IPV4:
        return ip.version == 4
    if families is IpFamilies.IPV6:
        return ip.version == 6
    return True
