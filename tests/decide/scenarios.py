"""Situations of the outbound decision tables, each a mesh, a request, and what has to come of it.

`test_route` checks the outcome of each, `test_steps` that together they go every way of the chart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tests.support.fake_mesh import (
    HBONE,
    TCP,
    FakeMesh,
    at,
    balancer,
    by_address,
    by_hostname,
    weighted,
)
from ztunnel.decide.plans import OutboundProtocol, OutboundRequest, RefusalKind
from ztunnel.model.service import IpFamilies, LoadBalancerMode, LoadBalancerScope, Visibility
from ztunnel.model.workload import ApplicationTunnel, AppTunnelProtocol, HealthStatus, NetworkMode, Protocol

SA = "spiffe://cluster.local/ns/default/sa/"
WAYPOINT_SAN = "spiffe://cluster.local/ns/default/sa/waypoint-svc"
GATEWAY_SAN = "spiffe://cluster.local/ns/default/sa/gateway-svc"
SERVICE_SAN = "spiffe://cluster.local/ns/default/sa/web-svc"

PLAIN = OutboundProtocol.TCP
TUNNEL = OutboundProtocol.HBONE
DOUBLE = OutboundProtocol.DOUBLE_HBONE


@dataclass(frozen=True)
class Goes:
    """A plan, by what is worth telling apart."""

    protocol: OutboundProtocol
    next_hop: str
    authority: str | None = None
    expected: tuple[str, ...] = ()
    inner_expected: tuple[str, ...] = ()
    workload: str | None = None
    service: str | None = None
    waypoint: bool = False
    resolve: str | None = None


@dataclass(frozen=True)
class Refused:
    kind: RefusalKind
    text: str


@dataclass(frozen=True)
class Scenario:
    name: str
    build: Callable[[FakeMesh], object]
    to: str
    outcome: Goes | Refused
    client: str = "10.0.0.1:40000"
    network: str = ""

    def mesh_and_request(self) -> tuple[FakeMesh, OutboundRequest]:
        """The mesh has a workload ``client`` beside what the scenario builds, which may replace it."""
        mesh = FakeMesh()
        mesh.add_workload("client", "10.0.0.1 fd00::1", HBONE)
        self.build(mesh)
        source = next(workload for workload in mesh.workloads.values() if workload.name == "client")
        return mesh, OutboundRequest(source, at(self.client), at(self.to), self.network)


def nothing(mesh: FakeMesh) -> None:
    """A mesh in which only the client is known."""


def pod(protocol: Protocol = HBONE, **fields: Any) -> Callable[[FakeMesh], object]:
    return lambda mesh: mesh.add_workload("pod", "10.0.0.2", protocol, **fields)


def web(
    protocol: Protocol = HBONE,
    *,
    addresses: str = "10.0.0.2",
    own_ports: dict[int, int] | None = None,
    pod_fields: dict[str, Any] | None = None,
    also: Callable[[FakeMesh], object] = nothing,
    vips: str = "10.96.0.1",
    **service_fields: Any,
) -> Callable[[FakeMesh], object]:
    """Service ``web`` with one endpoint ``pod``."""

    def build(mesh: FakeMesh) -> None:
        service = mesh.add_service("web", vips, **service_fields)
        mesh.add_workload("pod", addresses, protocol, behind=service, ports=own_ports, **(pod_fields or {}))
        also(mesh)

    return build


def waypoint_pod(addresses: str = "10.0.0.9", **fields: Any) -> Callable[[FakeMesh], object]:
    return lambda mesh: mesh.add_workload("waypoint", addresses, HBONE, **fields)


def waypoint_service(
    *,
    ports: dict[int, int] | None = None,
    own_ports: dict[int, int] | None = None,
    pod_fields: dict[str, Any] | None = None,
    **fields: Any,
) -> Callable[[FakeMesh], object]:
    """Service ``waypoint`` on 10.96.0.9 with one endpoint ``waypoint`` on 10.0.0.9."""

    def build(mesh: FakeMesh) -> None:
        service = mesh.add_service(
            "waypoint",
            "10.96.0.9",
            ports={15008: 15008} if ports is None else ports,
            subject_alt_names=(WAYPOINT_SAN, "no spiffe uri"),
            **fields,
        )
        mesh.add_workload(
            "waypoint", "10.0.0.9", HBONE, behind=service, ports=own_ports, **(pod_fields or {})
        )

    return build


def both(*parts: Callable[[FakeMesh], object]) -> Callable[[FakeMesh], object]:
    def build(mesh: FakeMesh) -> None:
        for part in parts:
            part(mesh)

    return build


def client(**fields: Any) -> Callable[[FakeMesh], object]:
    return lambda mesh: mesh.add_workload("client", "10.0.0.1", HBONE, **fields)


def remote_pod(**fields: Any) -> dict[str, Any]:
    """Fields of a workload on network ``far`` with a gateway by address."""
    return {"network": "far", "network_gateway": by_address("10.0.0.8", network="far"), **fields}


def gateway_pod(mesh: FakeMesh) -> None:
    mesh.add_workload("gateway", "10.0.0.8", HBONE, network="far")


def gateway_service(mesh: FakeMesh) -> None:
    service = mesh.add_service(
        "gateway", "10.96.0.8", network="far", ports={15009: 15008}, subject_alt_names=(GATEWAY_SAN,)
    )
    mesh.add_workload("gateway", "10.0.0.8", HBONE, network="far", behind=service)


def no_upstream(to: str) -> Refused:
    return Refused(RefusalKind.NO_HEALTHY_UPSTREAM, f"no healthy upstream: {to}")


def no_destination(name: str, protocol: str = "HBONE") -> Refused:
    text = f"Workload{{{name} with uid cluster//Pod/default/{name} ({protocol})}}"
    return Refused(RefusalKind.NO_VALID_DESTINATION, f"no valid routing destination for workload: {text}")


def unknown_waypoint(what: str) -> Refused:
    return Refused(RefusalKind.UNKNOWN_WAYPOINT, f"unknown waypoint: waypoint {what} not found")


def debug_address(ip: str, network: str = "", port: int = 15008) -> str:
    return (
        f'GatewayAddress {{ destination: Address(NetworkAddress {{ network: "{network}", '
        f"address: {ip} }}), hbone_mtls_port: {port} }}"
    )


LOOP = Refused(RefusalKind.LOOP, "attempted recursive call to ourselves")
VIP = "10.96.0.1:80"
PASSTHROUGH = balancer(LoadBalancerMode.PASSTHROUGH)
WEB = "default/web.default.svc.cluster.local"
WAYPOINT_HOST = "waypoint.default.svc.cluster.local"

TO_POD = Goes(TUNNEL, "10.0.0.2:15008", "10.0.0.2:8080", (f"{SA}pod",), workload="pod")
TO_WEB = replace(TO_POD, service=WEB)
TO_WAYPOINT_OF_POD = Goes(
    TUNNEL, "10.0.0.9:15008", "10.0.0.2:8080", (f"{SA}waypoint",), workload="waypoint", waypoint=True
)
TO_WAYPOINT_OF_WEB = Goes(
    TUNNEL, "10.0.0.9:15008", VIP, (f"{SA}waypoint",), workload="waypoint", service=WEB, waypoint=True
)
THROUGH_GATEWAY = Goes(
    DOUBLE,
    "10.0.0.8:15008",
    "web.default.svc.cluster.local:80",
    (f"{SA}gateway",),
    (SERVICE_SAN,),
    workload="gateway",
    service=WEB,
)

BASICS = [
    Scenario("an address that nobody knows", nothing, "1.2.3.4:80", Goes(PLAIN, "1.2.3.4:80")),
    Scenario("a pod of the mesh", pod(), "10.0.0.2:8080", TO_POD),
    Scenario(
        "a pod outside the mesh", pod(TCP), "10.0.0.2:8080", Goes(PLAIN, "10.0.0.2:8080", workload="pod")
    ),
    Scenario(
        "the client's own pod goes over the network stack",
        nothing,
        "10.0.0.1:8080",
        Goes(TUNNEL, "10.0.0.1:15008", "10.0.0.1:8080", (f"{SA}client",), workload="client"),
    ),
    Scenario(
        "a pod by its IPv6 address",
        lambda mesh: mesh.add_workload("pod", "10.0.0.2 fd00::2", HBONE),
        "[fd00::2]:8080",
        replace(TO_POD, next_hop="[fd00::2]:15008", authority="[fd00::2]:8080"),
    ),
    Scenario("native_tunnel changes nothing", pod(native_tunnel=True), "10.0.0.2:8080", TO_POD),
    Scenario(
        "native_tunnel without HBONE changes nothing",
        pod(TCP, native_tunnel=True),
        "10.0.0.2:8080",
        Goes(PLAIN, "10.0.0.2:8080", workload="pod"),
    ),
    Scenario("an unhealthy pod by its address", pod(status=HealthStatus.UNHEALTHY), "10.0.0.2:8080", TO_POD),
    Scenario(
        "a host-network workload by its address",
        pod(network_mode=NetworkMode.HOST_NETWORK),
        "10.0.0.2:8080",
        Goes(PLAIN, "10.0.0.2:8080"),
    ),
    Scenario(
        "a pod on our network but not on the configured one",
        both(client(network="far"), pod(network="far")),
        "10.0.0.2:8080",
        TO_POD,
        network="near",
    ),
    Scenario(
        "a pod on the configured network but not on ours",
        both(client(network="far"), pod(network="near")),
        "10.0.0.2:8080",
        Refused(RefusalKind.NO_SERVICE, "no service for target address: 10.0.0.2:8080"),
        network="near",
    ),
    Scenario("our own outbound port on loopback", nothing, "127.0.0.1:15001", LOOP),
    Scenario("our own HBONE port on loopback", nothing, "[::1]:15008", LOOP),
    Scenario("the unspecified address is loopback too", nothing, "0.0.0.0:15006", LOOP),
    Scenario("another port on loopback", nothing, "127.0.0.1:80", Goes(PLAIN, "127.0.0.1:80")),
    Scenario("our port at an unknown address", nothing, "1.2.3.4:15001", Goes(PLAIN, "1.2.3.4:15001")),
    Scenario(
        "our own port at our own address, in the mesh: the receiver refuses it",
        nothing,
        "10.0.0.1:15001",
        Goes(TUNNEL, "10.0.0.1:15008", "10.0.0.1:15001", (f"{SA}client",), workload="client"),
    ),
    Scenario(
        "our own port at our own address, as plain TCP",
        lambda mesh: mesh.add_workload("client", "10.0.0.1", TCP),
        "10.0.0.1:15001",
        LOOP,
    ),
    Scenario(
        "our own port at the client's unknown address",
        lambda mesh: mesh.add_workload("client", "", TCP),
        "10.0.0.1:15001",
        LOOP,
    ),
    Scenario(
        "a tunnel to our own HBONE port on loopback ends there, and admission decides",
        web(addresses="127.0.0.1"),
        VIP,
        replace(TO_WEB, next_hop="127.0.0.1:15008", authority="127.0.0.1:8080"),
    ),
    Scenario(
        "an endpoint that claims our own port on loopback",
        web(TCP, addresses="127.0.0.1", ports={80: 15001}),
        VIP,
        LOOP,
    ),
]

SERVICES = [
    Scenario("a service", web(), VIP, TO_WEB),
    Scenario(
        "a service outside the mesh", web(TCP), VIP, Goes(PLAIN, "10.0.0.2:8080", workload="pod", service=WEB)
    ),
    Scenario(
        "an endpoint's own target port",
        web(own_ports={80: 9090}),
        VIP,
        replace(TO_WEB, authority="10.0.0.2:9090"),
    ),
    Scenario(
        "a named port that the endpoint maps",
        web(ports={80: 0}, own_ports={80: 9090}),
        VIP,
        replace(TO_WEB, authority="10.0.0.2:9090"),
    ),
    Scenario("a named port that the endpoint does not map", web(ports={80: 0}), VIP, no_upstream(VIP)),
    Scenario(
        "service identities come before the workload's, invalid and double ones left out",
        web(subject_alt_names=(SERVICE_SAN, "dns.name", SERVICE_SAN)),
        VIP,
        replace(TO_WEB, expected=(SERVICE_SAN, f"{SA}pod")),
    ),
    Scenario(
        "a service that vouches for the workload's own identity",
        web(subject_alt_names=(f"{SA}pod",)),
        VIP,
        TO_WEB,
    ),
    Scenario("a port that the service does not have", web(), "10.96.0.1:81", no_upstream("10.96.0.1:81")),
    Scenario(
        "a service without endpoints",
        lambda mesh: mesh.add_service("web", "10.96.0.1"),
        VIP,
        no_upstream(VIP),
    ),
    Scenario(
        "a service with unhealthy endpoints only",
        web(pod_fields={"status": HealthStatus.UNHEALTHY}),
        VIP,
        no_upstream(VIP),
    ),
    Scenario("capacity 0 gets nothing", web(pod_fields={"capacity": 0}), VIP, no_upstream(VIP)),
    Scenario("a headless service is just a pod", web(vips=""), "10.0.0.2:8080", TO_POD),
    Scenario(
        "a host-network workload as an endpoint",
        web(pod_fields={"network_mode": NetworkMode.HOST_NETWORK}),
        VIP,
        TO_WEB,
    ),
    Scenario(
        "an address range",
        web(vips="", cidrs="10.97.0.0/16"),
        "10.97.3.4:80",
        TO_WEB,
    ),
    Scenario(
        "a service that is hidden from us is as good as unknown",
        web(namespace="other", visibility=Visibility.NAMESPACE),
        VIP,
        Goes(PLAIN, VIP),
    ),
    Scenario("mode PASSTHROUGH", web(load_balancer=PASSTHROUGH), VIP, Goes(PLAIN, VIP)),
    Scenario(
        "mode STRICT without a match",
        web(
            load_balancer=balancer(LoadBalancerMode.STRICT, LoadBalancerScope.NODE),
            pod_fields={"node": "elsewhere"},
        ),
        VIP,
        no_upstream(VIP),
    ),
    *(
        Scenario(
            f"a dual-stack endpoint, families {families}, from {vip}",
            web(addresses="fd00::2 10.0.0.2", vips="10.96.0.1 fd96::1", ip_families=families),
            f"{vip}:80",
            replace(TO_WEB, next_hop=f"{chosen}:15008", authority=f"{chosen}:8080"),
        )
        for families, vip, chosen in (
            (IpFamilies.IPV4, "10.96.0.1", "10.0.0.2"),
            (IpFamilies.IPV4, "[fd96::1]", "10.0.0.2"),
            (IpFamilies.IPV6, "10.96.0.1", "[fd00::2]"),
            (IpFamilies.IPV6, "[fd96::1]", "[fd00::2]"),
            (IpFamilies.DUAL, "10.96.0.1", "10.0.0.2"),
            (IpFamilies.DUAL, "[fd96::1]", "[fd00::2]"),
            (None, "10.96.0.1", "10.0.0.2"),
            (None, "[fd96::1]", "[fd00::2]"),
        )
    ),
    Scenario(
        "an endpoint without an address of the service's families",
        web(ip_families=IpFamilies.IPV6),
        VIP,
        no_destination("pod"),
    ),
    Scenario(
        "an address that the endpoint itself has is dialled whatever the families",
        web(vips="10.0.0.2", ip_families=IpFamilies.IPV6),
        "10.0.0.2:80",
        TO_WEB,
    ),
    Scenario(
        "a workload known by hostname only",
        web(addresses="", pod_fields={"hostname": "db.example.com"}),
        VIP,
        replace(TO_WEB, next_hop="0.0.0.0:15008", authority="0.0.0.0:8080", resolve="db.example.com"),
    ),
    Scenario(
        "a workload outside the mesh known by hostname only",
        web(TCP, addresses="", vips="fd96::1", pod_fields={"hostname": "db.example.com"}),
        "[fd96::1]:80",
        Goes(PLAIN, "[::]:8080", workload="pod", service=WEB, resolve="db.example.com"),
    ),
    Scenario(
        "an address that is a workload's and a service's is load-balanced, and is no service address",
        both(
            web(vips="10.0.0.3", waypoint=by_address("10.9.9.9")),
            lambda mesh: mesh.add_workload("twin", "10.0.0.3", HBONE),
        ),
        "10.0.0.3:80",
        TO_WEB,
    ),
    Scenario(
        "such an address whose service has nobody, and a workload of the mesh: never around the tunnel",
        both(
            lambda mesh: mesh.add_service("web", "10.0.0.2"),
            pod(),
        ),
        "10.0.0.2:8080",
        TO_POD,
    ),
    Scenario(
        "such an address whose service has nobody, and a workload with a waypoint",
        both(
            lambda mesh: mesh.add_service("web", "10.0.0.2", load_balancer=PASSTHROUGH),
            pod(TCP, waypoint=by_address("10.0.0.9")),
            waypoint_pod(),
        ),
        "10.0.0.2:8080",
        TO_WAYPOINT_OF_POD,
    ),
    Scenario(
        "such an address whose service has nobody, and a workload outside the mesh",
        both(lambda mesh: mesh.add_service("web", "10.0.0.2"), pod(TCP)),
        "10.0.0.2:8080",
        Goes(PLAIN, "10.0.0.2:8080"),
    ),
]

WAYPOINTS = [
    Scenario(
        "a workload's waypoint by address",
        both(pod(waypoint=by_address("10.0.0.9")), waypoint_pod()),
        "10.0.0.2:8080",
        TO_WAYPOINT_OF_POD,
    ),
    Scenario(
        "a workload's waypoint by address, whatever the waypoint's own protocol",
        both(
            pod(TCP, waypoint=by_address("10.0.0.9")),
            lambda mesh: mesh.add_workload("waypoint", "10.0.0.9", TCP),
        ),
        "10.0.0.2:8080",
        TO_WAYPOINT_OF_POD,
    ),
    Scenario(
        "a workload's waypoint by its service's address",
        both(pod(waypoint=by_address("10.96.0.9")), waypoint_service()),
        "10.0.0.2:8080",
        replace(TO_WAYPOINT_OF_POD, expected=(WAYPOINT_SAN, f"{SA}waypoint")),
    ),
    Scenario(
        "a workload's waypoint by its service's hostname",
        both(pod(waypoint=by_hostname("default", WAYPOINT_HOST)), waypoint_service()),
        "10.0.0.2:8080",
        replace(TO_WAYPOINT_OF_POD, expected=(WAYPOINT_SAN, f"{SA}waypoint")),
    ),
    Scenario(
        "a workload's waypoint by a workload's hostname: the port is the reference's",
        both(
            pod(waypoint=by_hostname("default", "wp.example.com", 15018)),
            waypoint_pod(hostname="wp.example.com"),
        ),
        "10.0.0.2:8080",
        replace(TO_WAYPOINT_OF_POD, next_hop="10.0.0.9:15018"),
    ),
    Scenario(
        "a waypoint known by hostname only keeps the authority",
        both(
            pod(waypoint=by_hostname("default", "wp.example.com")),
            waypoint_pod(addresses="", hostname="wp.example.com"),
        ),
        "10.0.0.2:8080",
        replace(TO_WAYPOINT_OF_POD, next_hop="0.0.0.0:15008", resolve="wp.example.com"),
    ),
    Scenario(
        "a waypoint's service with a target port of its own",
        both(pod(waypoint=by_address("10.96.0.9")), waypoint_service(ports={15008: 15088})),
        "10.0.0.2:8080",
        replace(TO_WAYPOINT_OF_POD, next_hop="10.0.0.9:15088", expected=(WAYPOINT_SAN, f"{SA}waypoint")),
    ),
    Scenario(
        "a waypoint whose endpoint maps only other ports",
        both(pod(waypoint=by_address("10.96.0.9")), waypoint_service(own_ports={80: 80})),
        "10.0.0.2:8080",
        replace(TO_WAYPOINT_OF_POD, expected=(WAYPOINT_SAN, f"{SA}waypoint")),
    ),
    Scenario(
        "a sandwiched waypoint: its service has no ports, its workload an application tunnel",
        both(
            pod(waypoint=by_address("10.96.0.9")),
            waypoint_service(
                ports={}, pod_fields={"application_tunnel": ApplicationTunnel(AppTunnelProtocol.PROXY, 15088)}
            ),
        ),
        "10.0.0.2:8080",
        replace(TO_WAYPOINT_OF_POD, expected=(WAYPOINT_SAN, f"{SA}waypoint")),
    ),
    Scenario(
        "a waypoint's service without the port",
        both(pod(waypoint=by_address("10.96.0.9")), waypoint_service(ports={80: 80})),
        "10.0.0.2:8080",
        unknown_waypoint(debug_address("10.96.0.9")),
    ),
    Scenario(
        "a waypoint's service of mode PASSTHROUGH, by address",
        both(pod(waypoint=by_address("10.96.0.9")), waypoint_service(load_balancer=PASSTHROUGH)),
        "10.0.0.2:8080",
        unknown_waypoint(debug_address("10.96.0.9")),
    ),
    Scenario(
        "a waypoint's service of mode PASSTHROUGH, by hostname",
        both(
            pod(waypoint=by_hostname("default", WAYPOINT_HOST)), waypoint_service(load_balancer=PASSTHROUGH)
        ),
        "10.0.0.2:8080",
        replace(TO_WAYPOINT_OF_POD, expected=(WAYPOINT_SAN, f"{SA}waypoint")),
    ),
    Scenario(
        "an unknown waypoint by address",
        pod(waypoint=by_address("10.88.7.7")),
        "10.0.0.2:8080",
        unknown_waypoint(debug_address("10.88.7.7")),
    ),
    Scenario(
        "an unknown waypoint by hostname",
        pod(waypoint=by_hostname("default", "gone.example.com")),
        "10.0.0.2:8080",
        unknown_waypoint("gone.example.com"),
    ),
    Scenario(
        "a waypoint workload without address",
        both(
            pod(waypoint=by_hostname("default", WAYPOINT_HOST)),
            waypoint_service(pod_fields={"uid": "w"}, ip_families=None),
            lambda mesh: mesh.add_workload(
                "waypoint", "fd00::9", HBONE, uid="w", behind=mesh.services_by_hostname(WAYPOINT_HOST)[0]
            ),
            lambda mesh: mesh.change(
                mesh.services_by_hostname(WAYPOINT_HOST)[0], ip_families=IpFamilies.IPV4
            ),
        ),
        "10.0.0.2:8080",
        Refused(
            RefusalKind.NO_VALID_DESTINATION,
            "no valid routing destination for workload: Workload{waypoint with uid w (HBONE)}",
        ),
    ),
    Scenario(
        "a workload's waypoint at our own port on loopback",
        both(pod(waypoint=by_address("127.0.0.1", 15001)), waypoint_pod(addresses="127.0.0.1")),
        "10.0.0.2:8080",
        LOOP,
    ),
    Scenario(
        "from the waypoint itself, by identity and address",
        pod(waypoint=by_address("10.0.0.1")),
        "10.0.0.2:8080",
        TO_POD,
    ),
    Scenario(
        "from an endpoint of the waypoint's service",
        both(
            pod(waypoint=by_address("10.96.0.9")),
            waypoint_service(),
            lambda mesh: mesh.add_workload(
                "client", "10.0.0.1", HBONE, behind=mesh.services_by_hostname(WAYPOINT_HOST)[0]
            ),
        ),
        "10.0.0.2:8080",
        TO_POD,
    ),
    Scenario(
        "with the waypoint's identity but another address",
        both(pod(waypoint=by_address("10.0.0.9")), waypoint_pod(service_account="client")),
        "10.0.0.2:8080",
        replace(TO_WAYPOINT_OF_POD, expected=(f"{SA}client",)),
    ),
    Scenario(
        "with the waypoint's address but another identity",
        both(pod(waypoint=by_address("10.0.0.9")), waypoint_pod(addresses="10.0.0.9 10.0.0.77")),
        "10.0.0.2:8080",
        TO_WAYPOINT_OF_POD,
        client="10.0.0.77:40000",
    ),
    Scenario(
        "a service's waypoint: the authority stays the virtual address",
        web(waypoint=by_address("10.0.0.9"), also=waypoint_pod()),
        VIP,
        TO_WAYPOINT_OF_WEB,
    ),
    Scenario(
        "a service's waypoint by its service's hostname",
        web(waypoint=by_hostname("default", WAYPOINT_HOST), also=waypoint_service()),
        VIP,
        replace(TO_WAYPOINT_OF_WEB, expected=(WAYPOINT_SAN, f"{SA}waypoint")),
    ),
    Scenario(
        "a service's waypoint comes before its mode PASSTHROUGH",
        web(waypoint=by_address("10.0.0.9"), load_balancer=PASSTHROUGH, also=waypoint_pod()),
        VIP,
        TO_WAYPOINT_OF_WEB,
    ),
    Scenario(
        "a service's waypoint comes before a missing port",
        web(waypoint=by_address("10.0.0.9"), also=waypoint_pod()),
        "10.96.0.1:81",
        replace(TO_WAYPOINT_OF_WEB, authority="10.96.0.1:81"),
    ),
    Scenario(
        "from the service's waypoint there is no exemption",
        web(waypoint=by_address("10.0.0.1")),
        VIP,
        Goes(TUNNEL, "10.0.0.1:15008", VIP, (f"{SA}client",), workload="client", service=WEB, waypoint=True),
    ),
    Scenario(
        "a workload's waypoint does not apply when a service was addressed",
        web(pod_fields={"waypoint": by_address("10.0.0.9")}, also=waypoint_pod()),
        VIP,
        TO_WEB,
    ),
    Scenario(
        "a service's waypoint that cannot be found",
        web(waypoint=by_address("10.88.7.7", network="n")),
        VIP,
        unknown_waypoint(debug_address("10.88.7.7", "n")),
    ),
    Scenario(
        "a service's waypoint of which no address is allowed",
        web(
            waypoint=by_hostname("default", WAYPOINT_HOST),
            also=both(
                waypoint_service(),
                lambda mesh: mesh.change(
                    mesh.services_by_hostname(WAYPOINT_HOST)[0], ip_families=IpFamilies.IPV6
                ),
            ),
        ),
        VIP,
        no_destination("waypoint"),
    ),
    Scenario(
        "a service's waypoint at our own port on loopback",
        web(waypoint=by_address("127.0.0.1", 15001), also=waypoint_pod(addresses="127.0.0.1")),
        VIP,
        LOOP,
    ),
    Scenario(
        "weighted waypoints come before the single one",
        web(
            waypoint=by_address("10.88.7.7"),
            weighted_waypoints=weighted((by_address("10.0.0.9"), 5), (by_address("10.88.7.8"), 0)),
            also=waypoint_pod(),
        ),
        VIP,
        TO_WAYPOINT_OF_WEB,
    ),
    Scenario(
        "weights that are all zero leave the single waypoint",
        web(
            waypoint=by_address("10.0.0.9"),
            weighted_waypoints=weighted((by_address("10.88.7.7"), 0)),
            also=waypoint_pod(),
        ),
        VIP,
        TO_WAYPOINT_OF_WEB,
    ),
    Scenario(
        "weights too large to add up leave the single waypoint",
        web(
            waypoint=by_address("10.0.0.9"),
            weighted_waypoints=weighted((by_address("10.88.7.7"), 2**32 - 1), (by_address("10.88.7.8"), 1)),
            also=waypoint_pod(),
        ),
        VIP,
        TO_WAYPOINT_OF_WEB,
    ),
    Scenario(
        "a drawn waypoint that cannot be found refuses; there is no second draw",
        web(
            waypoint=by_address("10.0.0.9"),
            weighted_waypoints=weighted((by_address("10.88.7.7"), 1)),
            also=waypoint_pod(),
        ),
        VIP,
        unknown_waypoint(debug_address("10.88.7.7")),
    ),
]

_SANS: dict[str, Any] = {"subject_alt_names": (SERVICE_SAN,)}

NETWORKS = [
    Scenario(
        "a remote endpoint through its network gateway",
        web(pod_fields=remote_pod(), also=gateway_pod, **_SANS),
        VIP,
        THROUGH_GATEWAY,
    ),
    Scenario(
        "a remote endpoint through a gateway's service",
        web(
            pod_fields=remote_pod(network_gateway=by_address("10.96.0.8", 15009, "far")),
            also=gateway_service,
            **_SANS,
        ),
        VIP,
        replace(THROUGH_GATEWAY, expected=(GATEWAY_SAN, f"{SA}gateway")),
    ),
    Scenario(
        "a remote endpoint through a gateway's hostname",
        web(
            pod_fields=remote_pod(
                network_gateway=by_hostname("default", "gateway.default.svc.cluster.local", 15009)
            ),
            also=gateway_service,
            **_SANS,
        ),
        VIP,
        replace(THROUGH_GATEWAY, expected=(GATEWAY_SAN, f"{SA}gateway")),
    ),
    Scenario(
        "a remote endpoint without address needs none",
        web(addresses="", pod_fields=remote_pod(), also=gateway_pod, **_SANS),
        VIP,
        THROUGH_GATEWAY,
    ),
    Scenario(
        "a remote endpoint outside the mesh goes through the tunnels too",
        web(TCP, pod_fields=remote_pod(), also=gateway_pod, **_SANS),
        VIP,
        THROUGH_GATEWAY,
    ),
    Scenario(
        "the authority of double HBONE has the service's port",
        web(own_ports={80: 9090}, pod_fields=remote_pod(), also=gateway_pod, **_SANS),
        VIP,
        THROUGH_GATEWAY,
    ),
    Scenario(
        "a service without names of its own: the inner tunnel accepts nobody",
        web(pod_fields=remote_pod(), also=gateway_pod),
        VIP,
        replace(THROUGH_GATEWAY, inner_expected=()),
    ),
    Scenario(
        "a remote endpoint without gateway",
        web(pod_fields={"network": "far"}),
        VIP,
        no_destination("pod"),
    ),
    Scenario(
        "a remote endpoint whose gateway cannot be found",
        web(pod_fields=remote_pod()),
        VIP,
        Refused(
            RefusalKind.UNKNOWN_NETWORK_GATEWAY,
            f"unknown network gateway: network gateway {debug_address('10.0.0.8', 'far')} not found",
        ),
    ),
    Scenario(
        "a remote endpoint whose gateway cannot be found by hostname",
        web(pod_fields=remote_pod(network_gateway=by_hostname("default", "gw.example.com"))),
        VIP,
        Refused(
            RefusalKind.UNKNOWN_NETWORK_GATEWAY,
            "unknown network gateway: network gateway gw.example.com not found",
        ),
    ),
    Scenario(
        "a gateway at our own port on loopback",
        web(
            pod_fields=remote_pod(network_gateway=by_address("127.0.0.1", 15001, "far")),
            also=lambda mesh: mesh.add_workload("gateway", "127.0.0.1", HBONE, network="far"),
            **_SANS,
        ),
        VIP,
        LOOP,
    ),
    Scenario(
        "a remote workload addressed itself",
        both(
            pod(**remote_pod(network="")),
            lambda mesh: mesh.add_workload("client", "10.0.0.1", HBONE, network="near"),
        ),
        "10.0.0.2:8080",
        Refused(RefusalKind.NO_SERVICE, "no service for target address: 10.0.0.2:8080"),
    ),
    Scenario(
        "a service's waypoint on another network: the inner tunnel ends at the waypoint",
        web(
            waypoint=by_hostname("default", WAYPOINT_HOST),
            also=both(waypoint_service(pod_fields=remote_pod()), gateway_pod),
            **_SANS,
        ),
        VIP,
        replace(THROUGH_GATEWAY, inner_expected=(WAYPOINT_SAN,), waypoint=True),
    ),
    Scenario(
        "a service's waypoint on another network without gateway",
        web(
            waypoint=by_hostname("default", WAYPOINT_HOST),
            also=waypoint_service(pod_fields={"network": "far"}),
        ),
        VIP,
        no_destination("waypoint"),
    ),
    Scenario(
        "a workload's waypoint on another network is dialled as it is",
        both(
            pod(waypoint=by_hostname("default", "wp.example.com")),
            waypoint_pod(hostname="wp.example.com", network="far"),
        ),
        "10.0.0.2:8080",
        TO_WAYPOINT_OF_POD,
    ),
    Scenario(
        "a remote endpoint when all local ones are gone, FAILOVER by network",
        web(
            load_balancer=balancer(LoadBalancerMode.FAILOVER, LoadBalancerScope.NETWORK),
            pod_fields={"status": HealthStatus.UNHEALTHY},
            also=both(
                lambda mesh: mesh.add_workload(
                    "far", "10.0.0.7", HBONE, behind=mesh.services_by_vip("", at(VIP).ip)[0], **remote_pod()
                ),
                gateway_pod,
            ),
            **_SANS,
        ),
        VIP,
        THROUGH_GATEWAY,
    ),
    Scenario(
        "the local endpoint while there is one, FAILOVER by network",
        web(
            load_balancer=balancer(LoadBalancerMode.FAILOVER, LoadBalancerScope.NETWORK),
            also=both(
                lambda mesh: mesh.add_workload(
                    "far", "10.0.0.7", HBONE, behind=mesh.services_by_vip("", at(VIP).ip)[0], **remote_pod()
                ),
                gateway_pod,
            ),
        ),
        VIP,
        TO_WEB,
    ),
]

SCENARIOS = [*BASICS, *SERVICES, *WAYPOINTS, *NETWORKS]
