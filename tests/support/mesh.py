"""A mesh on one machine, for tests and by hand.

    with Mesh.open() as mesh:
        client = mesh.node("a").pod("client", serviceaccount="client")
        server = mesh.node("b").pod("server")
        mesh.service("web", ports={80: 8080}, endpoints=[server])
        mesh.policy("only-client", rules=[[[{"principals": [Exact(client.principal)]}]]])
        mesh.start()
        stream = await client.connect(server.ipv4, 8080)

Nodes and pods are network namespaces (`ztunnel.demo.network`), the redirection rules are istio-cni's, the
ztunnels are real processes. What a test adds or changes after `start` takes effect with `update`. How ztunnel
is deployed is a strategy (`Deployment`): in each pod, or one on each node.

By hand, as root: ``python -m tests.support.mesh`` makes two nodes and a few pods and waits for Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

import trio

from tests.support.local_file import to_yaml
from tests.support.measured import end_in_order, measured_environment
from tests.support.pod import MeshPod
from ztunnel.certs.shared_root import write_root
from ztunnel.demo.capture import Capture
from ztunnel.demo.dedicated import Ztunnel, dedicated_environment
from ztunnel.demo.machine import Machine, interruptible
from ztunnel.demo.network import Network, Node


class Deployment(Protocol):
    """How ztunnel serves the pods of a mesh."""

    def start(self, mesh: Mesh, pods: Sequence[MeshPod]) -> None:
        """Serve these pods too. Returns when they are served."""

    def update(self, mesh: Mesh) -> None:
        """Put the mesh's present state into force."""

    def restart(self, mesh: Mesh, pod: MeshPod) -> None:
        """Start the ztunnel of a pod again after its end. Returns when it serves."""

    def remove(self, mesh: Mesh, pod: MeshPod) -> None:
        """Stop serving a pod."""

    def ztunnel(self, pod: MeshPod) -> Ztunnel:
        """Returns the process that serves a pod."""


class DedicatedDeployment:
    """A ztunnel in each pod, in dedicated mode, fed by a local file that it watches."""

    def __init__(self) -> None:
        self._ztunnels: dict[str, Ztunnel] = {}

    def start(self, mesh: Mesh, pods: Sequence[MeshPod]) -> None:
        mesh.write_file()
        started = [self._start(mesh, pod) for pod in pods]
        for ztunnel in started:
            ztunnel.wait_ready()

    def _start(self, mesh: Mesh, pod: MeshPod) -> Ztunnel:
        environment = dedicated_environment(
            namespace=pod.namespace,
            name=pod.name,
            service_account=pod.serviceaccount,
            mesh_file=mesh.file,
            root=pod.root or mesh.root,
            inherit=os.environ,
            extra={"LOG_FORMAT": "json", "RUST_LOG": "info,access=debug"}
            | measured_environment()
            | mesh.environment
            | pod.environment,
        )
        ztunnel = Ztunnel.start(mesh.machine, f"ztunnel-{pod.name}", environment, pod.pod.namespace)
        self._ztunnels[pod.name] = ztunnel
        return ztunnel

    def restart(self, mesh: Mesh, pod: MeshPod) -> None:
        self._start(mesh, pod).wait_ready()

    def update(self, mesh: Mesh) -> None:
        mesh.write_file()

    def remove(self, mesh: Mesh, pod: MeshPod) -> None:
        pod.ztunnel.process.stop(grace=10)

    def ztunnel(self, pod: MeshPod) -> Ztunnel:
        return self._ztunnels[pod.name]


class MeshNode:
    """A node of a mesh."""

    def __init__(self, mesh: Mesh, node: Node) -> None:
        self.mesh = mesh
        self.node = node

    def pod(
        self,
        name: str,
        *,
        namespace: str = "default",
        serviceaccount: str | None = None,
        ipv4: str | None = None,
        **fields: Any,
    ) -> MeshPod:
        """Make a pod; see `MeshPod` for the fields. The service account is named like the pod by default."""
        pod = MeshPod(self.mesh, self.node.pod(name, ipv4=ipv4), namespace, serviceaccount or name, **fields)
        self.mesh.pods.append(pod)
        return pod


