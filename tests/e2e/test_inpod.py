"""In-pod mode: one ztunnel a node, its sockets in the pods' namespaces, under the CNI's conversation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.census import take_census
from tests.e2e.mesh import Mesh
from tests.e2e.node_deployment import NodeDeployment
from tests.e2e.pod import MeshPod
from tests.e2e.traffic import echo, serve


@dataclass
class NodeMesh:
    """Two nodes; two pods on the first, one on the second, one outside the mesh."""

    mesh: Mesh
    deployment: NodeDeployment
    client: MeshPod
    neighbour: MeshPod
    server: MeshPod
    outside: MeshPod
    vip: str
    own_vip: str


@pytest.fixture(scope="module")
def node_mesh() -> Iterator[NodeMesh]:
    deployment = NodeDeployment()
    with Mesh.open(deployment=deployment) as mesh:
        client = mesh.node("a").pod("client")
        neighbour = mesh.node("a").pod("neighbour")
        server = mesh.node("b").pod("server")
        outside = mesh.node("b").pod("outside", captured=False, registered=False)
        vip = mesh.service("web", ports={80: 8080}, endpoints=[server])
        own_vip = mesh.service("self", ports={80: 8080}, endpoints=[client])
        mesh.start()
        yield NodeMesh(mesh, deployment, client, neighbour, server, outside, vip, own_vip)
        name = mesh.machine.name
    census = take_census(name)
    assert census.empty, census


@pytest.mark.parametrize("target", ["server", "neighbour"], ids=["other node", "same node"])
async def test_pods_reach_each_other_through_the_node_ztunnels(node_mesh, target):
    pod = getattr(node_mesh, target)
    async with serve(pod, 8080, echo):
        stream = await node_mesh.client.connect(pod.ipv4, 8080)
        async with stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some(100) == b"hello"
        [line] = (await pod.logged(direction="inbound", dst__hbone_addr=f"{pod.ipv4}:8080"))[-1:]
        assert line["src.identity"] == node_mesh.client.identity


async def test_a_pod_reaches_itself_directly_by_address_and_through_the_mesh_by_service(node_mesh):
    client = node_mesh.client
    async with serve(client, 8080, echo):
        for address, port in ((client.ipv4, 8080), (node_mesh.own_vip, 80)):
            stream = await client.connect(address, port)
            async with stream:
                await stream.send_all(b"hello")
                assert await stream.receive_some(100) == b"hello"
        await client.logged(direction="inbound", dst__hbone_addr=f"{client.ipv4}:8080", count=1)
