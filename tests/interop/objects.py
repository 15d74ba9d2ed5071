"""Kubernetes objects, as YAML, of a small ambient mesh for istiod."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

CLUSTER = "Kubernetes"


def namespace(name: str, *, ambient: bool = True, labels: Mapping[str, str] | None = None) -> str:
    """A namespace, in the mesh or not."""
    every = dict(labels or {})
    if ambient:
        every["istio.io/dataplane-mode"] = "ambient"
    return f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {_flow(every)}}}"


def node(name: str, *, region: str = "r1", zone: str = "z1") -> str:
    """A node with a locality."""
    labels = {"topology.kubernetes.io/region": region, "topology.kubernetes.io/zone": zone}
    return f"apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {_flow(labels)}}}"


def pod(
    name: str,
    ip: str,
    *,
    in_namespace: str = "default",
    account: str = "default",
    labels: Mapping[str, str] | None = None,
    ready: bool = True,
    captured: bool = True,
    on_node: str = "node-1",
) -> str:
    """A running pod with an address; ``captured`` as the CNI agent marks it."""
    redirection = "enabled" if captured else "disabled"
    return f"""\
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: {in_namespace}
  labels: {_flow(labels or {"app": name})}
  annotations: {{ambient.istio.io/redirection: {redirection}}}
spec: {{serviceAccountName: {account}, nodeName: {on_node}, containers: [{{name: app, image: none}}]}}
status:
  phase: Running
  podIP: {ip}
  podIPs: [{{ip: {ip}}}]
  conditions: [{{type: Ready, status: "{ready}"}}]"""


def service(
    name: str,
    ip: str,
    *,
    in_namespace: str = "default",
    selector: Mapping[str, str] | None = None,
    ports: Mapping[int, int] | None = None,
    labels: Mapping[str, str] | None = None,
) -> str:
    """A service; ``ip`` is ``None``, as a text, for a headless one. ``ports``: service port to target."""
    listed = ", ".join(
        f"{{name: tcp-{port}, port: {port}, targetPort: {to}}}" for port, to in (ports or {80: 8080}).items()
    )
    return f"""\
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: {in_namespace}, labels: {_flow(labels or {})}}}
spec:
  clusterIP: "{ip}"
  clusterIPs: ["{ip}"]
  ipFamilies: [IPv4]
  selector: {_flow(selector or {"app": name})}
  ports: [{listed}]"""


def policy(name: str, spec: str, *, in_namespace: str = "default") -> str:
    """An AuthorizationPolicy with a spec in flow style."""
    return _istio("security.istio.io/v1", "AuthorizationPolicy", name, in_namespace, spec)


def peer_authentication(name: str, mode: str, *, in_namespace: str = "default", selector: str = "") -> str:
    """A PeerAuthentication of a mode, for a namespace or for what the selector says."""
    select = f"selector: {{matchLabels: {{{selector}}}}}, " if selector else ""
    spec = f"{{{select}mtls: {{mode: {mode}}}}}"
    return _istio("security.istio.io/v1", "PeerAuthentication", name, in_namespace, spec)


def service_entry(name: str, spec: str, *, in_namespace: str = "default") -> str:
    """A ServiceEntry with a spec in flow style."""
    return _istio("networking.istio.io/v1", "ServiceEntry", name, in_namespace, spec)


def workload_entry(
    name: str, spec: str, *, in_namespace: str = "default", labels: Mapping[str, str] | None = None
) -> str:
    """A WorkloadEntry with a spec in flow style."""
    return (
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n"
        f"metadata: {{name: {name}, namespace: {in_namespace}, labels: {_flow(labels or {})}, "
        f"annotations: {{ambient.istio.io/redirection: enabled}}}}\nspec: {spec}"
    )


def gateway_class(name: str, controller: str) -> str:
    """A GatewayClass."""
    return (
        f"apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: {name}}}\n"
        f"spec: {{controllerName: {controller}}}"
    )


def waypoint(name: str, ip: str, *, in_namespace: str = "default", traffic: str = "service") -> str:
    """A waypoint with an address, as istiod's gateway controller would have made it ready."""
    labels = {"istio.io/waypoint-for": traffic}
    return _gateway(name, "istio-waypoint", "mesh", ip, in_namespace, labels)


def network_gateway(name: str, ip: str, network: str) -> str:
    """The east-west gateway of another network, as a cluster knows it."""
    labels = {"topology.istio.io/network": network}
    text = _gateway(name, "istio-remote", "cross-network", ip, "istio-system", labels)
    return text.replace("spec:\n", f"spec:\n  addresses: [{{type: IPAddress, value: {ip}}}]\n", 1)


def _gateway(
    name: str, of_class: str, listener: str, ip: str, in_namespace: str, labels: Mapping[str, str]
) -> str:
    tls = ", tls: {mode: Passthrough}" if listener == "cross-network" else ""
    return f"""\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}, namespace: {in_namespace}, labels: {_flow(labels)}}}
spec:
  gatewayClassName: {of_class}
  listeners: [{{name: {listener}, port: 15008, protocol: HBONE{tls}}}]
status:
  addresses: [{{type: IPAddress, value: {ip}}}]"""


def _istio(version: str, kind: str, name: str, in_namespace: str, spec: str) -> str:
    metadata = f"{{name: {name}, namespace: {in_namespace}}}"
    return f"apiVersion: {version}\nkind: {kind}\nmetadata: {metadata}\nspec: {spec}"


def _flow(values: Mapping[str, str]) -> str:
    return "{" + ", ".join(f'{key}: "{value}"' for key, value in values.items()) + "}"


def documents(objects: Sequence[str]) -> str:
    """Several objects as one text."""
    return "\n---\n".join(objects)
