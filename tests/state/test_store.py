"""What the store finds: indexes, ranks, orders, staging, removal."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from tests.support.mesh_messages import address, delta, policy
from ztunnel.decide.mesh_view import MeshView
from ztunnel.model.address import NamespacedHostname
from ztunnel.model.service import Service
from ztunnel.model.workload import HealthStatus
from ztunnel.pb.istio import security
from ztunnel.pb.istio import workload as pb
from ztunnel.state.store import MeshStore

HOST = "app.example"
KEY = f"ns/{HOST}"
IP = ip_address("10.0.0.1")
UNHEALTHY = pb.WorkloadStatus.UNHEALTHY
ALLOW_ALL = pb.LoadBalancing(health_policy=pb.LoadBalancingHealthPolicy.ALLOW_ALL)


def workload(uid: str, *services: str, ip: str | None = None, hbone: bool = False, **fields) -> pb.Workload:
    return pb.Workload(
        uid=uid,
        addresses=[ip_address(ip).packed] if ip else [],
        tunnel_protocol=pb.TunnelProtocol(hbone),
        services={key: pb.PortList(ports=[pb.Port(service_port=80, target_port=8080)]) for key in services},
        **fields,
    )


def service(hostname: str = HOST, namespace: str = "ns", vips: tuple[str, ...] = (), **fields) -> pb.Service:
    addresses = []
    for vip in vips:
        ip, _, length = vip.partition("/")
        addresses.append(
            pb.NetworkAddress(address=ip_address(ip).packed, length=int(length) if length else None)
        )
    return pb.Service(name=hostname, namespace=namespace, hostname=hostname, addresses=addresses, **fields)


@pytest.fixture
def store() -> MeshStore:
    return MeshStore("node")


def put(store: MeshStore, *objects: pb.Workload | pb.Service, removed: tuple[str, ...] = ()) -> None:
    application = store.apply(delta(*map(address, objects), removed=removed))
    assert application.rejected == []


def uids(store: MeshStore, hostname: str = HOST, namespace: str = "ns") -> set[str]:
    return set(store.endpoints(found(store, hostname, namespace)))


def found(store: MeshStore, hostname: str = HOST, namespace: str = "ns") -> Service:
    result = store.service(namespace, hostname)
    assert result is not None
    return result


def staged(store: MeshStore) -> dict[str, set[str]]:
    return {str(key): set(endpoints) for key, endpoints in store.services.staged().items()}


def test_the_store_is_a_view_of_the_mesh(store: MeshStore):
    view: MeshView = store
    assert view.workload("none") is None
    assert view.workload_by_address("", IP) is None
    assert view.workload_by_hostname("ns", "none") is None
    assert view.local_workload("name", "ns", "sa") is None
    assert view.service("ns", "none") is None
    assert list(view.services_by_vip("", IP)) == []
    assert list(view.services_by_cidr("", IP)) == []
    assert list(view.services_by_hostname("none")) == []
    assert dict(view.endpoints(Service("s", "ns", "none"))) == {}
    assert view.policy("ns/none") is None
    assert list(view.namespace_policies("ns")) == []
    assert list(view.global_policies()) == []


# -- workloads ------------------------------------------------------------


def test_pods_come_before_others_and_hbone_before_tcp(store: MeshStore):
    ranked = [
        workload("plain", ip="10.0.0.1"),
        workload("tunnel", ip="10.0.0.1", hbone=True),
        workload("c//Pod/a", ip="10.0.0.1"),
        workload("c//Pod/b", ip="10.0.0.1", hbone=True),
    ]
    put(store, *reversed(ranked))
    for expected in reversed(ranked):
        best = store.workload_by_address("", IP)
        assert best is not None
        assert best.uid == expected.uid
        put(store, removed=(expected.uid,))
    assert store.workload_by_address("", IP) is None


def test_the_last_inserted_of_equal_workloads_wins_and_an_update_inserts_anew(store: MeshStore):
    one, two = workload("one", ip="10.0.0.1"), workload("two", ip="10.0.0.1")
    put(store, one, two)
    assert best_uid(store) == "two"
    put(store, one)
    assert best_uid(store) == "one"
    put(store, workload("two", ip="10.0.0.1", name="changed"))
    assert best_uid(store) == "two"


def best_uid(store: MeshStore) -> str | None:
    best = store.workload_by_address("", IP)
    return None if best is None else best.uid


def test_a_workload_that_changes_its_rank_is_ranked_anew(store: MeshStore):
    put(store, workload("one", ip="10.0.0.1", hbone=True), workload("two", ip="10.0.0.1"))
    assert best_uid(store) == "one"
    put(store, workload("one", ip="10.0.0.1"))
    put(store, workload("two", ip="10.0.0.1", hbone=True))
    assert best_uid(store) == "two"


def test_host_network_workloads_are_not_found_by_address(store: MeshStore):
    put(store, workload("w", ip="10.0.0.1", network_mode=pb.NetworkMode.HOST_NETWORK))
    assert best_uid(store) is None
    assert store.workload("w") is not None


def test_networks_and_ip_versions_are_apart(store: MeshStore):
    put(
        store,
        workload("v4", ip="0.0.0.1"),
        workload("v6", ip="::1"),
        workload("n", ip="0.0.0.1", network="n"),
    )
    for network, ip, uid in [("", "0.0.0.1", "v4"), ("", "::1", "v6"), ("n", "0.0.0.1", "n")]:
        value = store.workload_by_address(network, ip_address(ip))
        assert value is not None
        assert value.uid == uid
    assert store.workload_by_address("n", ip_address("::1")) is None


def test_a_workload_that_moves_leaves_its_old_address(store: MeshStore):
    put(store, workload("w", ip="10.0.0.1"))
    put(store, workload("w", ip="10.0.0.2"))
    assert best_uid(store) is None
    assert store.workload_by_address("", ip_address("10.0.0.2")) is not None
    put(store, workload("w", ip="10.0.0.2", network="n"))
    assert store.workload_by_address("", ip_address("10.0.0.2")) is None


def test_a_decoded_workload_is_not_shown_after_an_update(store: MeshStore):
    put(store, workload("w", name="old"))
    before = store.workload("w")
    put(store, workload("w", name="new"))
    after = store.workload("w")
    assert before is not None
    assert after is not None
    assert (before.name, after.name) == ("old", "new")


def test_workloads_are_found_by_hostname_in_their_namespace(store: MeshStore):
    put(store, workload("w", hostname="h", namespace="ns"), workload("x", namespace="ns"))
    assert store.workload_by_hostname("ns", "h") == store.workload("w")
    assert store.workload_by_hostname("other", "h") is None
    assert store.workload_by_hostname("ns", "") is None
    put(store, workload("w", namespace="ns"))
    assert store.workload_by_hostname("ns", "h") is None


def test_only_workloads_of_the_node_are_found_by_names():
    mine = workload("w", name="pod", namespace="ns", node="node")
    for node, expected in [("node", True), ("other", False), (None, True), ("", False)]:
        store = MeshStore(node)
        put(store, mine)
        assert (store.local_workload("pod", "ns", "default") is not None) == expected
        assert store.local_workload("pod", "ns", "") is None
        assert store.local_workload("pod", "other", "default") is None


def test_the_own_workload_disappears_with_its_node(store: MeshStore):
    put(store, workload("w", name="pod", namespace="ns", node="node"))
    put(store, workload("w", name="pod", namespace="ns", node="other"))
    assert store.local_workload("pod", "ns", "default") is None


# -- services ------------------------------------------------------------


def names(services) -> list[str]:
    return [f"{value.namespace}/{value.name}" for value in services]


def test_a_full_update_moves_a_service_to_the_end_and_an_endpoint_update_does_not(store: MeshStore):
    a, b = service(namespace="a", vips=("10.1.0.1",)), service(namespace="b", vips=("10.1.0.1",))
    vip = ip_address("10.1.0.1")
    put(store, a, b)
    assert names(store.services_by_hostname(HOST)) == [f"a/{HOST}", f"b/{HOST}"]
    put(store, workload("w", f"a/{HOST}"))
    assert names(store.services_by_vip("", vip)) == [f"a/{HOST}", f"b/{HOST}"]
    put(store, a)
    assert names(store.services_by_hostname(HOST)) == [f"b/{HOST}", f"a/{HOST}"]
    assert names(store.services_by_vip("", vip)) == [f"b/{HOST}", f"a/{HOST}"]


def test_two_services_of_a_namespace_on_one_address_overwrite_each_other(store: MeshStore):
    vip = ip_address("10.1.0.1")
    put(store, service("one", vips=("10.1.0.1",)), service("two", vips=("10.1.0.1",)))
    assert names(store.services_by_vip("", vip)) == ["ns/two"]
    put(store, removed=("ns/one",))
    assert names(store.services_by_vip("", vip)) == []
    assert store.service("ns", "two") is not None


def test_services_that_leave_an_address_are_not_found_there(store: MeshStore):
    put(store, service(vips=("10.1.0.1", "10.2.0.0/16")))
    put(store, service(vips=("10.1.0.2",)))
    assert names(store.services_by_vip("", ip_address("10.1.0.1"))) == []
    assert names(store.services_by_vip("", ip_address("10.1.0.2"))) == [f"ns/{HOST}"]
    assert list(store.services_by_cidr("", ip_address("10.2.0.1"))) == []


def test_ranges_are_found_in_store_order_and_with_their_present_endpoints(store: MeshStore):
    put(
        store,
        service("wide", vips=("10.0.0.0/8",)),
        service("narrow", vips=("10.2.3.4/16", "fd00::/64")),
        service("all", vips=("0.0.0.0/0",)),
    )
    in_both = store.services_by_cidr("", ip_address("10.2.0.9"))
    assert [(str(vip.cidr), value.name) for vip, value in in_both] == [
        ("10.0.0.0/8", "wide"),
        ("10.2.3.4/16", "narrow"),
        ("0.0.0.0/0", "all"),
    ]
    assert [value.name for _, value in store.services_by_cidr("", ip_address("10.3.0.9"))] == ["wide", "all"]
    assert [value.name for _, value in store.services_by_cidr("", ip_address("fd00::5"))] == ["narrow"]
    assert list(store.services_by_cidr("other", ip_address("10.2.0.9"))) == []
    put(store, workload("w", "ns/wide"))
    ((_, wide), *_) = store.services_by_cidr("", ip_address("10.2.0.9"))
    assert set(store.endpoints(wide)) == {"w"}
    put(store, removed=("ns/wide", "ns/narrow", "ns/all"))
    assert list(store.services_by_cidr("", ip_address("10.2.0.9"))) == []


# -- endpoints ------------------------------------------------------------


@pytest.mark.parametrize("workload_first", [True, False])
@pytest.mark.parametrize("together", [True, False])
def test_an_endpoint_and_its_service_meet_in_any_order(store: MeshStore, workload_first, together):
    objects: list[pb.Workload | pb.Service] = [workload("w", KEY), service()]
    if not workload_first:
        objects.reverse()
    if together:
        put(store, *objects)
    else:
        for one in objects:
            put(store, one)
    endpoint = store.endpoints(found(store))["w"]
    assert (endpoint.workload_uid, dict(endpoint.ports), endpoint.status) == (
        "w",
        {80: 8080},
        HealthStatus.HEALTHY,
    )
    assert staged(store) == {}


def test_staged_endpoints_leave_no_trace_when_their_workload_goes(store: MeshStore):
    put(store, workload("w", KEY), workload("x", KEY))
    assert staged(store) == {KEY: {"w", "x"}}
    put(store, removed=("w",))
    assert staged(store) == {KEY: {"x"}}
    put(store, workload("x"))
    assert staged(store) == {}


def test_unhealthy_workloads_are_no_endpoints_unless_all_are_accepted(store: MeshStore):
    put(store, service(), service("all", load_balancing=ALLOW_ALL))
    put(store, workload("w", KEY, "ns/all", status=UNHEALTHY))
    assert uids(store) == set()
    assert uids(store, "all") == {"w"}
    put(store, workload("w", KEY, "ns/all"))
    assert uids(store) == {"w"}
    put(store, workload("w", KEY, "ns/all", status=UNHEALTHY))
    assert uids(store) == set()


def test_a_service_that_comes_to_accept_all_waits_for_the_workloads_to_be_sent_again(store: MeshStore):
    sick = workload("w", KEY, status=UNHEALTHY)
    put(store, service(), sick)
    put(store, service(load_balancing=ALLOW_ALL))
    assert uids(store) == set()
    put(store, sick)
    assert uids(store) == {"w"}
    put(store, service())
    assert uids(store) == set()


@pytest.mark.parametrize("service_first", [True, False])
def test_a_service_and_an_unhealthy_workload_in_one_response_meet_in_any_order(store, service_first):
    put(store, service())
    objects = [workload("w", KEY, status=UNHEALTHY), service(load_balancing=ALLOW_ALL)]
    put(store, *(reversed(objects) if service_first else objects))
    assert uids(store) == {"w"}


def test_a_service_that_is_removed_forgets_its_endpoints(store: MeshStore):
    put(store, service(), workload("w", KEY))
    put(store, removed=(KEY,))
    assert staged(store) == {}
    put(store, service())
    assert uids(store) == set()
    put(store, workload("w", KEY))
    assert uids(store) == {"w"}


def test_an_endpoint_that_comes_with_the_removal_of_its_service_is_staged(store: MeshStore):
    put(store, service(), workload("w", KEY), workload("old", KEY))
    put(store, workload("w", KEY), removed=(KEY,))
    assert staged(store) == {KEY: {"w"}}


def test_an_update_of_a_service_keeps_its_endpoints(store: MeshStore):
    put(store, service(), workload("w", KEY))
    put(store, service(canonical=True))
    assert found(store).canonical
    assert uids(store) == {"w"}


def test_a_workload_changes_its_services(store: MeshStore):
    put(store, service("a"), service("b"), service("c"), workload("w", "ns/a", "ns/b"))
    put(store, workload("w", "ns/b", "ns/c"))
    assert [uids(store, name) for name in "abc"] == [set(), {"w"}, {"w"}]
    value = store.workload("w")
    assert value is not None
    assert names(store.services_of(value)) == ["ns/b", "ns/c"]


def test_endpoints_that_were_asked_for_stay_up_to_date(store: MeshStore):
    put(store, service(), workload("w", KEY))
    assert uids(store) == {"w"}
    put(store, workload("x", KEY))
    assert uids(store) == {"w", "x"}
    put(store, workload("w", KEY, status=UNHEALTHY))
    assert uids(store) == {"x"}
    put(store, removed=("x",))
    assert uids(store) == set()


def test_services_that_do_not_list_the_workload_are_not_its_own(store: MeshStore):
    put(store, service(), workload("w", KEY, "ns/unknown", status=UNHEALTHY))
    value = store.workload("w")
    assert value is not None
    assert list(store.services_of(value)) == []


def test_keys_are_those_of_the_payload_not_of_the_name(store: MeshStore):
    store.apply(delta(address(workload("w"), name="other"), address(service(), name="another")))
    assert store.workload("w") is not None
    assert store.workload("other") is None
    assert store.service("ns", HOST) is not None


# -- policies ------------------------------------------------------------


def authz(name: str, scope: security.Scope, namespace: str = "ns") -> security.Authorization:
    return security.Authorization(name=name, namespace=namespace, scope=scope)


def keys(policies) -> list[str]:
    return [value.key for value in policies]


def test_policies_are_found_by_scope_and_key(store: MeshStore):
    store.apply(
        delta(
            policy(authz("a", security.Scope.NAMESPACE)),
            policy(authz("b", security.Scope.GLOBAL, "root")),
            policy(authz("c", security.Scope.WORKLOAD_SELECTOR)),
            policy(authz("d", security.Scope.NAMESPACE, "other")),
            policies=True,
        )
    )
    assert keys(store.namespace_policies("ns")) == ["ns/a"]
    assert keys(store.namespace_policies("other")) == ["other/d"]
    assert keys(store.global_policies()) == ["root/b"]
    selected = store.policy("ns/c")
    assert selected is not None
    assert selected.name == "c"


def test_a_policy_moves_with_its_scope(store: MeshStore):
    for scope in (security.Scope.NAMESPACE, security.Scope.GLOBAL, security.Scope.WORKLOAD_SELECTOR):
        store.apply(delta(policy(authz("a", scope)), policies=True))
        assert len(store.namespace_policies("ns")) == (scope is security.Scope.NAMESPACE)
        assert len(store.global_policies()) == (scope is security.Scope.GLOBAL)
    store.apply(delta(removed=("ns/a",), policies=True))
    assert store.policy("ns/a") is None


def test_a_policy_is_stored_under_the_name_of_its_resource(store: MeshStore):
    store.apply(delta(policy(authz("a", security.Scope.GLOBAL), name="x/y"), policies=True))
    assert store.policy("ns/a") is None
    assert store.policy("x/y") is not None


def test_a_namespaced_hostname_is_the_key_of_a_service(store: MeshStore):
    put(store, service())
    assert found(store).key == NamespacedHostname("ns", HOST)
