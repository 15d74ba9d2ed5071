"""What the chart renders for its default values: docs/protocol/operations.md#helm-chart, fact by fact."""

from __future__ import annotations

import pytest
import yaml

from tests.support.chart import CHART, render

STANDARD_LABELS = {
    "app.kubernetes.io/name": "ztunnel",
    "app.kubernetes.io/instance": "ztunnel",
    "app.kubernetes.io/managed-by": "Helm",
    "app.kubernetes.io/part-of": "istio",
    "app.kubernetes.io/version": "0.0.0",
    "helm.sh/chart": "ztunnel-0.0.0",
    "istio.io/rev": "default",
}


def field(path: str) -> dict[str, object]:
    return {"fieldRef": {"fieldPath": path}}


def test_only_a_daemonset_and_its_service_account_are_rendered():
    assert render().kinds == ["DaemonSet", "ServiceAccount"]


@pytest.mark.parametrize("kind", ["DaemonSet", "ServiceAccount"])
def test_objects_have_the_name_the_namespace_and_istios_labels(kind):
    metadata = render().object(kind)["metadata"]
    assert metadata == {"name": "ztunnel", "namespace": "istio-system", "labels": STANDARD_LABELS}


def test_names_do_not_depend_on_the_release_which_is_a_label_only():
    rendering = render(release="mesh-nodes", namespace="elsewhere")
    for item in rendering.objects:
        assert item["metadata"]["name"] == "ztunnel"
        assert item["metadata"]["namespace"] == "elsewhere"
        assert item["metadata"]["labels"]["app.kubernetes.io/instance"] == "mesh-nodes"


def test_the_pods_labels_and_the_selector():
    rendering = render()
    assert rendering.daemonset["spec"]["selector"] == {"matchLabels": {"app": "ztunnel"}}
    assert rendering.pod_metadata["labels"] == STANDARD_LABELS | {
        "app": "ztunnel",
        "sidecar.istio.io/inject": "false",
        "istio.io/dataplane-mode": "none",
    }


def test_the_pods_annotations_have_prometheus_scrape_the_default_path():
    assert render().pod_metadata["annotations"] == {
        "sidecar.istio.io/inject": "false",
        "prometheus.io/port": "15020",
        "prometheus.io/scrape": "true",
    }


def test_a_new_pod_comes_before_the_old_one_goes():
    assert render().daemonset["spec"]["updateStrategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
    }


def test_the_pod_apart_from_container_and_volumes():
    pod = render().pod
    rest = {key: value for key, value in pod.items() if key not in ("containers", "volumes")}
    assert rest == {
        "serviceAccountName": "ztunnel",
        "priorityClassName": "system-node-critical",
        "terminationGracePeriodSeconds": 30,
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [
            {"effect": "NoSchedule", "operator": "Exists"},
            {"key": "CriticalAddonsOnly", "operator": "Exists"},
            {"effect": "NoExecute", "operator": "Exists"},
        ],
    }


def test_the_container_apart_from_variables_and_mounts():
    container = render().container
    rest = {key: value for key, value in container.items() if key not in ("env", "volumeMounts")}
    assert rest == {
        "name": "istio-proxy",
        "image": "registry.istio.io/testing/ztunnel:latest",
        "args": ["proxy", "ztunnel"],
        "ports": [{"name": "ztunnel-stats", "containerPort": 15020, "protocol": "TCP"}],
        "readinessProbe": {
            "httpGet": {"path": "/healthz/ready", "port": 15021},
            "initialDelaySeconds": 1,
            "periodSeconds": 1,
            "timeoutSeconds": 3,
            "failureThreshold": 5,
        },
        "resources": {"requests": {"cpu": "200m", "memory": "512Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": True,
            "privileged": False,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "SYS_ADMIN", "NET_RAW"]},
            "readOnlyRootFilesystem": True,
            "runAsUser": 0,
            "runAsGroup": 1337,
            "runAsNonRoot": False,
        },
    }


@pytest.mark.parametrize(
    ("grace", "kubernetes", "pauses"),
    [(11, "1.30.0", True), (3600, "1.36.2-gke.1", True), (10, "1.36.0", False), (30, "1.29.9", False)],
)
def test_a_pod_that_is_told_to_end_goes_on_until_its_successor_may_serve(grace, kubernetes, pauses):
    """The drain ends 5 s before the grace period, 1 s if it is at most 10: that has no room for a pause."""
    rendering = render({"terminationGracePeriodSeconds": grace}, "--kube-version", kubernetes)
    expected = {"preStop": {"sleep": {"seconds": 4}}} if pauses else None
    assert rendering.container.get("lifecycle") == expected


def test_the_containers_variables_and_their_order():
    assert list(render().env.items()) == [
        ("CA_ADDRESS", "istiod.istio-system.svc:15012"),
        ("XDS_ADDRESS", "istiod.istio-system.svc:15012"),
        ("RUST_LOG", "info"),
        ("RUST_BACKTRACE", "1"),
        ("ISTIO_META_CLUSTER_ID", "Kubernetes"),
        ("INPOD_ENABLED", "true"),
        ("TERMINATION_GRACE_PERIOD_SECONDS", "30"),
        ("POD_NAME", field("metadata.name")),
        ("POD_NAMESPACE", field("metadata.namespace")),
        ("NODE_NAME", field("spec.nodeName")),
        ("INSTANCE_IP", field("status.podIP")),
        ("SERVICE_ACCOUNT", field("spec.serviceAccountName")),
        ("ZTUNNEL_CPU_LIMIT", {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1"}}),
        ("ZTUNNEL_RESOURCE_CPU_REQUEST", "200m"),
    ]


def test_what_is_mounted_where():
    token = {"path": "istio-token", "expirationSeconds": 43200, "audience": "istio-ca"}
    assert render().mounts == {
        "/var/run/secrets/istio": {"configMap": {"name": "istio-ca-root-cert"}},
        "/var/run/secrets/tokens": {"projected": {"sources": [{"serviceAccountToken": token}]}},
        "/var/run/ztunnel": {"hostPath": {"path": "/var/run/ztunnel", "type": "DirectoryOrCreate"}},
        "/tmp": {"emptyDir": {}},
    }


def test_the_chart_of_a_checkout_names_no_version():
    """The version is git's, and `make dist` puts it in."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == "0.0.0"
