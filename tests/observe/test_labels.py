from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ztunnel.decide.headers import Baggage
from ztunnel.model.identity import Identity
from ztunnel.model.service import Service
from ztunnel.model.workload import Locality, Workload
from ztunnel.observe.labels import (
    FLAG,
    TRAFFIC_LABELS,
    End,
    end_from_baggage,
    end_from_workload,
    inbound_source,
    traffic_labels,
    with_flag,
)

CLIENT = Workload(
    uid="Kubernetes//Pod/ns-a/pod-a",
    name="pod-a",
    namespace="ns-a",
    workload_name="deploy-a",
    canonical_name="app-a",
    canonical_revision="v1",
    cluster_id="Kubernetes",
    trust_domain="cluster.local",
    service_account="sa-a",
    locality=Locality("r1", "z1", "s1"),
)
SERVER = Workload(
    uid="Kubernetes//Pod/ns-b/pod-b",
    name="pod-b",
    namespace="ns-b",
    workload_name="deploy-b",
    canonical_name="app-b",
    trust_domain="cluster.local",
    service_account="sa-b",
)
SERVICE = Service(name="svc-b", namespace="ns-b", hostname="svc-b.ns-b.svc.cluster.local")
PEER = Identity("cluster.local", "ns-a", "sa-a")


def named(labels: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(TRAFFIC_LABELS, labels, strict=False))


def test_the_label_names_are_the_reference_ones_in_order():
    assert ",".join(TRAFFIC_LABELS) == (
        "reporter,source_workload,source_canonical_service,source_canonical_revision,source_workload_namespace,"
        "source_principal,source_app,source_version,source_cluster,destination_service,destination_service_namespace,"
        "destination_service_name,destination_workload,destination_canonical_service,destination_canonical_revision,"
        "destination_workload_namespace,destination_principal,destination_app,destination_version,destination_cluster,"
        "request_protocol,response_flags,connection_security_policy,source_region,source_zone,destination_region,"
        "destination_zone"
    )


def test_an_outgoing_connection_between_known_workloads():
    source = end_from_workload(CLIENT, CLIENT.identity)
    destination = end_from_workload(SERVER, SERVER.identity)
    labels = traffic_labels("source", source, destination, SERVICE, mtls=True)
    assert named(labels) == {
        "reporter": "source",
        "source_workload": "deploy-a",
        "source_canonical_service": "app-a",
        "source_canonical_revision": "v1",
        "source_workload_namespace": "ns-a",
        "source_principal": "spiffe://cluster.local/ns/ns-a/sa/sa-a",
        "source_app": "app-a",
        "source_version": "v1",
        "source_cluster": "Kubernetes",
        "destination_service": "svc-b.ns-b.svc.cluster.local",
        "destination_service_namespace": "ns-b",
        "destination_service_name": "svc-b",
        "destination_workload": "deploy-b",
        "destination_canonical_service": "app-b",
        "destination_canonical_revision": "unknown",
        "destination_workload_namespace": "ns-b",
        "destination_principal": "spiffe://cluster.local/ns/ns-b/sa/sa-b",
        "destination_app": "app-b",
        "destination_version": "unknown",
        "destination_cluster": "unknown",
        "request_protocol": "tcp",
        "response_flags": "-",
        "connection_security_policy": "mutual_tls",
        "source_region": "r1",
        "source_zone": "z1",
        "destination_region": "unknown",
        "destination_zone": "unknown",
    }


def test_an_end_known_from_baggage_has_its_workload_name_as_app():
    baggage = Baggage("c2", "ns-x", "deploy-x", "svc-x", "v9", "r2", "z2")
    end = end_from_baggage(baggage, PEER)
    assert end == End(
        shown="svc-x",
        workload="deploy-x",
        canonical_service="svc-x",
        canonical_revision="v9",
        namespace="ns-x",
        principal=str(PEER),
        app="deploy-x",
        cluster="c2",
        region="r2",
        zone="z2",
    )
    assert end_from_baggage(baggage, PEER, show_workload=True).shown == "deploy-x"


def test_a_source_found_by_address_overrides_baggage_but_not_the_principal():
    other = Identity("cluster.local", "ns-a", "proved")
    source = inbound_source(CLIENT, Baggage(workload_name="claims"), other)
    assert source is not None
    assert source.workload == "deploy-a"
    assert source.principal == str(other)


def test_a_plaintext_source_has_no_principal():
    source = inbound_source(CLIENT, None, None)
    assert source is not None
    assert source.principal == ""


def test_a_source_of_which_only_the_certificate_is_known():
    source = inbound_source(None, None, PEER)
    assert source == End(principal=str(PEER))
    assert inbound_source(None, None, None) is None


def test_locality_is_left_out_only_when_nothing_is_known():
    nothing = traffic_labels("destination", None, None, SERVICE, mtls=False)
    assert len(nothing) == 23
    assert named(nothing)["connection_security_policy"] == "unknown"
    assert len(traffic_labels("destination", None, End(), None, mtls=False)) == 27


TEXT = st.text(max_size=3)
ENDS = st.none() | st.builds(End, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT, TEXT)


@given(ENDS, ENDS, st.none() | st.builds(Service, TEXT, TEXT, TEXT), st.booleans())
def test_no_label_is_ever_empty_and_the_flag_has_its_place(source, destination, service, mtls):
    labels = traffic_labels("source", source, destination, service, mtls=mtls)
    assert all(labels)
    assert labels[FLAG] == "-"
    assert len(labels) in (23, 27)
    flagged = with_flag(labels, "DENY")
    assert named(flagged)["response_flags"] == "DENY"
    assert with_flag(flagged, "-") == labels
