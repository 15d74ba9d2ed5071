"""Random histories of a mesh: the store and a plain one must never differ."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.state.naive_mesh import NaiveMesh
from tests.support.mesh_messages import address, delta
from ztunnel.messages import MeshDelta, Resource
from ztunnel.model.address import NamespacedHostname
from ztunnel.pb.istio import workload as pb
from ztunnel.state.store import MeshStore

UIDS = ["c//Pod/ns/a", "c//Pod/ns/b", "entry/x", "entry/y"]
KEYS = [NamespacedHostname(namespace, host) for namespace in ("n1", "n2") for host in ("h", "g")]
NETWORKS = ["", "net"]
IPS = [IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")]
NAMES = ["p", "q"]

some_ips = st.lists(st.sampled_from([ip.packed for ip in IPS]), max_size=2)
workloads = st.builds(
    pb.Workload,
    uid=st.sampled_from(UIDS),
    name=st.sampled_from(NAMES),
    namespace=st.sampled_from(["n1", "n2"]),
    network=st.sampled_from(NETWORKS),
    addresses=some_ips,
    node=st.sampled_from(["node", "other"]),
    tunnel_protocol=st.sampled_from([pb.TunnelProtocol.NONE, pb.TunnelProtocol.HBONE]),
    network_mode=st.sampled_from([pb.NetworkMode.STANDARD] * 3 + [pb.NetworkMode.HOST_NETWORK]),
    status=st.sampled_from(list(pb.WorkloadStatus)),
    services=st.dictionaries(
        st.sampled_from([str(key) for key in KEYS]),
        st.builds(
            pb.PortList,
            ports=st.lists(
                st.builds(pb.Port, service_port=st.just(80), target_port=st.sampled_from([1, 2])), max_size=1
            ),
        ),
        max_size=3,
    ),
)
services = st.builds(
    lambda key, canonical, addresses, accepts_all: pb.Service(
        namespace=key.namespace,
        hostname=key.hostname,
        canonical=canonical,
        addresses=addresses,
        load_balancing=pb.LoadBalancing(health_policy=pb.LoadBalancingHealthPolicy(accepts_all)),
    ),
    st.sampled_from(KEYS),
    st.booleans(),
    st.lists(
        st.builds(
            pb.NetworkAddress,
            network=st.sampled_from(NETWORKS),
            address=st.sampled_from([ip.packed for ip in IPS]),
            length=st.sampled_from([None, None, 8, 31]),
        ),
        max_size=2,
    ),
    st.booleans(),
)
resources = st.one_of(
    workloads.map(address),
    services.map(address),
    st.just(Resource("broken", b"\x0a\x05")),
)
deltas = st.builds(
    lambda changed, removed: delta(*changed, removed=tuple(removed)),
    st.lists(resources, max_size=6),
    st.lists(st.sampled_from([*UIDS, *map(str, KEYS), "plain", "a//b"]), max_size=2),
)
histories = st.lists(st.tuples(deltas, st.integers(1, 8)), max_size=6)


def advance(store: MeshStore, change: MeshDelta, size: int) -> set[str]:
    application = store.begin(change)
    while not application.step(size):
        compare_inside(store)
    return {name for name, _ in application.rejected}


def compare_inside(store: MeshStore) -> None:
    """What must hold in the middle of a delta: views agree with each other."""
    for key in KEYS:
        service = store.service(*key)
        assert (service in store.services_by_hostname(key.hostname)) == (service is not None)


def compare(store: MeshStore, naive: NaiveMesh) -> None:
    for uid in UIDS:
        expected = naive.workloads.get(uid)
        assert store.workload(uid) == (expected.workload if expected else None)
    for network in NETWORKS:
        for ip in IPS:
            assert store.workload_by_address(network, ip) == naive.by_address(network, ip)
            at_vip = naive.vips.get((network, ip), {}).values()
            assert list(store.services_by_vip(network, ip)) == [naive.service(key) for key in at_vip]
            assert list(store.services_by_cidr(network, ip)) == [
                (vip, service)
                for service in naive.services
                for vip in service.cidr_vips
                if vip.network == network and ip in vip.cidr
            ]
    for key in KEYS:
        service = naive.service(key)
        assert store.service(*key) == service
        by_host = [other for other in naive.services if other.hostname == key.hostname]
        assert list(store.services_by_hostname(key.hostname)) == by_host
        if service is not None:
            assert dict(store.endpoints(service)) == naive.endpoints[key]
    assert {
        key: {uid: store.services.endpoint(uid, packed) for uid, packed in endpoints.items()}
        for key, endpoints in store.services.staged().items()
    } == naive.staged
    for parts in naive.workloads.values():
        workload = parts.workload
        assert list(store.services_of(workload)) == [
            naive.service(key) for key in workload.services if workload.uid in naive.endpoints.get(key, {})
        ]
    for name in NAMES:
        for namespace in ("n1", "n2"):
            found = store.local_workload(name, namespace, "default")
            candidates = naive.local(name, namespace, "default")
            assert (found in candidates) if candidates else found is None


@settings(deadline=None, max_examples=150)
@given(histories, st.sampled_from(["node", None]))
def test_any_history_leaves_what_a_plain_store_holds(history: list[tuple[MeshDelta, int]], node: str | None):
    store, naive = MeshStore(node), NaiveMesh(node)
    for change, size in history:
        assert advance(store, change, size) == naive.apply(change)
        compare(store, naive)


@settings(deadline=None)
@given(histories, st.randoms(use_true_random=False))
def test_the_order_within_a_response_does_not_matter_to_endpoints(history, random):
    one, other = MeshStore("node"), MeshStore("node")
    for change, size in history:
        unique = {resource.name: resource for resource in change.resources}
        shuffled = list(unique.values())
        random.shuffle(shuffled)
        advance(one, delta(*unique.values(), removed=change.removed), size)
        advance(other, delta(*shuffled, removed=change.removed), 64)
    for key in KEYS:
        first, second = one.service(*key), other.service(*key)
        assert first == second
        if first is not None and second is not None:
            assert dict(one.endpoints(first)) == dict(other.endpoints(second))
    assert one.services.staged() == other.services.staged()


@settings(deadline=None, max_examples=50)
@given(histories)
def test_nothing_is_left_when_all_is_removed(history: list[tuple[MeshDelta, int]]):
    store = MeshStore(None)
    for change, size in history:
        advance(store, change, size)
    store.apply(delta(removed=(*UIDS, *map(str, KEYS))))
    assert len(store.workloads) == 0
    assert len(store.services) == 0
    assert store.services.staged() == {}
    indexes = (
        store.workloads._by_address,
        store.workloads._by_hostname,
        store.workloads._by_account,
        store.services._by_hostname,
        store.services.vips._exact,
        store.services.vips._ranges,
    )
    assert all(not index for index in indexes)
    assert store.workload_by_address("", ip_address("10.0.0.1")) is None
