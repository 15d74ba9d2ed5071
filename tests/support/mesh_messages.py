"""Random protobuf messages of the mesh, and damaged ones."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from ztunnel.messages import MeshDelta, Origin, Resource, ResourceKind
from ztunnel.pb.google import protobuf
from ztunnel.pb.istio import security
from ztunnel.pb.istio import workload as pb


def delta(
    *resources: Resource, removed: tuple[str, ...] = (), origin: Origin = Origin.XDS, policies: bool = False
) -> MeshDelta:
    kind = ResourceKind.AUTHORIZATION if policies else ResourceKind.ADDRESS
    return MeshDelta(number=1, kind=kind, resources=tuple(resources), removed=removed, origin=origin)


def address(message: pb.Workload | pb.Service, name: str | None = None) -> Resource:
    if isinstance(message, pb.Workload):
        return Resource(message.uid if name is None else name, bytes(pb.Address(workload=message)))
    key = f"{message.namespace}/{message.hostname}"
    return Resource(key if name is None else name, bytes(pb.Address(service=message)))


def policy(message: security.Authorization, name: str | None = None) -> Resource:
    return Resource(f"{message.namespace}/{message.name}" if name is None else name, bytes(message))


texts = st.text(alphabet=st.sampled_from("ab/.-é世"), max_size=6)
uint32 = st.one_of(st.integers(0, 200), st.integers(0, 2**32 - 1))
ip_bytes = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16))
any_bytes = st.one_of(ip_bytes, ip_bytes, ip_bytes, st.binary(max_size=5))
extensions = st.lists(
    st.builds(
        pb.Extension, name=texts, config=st.none() | st.builds(protobuf.Any, type_url=texts, value=any_bytes)
    ),
    max_size=2,
)


def numbers(known: Any) -> st.SearchStrategy[Any]:
    """Numbers of an enumeration, and sometimes one that it does not have."""
    return st.one_of(
        st.sampled_from(list(known)), st.sampled_from(list(known)), st.integers(0, 300).map(known)
    )


network_addresses = st.builds(
    pb.NetworkAddress, network=texts, address=any_bytes, length=st.none() | st.integers(0, 129)
)
gateways = st.one_of(
    st.builds(pb.GatewayAddress, hbone_mtls_port=uint32),
    st.builds(pb.GatewayAddress, address=network_addresses, hbone_mtls_port=uint32),
    st.builds(
        pb.GatewayAddress,
        hostname=st.builds(pb.NamespacedHostname, namespace=texts, hostname=texts),
        hbone_mtls_port=uint32,
    ),
)
ports = st.builds(pb.Port, service_port=uint32, target_port=uint32, app_protocol=numbers(pb.AppProtocol))
port_lists = st.builds(pb.PortList, ports=st.lists(ports, max_size=3))
service_keys = st.one_of(texts, st.sampled_from(["ns/a.b", "ns/b", "other/a.b"]))
workloads = st.builds(
    pb.Workload,
    uid=texts,
    name=texts,
    namespace=texts,
    addresses=st.lists(any_bytes, max_size=3),
    hostname=texts,
    network=texts,
    tunnel_protocol=numbers(pb.TunnelProtocol),
    trust_domain=texts,
    service_account=texts,
    waypoint=st.none() | gateways,
    network_gateway=st.none() | gateways,
    node=st.one_of(texts, st.just("node")),
    canonical_name=texts,
    canonical_revision=texts,
    workload_type=numbers(pb.WorkloadType),
    workload_name=texts,
    native_tunnel=st.booleans(),
    application_tunnel=st.none()
    | st.builds(pb.ApplicationTunnel, protocol=numbers(pb.ApplicationTunnelProtocol), port=uint32),
    services=st.dictionaries(service_keys, port_lists, max_size=3),
    authorization_policies=st.lists(texts, max_size=2),
    status=numbers(pb.WorkloadStatus),
    cluster_id=texts,
    locality=st.none() | st.builds(pb.Locality, region=texts, zone=texts, subzone=texts),
    network_mode=numbers(pb.NetworkMode),
    extensions=extensions,
    capacity=st.none() | uint32,
)
services = st.builds(
    pb.Service,
    name=texts,
    namespace=texts,
    hostname=texts,
    addresses=st.lists(network_addresses, max_size=3),
    ports=st.lists(ports, max_size=2),
    subject_alt_names=st.lists(texts, max_size=2),
    waypoint=st.none() | gateways,
    load_balancing=st.none()
    | st.builds(
        pb.LoadBalancing,
        routing_preference=st.lists(numbers(pb.LoadBalancingScope), max_size=3),
        mode=numbers(pb.LoadBalancingMode),
        health_policy=numbers(pb.LoadBalancingHealthPolicy),
    ),
    ip_families=numbers(pb.IpFamilies),
    extensions=extensions,
    canonical=st.booleans(),
    ingress_use_waypoint=st.booleans(),
    weighted_waypoints=st.lists(
        st.builds(pb.WeightedWaypoint, destination=st.none() | gateways, weight=uint32), max_size=2
    ),
    visibility=numbers(pb.ServiceVisibility),
)
addresses = st.one_of(
    st.builds(pb.Address, workload=workloads),
    st.builds(pb.Address, service=services),
    st.just(pb.Address()),
)

string_matches = st.one_of(
    st.builds(security.StringMatch, exact=texts),
    st.builds(security.StringMatch, prefix=texts),
    st.builds(security.StringMatch, suffix=texts),
    st.builds(security.StringMatch, presence=st.just(protobuf.Empty())),
    st.just(security.StringMatch()),
)
_strings = st.lists(string_matches, max_size=2)
_accounts = st.lists(
    st.builds(security.ServiceAccountMatch, namespace=texts, service_account=texts), max_size=2
)
_networks = st.lists(st.builds(security.Address, address=any_bytes, length=st.integers(0, 129)), max_size=2)
matches = st.builds(
    security.Match,
    namespaces=_strings,
    not_namespaces=_strings,
    service_accounts=_accounts,
    not_service_accounts=_accounts,
    principals=_strings,
    not_principals=_strings,
    source_ips=_networks,
    not_source_ips=_networks,
    destination_ips=_networks,
    not_destination_ips=_networks,
    destination_ports=st.lists(uint32, max_size=2),
    not_destination_ports=st.lists(uint32, max_size=2),
    extensions=extensions,
)
clauses = st.builds(security.Clause, matches=st.lists(matches, max_size=2))
policies = st.builds(
    security.Authorization,
    name=texts,
    namespace=texts,
    scope=numbers(security.Scope),
    action=numbers(security.Action),
    rules=st.lists(st.builds(security.Rule, clauses=st.lists(clauses, max_size=2)), max_size=2),
    dry_run=st.booleans(),
    extensions=extensions,
)


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Returns bytes with a few changes: bytes flipped, cut off, put in, repeated."""
    body = bytearray(draw(whole))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(body)))
        change = draw(st.integers(0, 4))
        if change == 0 and at < len(body):
            body[at] = draw(st.integers(0, 255))
        elif change == 1:
            del body[at:]
        elif change == 2:
            body[at:at] = draw(st.binary(min_size=1, max_size=4))
        elif change == 3:
            del body[at : at + draw(st.integers(1, 4))]
        else:
            body += body[at:]
    return bytes(body)
