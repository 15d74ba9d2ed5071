"""Putting deltas into force: slices, refusals, what is reported."""

from __future__ import annotations

import pytest

from tests.state.test_store import HOST, KEY, put, service, uids, workload
from tests.support.mesh_messages import address, delta, policy
from ztunnel.messages import Resource
from ztunnel.model.identity import Identity
from ztunnel.pb.istio import security
from ztunnel.pb.istio import workload as pb
from ztunnel.state.application import RemovedWorkload
from ztunnel.state.store import MeshStore

BROKEN = b"\x0a\x05"


@pytest.fixture
def store() -> MeshStore:
    return MeshStore("node")


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_a_delta_is_applied_in_slices(store: MeshStore, size: int):
    put(store, *(workload(f"old{number}", KEY) for number in range(5)))
    application = store.begin(
        delta(
            *(address(workload(f"w{number}", KEY)) for number in range(7)),
            address(service()),
            removed=tuple(f"old{number}" for number in range(5)),
        )
    )
    steps = 1
    while not application.step(size):
        steps += 1
        assert steps < 50
    assert steps >= 13 // size
    assert application.done
    assert application.step(size)
    assert uids(store) == {f"w{number}" for number in range(7)}


def test_a_new_service_is_never_seen_with_some_of_its_endpoints(store: MeshStore):
    objects: list[pb.Workload | pb.Service] = [
        service(),
        *(workload(f"w{number}", KEY) for number in range(10)),
    ]
    application = store.begin(delta(*map(address, objects)))
    while not application.step(1):
        if store.service("ns", HOST) is not None:
            assert len(uids(store)) == 10
    assert len(uids(store)) == 10


def test_many_services_are_not_gone_through_in_one_step(store: MeshStore):
    application = store.begin(delta(*(address(service(f"h{number}")) for number in range(1000))))
    for _ in range(10):
        assert not application.step(4)
    assert len(store.services) == 0


def test_good_resources_of_a_response_are_kept_when_others_are_refused(store: MeshStore):
    bad = pb.Workload(uid="bad", addresses=[b"abc"])
    application = store.apply(
        delta(
            Resource("first", BROKEN),
            address(bad),
            address(workload("good")),
            Resource("nothing", b""),
            Resource("last", BROKEN),
        )
    )
    truncated = "decode: failed to decode Protobuf message: Address.type: buffer underflow"
    assert application.rejected == [
        ("bad", "failed to parse address, had 3 bytes"),
        ("nothing", "unknown address type"),
        ("first", truncated),
        ("last", truncated),
    ]
    assert application.changed_workloads == {"good"}
    assert store.workload("good") is not None


def test_a_refused_update_leaves_the_old_object_in_force(store: MeshStore):
    put(store, workload("w", KEY, name="old", ip="10.0.0.1"), service(canonical=True))
    application = store.apply(
        delta(
            address(pb.Workload(uid="w", name="new", addresses=[b"abc"])),
            address(pb.Service(namespace="ns", hostname=HOST, ip_families=pb.IpFamilies(9))),
        )
    )
    assert [name for name, _ in application.rejected] == ["w", KEY]
    assert not application.changed_workloads
    assert not application.removed_workloads
    value = store.workload("w")
    assert value is not None
    assert value.name == "old"
    kept = store.service("ns", HOST)
    assert kept is not None
    assert kept.canonical
    assert uids(store) == {"w"}


def test_removals_of_what_was_never_there_are_told_and_harm_nothing(store: MeshStore):
    put(store, workload("w", KEY), service())
    application = store.apply(delta(removed=("plain", "ns/unknown", "cluster//Pod/ns/gone")))
    assert application.warnings == [
        "tried to remove service but it did not have the expected namespace/hostname format",
        "tried to remove service, but it was not found",
    ]
    assert application.rejected == []
    assert not application.changed_workloads
    assert not application.removed_workloads
    assert uids(store) == {"w"}


def test_a_name_is_a_workload_first(store: MeshStore):
    put(store, workload(KEY), service())
    store.apply(delta(removed=(KEY,)))
    assert store.workload(KEY) is None
    assert store.service("ns", HOST) is not None
    store.apply(delta(removed=(KEY,)))
    assert store.service("ns", HOST) is None


