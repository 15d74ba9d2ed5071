"""A real Loki and a collector on each node, with the configuration that docs/observability.md shows.

The kubelets write the lines, the collectors find them, and each log query of the page is asked. Skipped where
Loki is not built (`make loki`).
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.cluster import mesh
from tests.cluster.images import Images
from tests.cluster.look import NODE1, NODE2, curl, kill, logs, pods, ztunnel_of
from tests.cluster.mesh import NAMESPACE
from tests.cluster.places import Progress
from tests.cluster.shell import until
from tests.cluster.test_policy import policy, settles
from tests.cluster.topology import HOST, NODES
from tests.support.log_store import Logs, collector_text, filled_in, loki_configuration, optional_tool
from tests.support.page_queries import LOG_QUERIES

COLLECTOR = """
apiVersion: v1
kind: Namespace
metadata: {name: monitoring}
---
apiVersion: v1
kind: Service
metadata: {name: loki, namespace: monitoring}
spec: {selector: {app: loki}, ports: [{name: http, port: 3100}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: loki, namespace: monitoring}
spec:
  selector: {matchLabels: {app: loki}}
  template:
    metadata: {labels: {app: loki}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: loki
          image: localhost/loki:1
          imagePullPolicy: IfNotPresent
          args: [-config.file=/etc/config/loki.yaml]
          readinessProbe: {tcpSocket: {port: 3100}, periodSeconds: 1}
          volumeMounts:
            - {name: config, mountPath: /etc/config}
            - {name: data, mountPath: /loki}
      volumes:
        - {name: config, configMap: {name: loki}}
        - {name: data, emptyDir: {}}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: collector, namespace: monitoring}
spec:
  selector: {matchLabels: {app: collector}}
  template:
    metadata: {labels: {app: collector}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: collector
          image: localhost/collector:1
          imagePullPolicy: IfNotPresent
          args: [--config=/etc/config/collector.yaml]
          env:
            - {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
          volumeMounts:
            - {name: config, mountPath: /etc/config}
            - {name: pods, mountPath: /var/log/pods, readOnly: true}
      volumes:
        - {name: config, configMap: {name: collector}}
        - {name: pods, hostPath: {path: /var/log/pods}}
"""

# Two endpoints, of which one takes no connections: a connection that comes to it first tries the other.
HALF_DEAD = f"""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: half-dead, namespace: demo}}
spec:
  hosts: [half-dead.example]
  addresses: [240.240.9.8]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  location: MESH_EXTERNAL
  endpoints:
    - {{address: {HOST}, ports: {{http: 8099}}}}
    - {{address: {NODE1.ip}, ports: {{http: 8099}}}}
"""


def config_map(name, file, text):
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "monitoring"},
            "data": {file: text},
        }
    )


@pytest.fixture
def loki(tools, apply):
    """A Loki in the cluster, which a collector on each node fills."""
    images = Images(tools.places, Progress())
    for name in ("loki", "collector"):
        images.make_of_tool(f"localhost/{name}:1", Path(optional_tool(name)))
        images.push_into_nodes(f"localhost/{name}:1")
    configurations = [
        config_map("loki", "loki.yaml", yaml.safe_dump(loki_configuration(Path("/loki"), "0.0.0.0"))),
        config_map("collector", "collector.yaml", collector_text()),
    ]
    apply("---\n".join([COLLECTOR, *configurations]))
    tools.kubectl("-n", "monitoring", "rollout", "status", "deployment/loki", "--timeout=120s")
    tools.kubectl("-n", "monitoring", "rollout", "status", "daemonset/collector", "--timeout=120s")
    [pod] = pods(tools, "monitoring", "app=loki")
    made = Logs(f"http://{pod['status']['podIP']}:3100")
    until("Loki answers", 60, made.answers)
    return made


@pytest.fixture
def json_logs(tools):
    """ztunnels that write JSON, as the page asks."""
    mesh.install_ztunnel(tools, "--set=logAsJson=true")
    yield
    mesh.install_ztunnel(tools)


def log_lines(tools):
    """What the ztunnels have written in the last minutes."""
    said = [line for node in NODES for line in logs(tools, ztunnel_of(tools, node), since="5m")]
    return [json.loads(line) for line in said if line.startswith("{")]


def generate_traffic(tools, apply):
    """Connections of every kind that the queries ask for, and a control plane that is away for a moment."""
    apply(policy("trial", action="DENY", annotations='{istio.io/dry-run: "true"}'))
    apply(HALF_DEAD)
    address = pods(tools, "demo", "app=web")[0]["status"]["podIP"]

    def written(text):
        return any(text in json.dumps(line) for line in log_lines(tools))

    def until_written(what, text, url):
        def ask():
            curl(tools, url, seconds=5)
            return written(text)

        until(what, 60, ask, every=1)

    until_written("a dry run is in the log", "a dry-run policy would refuse", "http://web")
    until_written("a closed port is in the log", "ZT-NET-012", f"http://{address}:9")
    until_written("a second attempt is in the log", "trying another endpoint", "http://half-dead.example")
    apply(policy("no-sleep", action="DENY"))
    settles("it is refused", lambda: curl(tools, "http://web").status == 0)
    until_written("a refusal is in the log", '"refused"', "http://web")
    [node] = [one for one in NODES if one.name == pods(tools, NAMESPACE, "app=istiod")[0]["spec"]["nodeName"]]
    kill(tools, node, NAMESPACE, "app=istiod")
    until("the loss of istiod is in the log", 60, lambda: bool(complaints(tools)))


def finds(loki, query):
    return bool(loki.ask(query))


def complaints(tools):
    return [line for line in log_lines(tools) if "xds" in line["scope"] and line["level"] != "info"]


def test_each_log_query_of_the_page_is_answered(tools, seen, apply, loki, json_logs, outside_server):
    generate_traffic(tools, apply)
    lines = log_lines(tools)
    for query in LOG_QUERIES:
        asked = filled_in(query, lines)
        until(f"{asked} finds lines", 60, partial(finds, loki, asked), every=1)
        assert not any("__error__" in one.get("stream", {}) for one in loki.ask(asked)), asked
    series = loki.get("series", **{"match[]": '{service_name="ztunnel"}', "since": "1h"})
    names = {ztunnel_of(tools, node) for node in (NODE1, NODE2)}
    assert names <= {one["k8s_pod_name"] for one in series}
    assert {name for one in series for name in one} == {
        "service_name",
        "k8s_namespace_name",
        "k8s_pod_name",
        "k8s_container_name",
    }
    for node in NODES:
        assert loki.ask(f'{{service_name="ztunnel"}} | json | k8s_node_name = "{node.name}"')
    seen(f"{len(LOG_QUERIES)} of {len(LOG_QUERIES)} queries answered, from the logs of {len(series)} pods")
