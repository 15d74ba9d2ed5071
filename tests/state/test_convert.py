"""The rules by which workloads and services become model values, and what is refused."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address

import pytest

from ztunnel.model.address import GatewayAddress, NamespacedHostname, NetworkAddress, written_network
from ztunnel.model.service import (
    HealthPolicy,
    IpFamilies,
    LoadBalancerMode,
    LoadBalancerScope,
    Service,
    Visibility,
)
from ztunnel.model.workload import (
    AppTunnelProtocol,
    HealthStatus,
    Locality,
    NetworkMode,
    Protocol,
    Workload,
)
from ztunnel.pb.istio import workload as pb
from ztunnel.state import convert
from ztunnel.state.convert import ServiceParts, WorkloadParts
from ztunnel.state.kinds import RejectedError


def workload(message: pb.Workload) -> Workload:
    return workload_parts(message).workload


def workload_parts(message: pb.Workload) -> WorkloadParts:
    parts = convert.address(bytes(pb.Address(workload=message)), local=False)
    assert isinstance(parts, WorkloadParts)
    return parts


def service(message: pb.Service) -> Service:
    parts = convert.address(bytes(pb.Address(service=message)), local=False)
    assert isinstance(parts, ServiceParts)
    return parts.service


def test_an_empty_workload_gets_the_defaults_of_xds():
    value = workload(pb.Workload())
    assert value == Workload(
        uid="",
        trust_domain="cluster.local",
        service_account="default",
        cluster_id="Kubernetes",
        workload_type="deployment",
    )
    assert str(value.identity) == "spiffe://cluster.local/ns//sa/default"


def test_an_empty_workload_of_the_file_stays_empty():
    parts = convert.address(b'{"workload": {"workloadIps": [], "namespace": "", "services": {}}}', local=True)
    assert isinstance(parts, WorkloadParts)
    value = parts.workload
    assert (value.trust_domain, value.service_account, value.cluster_id, value.workload_type) == (
        "",
        "",
        "",
        "",
    )
    assert value.capacity == 1


def test_all_fields_of_a_workload_are_read():
    gateway = pb.GatewayAddress(
        address=pb.NetworkAddress(network="n2", address=bytes([1, 2, 3, 4])), hbone_mtls_port=15008
    )
    message = pb.Workload(
        uid="u",
        name="name",
        namespace="ns",
        addresses=[bytes([10, 0, 0, 1]), ip_address("fd00::1").packed],
        hostname="host",
        network="n1",
        tunnel_protocol=pb.TunnelProtocol.HBONE,
        trust_domain="td",
        service_account="sa",
        waypoint=pb.GatewayAddress(
            hostname=pb.NamespacedHostname(namespace="wns", hostname="w"), hbone_mtls_port=70000
        ),
        network_gateway=gateway,
        node="node",
        canonical_name="cn",
        canonical_revision="cr",
        workload_type=pb.WorkloadType.CRONJOB,
        workload_name="wn",
        native_tunnel=True,
        application_tunnel=pb.ApplicationTunnel(protocol=pb.ApplicationTunnelProtocol.PROXY, port=15088),
        services={"ns/svc": pb.PortList(ports=[pb.Port(service_port=80, target_port=8080)])},
        authorization_policies=["b/2", "a/1"],
        status=pb.WorkloadStatus.UNHEALTHY,
        cluster_id="c",
        locality=pb.Locality(region="r", zone="z", subzone="s"),
        network_mode=pb.NetworkMode.HOST_NETWORK,
        capacity=7,
    )
    parts = workload_parts(message)
    value = parts.workload
    assert value.addresses == (IPv4Address("10.0.0.1"), IPv6Address("fd00::1"))
    assert value.protocol is Protocol.HBONE
    assert value.waypoint == GatewayAddress(NamespacedHostname("wns", "w"), 4464)
    assert value.network_gateway == GatewayAddress(NetworkAddress("n2", IPv4Address("1.2.3.4")), 15008)
    assert value.workload_type == "cronjob"
    assert value.application_tunnel is not None
    assert value.application_tunnel.protocol is AppTunnelProtocol.PROXY
    assert value.application_tunnel.port == 15088
    assert value.services == (NamespacedHostname("ns", "svc"),)
    assert value.authorization_policies == ("b/2", "a/1")
    assert value.status is HealthStatus.UNHEALTHY
    assert value.locality == Locality("r", "z", "s")
    assert value.network_mode is NetworkMode.HOST_NETWORK
    assert value.capacity == 7
    endpoint = convert.unpack_endpoint("u", parts.services[0][1])
    assert (endpoint.workload_uid, endpoint.ports, endpoint.status) == (
        "u",
        {80: 8080},
        HealthStatus.UNHEALTHY,
    )


def test_capacity_zero_is_not_absent():
    assert workload(pb.Workload(capacity=0)).capacity == 0
    assert workload(pb.Workload(capacity=None)).capacity == 1


def test_an_unknown_workload_type_is_a_deployment():
    assert workload(pb.Workload(workload_type=pb.WorkloadType(99))).workload_type == "deployment"


def test_ports_are_cut_to_16_bits_and_the_last_of_equal_ones_wins():
    ports = [pb.Port(service_port=70000, target_port=65537), pb.Port(service_port=4464, target_port=9)]
    assert dict(service(pb.Service(ports=ports)).ports) == {4464: 9}
    assert dict(service(pb.Service(ports=ports[:1])).ports) == {4464: 1}


def test_an_application_tunnel_without_port_keeps_the_port_asked_for():
    tunnel = workload(pb.Workload(application_tunnel=pb.ApplicationTunnel())).application_tunnel
    assert tunnel is not None
    assert (tunnel.protocol, tunnel.port) == (AppTunnelProtocol.NONE, None)


def test_a_service_key_is_split_at_the_first_slash():
    value = workload(pb.Workload(services={"a/b/c": pb.PortList()}))
    assert value.services == (NamespacedHostname("a", "b/c"),)


IPV4, IPV6 = bytes([11, 0, 0, 1]), ip_address("fd00::1").packed


@pytest.mark.parametrize(
    ("octets", "length", "expected"),
    [
        (IPV4, None, "vip"),
        (IPV4, 32, "vip"),
        (IPV6, 128, "vip"),
        (IPV4, 8, "11.0.0.1/8"),
        (IPV4, 0, "11.0.0.1/0"),
        (IPV6, 32, "fd00::1/32"),
    ],
)
def test_an_address_with_a_length_is_a_range_unless_it_is_all_of_it(octets, length, expected):
    value = service(pb.Service(addresses=[pb.NetworkAddress(network="n", address=octets, length=length)]))
    if expected == "vip":
        assert [str(vip) for vip in value.vips] == [f"n/{ip_address(octets)}"]
        assert value.cidr_vips == ()
    else:
        assert [str(vip.cidr) for vip in value.cidr_vips] == [expected]
        assert value.vips == ()


def test_a_range_compares_by_its_network_whatever_host_bits_it_shows():
    written = written_network(IPv4Address(IPV4), 8)
    assert written == IPv4Network("11.0.0.0/8")
    assert IPv4Address("11.9.9.9") in written


def test_all_fields_of_a_service_are_read():
    balancing = pb.LoadBalancing(
        routing_preference=[pb.LoadBalancingScope.NETWORK, pb.LoadBalancingScope.ZONE],
        mode=pb.LoadBalancingMode.FAILOVER,
        health_policy=pb.LoadBalancingHealthPolicy.ALLOW_ALL,
    )
    destination = pb.GatewayAddress(hostname=pb.NamespacedHostname(namespace="ns", hostname="w"))
    value = service(
        pb.Service(
            name="name",
            namespace="ns",
            hostname="host",
            subject_alt_names=["a", "b"],
            load_balancing=balancing,
            ip_families=pb.IpFamilies.DUAL,
            canonical=True,
            weighted_waypoints=[pb.WeightedWaypoint(destination=destination, weight=3)],
            visibility=pb.ServiceVisibility.NAMESPACE,
        )
    )
    assert value.subject_alt_names == ("a", "b")
    assert value.load_balancer is not None
    assert value.load_balancer.routing_preferences == (LoadBalancerScope.NETWORK, LoadBalancerScope.ZONE)
    assert value.load_balancer.mode is LoadBalancerMode.FAILOVER
    assert value.load_balancer.health_policy is HealthPolicy.ALLOW_ALL
    assert value.ip_families is IpFamilies.DUAL
    assert value.canonical
    assert value.weighted_waypoints[0].weight == 3
    assert value.visibility is Visibility.NAMESPACE


def test_a_load_balancer_without_mode_is_standard_and_none_is_none():
    value = service(pb.Service(load_balancing=pb.LoadBalancing()))
    assert value.load_balancer is not None
    assert value.load_balancer.mode is LoadBalancerMode.STANDARD
    assert service(pb.Service()).load_balancer is None
    assert service(pb.Service()).ip_families is None


def test_unknown_visibility_is_public():
    assert service(pb.Service(visibility=pb.ServiceVisibility(9))).visibility is Visibility.PUBLIC


BAD_GATEWAY = pb.GatewayAddress(hbone_mtls_port=1)
NO_ADDRESS = "nonempty gateway address is missing address"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (pb.Workload(addresses=[b"abc"]), "failed to parse address, had 3 bytes"),
        (pb.Workload(addresses=[b""]), "failed to parse address, had 0 bytes"),
        (
            pb.Workload(tunnel_protocol=pb.TunnelProtocol.LEGACY_ISTIO_MTLS),
            "unknown enum: unsupported tunnel protocol: legacy istio mtls",
        ),
        (pb.Workload(services={"x": pb.PortList()}), "failed to parse namespaced hostname: x"),
        (pb.Workload(waypoint=BAD_GATEWAY), NO_ADDRESS),
        (pb.Workload(network_gateway=BAD_GATEWAY), NO_ADDRESS),
        (
            pb.Workload(waypoint=pb.GatewayAddress(address=pb.NetworkAddress())),
            "failed to parse address, had 0 bytes",
        ),
        (pb.Service(waypoint=BAD_GATEWAY), NO_ADDRESS),
        (pb.Service(weighted_waypoints=[pb.WeightedWaypoint(weight=1)]), NO_ADDRESS),
        (pb.Workload(status=pb.WorkloadStatus(7)), "decode error: unknown enumeration value 7"),
        (pb.Workload(tunnel_protocol=pb.TunnelProtocol(7)), "decode error: unknown enumeration value 7"),
        (pb.Workload(network_mode=pb.NetworkMode(7)), "decode error: unknown enumeration value 7"),
        (
            pb.Workload(application_tunnel=pb.ApplicationTunnel(protocol=pb.ApplicationTunnelProtocol(7))),
            "decode error: unknown enumeration value 7",
        ),
        (pb.Service(ip_families=pb.IpFamilies(7)), "decode error: unknown enumeration value 7"),
        (
            pb.Service(load_balancing=pb.LoadBalancing(mode=pb.LoadBalancingMode(7))),
            "decode error: unknown enumeration value 7",
        ),
        (
            pb.Service(load_balancing=pb.LoadBalancing(health_policy=pb.LoadBalancingHealthPolicy(7))),
            "decode error: unknown enumeration value 7",
        ),
        (
            pb.Service(load_balancing=pb.LoadBalancing(routing_preference=[pb.LoadBalancingScope(7)])),
            "decode error: unknown enumeration value 7",
        ),
        (
            pb.Service(
                load_balancing=pb.LoadBalancing(routing_preference=[pb.LoadBalancingScope.UNSPECIFIED_SCOPE])
            ),
            "unknown enum: invalid target",
        ),
        (
            pb.Service(addresses=[pb.NetworkAddress(address=IPV4, length=33)]),
            "invalid cidr: invalid IP prefix length",
        ),
        (pb.Service(addresses=[pb.NetworkAddress(address=b"12345")]), "failed to parse address, had 5 bytes"),
    ],
)
def test_what_breaks_a_rule_is_refused_with_the_known_text(message, reason):
    address = (
        pb.Address(workload=message) if isinstance(message, pb.Workload) else pb.Address(service=message)
    )
    with pytest.raises(RejectedError) as caught:
        convert.address(bytes(address), local=False)
    assert str(caught.value) == reason
    assert not caught.value.undecodable


def test_a_negative_enumeration_number_is_named_as_such():
    with pytest.raises(RejectedError, match=r"^decode error: unknown enumeration value -1$"):
        convert.address(b"\x0a\x0c\x88\x01" + b"\xff" * 9 + b"\x01", local=False)


@pytest.mark.parametrize("body", [b"", b"\x18\x01"])
def test_an_address_that_is_nothing_known_is_refused(body: bytes):
    with pytest.raises(RejectedError, match=r"^unknown address type$"):
        convert.address(body, local=False)


def test_undecodable_bytes_say_where():
    with pytest.raises(RejectedError) as caught:
        convert.address(b"\x0a\x05", local=False)
    assert str(caught.value) == ("decode: failed to decode Protobuf message: Address.type: buffer underflow")
    assert caught.value.undecodable