class Mesh:
    """Nodes, pods, services and policies, and the ztunnels that serve them. Made by `open`."""

    def __init__(self, machine: Machine, deployment: Deployment, environment: Mapping[str, str]) -> None:
        self.machine = machine
        self.network = Network(machine)
        self.deployment = deployment
        self.environment = dict(environment)
        self.cluster = "Kubernetes"
        self.root = write_root(machine.directory / "root.pem", datetime.now(UTC).timestamp())
        self.file = machine.directory / "mesh.yaml"
        self.pods: list[MeshPod] = []
        self.services: list[dict[str, Any]] = []
        self.policies: list[dict[str, Any]] = []
        self.redirection_backend: str | None = None
        self._nodes: dict[str, MeshNode] = {}
        self._started: set[str] = set()

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, *, deployment: Deployment | None = None, environment: Mapping[str, str] | None = None
    ) -> Iterator[Mesh]:
        """Yields an empty mesh. All that it starts and makes is gone afterwards."""
        with Machine.open() as machine:
            machine.on_close(partial(end_in_order, machine))
            yield cls(machine, deployment or DedicatedDeployment(), environment or {})

    def node(self, name: str) -> MeshNode:
        """Returns the node of that name, made when asked for first."""
        if name not in self._nodes:
            self._nodes[name] = MeshNode(self, self.network.node(name))
        return self._nodes[name]

    def service(
        self,
        name: str,
        *,
        ports: Mapping[int, int],
        endpoints: Iterable[MeshPod] = (),
        namespace: str = "default",
        vips: Sequence[str] | None = None,
        **fields: Any,
    ) -> str:
        """Define a service. Returns its first VIP. ``fields``: further keys of the file."""
        hostname = f"{name}.{namespace}.svc.cluster.local"
        addresses = [f"10.96.0.{len(self.services) + 10}"] if vips is None else list(vips)
        self.services.append(
            {
                "name": name,
                "namespace": namespace,
                "hostname": hostname,
                "vips": [f"/{address}" for address in addresses],
                "ports": dict(ports),
            }
            | fields
        )
        for pod in endpoints:
            pod.workload.setdefault("services", {})[f"{namespace}/{hostname}"] = dict(ports)
        return addresses[0] if addresses else ""

    def policy(
        self,
        name: str,
        *,
        rules: list[Any],
        namespace: str = "default",
        scope: str = "Namespace",
        action: str = "Allow",
        dry_run: bool = False,
        workloads: Iterable[MeshPod] = (),
    ) -> str:
        """Define a policy, of scope WorkloadSelector if ``workloads`` are given. Returns its key."""
        selected = list(workloads)
        key = f"{namespace}/{name}"
        self.policies.append(
            {
                "name": name,
                "namespace": namespace,
                "scope": "WorkloadSelector" if selected else scope,
                "action": action,
                "dryRun": dry_run,
                "rules": rules,
            }
        )
        for pod in selected:
            pod.workload.setdefault("authorizationPolicies", []).append(key)
        return key

    def remove_policy(self, key: str) -> None:
        """Remove a policy and what refers to it."""
        self.policies = [
            policy for policy in self.policies if f"{policy['namespace']}/{policy['name']}" != key
        ]
        for pod in self.pods:
            if key in pod.workload.get("authorizationPolicies", []):
                pod.workload["authorizationPolicies"].remove(key)

    def local_mesh(self) -> dict[str, Any]:
        """Returns the mesh in the form of the local file."""
        workloads = [
            {
                "uid": pod.uid,
                "name": pod.name,
                "namespace": pod.namespace,
                "serviceAccount": pod.serviceaccount,
                "trustDomain": pod.trust_domain,
                "workloadIps": pod.pod.addresses,
                "workloadName": f"{pod.name}-deployment",
                "workloadType": "deployment",
                "canonicalName": pod.name,
                "canonicalRevision": "v1",
                "clusterId": self.cluster,
                "node": pod.pod.node.name,
                "protocol": pod.protocol,
                "services": {},
            }
            | pod.workload
            for pod in self.pods
            if pod.registered
        ]
        return {"workloads": workloads, "services": self.services, "policies": self.policies}

    def write_file(self) -> None:
        """Write the local file, in one step as seen by those who read it."""
        new = self.file.with_suffix(".new")
        new.write_text(to_yaml(self.local_mesh()))
        new.rename(self.file)

    def start(self) -> None:
        """Set up the redirection and start ztunnel, for all captured pods that have none yet."""
        fresh = [pod for pod in self.pods if pod.captured and pod.name not in self._started]
        for pod in fresh:
            if pod.redirection is not None:
                self.network.redirect(pod.pod, pod.redirection, backend=self.redirection_backend)
            self._started.add(pod.name)
        self.deployment.start(self, fresh)

    async def update(self, timeout: float = 30) -> None:
        """Put changes into force. Returns when each running ztunnel shows the policies and workloads."""
        self.deployment.update(self)
        wanted = _summary(self.local_mesh())
        for pod in self.pods:
            if pod.name in self._started and pod.ztunnel.process.returncode is None:
                deadline = time.monotonic() + timeout
                while _summary(dump := pod.config_dump()) != wanted:
                    if time.monotonic() > deadline:
                        raise AssertionError(f"{pod.name}'s ztunnel has not taken over the mesh: {dump}")
                    await trio.sleep(0.02)

    def remove_pod(self, pod: MeshPod) -> None:
        """Stop serving a pod and take it out of the mesh. Its namespace stays until the end."""
        self.pods.remove(pod)
        if pod.name in self._started:
            self._started.discard(pod.name)
            self.deployment.remove(self, pod)

    def capture(self, node: MeshNode) -> Capture:
        """Capture what a node exchanges with other nodes. The caller closes it."""
        return Capture(self.network.wire, self.network.wire_port(node.node))


