"""Services in all their kinds, DNS, and pods that are not of the mesh."""

from __future__ import annotations

import json
from functools import partial

from tests.cluster import mesh
from tests.cluster.look import NODE1, NODE2, curl, pods
from tests.cluster.shell import run, until
from tests.cluster.topology import HOST

OTHER_SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: web-headless, namespace: demo}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web-nodeport, namespace: demo}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: demo}
spec: {selector: {app: nobody}, ports: [{name: http, port: 80}]}
"""


def service_entry(name, host, address="", endpoint=HOST):
    return f"""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: demo}}
spec:
  hosts: [{host}]
  {f"addresses: [{address}]" if address else ""}
  ports: [{{number: 80, name: http, protocol: HTTP, targetPort: 8099}}]
  resolution: STATIC
  location: MESH_EXTERNAL
  endpoints: [{{address: {endpoint}}}]
"""


STATEFUL = """
apiVersion: v1
kind: Service
metadata: {name: db, namespace: demo}
spec: {clusterIP: None, selector: {app: db}, ports: [{name: http, port: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: demo}
spec:
  serviceName: db
  replicas: 2
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: db
          image: localhost/app:1
          imagePullPolicy: IfNotPresent
          readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
"""

HOST_NETWORK = """
apiVersion: v1
kind: Pod
metadata: {name: host-network, namespace: demo, labels: {app: host-network}}
spec:
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  terminationGracePeriodSeconds: 1
  containers:
    - name: c
      image: localhost/app:1
      imagePullPolicy: IfNotPresent
      command: [python3, /server.py, "18080"]
"""


def answers(tools, url):
    return curl(tools, url).status == 200


def restart_cni(tools):
    """istio-cni reads its ConfigMap when it starts."""
    tools.kubectl("-n", "istio-system", "rollout", "restart", "daemonset/istio-cni-node")
    tools.kubectl("-n", "istio-system", "rollout", "status", "daemonset/istio-cni-node", "--timeout=120s")


def test_services_of_every_kind(tools, seen, apply):
    apply(OTHER_SERVICES)
    pod = pods(tools, "demo", "app=web")[0]["status"]["podIP"]
    asked = {
        "headless": "http://web-headless:8080",
        "pod's address": f"http://{pod}:8080",
        "full name": "http://web.demo.svc.cluster.local.",
        "node port, this node": f"http://{NODE1.ip}:30080",
        "node port, other node": f"http://{NODE2.ip}:30080",
    }
    until("the headless service has endpoints", 20, lambda: curl(tools, asked["headless"]).status == 200)
    for name in ("node port, this node", "node port, other node"):  # kube-proxy needs a moment
        until(f"{name} answers", 30, partial(answers, tools, asked[name]))
    got = {name: curl(tools, url).status for name, url in asked.items()}
    assert got == dict.fromkeys(asked, 200)
    from_host = run("curl", "-s", "-m", "10", f"http://{NODE1.ip}:30080/")
    assert "saw" in from_host
    refused = {
        "a service without endpoints": curl(tools, "http://nobody"),
        "a port that the service has not": curl(tools, "http://web:81", seconds=5),
        "a port that the pod has not": curl(tools, f"http://{pod}:9", seconds=5),
    }
    assert {name: answer.status for name, answer in refused.items()} == dict.fromkeys(refused, 0)
    assert curl(tools, "http://nowhere.demo").error.startswith("Could not resolve host")
    seen(f"answered: {', '.join([*asked, 'node port from the host'])}; refused: {', '.join(refused)}")


def test_the_api_server_is_reached_from_the_mesh(tools, seen):
    said = tools.kubectl(
        "-n", "demo", "exec", "deploy/sleep", "--", "curl", "-s", "-m", "10", "--cacert",
        "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt", "https://kubernetes.default.svc/version",
    )  # fmt: skip
    assert json.loads(said)["gitVersion"].startswith("v1.")
    seen(json.loads(said)["gitVersion"])


def test_service_entries_with_and_without_an_address(tools, seen, apply, outside_server):
    apply(service_entry("fixed", "fixed.example", "240.240.9.9"))
    apply(service_entry("automatic", "automatic.example"))
    for host in ("fixed.example", "automatic.example"):
        until(f"{host} answers", 30, partial(answers, tools, f"http://{host}"))
    address = tools.kubectl(
        "-n", "demo", "exec", "deploy/sleep", "--", "python3", "-c",
        "import socket, sys; print(*{a[4][0] for h in sys.argv[1:] for a in socket.getaddrinfo(h, 80)})",
        "fixed.example", "automatic.example",
    ).split()  # fmt: skip
    assert "240.240.9.9" in address
    assert len(address) >= 2
    seen(f"names resolve to {', '.join(sorted(address))} by DNS capture, and answer")


def test_a_stateful_set_by_the_names_of_its_pods(tools, seen, apply):
    apply(STATEFUL)
    tools.kubectl("-n", "demo", "rollout", "status", "statefulset/db", "--timeout=120s")
    bodies = []
    for name in ("db-0", "db-1"):
        until(f"{name} answers", 20, partial(answers, tools, f"http://{name}.db:8080"))
        bodies.append(curl(tools, f"http://{name}.db:8080").body)
    assert [body.split()[1] for body in bodies] == ["db-0", "db-1"]
    seen("db-0.db and db-1.db each answer as themselves")


def test_host_network_pods_call_and_are_called(tools, seen, apply):
    apply(HOST_NETWORK)
    tools.kubectl("-n", "demo", "wait", "--for=condition=Ready", "pod/host-network", "--timeout=60s")
    node_ip = tools.kubectl("-n", "demo", "get", "pod", "host-network", "-o", "jsonpath={.status.hostIP}")
    assert curl(tools, "http://web", pod="pod/host-network").status == 200
    assert curl(tools, f"http://{node_ip}:18080").status == 200
    seen("both ways answered, in plaintext")


def test_dns_capture_off_and_on_again(tools, seen, apply, outside_server):
    apply(service_entry("automatic", "automatic.example"))
    until("it answers with capture", 30, lambda: curl(tools, "http://automatic.example").status == 200)
    mesh.install_ztunnel(tools, "--set-string=env.ISTIO_META_DNS_CAPTURE=false")
    try:
        mesh.install_istio(tools, cni=("--set=ambient.dnsCapture=false",))
        restart_cni(tools)
        tools.kubectl("-n", "demo", "rollout", "restart", "deployment/sleep")
        tools.kubectl("-n", "demo", "rollout", "status", "deployment/sleep", "--timeout=90s")
        without = curl(tools, "http://automatic.example")
        assert without.status == 0
        assert curl(tools, "http://web").status == 200
    finally:
        mesh.install_istio(tools)
        restart_cni(tools)
        mesh.install_ztunnel(tools)
        tools.kubectl("-n", "demo", "rollout", "restart", "deployment/sleep")
        tools.kubectl("-n", "demo", "rollout", "status", "deployment/sleep", "--timeout=90s")
    until("it answers with capture", 30, lambda: curl(tools, "http://automatic.example").status == 200)
    seen(f"without capture: {without.error}; services go on")
