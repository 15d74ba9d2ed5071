"""Admission: what to do with a CONNECT or plain TCP that a pod receives, before policy is checked.

The address that is dialled is always the pod's own, the local address of the tunnel: a peer can choose only
the port. The address in the CONNECT's authority is only checked: it must be one that this pod may receive.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from ztunnel.decide.balance import best_service, find_address
from ztunnel.decide.headers import Authority, HostAuthority, parse_authority
from ztunnel.decide.mesh_view import MeshView
from ztunnel.decide.plans import LOOP_TEXT, ConnectFacts, InboundPlan, Refusal, RefusalKind
from ztunnel.decide.proxy_protocol import proxy_header
from ztunnel.decide.waypoint import find_gateway
from ztunnel.model.address import IPAddress, SocketAddress
from ztunnel.model.service import Service
from ztunnel.model.workload import AppTunnelProtocol, Workload

_LOOPBACK: dict[int, IPAddress] = {4: IPv4Address("127.0.0.1"), 6: IPv6Address("::1")}


@dataclass(frozen=True, slots=True)
class _Target:
    """The meaning of an authority: the port on the pod, and the address for a PROXY header."""

    port: int
    named: SocketAddress | None
    service: Service | None
    why: str


def admit_connect(
    view: MeshView,
    facts: ConnectFacts,
    *,
    illegal_ports: frozenset[int],
    localhost_app_tunnel: bool,
    spoof: bool,
) -> InboundPlan | Refusal:
    """Decide on one CONNECT that arrived on 15008: where to connect, or with which status to refuse.

    localhost_app_tunnel: dial applications behind a PROXY tunnel on loopback. spoof: whether the peer's
    address may be used as the source. Policy is checked afterwards, for the plan's ``destination``.
    """
    if facts.method != "CONNECT":
        text = f"expected method CONNECT, got {facts.method}"
        return Refusal(
            RefusalKind.BAD_METHOD, text, 400, why=(f"A tunnel takes only CONNECT, not {facts.method}.",)
        )
    authority = parse_authority(facts.authority)
    if authority is None:
        return Refusal(
            RefusalKind.BAD_AUTHORITY,
            f"no valid authority pseudo header: {facts.authority}",
            400,
            why=("The authority is not ip:port, [ip]:port or host:port.",),
        )
    accepted = _validate(view, facts, authority)
    if isinstance(accepted, Refusal):
        return accepted
    target = _resolve(view, facts, authority)
    if isinstance(target, Refusal):
        return target
    if target.port in illegal_ports:
        why = (accepted, target.why, f"Port {target.port} is our own.")
        return Refusal(RefusalKind.LOOP, LOOP_TEXT, why=why)
    return _plan(view, facts, target, accepted, localhost_app_tunnel=localhost_app_tunnel, spoof=spoof)


def _plan(
    view: MeshView,
    facts: ConnectFacts,
    target: _Target,
    accepted: str,
    *,
    localhost_app_tunnel: bool,
    spoof: bool,
) -> InboundPlan | Refusal:
    workload = facts.workload
    tunnel = workload.application_tunnel
    why = [accepted, target.why]
    port = target.port
    header = None
    loopback = False
    if tunnel is not None:
        if tunnel.port:
            port = tunnel.port
            why.append(f"The workload's application tunnel is on port {port}.")
        if tunnel.protocol is AppTunnelProtocol.PROXY:
            if target.named is None:
                name = "" if target.service is None else target.service.hostname
                text = f"requested service {name} found, but has no IP addresses"
                reason = "The PROXY header has to name an address, and the service has none."
                return Refusal(RefusalKind.NO_SERVICE_ADDRESS, text, why=(*why, reason))
            header = proxy_header(facts.peer, target.named, facts.identity)
            loopback = localhost_app_tunnel
            why.append("The application expects a PROXY protocol header.")
    destination = SocketAddress(facts.local.ip, port)
    dial = SocketAddress(_LOOPBACK[facts.local.ip.version], port) if loopback else destination
    return InboundPlan(
        dial=dial,
        destination=destination,
        workload=workload,
        spoof=None if loopback else _source_to_show(facts.peer, dial, spoof=spoof),
        loopback=loopback,
        proxy_header=header,
        service=label_service(view, workload, port, facts.forwarded_host, only=target.service),
        why=tuple(why),
    )


def _source_to_show(peer: SocketAddress, dial: SocketAddress, *, spoof: bool) -> SocketAddress | None:
    # A pod that connects to itself needs no spoofing, and an address of another IP version cannot be bound.
    if not spoof or peer.ip == dial.ip or peer.ip.version != dial.ip.version:
        return None
    return SocketAddress(peer.ip, 0)


def _validate(view: MeshView, facts: ConnectFacts, authority: Authority) -> str | Refusal:
    """Check whether a tunnel to this pod may carry this authority. Returns a sentence why, or a refusal."""
    if isinstance(authority, HostAuthority):
        return f"The authority {authority} names a host."
    if authority.ip == facts.local.ip:
        return f"The authority {authority} is this pod's own address."
    workload = facts.workload
    if workload.application_tunnel is not None:
        return f"The workload has an application tunnel, so the authority {authority} may be another's."
    if _is_waypoint_for(view, facts, authority.ip):
        return f"The workload is the waypoint of {authority.ip}."
    return Refusal(
        RefusalKind.IP_MISMATCH,
        f"ip mismatch: {facts.local.ip} != {authority.ip}",
        400,
        why=(f"{authority.ip} is neither this pod's address nor one for which this pod is the waypoint.",),
    )


def _is_waypoint_for(view: MeshView, facts: ConnectFacts, ip: IPAddress) -> bool:
    found = find_address(view, facts.network, ip, None)
    if found is None or found.waypoint is None:
        return False
    gateway = find_gateway(view, found.waypoint, None)
    if isinstance(gateway, Service):
        return facts.workload.uid in view.endpoints(gateway)
    return gateway is not None and facts.local.ip in gateway.addresses


def _resolve(view: MeshView, facts: ConnectFacts, authority: Authority) -> _Target | Refusal:
    if isinstance(authority, SocketAddress):
        return _Target(authority.port, authority, None, f"The authority asks for port {authority.port}.")
    host, port = authority
    workload = facts.workload
    service = best_service(view.services_by_hostname(host), workload.namespace)
    if service is None:
        return Refusal(
            RefusalKind.UNKNOWN_HOSTNAME,
            f"no service or workload for hostname: {host}",
            why=(f"No service with hostname {host} is visible to namespace {workload.namespace}.",),
        )
    endpoint = view.endpoints(service).get(workload.uid)
    own_port = (endpoint.ports.get(port) if endpoint is not None else None) or service.ports.get(port)
    if not own_port:
        return Refusal(
            RefusalKind.UNKNOWN_PORT,
            f"requested service {host}:{port} found, but cannot resolve port",
            why=(f"Neither service {service.key} nor its endpoint here has a target port for {port}.",),
        )
    why = f"Port {port} of service {service.key} is port {own_port} here."
    return _Target(own_port, _address_of(service, port, facts.network), service, why)


def _address_of(service: Service, port: int, network: str) -> SocketAddress | None:
    """Returns a virtual address of a service: of our own network first, then IPv4 first, then the first."""
    if not service.vips:
        return None
    best = min(service.vips, key=lambda vip: (vip.network != network, vip.ip.version))
    return SocketAddress(best.ip, port)


def admit_plaintext(
    view: MeshView,
    workload: Workload,
    peer: SocketAddress,
    destination: SocketAddress,
    *,
    illegal_ports: frozenset[int],
    spoof: bool,
) -> InboundPlan | Refusal:
    """Decide on plain TCP that was redirected to 15006; ``destination`` is its original destination.

    The plan leads to exactly that destination. Policy is checked afterwards, without an identity.
    """
    if destination.port in illegal_ports:
        return Refusal(RefusalKind.LOOP, LOOP_TEXT, why=(f"Port {destination.port} is our own.",))
    return InboundPlan(
        dial=destination,
        destination=destination,
        workload=workload,
        spoof=_source_to_show(peer, destination, spoof=spoof),
        service=label_service(view, workload, destination.port),
        why=(f"Plain TCP goes to its original destination {destination}.",),
    )


def label_service(
    view: MeshView,
    workload: Workload,
    port: int,
    forwarded_host: str | None = None,
    *,
    only: Service | None = None,
) -> Service | None:
    """Returns the service through which a client came, for labels; nothing else depends on it.

    Of the workload's services (of ``only``, if given: the one that a CONNECT named) the one whose hostname
    the client forwarded, else the first that leads to ``port`` of this workload, else None.
    """
    candidates: Iterable[Service] = (only,) if only is not None else tuple(view.services_of(workload))
    if forwarded_host:
        for service in candidates:
            if service.hostname == forwarded_host:
                return service
    for service in candidates:
        if port in service.ports.values():
            return service
        endpoint = view.endpoints(service).get(workload.uid)
        if endpoint is not None and port in endpoint.ports.values():
            return service
    return None
