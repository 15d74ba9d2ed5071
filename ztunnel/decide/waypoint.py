"""References to waypoints and network gateways, and the workloads that they lead to.

A reference names an address or a service's hostname, and a port. If it leads nowhere, the connection is
refused: going directly instead would bypass the policies that the waypoint enforces.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from ztunnel.decide.balance import (
    SelectionMode,
    choose_ip,
    find_address,
    is_passthrough,
    select_endpoint,
    service_by_address,
)
from ztunnel.decide.mesh_view import MeshView
from ztunnel.decide.plans import Refusal, RefusalKind, Resolve
from ztunnel.model.address import GatewayAddress, IPAddress, NetworkAddress
from ztunnel.model.identity import Identity, InvalidIdentityError
from ztunnel.model.service import Service
from ztunnel.model.workload import Workload

_MAX_TOTAL_WEIGHT = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Hop:
    """The workload to which a connection goes next.

    service: the service through which it was chosen, None when it was addressed directly.
    port: the port at which the workload serves the request (not its HBONE port, unless that was asked for).
    target: the address for which one of its IP addresses is chosen (see `choose_ip`).
    """

    workload: Workload
    service: Service | None
    port: int
    target: IPAddress

    @property
    def ip(self) -> IPAddress | Resolve | None:
        """The address to dial, or the hostname to resolve; None when it has neither."""
        families = None if self.service is None else self.service.ip_families
        return choose_ip(self.workload, families, self.target)

    @property
    def service_identities(self) -> tuple[str, ...]:
        """The SPIFFE identities in the service's subject alternative names, in their order."""
        return () if self.service is None else _spiffe_only(self.service.subject_alt_names)

    @property
    def expected(self) -> tuple[str, ...]:
        """The identities of which the peer must present one: the service's, then the workload's own."""
        own = str(self.workload.identity)
        by_service = self.service_identities
        return by_service if own in by_service else (*by_service, own)


@lru_cache(maxsize=4096)
def _spiffe_only(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in dict.fromkeys(names) if _is_spiffe(name))


def _is_spiffe(name: str) -> bool:
    try:
        Identity.parse(name)
    except InvalidIdentityError:
        return False
    return True


def waypoint_of(service: Service, random: Random) -> GatewayAddress | None:
    """Returns the service's waypoint for one connection, chosen by weight if it has several.

    Returns None for a set whose weights are all zero or whose sum is too large for the Rust ztunnel's
    counter.
    """
    if service.weighted_waypoints:
        total = sum(one.weight for one in service.weighted_waypoints)
        if 0 < total <= _MAX_TOTAL_WEIGHT:
            drawn = random.randrange(total)
            for one in service.weighted_waypoints:
                drawn -= one.weight
                if drawn < 0:
                    return one.destination
    return service.waypoint


def resolve_gateway(
    view: MeshView,
    reference: GatewayAddress,
    source: Workload,
    target: IPAddress,
    mode: SelectionMode,
    *,
    random: Random,
    avoid: Collection[str] = (),
) -> Hop | Refusal:
    """Find the workload of a reference to a waypoint (mode WAYPOINT) or network gateway (STANDARD).

    target: the client's original destination. For a reference by hostname it determines the IP version; a
        reference by address determines it itself.

    A service comes before a workload. Returns a refusal, with the Rust ztunnel's text, when nothing is known
    under the reference or no endpoint serves its port.
    """
    port = reference.hbone_mtls_port
    destination = reference.destination
    why = ""
    if isinstance(destination, NetworkAddress):
        target = destination.ip
        service = service_by_address(view, destination.network, target, source.namespace)
        if service is not None and is_passthrough(service):
            # Mode PASSTHROUGH means "the original address". A reference has no original address, so it leads
            # nowhere.
            return _unknown(reference, mode, f"Service {service.key} passes through and chooses no endpoint.")
        workload = None if service else view.workload_by_address(destination.network, target)
    else:
        service = view.service(destination.namespace, destination.hostname)
        workload = None if service else view.workload_by_hostname(destination.namespace, destination.hostname)
    if service is not None:
        selected = select_endpoint(view, service, port, source, mode, random=random, avoid=avoid)
        if not isinstance(selected, str):
            return Hop(selected.workload, service, selected.port, target)
        why = selected
    elif workload is not None:
        return Hop(workload, None, port, target)
    if not why:
        ask = (
            "does the waypoint exist, and is istio.io/use-waypoint spelled like it?"
            if mode is SelectionMode.WAYPOINT
            else "does the network gateway exist?"
        )
        why = f"Nothing is known under {destination}: {ask}"
    return _unknown(reference, mode, why)


def _unknown(reference: GatewayAddress, mode: SelectionMode, why: str) -> Refusal:
    if mode is SelectionMode.WAYPOINT:
        text = f"unknown waypoint: waypoint {_describe(reference)} not found"
        return Refusal(RefusalKind.UNKNOWN_WAYPOINT, text, why=(why,))
    text = f"unknown network gateway: network gateway {_describe(reference)} not found"
    return Refusal(RefusalKind.UNKNOWN_NETWORK_GATEWAY, text, why=(why,))


def _describe(reference: GatewayAddress) -> str:
    """Returns the Rust ztunnel's text for a reference: its debug form, or only the hostname."""
    destination = reference.destination
    if isinstance(destination, NetworkAddress):
        network = destination.network.replace("\\", "\\\\").replace('"', '\\"')
        return (
            f'GatewayAddress {{ destination: Address(NetworkAddress {{ network: "{network}", '
            f"address: {destination.ip} }}), hbone_mtls_port: {reference.hbone_mtls_port} }}"
        )
    return destination.hostname


def find_gateway(
    view: MeshView, reference: GatewayAddress, namespace: str | None
) -> Workload | Service | None:
    """Returns what a reference names. By address a workload comes first, by hostname a service."""
    destination = reference.destination
    if isinstance(destination, NetworkAddress):
        return find_address(view, destination.network, destination.ip, namespace)
    return view.service(destination.namespace, destination.hostname) or view.workload_by_hostname(
        destination.namespace, destination.hostname
    )


def workloads_behind(view: MeshView, reference: GatewayAddress, namespace: str | None) -> Iterator[Workload]:
    """Returns all workloads that a reference may lead to: the named one, or the service's endpoints."""
    found = find_gateway(view, reference, namespace)
    if isinstance(found, Workload):
        yield found
    elif found is not None:
        for uid in view.endpoints(found):
            workload = view.workload(uid)
            if workload is not None:
                yield workload


def is_from_waypoint(view: MeshView, reference: GatewayAddress, source: Workload, client: IPAddress) -> bool:
    """Returns whether a connection comes from the waypoint that ``reference`` names.

    It does when a workload behind the reference has the source's identity and the client's address.
    """
    identity = source.identity
    return any(
        client in workload.addresses and workload.identity == identity
        for workload in workloads_behind(view, reference, source.namespace)
    )
