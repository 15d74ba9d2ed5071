"""The objects that only some values bring."""

from __future__ import annotations

import pytest

from tests.support.chart import render

OPENSHIFT = ["ClusterRole", "ClusterRoleBinding"]
ALL_ON = {
    "platform": "openshift",
    "resourceQuotas": {"enabled": True},
    "global": {"networkPolicy": {"enabled": True}},
}


def test_the_quota_is_for_pods_of_the_highest_class():
    quota = render({"resourceQuotas": {"enabled": True}}).object("ResourceQuota")
    assert quota["metadata"]["name"] == "ztunnel"
    assert quota["metadata"]["namespace"] == "istio-system"
    assert quota["spec"] == {
        "hard": {"pods": "5000"},
        "scopeSelector": {
            "matchExpressions": [
                {"scopeName": "PriorityClass", "operator": "In", "values": ["system-node-critical"]}
            ]
        },
    }


def test_the_quotas_size():
    quota = render({"platform": "gke", "resourceQuotas": {"pods": 2000000}}).object("ResourceQuota")
    assert quota["spec"]["hard"] == {"pods": "2000000"}


def test_the_network_policy_lets_in_what_ztunnel_serves_and_everything_out():
    policy = render({"global": {"networkPolicy": {"enabled": True}}}).object("NetworkPolicy")
    assert policy["metadata"]["name"] == "ztunnel"
    spec = policy["spec"]
    assert spec["podSelector"] == {"matchLabels": {"app": "ztunnel"}}
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["egress"] == [{}]
    assert all(rule.get("from", []) == [] for rule in spec["ingress"])
    allowed = {(port["protocol"], port["port"]) for rule in spec["ingress"] for port in rule["ports"]}
    tcp = (15021, 15020, 15000, 15008, 15001, 15006, 15053)
    assert allowed == {("TCP", port) for port in tcp} | {("UDP", 15053)}


def test_openshift_gets_the_role_for_privileged_pods_and_the_selinux_type():
    rendering = render({"platform": "openshift", "resourceName": "zt"}, release="mesh", namespace="ours")
    assert rendering.kinds == [*OPENSHIFT, "DaemonSet", "ServiceAccount"]
    role, binding = (rendering.object(kind) for kind in OPENSHIFT)
    assert role["rules"] == [
        {
            "apiGroups": ["security.openshift.io"],
            "resources": ["securitycontextconstraints"],
            "resourceNames": ["privileged"],
            "verbs": ["use"],
        }
    ]
    assert role["metadata"]["name"] == binding["metadata"]["name"] == "zt"
    assert binding["roleRef"] == {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "ClusterRole",
        "name": "zt",
    }
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "zt", "namespace": "ours"}]
    assert rendering.container["securityContext"]["seLinuxOptions"] == {"type": "spc_t"}
    assert (
        role["metadata"]["labels"].items()
        >= {"app": "ztunnel", "release": "mesh", "istio.io/rev": "default"}.items()
    )


@pytest.mark.parametrize("kind", [*OPENSHIFT, "NetworkPolicy"])
def test_the_owner_is_a_label(kind):
    label = "install.operator.istio.io/owning-resource"
    assert render(ALL_ON).object(kind)["metadata"]["labels"][label] == "unknown"
    assert render(ALL_ON | {"ownerName": "me"}).object(kind)["metadata"]["labels"][label] == "me"


@pytest.mark.parametrize(
    ("scope", "kinds"),
    [
        ("all", [*OPENSHIFT, "DaemonSet", "NetworkPolicy", "ResourceQuota", "ServiceAccount"]),
        ("cluster", OPENSHIFT),
        ("namespace", ["DaemonSet", "NetworkPolicy", "ResourceQuota", "ServiceAccount"]),
    ],
)
def test_the_scope_chooses_what_belongs_to_the_cluster_and_what_to_the_namespace(scope, kinds):
    assert render(ALL_ON | {"resourceScope": scope}).kinds == kinds


def test_without_openshift_there_is_nothing_for_the_cluster():
    assert render({"resourceScope": "cluster"}).kinds == []


def test_user_labels_are_on_every_object():
    for item in render(ALL_ON | {"labels": {"team": "net"}}).objects:
        assert item["metadata"]["labels"]["team"] == "net", item["kind"]


def test_another_name_is_on_every_object():
    for item in render(ALL_ON | {"resourceName": "zt"}).objects:
        assert item["metadata"]["name"] == "zt", item["kind"]
