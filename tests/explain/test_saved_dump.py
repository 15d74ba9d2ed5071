"""A saved dump answers as the live mesh does, and a Rust ztunnel's dump is read as it is."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from tests.explain.meshes import dump_text, random_mesh, saved, store_of
from ztunnel.explain.arrival import Setting
from ztunnel.explain.catalogue import StoreCatalogue
from ztunnel.explain.connection_path import Question, explain
from ztunnel.explain.explanation import Outcome
from ztunnel.explain.saved_dump import DumpError, SavedMesh, read_dump


def test_live_and_dump_agree_on_random_meshes():
    outcomes: Counter[Outcome] = Counter()
    for seed in range(150):
        mesh = random_mesh(seed)
        store = store_of(mesh)
        live, dumped = StoreCatalogue(store), saved(store, network="")
        assert dump_text(dumped.store) == dump_text(store)
        names = [workload.uid for workload in mesh.workloads.values()]
        goals = ["10.0.0.2:80", "10.0.0.4:8080", "a.example.com:80", "default/workload-1:80", "nobody:1"]
        for name in names[:4]:
            for goal in goals:
                question = Question(name, goal)
                said = explain(live, question, Setting())
                assert explain(dumped.catalogue, question, dumped.setting) == said
                outcomes[said.outcome] += 1
    assert set(outcomes) == set(Outcome) - {Outcome.FAILING}
    assert min(outcomes.values()) > 50


RUST_DUMP = {
    "certificates": [],
    "config": {"network": "network1", "illegalPorts": [15008, 15006, 15001], "localhostAppTunnel": True},
    "policies": [
        {
            "action": "Deny",
            "dryRun": False,
            "name": "deny-9999",
            "namespace": "ns-b",
            "scope": "Namespace",
            "rules": [[[{"destinationPorts": [9999], "notNamespaces": [{"Exact": "foo"}]}]]],
        }
    ],
    "services": [
        {
            "canonical": True,
            "cidrVips": ["network1/240.0.0.0/16"],
            "endpoints": {
                "Kubernetes//Pod/ns-b/pod-b": {
                    "port": {"80": 8080, "99": 9999},
                    "status": "Healthy",
                    "workloadUid": "Kubernetes//Pod/ns-b/pod-b",
                }
            },
            "hostname": "svc-b.ns-b.svc.cluster.local",
            "name": "svc-b",
            "namespace": "ns-b",
            "ports": {"80": 8080, "99": 9999},
            "subjectAltNames": [],
            "vips": ["network1/10.96.0.10"],
            "visibility": "Public",
            "somethingNew": [1, 2, 3],
        }
    ],
    "stagedServices": {},
    "workloads": [
        {
            "capacity": 1,
            "clusterId": "Kubernetes",
            "name": name,
            "namespace": namespace,
            "network": "network1",
            "networkMode": "Standard",
            "protocol": "HBONE",
            "serviceAccount": account,
            "services": services,
            "status": "Healthy",
            "trustDomain": "cluster.local",
            "uid": f"Kubernetes//Pod/{namespace}/{name}",
            "workloadIps": [address],
            "somethingNewer": {"a": None},
        }
        for name, namespace, account, address, services in (
            ("pod-a", "ns-a", "sa-a", "10.9.0.2", []),
            ("pod-b", "ns-b", "sa-b", "10.9.0.3", ["ns-b/svc-b.ns-b.svc.cluster.local"]),
        )
    ],
}


def test_a_dump_of_the_rust_ztunnel_is_read_as_it_is():
    mesh = SavedMesh(RUST_DUMP)
    said = explain(mesh.catalogue, Question("ns-a/pod-a", "svc-b.ns-b:80"), mesh.setting)
    assert said.outcome is Outcome.ALLOWED
    assert said.plan is not None
    assert said.plan.next_hop == "10.9.0.3:15008"
    said = explain(mesh.catalogue, Question("ns-a/pod-a", "svc-b.ns-b:99"), mesh.setting)
    assert (said.outcome, said.code) == (Outcome.REFUSED, "ZT-POL-001")
    assert "explicitly denied by: ns-b/deny-9999" in said.summary


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (b"not json", "no config dump"),
        (b"[]", "it has no `workloads`"),
        (json.dumps({"workloads": [{"name": "a"}]}).encode(), "workloads[0]: missing field"),
        (json.dumps({"workloads": [3]}).encode(), "workloads[0]: invalid type"),
        (json.dumps({"workloads": [], "services": [{}]}).encode(), "services[0]: missing field"),
    ],
)
def test_what_is_no_dump_is_told(text, part):
    with pytest.raises(DumpError) as refusal:
        read_dump(text)
    assert part in str(refusal.value)