def waypoint(target: MeshPod | str, port: int = 15008) -> dict[str, Any]:
    """Returns a reference to a waypoint or network gateway: a pod, an IP address, ``namespace/hostname``."""
    if not isinstance(target, str):
        target = target.ipv4
    return {"destination": target if "/" in target else f"/{target}", "hboneMtlsPort": port}


def _summary(mesh: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    """Returns what a local file and a config dump must have in common."""
    policies = [(policy["namespace"], policy["name"], policy["action"]) for policy in mesh["policies"]]
    workloads = [
        (
            workload["uid"],
            workload["protocol"],
            workload["trustDomain"],
            workload["serviceAccount"],
            *workload["workloadIps"],
            *workload.get("authorizationPolicies", []),
        )
        for workload in mesh["workloads"]
    ]
    return sorted(policies) + sorted(workloads)


def main() -> None:
    """Run a mesh to try things in, until Ctrl-C."""
    with interruptible(), Mesh.open(environment={"LOG_FORMAT": "plain"}) as mesh:
        client = mesh.node("a").pod("client")
        server = mesh.node("b").pod("server")
        outside = mesh.node("b").pod("outside", captured=False, registered=False)
        vip = mesh.service("web", ports={80: 8080}, endpoints=[server])
        mesh.start()
        for pod in (server, outside):
            command = [sys.executable, "-m", "http.server", "8080", "--bind", "::"]
            mesh.machine.spawn(f"http-{pod.name}", command, namespace=pod.pod.namespace)
        prefix = f"ip netns exec {mesh.machine.name}"
        print(f"files and logs: {mesh.machine.directory}")
        print(f"through the mesh:   {prefix}-client curl http://{vip}/")
        print(f"the same by pod IP: {prefix}-client curl http://{server.ipv4}:8080/")
        print(f"out of the mesh:    {prefix}-client curl http://{outside.ipv4}:8080/")
        print(f"into the mesh:      {prefix}-outside curl http://{server.ipv4}:8080/")
        print(f"metrics:            {prefix}-{client.name} curl http://127.0.0.1:15020/metrics")
        print("Ctrl-C ends it.")
        signal.pause()


if __name__ == "__main__":
    main()
