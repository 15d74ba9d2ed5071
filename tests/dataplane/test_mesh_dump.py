"""The shapes of the config dump, which other programs read."""

from __future__ import annotations

import json

from hypothesis import given, settings

from tests.support import mesh_messages as messages
from tests.support.mesh_messages import address, delta, policy
from ztunnel.dataplane.mesh_dump import dump_policies, dump_services, dump_staged, dump_workloads
from ztunnel.pb.google import protobuf
from ztunnel.pb.istio import security
from ztunnel.pb.istio import workload as pb
from ztunnel.state import convert
from ztunnel.state.convert import WorkloadParts
from ztunnel.state.description import WORKLOAD
from ztunnel.state.kinds import RejectedError
from ztunnel.state.store import MeshStore


def gateway(address_: bytes | None = None, **hostname: str) -> pb.GatewayAddress:
    if address_ is None:
        return pb.GatewayAddress(hostname=pb.NamespacedHostname(**hostname), hbone_mtls_port=15008)
    return pb.GatewayAddress(address=pb.NetworkAddress(network="n2", address=address_), hbone_mtls_port=15008)


def test_a_full_workload_is_dumped_as_in_the_reference():
    message = pb.Workload(
        uid="Kubernetes//Pod/ns-a/pod-a",
        name="pod-a",
        namespace="ns-a",
        addresses=[bytes([10, 9, 0, 2])],
        hostname="h",
        network="n1",
        tunnel_protocol=pb.TunnelProtocol.HBONE,
        service_account="sa-a",
        waypoint=gateway(namespace="ns", hostname="host"),
        network_gateway=gateway(bytes([1, 2, 3, 4])),
        node="node1",
        canonical_name="app-a",
        canonical_revision="v1",
        workload_name="deploy-a",
        native_tunnel=True,
        application_tunnel=pb.ApplicationTunnel(protocol=pb.ApplicationTunnelProtocol.PROXY, port=15088),
        services={"ns-b/svc-b.ns-b.svc.cluster.local": pb.PortList()},
        authorization_policies=["ns/name"],
        locality=pb.Locality(region="r1", zone="z1", subzone="s1"),
    )
    store = MeshStore(None)
    store.apply(delta(address(message)))
    assert list(dump_workloads(store)) == [
        {
            "applicationTunnel": {"port": 15088, "protocol": "PROXY"},
            "authorizationPolicies": ["ns/name"],
            "canonicalName": "app-a",
            "canonicalRevision": "v1",
            "capacity": 1,
            "clusterId": "Kubernetes",
            "hostname": "h",
            "locality": {"region": "r1", "subzone": "s1", "zone": "z1"},
            "name": "pod-a",
            "namespace": "ns-a",
            "nativeTunnel": True,
            "network": "n1",
            "networkGateway": {"destination": "n2/1.2.3.4", "hboneMtlsPort": 15008},
            "networkMode": "Standard",
            "node": "node1",
            "protocol": "HBONE",
            "serviceAccount": "sa-a",
            "services": ["ns-b/svc-b.ns-b.svc.cluster.local"],
            "status": "Healthy",
            "trustDomain": "cluster.local",
            "uid": "Kubernetes//Pod/ns-a/pod-a",
            "waypoint": {"destination": "ns/host", "hboneMtlsPort": 15008},
            "workloadIps": ["10.9.0.2"],
            "workloadName": "deploy-a",
            "workloadType": "deployment",
        }
    ]


def test_an_empty_workload_keeps_what_readers_expect():
    store = MeshStore(None)
    store.apply(delta(address(pb.Workload(application_tunnel=pb.ApplicationTunnel(), capacity=0))))
    (dumped,) = dump_workloads(store)
    assert dumped == {
        "applicationTunnel": {"port": None, "protocol": "NONE"},
        "capacity": 0,
        "clusterId": "Kubernetes",
        "name": "",
        "namespace": "",
        "networkMode": "Standard",
        "protocol": "TCP",
        "serviceAccount": "default",
        "status": "Healthy",
        "trustDomain": "cluster.local",
        "workloadIps": [],
        "workloadType": "deployment",
    }


