"""Traffic for workloads and services that have a waypoint goes to the waypoint, or nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.mesh import Mesh, waypoint
from tests.support.pod import MeshPod
from tests.support.raw_hbone import raw_server
from tests.support.raw_tls import KeyPair, TlsChoices
from tests.support.traffic import read_exactly, refused_by, serve


@dataclass
class WaypointMesh:
    """A client and a server with a ztunnel each, and a waypoint played by the test."""

    mesh: Mesh
    client: MeshPod
    server: MeshPod
    waypoint: MeshPod
    vip: str
    lost_vip: str


@pytest.fixture(scope="module")
def waypoints() -> Iterator[WaypointMesh]:
    with Mesh.open() as mesh:
        client = mesh.node("a").pod("client")
        server = mesh.node("b").pod("server")
        gateway = mesh.node("b").pod("waypoint", captured=False)
        vip = mesh.service("web", ports={80: 8080}, endpoints=[server], waypoint=waypoint(gateway))
        lost = waypoint("10.77.9.9")
        lost_vip = mesh.service("lost", ports={80: 8080}, endpoints=[server], waypoint=lost)
        server.workload["waypoint"] = waypoint(gateway)
        mesh.start()
        yield WaypointMesh(mesh, client, server, gateway, vip, lost_vip)


@pytest.mark.parametrize("by", ["service", "workload"])
async def test_the_waypoint_is_asked_for_the_original_destination(waypoints: WaypointMesh, by: str) -> None:
    client, gateway = waypoints.client, waypoints.waypoint
    address, port = (waypoints.vip, 80) if by == "service" else (waypoints.server.ipv4, 8080)
    before = len(client.access_log())
    choices = TlsChoices(KeyPair.load(waypoints.mesh.root).issue(gateway.identity))
    async with raw_server(gateway, choices) as played:
        async with await client.connect(address, port) as stream:
            await stream.send_all(b"hello")
            assert await read_exactly(stream, 5) == b"hello"
        (request,) = played.requests
    assert dict(request.headers)[":authority"] == f"{address}:{port}"
    (entry,) = (await client.logged(count=before + 1))[before:]
    assert entry["dst.addr"] == f"{gateway.ipv4}:15008"
    assert entry["dst.hbone_addr"] == f"{address}:{port}"
    assert entry["dst.identity"] == gateway.identity
    assert entry.get("dst.service") == ("web.default.svc.cluster.local" if by == "service" else None)


async def test_a_waypoint_that_is_somebody_else_gets_nothing(waypoints: WaypointMesh) -> None:
    client, gateway = waypoints.client, waypoints.waypoint
    before = len(client.access_log())
    choices = TlsChoices(KeyPair.load(waypoints.mesh.root).issue(waypoints.server.identity))
    async with raw_server(gateway, choices) as played:
        assert await refused_by(client, waypoints.vip, 80, say=b"secret") == "reset"
        assert played.requests == []
    (entry,) = (await client.logged(count=before + 1))[before:]
    assert "peer did not present the expected SAN" in entry["error"]


async def test_an_unknown_waypoint_refuses_instead_of_going_direct(waypoints: WaypointMesh) -> None:
    client, server = waypoints.client, waypoints.server
    before = len(client.access_log())
    async with serve(server, 8080) as application:
        assert await refused_by(client, waypoints.lost_vip, 80) == "reset"
        assert application.peers == []
    (entry,) = (await client.logged(count=before + 1))[before:]
    assert entry["message"] == "connection failed"
    assert entry["error"].startswith("unknown waypoint: waypoint ")
    assert entry["error"].endswith(" not found")
