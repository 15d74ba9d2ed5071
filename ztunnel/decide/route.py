"""Routing: where an outgoing connection goes, from its original destination to a plan.

The order of the questions is the order of the chart in docs/routing.md:

1. A connection never goes to one of our own ports on loopback. 2. What has the address? A *workload* with it
hides a service. A service with a waypoint: to the waypoint. 3. Who receives the connection? Here a *service*
hides the workload. If nobody does: a service with load balancing refuses, anything else is passthrough. 4. A
receiver on another network is reached through its network gateway, which needs a service's name. 5. A
workload that was addressed directly and has a waypoint: to the waypoint, unless the client is that waypoint.
6. Otherwise directly: by HBONE if the workload speaks it, else as plain TCP.

The two lookups (2 and 3) have opposite precedence, which leaves one special case: an address that belongs to
a workload and to a service without a usable endpoint. The Rust ztunnel then uses passthrough. Here a workload
that speaks HBONE or has a waypoint is never reached by passthrough: it receives the connection as if it alone
had the address.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from random import Random

from ztunnel.decide.balance import (
    HBONE_PORT,
    SelectionMode,
    find_address,
    is_passthrough,
    select_endpoint,
    service_by_address,
)
from ztunnel.decide.mesh_view import MeshView
from ztunnel.decide.plans import (
    LOOP_TEXT,
    OutboundPlan,
    OutboundProtocol,
    OutboundRequest,
    Refusal,
    RefusalKind,
    Resolve,
)
from ztunnel.decide.resolved import is_ours
from ztunnel.decide.steps import Step
from ztunnel.decide.waypoint import Hop, is_from_waypoint, resolve_gateway, waypoint_of
from ztunnel.model.address import GatewayAddress, IPAddress, SocketAddress
from ztunnel.model.service import Service
from ztunnel.model.workload import Protocol, Workload

_NO_ADDRESS: dict[int, IPAddress] = {4: IPv4Address(0), 6: IPv6Address(0)}


def route(
    view: MeshView,
    request: OutboundRequest,
    random: Random,
    *,
    illegal_ports: frozenset[int],
    avoid: Collection[str] = (),
) -> OutboundPlan | Refusal:
    """Decide where one connection goes.

    ``illegal_ports`` are the ports of our own listeners. ``avoid`` holds workload uids and dialled
    ``ip:port`` texts of endpoints that just failed; they are not chosen while the service has others. All
    randomness (endpoint, weighted waypoint) is drawn from ``random``.

    Returns a plan, or a refusal with the Rust ztunnel's text. Both say why in sentences, and list the steps
    of the decision. If the plan's ``resolve`` is set, `ztunnel.decide.resolved.with_ip` has to complete it.
    """
    return _Router(view, request, random, illegal_ports, avoid).route()


class _Router:
    """One decision in progress: its inputs, and the reasons and steps so far."""

    __slots__ = ("avoid", "illegal_ports", "random", "request", "source", "steps", "target", "view", "why")

    def __init__(
        self,
        view: MeshView,
        request: OutboundRequest,
        random: Random,
        illegal_ports: frozenset[int],
        avoid: Collection[str],
    ) -> None:
        self.view = view
        self.request = request
        self.source = request.source
        self.target = request.destination
        self.random = random
        self.illegal_ports = illegal_ports
        self.avoid = avoid
        self.why: list[str] = []
        self.steps: list[Step] = [Step.START, Step.LOOP]

    def route(self) -> OutboundPlan | Refusal:
        if is_ours(self.target, self.illegal_ports):
            return self._loop(self.target)
        self.steps.append(Step.ADDRESS)
        found = find_address(self.view, self.request.network, self.target.ip, self.source.namespace)
        service = found if isinstance(found, Service) else None
        workload = found if isinstance(found, Workload) else None
        if service is not None:
            self.why.append(f"{self.target.ip} is a virtual address of service {service.key}.")
            self.steps.append(Step.SERVICE_WAYPOINT)
            reference = waypoint_of(service, self.random)
            if reference is not None:
                self.why.append(f"The service has the waypoint {_named(reference)}.")
                return self._through_waypoint(reference, service)
        elif workload is not None:
            self.why.append(f"{self.target.ip} is an address of workload {workload.uid}.")
        return self._to_upstream(service, workload)

    def _to_upstream(self, service: Service | None, workload: Workload | None) -> OutboundPlan | Refusal:
        self.steps.append(Step.UPSTREAM)
        hop = self._select_upstream(service, workload)
        if hop is None:
            return self._to_nobody(service)
        self.steps.append(Step.UPSTREAM_NETWORK)
        if hop.workload.network != self.source.network:
            if service is None:
                self.why.append(
                    f"It is {_on_network(hop.workload.network)}, we are {_on_network(self.source.network)}, "
                    "and a gateway takes only service names."
                )
                text = f"no service for target address: {self.target}"
                return self._refuse(RefusalKind.NO_SERVICE, text, Step.REFUSE_NO_SERVICE)
            return self._through_gateway(hop, service, waypoint=False)
        self.steps.append(Step.WORKLOAD_WAYPOINT)
        reference = hop.workload.waypoint
        if reference is not None and service is None:
            if not is_from_waypoint(self.view, reference, self.source, self.request.client.ip):
                self.why.append(f"The workload has the waypoint {_named(reference)}.")
                return self._through_waypoint(reference, None)
            self.why.append(f"The client is the workload's waypoint {_named(reference)}, so it goes direct.")
        return self._direct(hop)

    def _select_upstream(self, addressed: Service | None, workload: Workload | None) -> Hop | None:
        """Returns who receives the connection.

        Arguments: what has the address (a service, a workload or neither).
        """
        source, target = self.source, self.target
        one_network = source.network == self.request.network
        service = addressed if one_network else None
        if service is None:
            service = service_by_address(self.view, source.network, target.ip, source.namespace)
        neighbour = workload if one_network else self.view.workload_by_address(source.network, target.ip)
        if service is None:
            if neighbour is not None:
                return Hop(neighbour, None, target.port, target.ip)
            self.why.append(
                f"No workload or service that we can see has the address {target.ip} "
                f"{_on_network(source.network)}."
            )
        elif is_passthrough(service):
            self.why.append(f"Service {service.key} has load balancing mode PASSTHROUGH.")
        else:
            selected = select_endpoint(
                self.view,
                service,
                target.port,
                source,
                SelectionMode.STANDARD,
                random=self.random,
                avoid=self.avoid,
            )
            if not isinstance(selected, str):
                self.why.append(f"Of the endpoints of {service.key}, {selected.workload.uid} was chosen.")
                return Hop(selected.workload, service, selected.port, target.ip)
            self.why.append(selected)
        for owner in (neighbour, workload):
            if owner is not None and (owner.protocol is Protocol.HBONE or owner.waypoint is not None):
                self.why.append(f"So workload {owner.uid}, which has the address, receives the connection.")
                return Hop(owner, None, target.port, target.ip)
        return None

    def _to_nobody(self, service: Service | None) -> OutboundPlan | Refusal:
        self.steps.append(Step.NOBODY)
        if service is not None and not is_passthrough(service):
            return self._refuse(
                RefusalKind.NO_HEALTHY_UPSTREAM,
                f"no healthy upstream: {self.target}",
                Step.REFUSE_NO_UPSTREAM,
            )
        self.why.append("It passes through as plain TCP.")
        if self._loops(self.target):
            return self._loop(self.target)
        return OutboundPlan(
            OutboundProtocol.TCP,
            next_hop=self.target,
            destination=self.target,
            source=self.source,
            why=tuple(self.why),
            steps=(*self.steps, Step.TO_PASSTHROUGH),
        )

    def _through_waypoint(self, reference: GatewayAddress, service: Service | None) -> OutboundPlan | Refusal:
        self.steps.append(Step.FIND_WAYPOINT)
        hop = self._gateway(reference, SelectionMode.WAYPOINT)
        if isinstance(hop, Refusal):
            return self._refuse(hop.kind, hop.text, Step.REFUSE_WAYPOINT, hop.why)
        if service is not None:
            self.steps.append(Step.WAYPOINT_NETWORK)
            if hop.workload.network != self.source.network:
                return self._through_gateway(hop, service, waypoint=True)
        self.why.append(f"The waypoint is workload {hop.workload.uid}.")
        return self._hbone(hop, hop.port, str(self.target), Step.TO_WAYPOINT, service)

    def _through_gateway(self, hop: Hop, service: Service, *, waypoint: bool) -> OutboundPlan | Refusal:
        """Double HBONE: ``hop`` ends the inner tunnel, its network's gateway the outer one."""
        self.steps.append(Step.GATEWAY)
        self.why.append(
            f"Workload {hop.workload.uid} is {_on_network(hop.workload.network)}, "
            f"we are {_on_network(self.source.network)}."
        )
        reference = hop.workload.network_gateway
        if reference is None:
            self.why.append(
                f"No network gateway {_on_network(hop.workload.network)} is known: is there an east-west "
                "gateway, and is topology.istio.io/network right at both ends?"
            )
            return self._no_destination(hop.workload)
        gateway = self._gateway(reference, SelectionMode.STANDARD)
        if isinstance(gateway, Refusal):
            return self._refuse(gateway.kind, gateway.text, Step.REFUSE_GATEWAY, gateway.why)
        self.why.append(f"Its network gateway {_named(reference)} is workload {gateway.workload.uid}.")
        inner_expected = hop.service_identities
        if not inner_expected:
            self.why.append(
                "The service names no subject alternative names, so no peer of the inner tunnel is accepted."
            )
        authority = f"{service.hostname}:{self.target.port}"
        plan = self._hbone(gateway, gateway.port, authority, Step.TO_GATEWAY, service)
        if isinstance(plan, Refusal):
            return plan
        return replace(
            plan,
            protocol=OutboundProtocol.DOUBLE_HBONE,
            inner_expected=inner_expected,
            waypoint=waypoint,
            endpoint_uid=hop.workload.uid,
        )

    def _direct(self, hop: Hop) -> OutboundPlan | Refusal:
        self.steps.append(Step.DIRECT)
        if hop.workload.protocol is Protocol.HBONE:
            self.why.append("The workload speaks HBONE.")
            return self._hbone(hop, HBONE_PORT, None, Step.TO_HBONE, hop.service)
        self.why.append("The workload is not in the mesh: it gets plain TCP.")
        found = self._next_hop(hop, hop.port, plain=True)
        if isinstance(found, Refusal):
            return found
        next_hop, resolve = found
        return OutboundPlan(
            OutboundProtocol.TCP,
            next_hop=next_hop,
            destination=self.target,
            source=self.source,
            destination_workload=hop.workload,
            destination_service=hop.service,
            resolve=resolve,
            why=tuple(self.why),
            steps=(*self.steps, Step.TO_TCP),
        )

    def _hbone(
        self, hop: Hop, port: int, authority: str | None, step: Step, service: Service | None
    ) -> OutboundPlan | Refusal:
        """Returns a tunnel to ``hop`` at ``port``; no ``authority`` means the hop's own address and port."""
        found = self._next_hop(hop, port)
        if isinstance(found, Refusal):
            return found
        next_hop, resolve = found
        if authority is None:
            authority = str(SocketAddress(next_hop.ip, hop.port))
            if resolve is not None:
                resolve = replace(resolve, target_port=hop.port)
        return OutboundPlan(
            OutboundProtocol.HBONE,
            next_hop=next_hop,
            destination=self.target,
            source=self.source,
            destination_workload=hop.workload,
            destination_service=service,
            authority=authority,
            expected=hop.expected,
            resolve=resolve,
            waypoint=step is Step.TO_WAYPOINT,
            why=tuple(self.why),
            steps=(*self.steps, step),
        )

    def _next_hop(
        self, hop: Hop, port: int, *, plain: bool = False
    ) -> tuple[SocketAddress, Resolve | None] | Refusal:
        # A tunnel to our own HBONE port ends there; admission refuses what it carries to one of our ports.
        ours = self.illegal_ports if plain else self.illegal_ports - {HBONE_PORT}
        ip = hop.ip
        if ip is None:
            self.why.append(f"Workload {hop.workload.uid} has no address that could be dialled.")
            return self._no_destination(hop.workload)
        if isinstance(ip, Resolve):
            self.why.append(f"Workload {hop.workload.uid} is known by its name {ip.hostname} only.")
            resolve = replace(ip, illegal_ports=ours)
            return SocketAddress(_NO_ADDRESS[ip.prefer], port), resolve
        next_hop = SocketAddress(ip, port)
        if self._loops(next_hop) if plain else is_ours(next_hop, ours):
            return self._loop(next_hop)
        return next_hop, None

    def _loops(self, next_hop: SocketAddress) -> bool:
        """Returns whether plain TCP to there comes back to one of our own listeners in the client's pod."""
        return is_ours(next_hop, self.illegal_ports) or (
            next_hop.port in self.illegal_ports
            and (next_hop.ip == self.request.client.ip or next_hop.ip in self.source.addresses)
        )

    def _gateway(self, reference: GatewayAddress, mode: SelectionMode) -> Hop | Refusal:
        return resolve_gateway(
            self.view,
            reference,
            self.source,
            self.target.ip,
            mode,
            random=self.random,
            avoid=self.avoid,
        )

    def _no_destination(self, workload: Workload) -> Refusal:
        text = (
            f"no valid routing destination for workload: Workload{{{workload.name} with uid {workload.uid} "
            f"({workload.protocol.value})}}"
        )
        return self._refuse(RefusalKind.NO_VALID_DESTINATION, text, Step.REFUSE_NO_DESTINATION)

    def _loop(self, address: SocketAddress) -> Refusal:
        self.why.append(f"{address} is our own port.")
        return self._refuse(RefusalKind.LOOP, LOOP_TEXT, Step.REFUSE_LOOP)

    def _refuse(self, kind: RefusalKind, text: str, step: Step, why: tuple[str, ...] = ()) -> Refusal:
        return Refusal(kind, text, why=(*self.why, *why), steps=(*self.steps, step))


def _named(reference: GatewayAddress) -> str:
    return f"{reference.destination}:{reference.hbone_mtls_port}"


def _on_network(name: str) -> str:
    """Returns words for the network of a workload. An installation with one network gives it no name."""
    return f"on network {name!r}" if name else "on the network without a name"
