"""A real Prometheus with Istio's own configuration, and the queries of Istio's ztunnel dashboard."""

from __future__ import annotations

import json
import re
from urllib.parse import quote

import pytest
import yaml

from tests.cluster import programs
from tests.cluster.look import NODE1, NODE2, curl, ztunnel_of
from tests.cluster.mesh import NAMESPACE
from tests.cluster.shell import until

DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: prometheus, namespace: istio-system}
spec:
  selector: {matchLabels: {app: prometheus-test}}
  template:
    metadata: {labels: {app: prometheus-test}}
    spec:
      serviceAccountName: prometheus
      terminationGracePeriodSeconds: 1
      containers:
        - name: prometheus
          image: localhost/prometheus:1
          imagePullPolicy: IfNotPresent
          args: [--config.file=/etc/config/prometheus.yml, --storage.tsdb.path=/data, --log.level=warn]
          readinessProbe: {httpGet: {path: /-/ready, port: 9090}, periodSeconds: 2}
          volumeMounts:
            - {name: config, mountPath: /etc/config}
            - {name: data, mountPath: /data}
      volumes:
        - {name: config, configMap: {name: prometheus}}
        - {name: data, emptyDir: {}}
"""

# Of the container runtime, not of ztunnel.
NOT_OURS = ("container_memory", "container_cpu")


@pytest.fixture
def query(tools, apply):
    """Asks Prometheus; the samples of the answer."""
    sample = (programs.istio_source() / "samples" / "addons" / "prometheus.yaml").read_text()
    documents = [
        one
        for one in yaml.safe_load_all(sample)
        if one and one["kind"] in {"ServiceAccount", "ConfigMap", "ClusterRole", "ClusterRoleBinding"}
    ]
    for one in documents:
        if one["kind"] == "ConfigMap":
            text = one["data"]["prometheus.yml"]
            one["data"]["prometheus.yml"] = re.sub(r"scrape_(interval|timeout): \S+", r"scrape_\1: 3s", text)
    apply(yaml.safe_dump_all(documents))
    apply(DEPLOYMENT)
    tools.kubectl("-n", NAMESPACE, "rollout", "status", "deployment/prometheus", "--timeout=90s")
    pod = tools.kubectl(
        "-n", NAMESPACE, "get", "pod", "-l", "app=prometheus-test", "-o", "jsonpath={.items[0].metadata.name}"
    )

    def ask(expression):
        path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:9090/proxy/api/v1/query?query={quote(expression)}"
        answer = json.loads(tools.kubectl("get", "--raw", path))
        assert answer["status"] == "success", answer
        return answer["data"]["result"]

    return ask


def dashboard():
    """The expressions of Istio's ztunnel dashboard, with its variables filled in."""
    file = programs.istio_source() / "manifests" / "addons" / "dashboards" / "ztunnel-dashboard.gen.json"
    found = []

    def walk(node):
        if isinstance(node, dict):
            if isinstance(node.get("expr"), str):
                found.append(node["expr"].replace("$__rate_interval", "30s").replace("$__interval", "30s"))
            node = list(node.values())
        if isinstance(node, list):
            for each in node:
                walk(each)

    walk(json.loads(file.read_text()))
    return found


def test_prometheus_finds_our_pods_and_istios_dashboard_shows_them(tools, seen, query):
    names = {ztunnel_of(tools, node) for node in (NODE1, NODE2)}
    until(
        "both are scraped",
        60,
        lambda: {one["metric"].get("pod") for one in query("istio_build{component='ztunnel'}")} >= names,
    )
    assert all(one["value"][1] == "1" for one in query("up{job='kubernetes-pods',app='ztunnel'}"))
    expressions = [one for one in dashboard() if not any(name in one for name in NOT_OURS)]
    assert len(expressions) >= 10

    def empty():
        for _ in range(5):
            curl(tools, "http://web")
        return [one for one in expressions if not query(one)]

    # A reconnection to istiod has not happened yet: no series of it, as with the Rust ztunnel.
    rare = [one for one in expressions if "xds_connection_terminations" in one]
    until("each panel has data", 60, lambda: set(empty()) <= set(rare), every=2)
    seen(f"{len(expressions) - len(set(empty()))} of {len(expressions)} queries of the dashboard answered")
