"""A mesh as in production: ztunnels get mesh and certificates from istiod, and pods from the CNI agent.

    with ControlledMesh.open() as controlled:
        client = controlled.mesh.node("a").pod("client")
        controlled.start()                      # istiod first, then a ztunnel on each node
        controlled.deny("no-client", ...)

The fake istiod lives in a pod of its own, so that its address is reached over the network and it can vanish.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path

from tests.support.fake_ca import FakeCertificateAuthority
from tests.support.fake_istiod import FakeIstiod
from tests.support.mesh import Mesh
from tests.support.node_deployment import NodeDeployment
from tests.support.pod import MeshPod
from ztunnel.demo.network import Pod
from ztunnel.pb.istio import workload as pb
from ztunnel.pb.istio.security import (
    Action,
    Authorization,
    Clause,
    Match,
    Rule,
    Scope,
    StringMatch,
)

ISTIOD_NAME = "istiod.istio-system.svc"


def workload(pod: MeshPod, *, policies: Sequence[str] = (), **fields: object) -> pb.Workload:
    """Returns a pod as istiod describes it. ``fields`` replace those of the message."""
    values: dict[str, object] = {
        "uid": pod.uid,
        "name": pod.name,
        "namespace": pod.namespace,
        "addresses": [ip_address(address).packed for address in pod.pod.addresses],
        "tunnel_protocol": pb.TunnelProtocol.HBONE if pod.protocol == "HBONE" else pb.TunnelProtocol.NONE,
        "service_account": pod.serviceaccount,
        "node": pod.pod.node.name,
        "canonical_name": pod.name,
        "canonical_revision": "v1",
        "workload_type": pb.WorkloadType.DEPLOYMENT,
        "workload_name": f"{pod.name}-deployment",
        "cluster_id": pod.mesh.cluster,
        "authorization_policies": list(policies),
    }
    return pb.Workload(**(values | fields))  # type: ignore[arg-type]  # of the message's own fields


def service(name: str, vip: str, ports: Mapping[int, int], *, namespace: str = "default") -> pb.Service:
    """Returns a Kubernetes service with one address."""
    return pb.Service(
        name=name,
        namespace=namespace,
        hostname=f"{name}.{namespace}.svc.cluster.local",
        addresses=[pb.NetworkAddress(address=ip_address(vip).packed)],
        ports=[pb.Port(service_port=port, target_port=to) for port, to in ports.items()],
        canonical=True,
    )


def membership(name: str, ports: Mapping[int, int], *, namespace: str = "default") -> dict[str, pb.PortList]:
    """Returns the field ``services`` of a workload that is an endpoint of this service."""
    listed = [pb.Port(service_port=port, target_port=to) for port, to in ports.items()]
    return {f"{namespace}/{name}.{namespace}.svc.cluster.local": pb.PortList(ports=listed)}


def deny(
    name: str, *, principal: str | None = None, port: int | None = None, selector: bool = False
) -> Authorization:
    """Returns a DENY policy of the namespace ``default``: for one principal, one destination port, or all.

    ``selector``: only for the workloads that refer to it.
    """
    match = Match()
    if principal is not None:
        match.principals.append(StringMatch(exact=principal))
    if port is not None:
        match.destination_ports.append(port)
    clauses = [] if principal is None and port is None else [Clause(matches=[match])]
    return Authorization(
        name=name,
        namespace="default",
        scope=Scope.WORKLOAD_SELECTOR if selector else Scope.NAMESPACE,
        action=Action.DENY,
        rules=[Rule(clauses=clauses)],
    )


class ControlledMesh:
    """See the module. Made by `open`; ``istiod`` is the control plane, ``deployment`` the nodes' ztunnels."""

    def __init__(self, mesh: Mesh, deployment: NodeDeployment, names: Sequence[str] | None) -> None:
        self.mesh = mesh
        self.deployment = deployment
        self.home: Pod = mesh.node("control").node.pod("istiod")
        self.ca = FakeCertificateAuthority()
        wanted = (self.home.ipv4, ISTIOD_NAME) if names is None else tuple(names)
        self.istiod = FakeIstiod(self.ca, names=wanted, host=self.home.ipv4)
        self.root_file = mesh.machine.directory / "istiod-root.pem"
        self.token_file = mesh.machine.directory / "istio-token"
        self.root_file.write_bytes(self.ca.root)
        self.token_file.write_text(self.istiod.token)
        self.serve()
        mesh.machine.on_close(self.istiod.kill)
        mesh.environment |= {
            "XDS_ADDRESS": self.istiod.address,
            "CA_ADDRESS": self.istiod.address,
            "XDS_ROOT_CA": str(self.root_file),
            "CA_ROOT_CA": str(self.root_file),
            "AUTH_TOKEN": str(self.token_file),
            "FAKE_CA": "false",
            "LOCAL_XDS_PATH": "",
        }

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, *, environment: Mapping[str, str] | None = None, names: Sequence[str] | None = None
    ) -> Iterator[ControlledMesh]:
        """Yields an empty mesh with a control plane. ``names``: the names in istiod's certificate."""
        deployment = NodeDeployment()
        with Mesh.open(deployment=deployment) as mesh:
            controlled = cls(mesh, deployment, names)
            mesh.environment |= dict(environment or {})
            yield controlled

    @property
    def directory(self) -> Path:
        """The directory for the test's files."""
        return self.mesh.machine.directory

    def serve(self, ca: FakeCertificateAuthority | None = None) -> None:
        """Start istiod in its pod, each time at the same port. ``ca``: the one that signs its certificate."""
        # The socket belongs to the namespace in which it is made.
        with self.home.namespace.entered():
            self.istiod.start(ca)

    def register(self, *pods: MeshPod, **fields: object) -> None:
        """Let istiod send these pods in their present state. Each can be asked for by its addresses too."""
        for pod in pods:
            message = pb.Address(workload=workload(pod, policies=(), **fields))
            self.istiod.put(pod.uid, message, aliases=[f"/{address}" for address in pod.pod.addresses])

    def start(self) -> None:
        """Register all pods of the mesh, and start a ztunnel on each node with pods."""
        self.register(*[pod for pod in self.mesh.pods if pod.registered])
        self.mesh.start()