def test_what_changed_is_told(store: MeshStore):
    put(store, workload("gone", namespace="ns"), service("gone"))
    application = store.apply(delta(address(workload("w")), address(service()), removed=("gone", "ns/gone")))
    assert application.changed_workloads == {"w"}
    assert [str(entry.key) for entry in store.services.by_hostname(HOST)] == [KEY]
    assert store.services.hostnames() == [HOST]
    assert [removed.uid for removed in application.removed_workloads] == ["gone"]


# -- certificates ------------------------------------------------------------


def pod(uid: str, **fields) -> pb.Workload:
    return workload(uid, namespace="ns", service_account="sa", **{"node": "node", "hbone": True, **fields})


SA = Identity("cluster.local", "ns", "sa")


def test_certificates_are_wanted_for_workloads_of_the_node_that_take_hbone(store: MeshStore):
    wanted = store.apply(delta(address(pod("a")), address(pod("b")))).wanted
    assert list(wanted) == [SA]
    assert list(store.apply(delta(address(pod("c", hbone=False, native_tunnel=True)))).wanted) == [SA]
    assert not store.apply(delta(address(pod("d", hbone=False)))).wanted
    assert not store.apply(delta(address(pod("e", node="other")))).wanted
    assert not MeshStore(None).apply(delta(address(pod("f")))).wanted


def test_the_last_workload_of_an_account_on_the_node_takes_its_certificate_along(store: MeshStore):
    store.apply(delta(address(pod("a")), address(pod("b")), address(pod("far", node="other"))))
    assert store.apply(delta(removed=("a",))).removed_workloads == [RemovedWorkload("a", SA, forget=False)]
    assert store.apply(delta(removed=("far",))).removed_workloads == [
        RemovedWorkload("far", SA, forget=False)
    ]
    assert store.apply(delta(removed=("b",))).removed_workloads == [RemovedWorkload("b", SA, forget=True)]


def test_an_update_never_takes_a_certificate_along(store: MeshStore):
    store.apply(delta(address(pod("a"))))
    application = store.apply(delta(address(pod("a", node="other"))))
    assert application.removed_workloads == []


def test_a_workload_that_is_replaced_in_one_response_keeps_the_certificate(store: MeshStore):
    store.apply(delta(address(pod("a"))))
    (removed,) = store.apply(delta(address(pod("b")), removed=("a",))).removed_workloads
    assert not removed.forget


# -- policies ------------------------------------------------------------


DENY = security.Authorization(name="p", namespace="ns", action=security.Action.DENY)


@pytest.mark.parametrize("bad", [BROKEN, bytes(security.Authorization(action=security.Action(9)))])
def test_a_policy_that_cannot_be_understood_leaves_the_old_one_in_force(store: MeshStore, bad: bytes):
    store.apply(delta(policy(DENY), policies=True))
    before = store.policy("ns/p")
    application = store.apply(delta(Resource("ns/p", bad), policies=True))
    assert len(application.rejected) == 1
    assert not application.policies_changed
    assert store.policy("ns/p") is before
    assert list(store.global_policies()) == [before]


def test_a_new_policy_that_cannot_be_understood_is_refused_and_absent(store: MeshStore):
    application = store.apply(delta(Resource("ns/p", BROKEN), policy(DENY, "ns/q"), policies=True))
    assert [name for name, _ in application.rejected] == ["ns/p"]
    assert application.changed_policies == {"ns/q"}
    assert application.policies_changed
    assert store.policy("ns/p") is None


def test_an_empty_response_of_policies_has_open_connections_checked(store: MeshStore):
    assert store.apply(delta(policies=True)).policies_changed
    assert not store.apply(delta(removed=("ns/unknown",), policies=True)).policies_changed
    store.apply(delta(policy(DENY), policies=True))
    application = store.apply(delta(removed=("ns/p",), policies=True))
    assert application.policies_changed
    assert application.changed_policies == {"ns/p"}


def test_policies_come_in_slices_too(store: MeshStore):
    resources = [policy(DENY, f"ns/p{number}") for number in range(10)]
    application = store.begin(delta(*resources, removed=("ns/p0",), policies=True))
    steps = 1
    while not application.step(2):
        steps += 1
    assert steps >= 5
    assert len(store.global_policies()) == 9
