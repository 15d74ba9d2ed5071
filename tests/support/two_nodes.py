"""A mesh of two nodes in shared mode, for the tests of in-pod mode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from tests.support.census import take_census
from tests.support.mesh import Mesh
from tests.support.node_deployment import NodeDeployment, NodeZtunnel
from tests.support.pod import MeshPod, eventually
from ztunnel.demo.dedicated import Ztunnel
from ztunnel.demo.redirection import RedirectionOptions

_REDIRECTION = RedirectionOptions()


@dataclass
class TwoNodes:
    """Client and neighbour on the first node, the server on the second, and a pod outside the mesh there."""

    mesh: Mesh
    deployment: NodeDeployment
    client: MeshPod
    neighbour: MeshPod
    server: MeshPod
    outside: MeshPod
    vip: str

    def node(self, pod: MeshPod) -> NodeZtunnel:
        """Returns what runs on a pod's node."""
        return self.deployment.nodes[pod.pod.node.name]

    @classmethod
    @contextmanager
    def open(
        cls,
        environment: Mapping[str, str] | None = None,
        *,
        backend: str | None = None,
        redirection: RedirectionOptions = _REDIRECTION,
    ) -> Iterator[TwoNodes]:
        """Yields a mesh with a ztunnel on each node. Fails if anything of it is left afterwards.

        backend: one of `ztunnel.demo.network.BACKENDS`, for the redirection.
        """
        deployment = NodeDeployment()
        with Mesh.open(deployment=deployment, environment=environment) as mesh:
            mesh.redirection_backend = backend
            client = mesh.node("a").pod("client", redirection=redirection)
            neighbour = mesh.node("a").pod("neighbour", redirection=redirection)
            server = mesh.node("b").pod("server", redirection=redirection)
            outside = mesh.node("b").pod("outside", captured=False, registered=False)
            vip = mesh.service("web", ports={80: 8080}, endpoints=[server])
            mesh.start()
            yield cls(mesh, deployment, client, neighbour, server, outside, vip)
            name = mesh.machine.name
        census = take_census(name)
        assert census.empty, census


async def ended(ztunnel: Ztunnel, timeout: float) -> None:
    """Wait until the process has ended with status 0."""
    await eventually(lambda: ztunnel.process.returncode is not None, "ended", timeout)
    output = ztunnel.process.output()
    assert ztunnel.process.returncode == 0, output[-4000:]
    assert "Traceback" not in output, output[-8000:]
