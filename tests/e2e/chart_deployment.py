"""A mesh as the chart installs it: on each node the rendered container, from the built image.

Nothing reaches ztunnel but through what the manifest says: istiod's root from the ConfigMap, the token from
the projected volume, the CNI agent's socket from the node's directory, istiod's address from the
cluster's DNS.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from tests.e2e.cluster_dns import ClusterDns
from tests.e2e.kubelet import Surroundings, container_of
from tests.support.chart import Rendering, render
from tests.support.container import Container
from tests.support.control_plane import ISTIOD_NAME, workload
from tests.support.fake_ca import FakeCertificateAuthority
from tests.support.fake_cni import FakeCni
from tests.support.fake_istiod import FakeIstiod
from tests.support.image import Image
from tests.support.pod import MeshPod
from ztunnel.demo.dedicated import Ztunnel
from ztunnel.demo.network import Node, Pod
from ztunnel.messages import PodInfo
from ztunnel.pb.istio import workload as pb

if TYPE_CHECKING:
    from tests.support.mesh import Mesh

NAMESPACE = "istio-system"
ISTIOD_PORT = 15012
SOCKET_DIRECTORY = "/var/run/ztunnel"


class ChartNode:
    """A node with its CNI agent and the ztunnel pods that the chart's DaemonSet has brought to it."""

    def __init__(self, deployment: ChartDeployment, mesh: Mesh, node: Node) -> None:
        self.deployment = deployment
        self.mesh = mesh
        self.node = node
        self.directory = mesh.machine.directory / f"node-{node.name}"
        self.socket_directory = self.directory / "run-ztunnel"
        self.socket_directory.mkdir(parents=True)
        self.cni = FakeCni(self.socket_directory / "ztunnel.sock")
        self.cni.__enter__()
        mesh.machine.on_close(lambda: self.cni.__exit__(None, None, None))
        self.ztunnels: list[Ztunnel] = []
        self.homes: list[Pod] = []

    @property
    def current(self) -> Ztunnel:
        """The newest ztunnel of the node."""
        return self.ztunnels[-1]

    def start(self) -> Ztunnel:
        """One more pod of the DaemonSet; ready when this returns."""
        deployment = self.deployment
        home = self.node.pod(f"zt{len(self.homes) + 1}-{self.node.name}")
        self.homes.append(home)
        name = f"ztunnel-{secrets.token_hex(3)}"
        directory = self.directory / name
        surroundings = Surroundings(
            directory=directory,
            pod_name=name,
            namespace=NAMESPACE,
            node_name=self.node.name,
            pod_ip=home.ipv4,
            dns_server=deployment.dns.address,
            token=deployment.istiod.token,
            paths={SOCKET_DIRECTORY: self.socket_directory},
            config_maps={"istio-ca-root-cert": {"root-cert.pem": deployment.istiod.ca.root.decode()}},
        )
        container = container_of(deployment.rendering.pod, deployment.image, surroundings)
        deployment.register(self._own_workload(container, home))
        command = container.write(directory / "container.json")
        # The specification has all variables; the program that reads it is to have none of ours.
        process = self.mesh.machine.spawn(name, command, namespace=home.namespace, env={})
        self.ztunnels.append(Ztunnel(process, home.namespace))
        self.current.wait_ready()
        return self.current

    def _own_workload(self, container: Container, home: Pod) -> pb.Workload:
        variables = container.environment
        name, namespace = variables["POD_NAME"], variables["POD_NAMESPACE"]
        return pb.Workload(
            uid=f"Kubernetes//Pod/{namespace}/{name}",
            name=name,
            namespace=namespace,
            network=self.deployment.network,
            addresses=[ip_address(address).packed for address in home.addresses],
            tunnel_protocol=pb.TunnelProtocol.HBONE,
            service_account=variables["SERVICE_ACCOUNT"],
            node=self.node.name,
            canonical_name="ztunnel",
            workload_name="ztunnel",
            cluster_id=self.mesh.cluster,
        )

    def add(self, pod: MeshPod) -> None:
        """Hand a pod to the newest ztunnel, as the CNI does when the pod starts."""
        info = PodInfo(pod.name, pod.namespace, pod.serviceaccount)
        ack = self.cni.add_pod(pod.uid, info, pod.pod.namespace.descriptor)
        assert ack.error == "", f"{pod.name}: {ack.error}"


class ChartDeployment:
    """A `tests.support.mesh.Deployment` of what the chart renders for ``values``, and an image."""

    def __init__(self, image: Image, values: Mapping[str, Any] | None = None) -> None:
        self.image = image
        self.rendering: Rendering = render(values, namespace=NAMESPACE)
        self.network: str = self.rendering.env.get("NETWORK", "")
        self.nodes: dict[str, ChartNode] = {}
        self._istiod: FakeIstiod | None = None
        self._dns: ClusterDns | None = None

    @property
    def istiod(self) -> FakeIstiod:
        """The control plane; there from the first start on."""
        assert self._istiod is not None
        return self._istiod

    @property
    def dns(self) -> ClusterDns:
        """The cluster's DNS server; there from the first start on."""
        assert self._dns is not None
        return self._dns

    def start(self, mesh: Mesh, pods: Sequence[MeshPod]) -> None:
        """Let istiod know the pods, start the ztunnels of nodes without, hand the pods over."""
        if self._istiod is None:
            self._istiod = _start_istiod(mesh)
            addresses = {f"{ISTIOD_NAME}.cluster.local": [self._istiod.host]}
            self._dns = ClusterDns(mesh.node("control").node.pod("dns"), addresses)
            mesh.machine.on_close(self._dns.close)
        self.register(*(workload(pod, network=self.network) for pod in mesh.pods if pod.registered))
        for pod in pods:
            node = self.nodes.get(pod.pod.node.name)
            if node is None:
                node = self.nodes[pod.pod.node.name] = ChartNode(self, mesh, pod.pod.node)
                node.start()
            node.add(pod)

    def register(self, *workloads: pb.Workload) -> None:
        """Let istiod tell of these workloads."""
        self.istiod.put_all([(item.uid, pb.Address(workload=item)) for item in workloads])

    def update(self, mesh: Mesh) -> None:
        """Let istiod tell of the pods' present state."""
        self.register(*(workload(pod, network=self.network) for pod in mesh.pods if pod.registered))

    def remove(self, mesh: Mesh, pod: MeshPod) -> None:
        """Tell the ztunnels of its node that a pod has gone; they stay."""
        self.nodes[pod.pod.node.name].cni.delete_pod(pod.uid)

    def restart(self, mesh: Mesh, pod: MeshPod) -> None:
        """Start a further ztunnel on the pod's node."""
        self.nodes[pod.pod.node.name].start()

    def ztunnel(self, pod: MeshPod) -> Ztunnel:
        """The process that serves a pod now."""
        return self.nodes[pod.pod.node.name].current


def _start_istiod(mesh: Mesh) -> FakeIstiod:
    home = mesh.node("control").node.pod("istiod")
    istiod = FakeIstiod(FakeCertificateAuthority(), names=(ISTIOD_NAME,), host=home.ipv4)
    istiod.port = ISTIOD_PORT
    # The socket belongs to the namespace in which it is made.
    with home.namespace.entered():
        istiod.start()
    mesh.machine.on_close(istiod.kill)
    return istiod
