"""A saved dump answers as the live mesh does, and a Rust ztunnel's dump is read as it is."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.explain.meshes import dump_text, random_mesh, saved, store_of
from ztunnel.explain.arrival import Setting
from ztunnel.explain.catalogue import StoreCatalogue
from ztunnel.explain.connection_path import Question, explain, telling
from ztunnel.explain.dump_state import dump_state
from ztunnel.explain.explanation import Outcome
from ztunnel.explain.live_state import judge
from ztunnel.explain.saved_dump import DumpError, SavedMesh, read_dump
from ztunnel.slices import at_once
from ztunnel.tools import what_if


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


REAL = Path(__file__).with_name("rust") / "config_dump.json"
SLEEP = "default/sleep-7656cf8794-lxcmx"


@pytest.mark.parametrize(
    ("to", "outcome", "next_hop", "part"),
    [
        ("default/details:9080", Outcome.REFUSED, "10.244.2.55:15008", "allow-nothing has no rules"),
        ("details.bookinfo:9080", Outcome.ALLOWED, "10.244.2.51:15008", "no policy forbids it"),
        ("httpbin.default:8000", Outcome.PLAIN, "10.244.1.40:80", "a workload outside the mesh"),
        ("bookinfo/productpage-v1-675fc69cf-jscn2:9080", Outcome.ALLOWED, "10.244.2.59:15008", "waypoint"),
    ],
)
def test_a_real_dump_of_the_rust_ztunnel(to, outcome, next_hop, part):
    mesh = read_dump(REAL.read_bytes())
    assert (len(mesh.store.workloads), len(mesh.store.services)) == (27, 19)
    said = explain(mesh.catalogue, Question(SLEEP, to), mesh.setting)
    assert said.plan is not None
    assert (said.outcome, said.plan.next_hop) == (outcome, next_hop)
    assert part in said.summary


def test_names_of_a_real_dump_are_offered():
    mesh = read_dump(REAL.read_bytes())
    said = explain(mesh.catalogue, Question("default/sleep-7656cf8794-lxcmy", "details:9080"), mesh.setting)
    assert (said.outcome, said.nearest[0]) == (Outcome.UNKNOWN, SLEEP)


def test_the_certificate_of_a_dump_is_told_and_one_that_is_missing_decides():
    dump = json.loads(REAL.read_bytes())
    identity = "spiffe://cluster.local/ns/default/sa/sleep"
    for certificate in dump["certificates"]:
        certificate["identity"] = identity
    held, fetched, _, failed = dump["certificates"]
    sleep = next(one for one in dump["workloads"].values() if one["name"].startswith("sleep-7656cf8794-lx"))
    state = {
        "info": {"name": sleep["name"], "namespace": "default", "serviceAccount": "sleep"},
        "connections": {
            "inbound": [],
            "outbound": [
                {
                    "src": "10.244.2.58:4000",
                    "originalDst": "10.96.200.228:9080",
                    "actualDst": "10.244.2.51:15008",
                    "protocol": "HBONE",
                }
            ],
        },
    }
    for certificates, outcome, sentence in (
        (
            [failed, held],
            Outcome.ALLOWED,
            f"of {identity} is valid until 2033-03-22T13:04:57Z.",
        ),
        (
            [fetched],
            Outcome.ALLOWED,
            f"of {identity} was being fetched when the dump was taken.",
        ),
        ([failed], Outcome.FAILING, "verification failed - unable to get local issuer certificate"),
        ([], Outcome.ALLOWED, f"no certificate of {identity} had been asked for when the dump was taken."),
    ):
        mesh = SavedMesh({**dump, "certificates": certificates, "workloadState": {"a": state}})
        told = at_once(telling(mesh.catalogue, Question(SLEEP, "details.bookinfo:9080"), mesh.setting))
        answer = told.explanation
        answer.live = dump_state(mesh.dump, told)
        judge(answer)
        assert answer.outcome is outcome
        assert sentence in answer.live["sentences"][0]
        assert answer.live["sentences"][1:] == [
            "1 connections of it to 10.96.200.228:9080 were open when the dump was taken.",
            "  from 10.244.2.58:4000 by HBONE to 10.244.2.51:15008",
        ]


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


def test_what_if_on_a_real_dump_says_which_connections_it_cannot_judge(capsys, tmp_path):
    assert what_if.main(["--without", "default/allow-nothing", "--dump", str(REAL)]) == 0
    shown = capsys.readouterr().out
    assert "has 5 connections of pods that it does not describe" in shown
    assert "Of 0 open and 0 remembered connections" in shown

    dump = json.loads(REAL.read_bytes())
    [state, *_] = (one for one in dump["workloadState"].values() if len(one["connections"]["inbound"]) == 2)
    state["info"] = {"name": "details-v1-698d88b-dqrbr", "namespace": "bookinfo"}
    for one, client in zip(state["connections"]["inbound"], ("10.244.2.58:1", "10.9.9.9:1"), strict=True):
        one |= {"src": client, "actualDst": "10.244.2.51:9080"}
    policy = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-sleep, namespace: bookinfo}
spec: {action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/sleep]}}]}]}
"""
    (tmp_path / "policy.yaml").write_text(policy)
    (tmp_path / "dump.json").write_text(json.dumps(dump))
    arguments = ["-f", str(tmp_path / "policy.yaml"), "--dump", str(tmp_path / "dump.json")]
    assert what_if.main(arguments) == 1
    shown = capsys.readouterr().out
    assert "1 would be cut" in shown
    assert (
        "10.244.2.58:1 (spiffe://cluster.local/ns/default/sa/sleep) → bookinfo/details-v1-698d88b-dqrbr"
        in shown
    )
    assert "has 1 connections whose clients it does not describe" in shown

    state["connections"]["inbound"][0]["src"] = "nonsense"
    (tmp_path / "dump.json").write_text(json.dumps(dump))
    assert what_if.main(arguments) == 2
    assert "The dump cannot be read: workloadState." in capsys.readouterr().err
