"""What ztunnel's own ports give to a pod: nothing that it could not reach otherwise (docs/security.md)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from tests.support.pod import MeshPod
from tests.support.traffic import read_all, serve
from tests.support.two_nodes import TwoNodes
from ztunnel.demo.redirection import RedirectionOptions

SECRET = b"only for those whom policy lets in"


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    environment = {"ISTIO_META_DNS_CAPTURE": "true"}
    with TwoNodes.open(environment, redirection=RedirectionOptions(dns=True)) as mesh:
        yield mesh


async def answer_of(pod: MeshPod, address: str, port: int) -> bytes | None:
    """What a pod is told at an address after a plain HTTP request; None where nobody takes the connection."""
    try:
        async with await pod.connect(address, port, timeout=5) as stream:
            await stream.send_all(b"GET /config_dump HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            return await read_all(stream)
    except (OSError, trio.BrokenResourceError):
        return None


@pytest.mark.parametrize(
    "where", ["its loopback", "its own address", "its node's ztunnel", "another ztunnel"]
)
@pytest.mark.parametrize("port", [15000, 15020, 15021])
async def test_no_pod_reaches_the_admin_server(nodes: TwoNodes, where: str, port: int) -> None:
    """15000 listens on the loopback of ztunnel's own namespace, where pods are not.

    15020 and 15021 are meant for others, and have no page of it.
    """
    address = {
        "its loopback": "127.0.0.1",
        "its own address": nodes.client.ipv4,
        "its node's ztunnel": nodes.node(nodes.client).homes[-1].ipv4,
        "another ztunnel": nodes.node(nodes.server).homes[-1].ipv4,
    }[where]
    for pod in (nodes.client, nodes.outside):
        told = await answer_of(pod, address, port)
        assert not told or told.startswith(b"HTTP/1.1 404"), told


@pytest.mark.parametrize("port", [15001, 15006, 15008, 15053])
async def test_no_port_of_ztunnel_leads_around_policy(nodes: TwoNodes, port: int) -> None:
    """A pod that policy refuses tries each port of the server's ztunnel."""
    rules = [[[{"destinationPorts": [8080]}]]]
    nodes.mesh.policy("nobody", action="Deny", rules=rules, workloads=[nodes.server])
    await nodes.mesh.update()

    async def tell(stream: trio.SocketStream) -> None:
        await stream.send_all(SECRET)

    try:
        async with serve(nodes.server, 8080, tell) as application:
            for pod in (nodes.neighbour, nodes.outside):
                for target in (8080, port):
                    assert SECRET not in (await answer_of(pod, nodes.server.ipv4, target) or b"")
        assert application.peers == []
    finally:
        nodes.mesh.policies.clear()
        await nodes.mesh.update()


@pytest.mark.parametrize("port", [15001, 15006, 15053])
async def test_listeners_behind_the_redirection_are_no_way_in(nodes: TwoNodes, port: int) -> None:
    """Who connects to them by number is refused: the original destination is ztunnel itself."""
    for pod in (nodes.outside, nodes.neighbour):
        assert not await answer_of(pod, nodes.server.ipv4, port)
