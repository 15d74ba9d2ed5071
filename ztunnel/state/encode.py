"""From model values to the bytes that the control plane would send: the opposite of `ztunnel.state.convert`.

The local file becomes the same bytes as xDS brings, so that there is one way into the store and to worker
processes. What the protobuf messages cannot say travels in extensions, which `convert` reads only for what
came from the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address

from ztunnel.model.address import GatewayAddress, IPNetwork, NetworkAddress
from ztunnel.model.policy import Action, Authorization, Match, Scope, StringMatch, StringMatchKind
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
)
from ztunnel.model.workload import (
    UNKNOWN_LOCALITY,
    AppTunnelProtocol,
    HealthStatus,
    NetworkMode,
    Protocol,
    Workload,
)
from ztunnel.pb.google import protobuf
from ztunnel.pb.istio import security
from ztunnel.pb.istio import workload as pb
from ztunnel.state.convert import ENDPOINT_EXTENSION, WORKLOAD_TYPE_EXTENSION

PortMap = Mapping[int, int]

_STATUSES = {
    HealthStatus.HEALTHY: pb.WorkloadStatus.HEALTHY,
    HealthStatus.UNHEALTHY: pb.WorkloadStatus.UNHEALTHY,
}
_FAMILIES = {
    None: pb.IpFamilies.AUTOMATIC,
    IpFamilies.IPV4: pb.IpFamilies.IPV4_ONLY,
    IpFamilies.IPV6: pb.IpFamilies.IPV6_ONLY,
    IpFamilies.DUAL: pb.IpFamilies.DUAL,
}
_MODES = {
    LoadBalancerMode.STANDARD: pb.LoadBalancingMode.UNSPECIFIED_MODE,
    LoadBalancerMode.STRICT: pb.LoadBalancingMode.STRICT,
    LoadBalancerMode.FAILOVER: pb.LoadBalancingMode.FAILOVER,
    LoadBalancerMode.PASSTHROUGH: pb.LoadBalancingMode.PASSTHROUGH,
}
_SCOPES = {scope: pb.LoadBalancingScope[scope.name] for scope in LoadBalancerScope}
_POLICY_SCOPES = {scope: security.Scope[scope.name] for scope in Scope}
_ACTIONS = {action: security.Action[action.name] for action in Action}


def encode_workload(workload: Workload, services: Mapping[str, PortMap], *, local: bool = False) -> bytes:
    """An Address that holds a workload. ``services``: its port maps by ``namespace/hostname``.

    ``local``: for a delta whose origin is the local file.
    """
    message = pb.Workload(
        uid=workload.uid,
        name=workload.name,
        namespace=workload.namespace,
        addresses=[ip.packed for ip in workload.addresses],
        hostname=workload.hostname,
        network=workload.network,
        tunnel_protocol=pb.TunnelProtocol(workload.protocol is Protocol.HBONE),
        trust_domain=workload.trust_domain,
        service_account=workload.service_account,
        waypoint=_gateway(workload.waypoint),
        network_gateway=_gateway(workload.network_gateway),
        node=workload.node,
        canonical_name=workload.canonical_name,
        canonical_revision=workload.canonical_revision,
        workload_name=workload.workload_name,
        native_tunnel=workload.native_tunnel,
        services={key: _port_list(ports) for key, ports in services.items()},
        authorization_policies=list(workload.authorization_policies),
        status=_STATUSES[workload.status],
        cluster_id=workload.cluster_id,
        network_mode=pb.NetworkMode(workload.network_mode is NetworkMode.HOST_NETWORK),
        capacity=workload.capacity,
    )
    tunnel = workload.application_tunnel
    if tunnel is not None:
        protocol = pb.ApplicationTunnelProtocol(tunnel.protocol is AppTunnelProtocol.PROXY)
        message.application_tunnel = pb.ApplicationTunnel(protocol=protocol, port=tunnel.port or 0)
    if workload.locality != UNKNOWN_LOCALITY:
        message.locality = pb.Locality(**workload.locality._asdict())
    if not local:
        message.workload_type = pb.WorkloadType[workload.workload_type.upper()]
    elif workload.workload_type:
        message.extensions.append(_extension(WORKLOAD_TYPE_EXTENSION, workload.workload_type.encode()))
    return bytes(pb.Address(workload=message))


def encode_service(service: Service, endpoints: Mapping[str, Endpoint] | None = None) -> bytes:
    """An Address that holds a service. ``endpoints`` of its own reach the store only from the local file."""
    message = pb.Service(
        name=service.name,
        namespace=service.namespace,
        hostname=service.hostname,
        addresses=[
            *(_address(vip) for vip in service.vips),
            *(_range(vip) for vip in service.cidr_vips),
        ],
        ports=_ports(service.ports),
        subject_alt_names=list(service.subject_alt_names),
        waypoint=_gateway(service.waypoint),
        weighted_waypoints=[
            pb.WeightedWaypoint(destination=_gateway(weighted.destination), weight=weighted.weight)
            for weighted in service.weighted_waypoints
        ],
        load_balancing=_load_balancing(service.load_balancer),
        ip_families=_FAMILIES[service.ip_families],
        canonical=service.canonical,
        visibility=pb.ServiceVisibility(service.visibility is Visibility.NAMESPACE),
    )
    for key, endpoint in (endpoints or {}).items():
        own = pb.Workload(
            name=key,
            uid=endpoint.workload_uid,
            status=_STATUSES[endpoint.status],
            services={"": _port_list(endpoint.ports)},
        )
        message.extensions.append(_extension(ENDPOINT_EXTENSION, bytes(own)))
    return bytes(pb.Address(service=message))


def encode_policy(policy: Authorization) -> bytes:
    """An Authorization."""
    rules = [
        security.Rule(
            clauses=[security.Clause(matches=[_match(match) for match in clause]) for clause in rule]
        )
        for rule in policy.rules
    ]
    message = security.Authorization(
        name=policy.name,
        namespace=policy.namespace,
        scope=_POLICY_SCOPES[policy.scope],
        action=_ACTIONS[policy.action],
        rules=rules,
        dry_run=policy.dry_run,
    )
    return bytes(message)


def _match(match: Match) -> security.Match:
    return security.Match(
        namespaces=[_string(value) for value in match.namespaces],
        not_namespaces=[_string(value) for value in match.not_namespaces],
        service_accounts=[security.ServiceAccountMatch(*value) for value in match.service_accounts],
        not_service_accounts=[security.ServiceAccountMatch(*value) for value in match.not_service_accounts],
        principals=[_string(value) for value in match.principals],
        not_principals=[_string(value) for value in match.not_principals],
        source_ips=[_network(value) for value in match.source_ips],
        not_source_ips=[_network(value) for value in match.not_source_ips],
        destination_ips=[_network(value) for value in match.destination_ips],
        not_destination_ips=[_network(value) for value in match.not_destination_ips],
        destination_ports=list(match.destination_ports),
        not_destination_ports=list(match.not_destination_ports),
    )


def _string(match: StringMatch) -> security.StringMatch:
    match match.kind:
        case StringMatchKind.EXACT:
            return security.StringMatch(exact=match.value)
        case StringMatchKind.PREFIX:
            return security.StringMatch(prefix=match.value)
        case StringMatchKind.SUFFIX:
            return security.StringMatch(suffix=match.value)
        case StringMatchKind.PRESENCE:
            return security.StringMatch(presence=protobuf.Empty())


def _network(network: IPNetwork) -> security.Address:
    octets, length = _written(network)
    return security.Address(address=octets, length=length)


def _written(network: IPNetwork) -> tuple[bytes, int]:
    """The address with its host bits, as the network prints it, and the prefix length."""
    return ip_address(str(network).partition("/")[0]).packed, network.prefixlen


def _range(vip: CidrVip) -> pb.NetworkAddress:
    octets, length = _written(vip.cidr)
    return pb.NetworkAddress(network=vip.network, address=octets, length=length)


def _address(address: NetworkAddress) -> pb.NetworkAddress:
    return pb.NetworkAddress(network=address.network, address=address.ip.packed)


def _gateway(gateway: GatewayAddress | None) -> pb.GatewayAddress | None:
    if gateway is None:
        return None
    destination = gateway.destination
    if isinstance(destination, NetworkAddress):
        return pb.GatewayAddress(address=_address(destination), hbone_mtls_port=gateway.hbone_mtls_port)
    hostname = pb.NamespacedHostname(namespace=destination.namespace, hostname=destination.hostname)
    return pb.GatewayAddress(hostname=hostname, hbone_mtls_port=gateway.hbone_mtls_port)


def _load_balancing(balancer: LoadBalancer | None) -> pb.LoadBalancing | None:
    if balancer is None:
        return None
    return pb.LoadBalancing(
        routing_preference=[_SCOPES[scope] for scope in balancer.routing_preferences],
        mode=_MODES[balancer.mode],
        health_policy=pb.LoadBalancingHealthPolicy(balancer.health_policy is HealthPolicy.ALLOW_ALL),
    )


def _ports(ports: PortMap) -> list[pb.Port]:
    return [pb.Port(service_port=port, target_port=target) for port, target in ports.items()]


def _port_list(ports: PortMap) -> pb.PortList:
    return pb.PortList(ports=_ports(ports))


def _extension(name: str, value: bytes) -> pb.Extension:
    return pb.Extension(name=name, config=protobuf.Any(value=value))