def test_a_full_service_is_dumped_as_in_the_reference():
    uid = "Kubernetes//Pod/ns-b/pod-b"
    message = pb.Service(
        name="svc-b",
        namespace="ns-b",
        hostname="svc-b.ns-b.svc.cluster.local",
        addresses=[
            pb.NetworkAddress(network="network1", address=bytes([10, 96, 0, 10])),
            pb.NetworkAddress(network="n", address=bytes([240, 0, 0, 0]), length=16),
        ],
        ports=[pb.Port(service_port=80, target_port=8080)],
        subject_alt_names=["spiffe://cluster.local/ns/ns-b/sa/sa-b"],
        waypoint=gateway(namespace="ns-b", hostname="wp.ns-b.svc.cluster.local"),
        load_balancing=pb.LoadBalancing(
            routing_preference=[pb.LoadBalancingScope.ZONE, pb.LoadBalancingScope.REGION],
            mode=pb.LoadBalancingMode.FAILOVER,
        ),
        ip_families=pb.IpFamilies.IPV4_ONLY,
        canonical=True,
        weighted_waypoints=[pb.WeightedWaypoint(destination=gateway(bytes([10, 0, 0, 9])), weight=10)],
    )
    port = pb.PortList(ports=[pb.Port(service_port=80, target_port=8080)])
    member = pb.Workload(uid=uid, services={"ns-b/svc-b.ns-b.svc.cluster.local": port, "ns/not-yet": port})
    store = MeshStore(None)
    store.apply(delta(address(message), address(member)))
    endpoint = {uid: {"port": {"80": 8080}, "status": "Healthy", "workloadUid": uid}}
    assert list(dump_services(store)) == [
        {
            "canonical": True,
            "cidrVips": [{"cidr": "240.0.0.0/16", "network": "n"}],
            "endpoints": endpoint,
            "hostname": "svc-b.ns-b.svc.cluster.local",
            "ipFamilies": "IPv4",
            "loadBalancer": {
                "healthPolicy": "OnlyHealthy",
                "mode": "Failover",
                "routingPreferences": ["Zone", "Region"],
            },
            "name": "svc-b",
            "namespace": "ns-b",
            "ports": {"80": 8080},
            "subjectAltNames": ["spiffe://cluster.local/ns/ns-b/sa/sa-b"],
            "vips": ["network1/10.96.0.10"],
            "visibility": "Public",
            "waypoint": {"destination": "ns-b/wp.ns-b.svc.cluster.local", "hboneMtlsPort": 15008},
            "weightedWaypoints": [
                {"destination": {"destination": "n2/10.0.0.9", "hboneMtlsPort": 15008}, "weight": 10}
            ],
        }
    ]
    assert list(dump_staged(store)) == [("ns/not-yet", endpoint)]


def test_an_empty_service_keeps_what_readers_expect():
    store = MeshStore(None)
    vip = pb.NetworkAddress(address=bytes([10, 96, 0, 10]))
    store.apply(delta(address(pb.Service(addresses=[vip]))))
    assert list(dump_services(store)) == [
        {
            "canonical": False,
            "endpoints": {},
            "hostname": "",
            "name": "",
            "namespace": "",
            "ports": {},
            "subjectAltNames": [],
            "vips": ["/10.96.0.10"],
            "visibility": "Public",
        }
    ]


def test_a_policy_is_dumped_as_in_the_reference():
    first = security.Match(destination_ports=[9999])
    second = security.Match(
        not_namespaces=[
            security.StringMatch(exact="foo"),
            security.StringMatch(presence=protobuf.Empty()),
        ],
        not_principals=[security.StringMatch(prefix="a")],
        source_ips=[security.Address(address=bytes([10, 0, 0, 0]), length=8)],
        service_accounts=[security.ServiceAccountMatch(namespace="n", service_account="s")],
    )
    message = security.Authorization(
        name="deny-9999",
        namespace="ns-b",
        scope=security.Scope.NAMESPACE,
        action=security.Action.DENY,
        rules=[security.Rule(clauses=[security.Clause(matches=[first]), security.Clause(matches=[second])])],
    )
    store = MeshStore(None)
    store.apply(delta(policy(message), policies=True))
    assert list(dump_policies(store)) == [
        {
            "action": "Deny",
            "dryRun": False,
            "name": "deny-9999",
            "namespace": "ns-b",
            "rules": [
                [
                    [{"destinationPorts": [9999]}],
                    [
                        {
                            "notNamespaces": [{"Exact": "foo"}, {"Presence": []}],
                            "notPrincipals": [{"Prefix": "a"}],
                            "serviceAccounts": [{"namespace": "n", "serviceAccount": "s"}],
                            "sourceIps": ["10.0.0.0/8"],
                        }
                    ],
                ]
            ],
            "scope": "Namespace",
        }
    ]


def test_lists_are_sorted():
    store = MeshStore(None)
    store.apply(
        delta(
            *(address(pb.Workload(uid=uid)) for uid in "cab"),
            *(
                address(pb.Service(namespace=ns, hostname=h))
                for h, ns in [("h", "b"), ("h", "a"), ("g", "z")]
            ),
        )
    )
    store.apply(delta(*(policy(security.Authorization(name=n), f"ns/{n}") for n in "cab"), policies=True))
    assert [item["uid"] for item in dump_workloads(store)] == ["a", "b", "c"]
    assert [(item["hostname"], item["namespace"]) for item in dump_services(store)] == [
        ("g", "z"),
        ("h", "b"),
        ("h", "a"),
    ]
    assert [item["name"] for item in dump_policies(store)] == ["a", "b", "c"]
    json.dumps([*dump_workloads(store), *dump_services(store), *dump_policies(store)])


def test_a_dump_survives_changes_between_its_objects():
    store = MeshStore(None)
    store.apply(delta(*(address(pb.Workload(uid=f"w{number}")) for number in range(5))))
    store.apply(delta(*(address(pb.Service(namespace="n", hostname=f"h{number}")) for number in range(5))))
    workloads, services = dump_workloads(store), dump_services(store)
    assert next(workloads)["uid"] == "w0"
    assert next(services)["hostname"] == "h0"
    store.apply(delta(removed=("w1", "w3", "n/h1", "n/h3")))
    assert [item["uid"] for item in workloads] == ["w2", "w4"]
    assert [item["hostname"] for item in services] == ["h2", "h4"]


def test_a_big_mesh_is_dumped_in_order_with_pauses_and_without_what_is_removed_meanwhile():
    store = MeshStore(None)
    count = 5000
    uids, policies = sorted(f"w{number}" for number in range(count)), count // 2
    store.apply(delta(*(address(pb.Workload(uid=uid)) for uid in uids)))
    store.apply(delta(*(address(pb.Service(namespace="n", hostname=uid)) for uid in uids)))
    made = [policy(security.Authorization(name=uid, namespace="n")) for uid in uids[:policies]]
    store.apply(delta(*made, policies=True))
    gone = uids[1]
    for dump, field, kept in (
        (dump_workloads(store), "uid", count),
        (dump_services(store), "hostname", count),
        (dump_policies(store), "name", policies),
    ):
        assert next(dump) is None, "a pause comes before everything is sorted"
        store.apply(delta(removed=(gone, f"n/{gone}")))
        store.apply(delta(removed=(f"n/{gone}",), policies=True))
        shown = [item[field] for item in dump if item is not None]
        assert shown == [uid for uid in uids[:kept] if uid != gone]


def test_dumping_decodes_without_displacing_what_connections_use():
    store = MeshStore(None)
    store.apply(delta(*(address(pb.Workload(uid=f"w{number}")) for number in range(5))))
    list(dump_workloads(store))
    assert len(store.workloads._decoded) == 0


@settings(deadline=None)
@given(messages.workloads)
def test_a_workload_is_dumped_as_its_model_would_be(message: pb.Workload):
    body = bytes(pb.Address(workload=message))
    try:
        parts = convert.address(body, local=False)
    except RejectedError:
        return
    assert isinstance(parts, WorkloadParts)
    store = MeshStore(None)
    store.apply(delta(address(message)))
    assert list(dump_workloads(store)) == [WORKLOAD.show(parts.workload)]
