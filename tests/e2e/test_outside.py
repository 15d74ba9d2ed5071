"""Traffic that leaves the mesh or comes from outside it, and destinations that would loop."""

from __future__ import annotations

import pytest

from tests.e2e.conftest import StandardMesh
from tests.support.local_file import Presence
from tests.support.traffic import echo, read_exactly, refused_by, serve


@pytest.mark.parametrize("version", [4, 6])
async def test_what_the_mesh_does_not_know_is_passed_through(standard: StandardMesh, version: int) -> None:
    client, outside = standard.client, standard.outside
    address, own = (outside.ipv4, client.ipv4) if version == 4 else (outside.ipv6, client.ipv6)
    before = len(client.access_log())
    async with serve(outside, 8080) as application, await client.connect(address, 8080) as stream:
        await stream.send_all(b"hello")
        assert await read_exactly(stream, 5) == b"hello"
    assert application.peer_addresses == [own]
    (entry,) = (await client.logged(count=before + 1))[before:]
    shown = f"{address}:8080" if version == 4 else f"[{address}]:8080"
    assert (entry["direction"], entry["dst.addr"]) == ("outbound", shown)
    assert (entry["bytes_sent"], entry["bytes_recv"]) == (5, 5)
    for absent in ("dst.hbone_addr", "dst.workload", "dst.identity", "src.identity", "dst.service", "error"):
        assert absent not in entry
    assert entry["src.workload"] == "client"


async def test_a_known_workload_outside_the_mesh_gets_plaintext(standard: StandardMesh) -> None:
    client, legacy = standard.client, standard.legacy
    before = len(client.access_log())
    async with serve(legacy, 8080), await client.connect(legacy.ipv4, 8080) as stream:
        await stream.send_all(b"hello")
        assert await read_exactly(stream, 5) == b"hello"
    (entry,) = (await client.logged(count=before + 1))[before:]
    assert entry["dst.addr"] == f"{legacy.ipv4}:8080"
    assert entry["dst.workload"] == "legacy"
    assert "src.identity" not in entry
    assert "dst.identity" not in entry


@pytest.mark.parametrize("version", [4, 6])
async def test_plaintext_from_outside_reaches_the_application_with_its_own_address(
    standard: StandardMesh, version: int
) -> None:
    server, outside = standard.server, standard.outside
    address, source = (server.ipv4, outside.ipv4) if version == 4 else (server.ipv6, outside.ipv6)
    before = len(server.access_log())
    async with serve(server, 8080) as application, await outside.connect(address, 8080) as stream:
        await stream.send_all(b"hello")
        assert await read_exactly(stream, 5) == b"hello"
    assert application.peer_addresses == [source]
    (entry,) = (await server.logged(count=before + 1))[before:]
    shown = f"{address}:8080" if version == 4 else f"[{address}]:8080"
    assert (entry["direction"], entry["dst.addr"], entry["dst.workload"]) == ("inbound", shown, "server")
    for absent in ("dst.hbone_addr", "src.identity", "src.workload", "error"):
        assert absent not in entry
    assert server.metric(
        "istio_tcp_connections_opened_total", reporter="destination", connection_security_policy="unknown"
    )


async def test_plaintext_is_subject_to_policy(standard: StandardMesh) -> None:
    server, outside = standard.server, standard.outside
    strict = [[[{"notPrincipals": [Presence()]}]]]
    standard.mesh.policy("strict", action="Deny", rules=strict, workloads=[server])
    await standard.mesh.update()
    before = len(server.access_log())
    async with serve(server, 8080) as application:
        assert await refused_by(outside, server.ipv4, 8080) == "reset"
        assert application.peers == []
        async with await standard.client.connect(server.ipv4, 8080) as stream:
            await stream.send_all(b"over mTLS")
            assert await read_exactly(stream, 9) == b"over mTLS"
    refused = (await server.logged(count=before + 2))[before]
    assert refused["error"].startswith(
        "connection closed due to policy rejection: explicitly denied by: default/strict"
    )


async def test_an_application_that_refuses_plaintext_is_logged(standard: StandardMesh) -> None:
    server = standard.server
    before = len(server.access_log())
    assert await refused_by(standard.outside, server.ipv4, 9) == "reset"
    (entry,) = (await server.logged(count=before + 1))[before:]
    assert entry["error"] == "connection failed: Connection refused (os error 111)"


async def test_a_service_port_that_does_not_exist_is_refused_not_passed_through(
    standard: StandardMesh,
) -> None:
    client = standard.client
    before = len(client.access_log())
    assert await refused_by(client, standard.vip, 81, say=b"x") == "reset"
    (entry,) = (await client.logged(count=before + 1))[before:]
    assert (entry["level"], entry["message"]) == ("warn", "connection failed")
    assert entry["error"] == f"no healthy upstream: {standard.vip}:81"


@pytest.mark.parametrize("port", [15001, 15006])
async def test_ztunnels_own_ports_cannot_be_reached_as_plaintext(standard: StandardMesh, port: int) -> None:
    server = standard.server
    before = len(server.access_log())
    assert await refused_by(standard.outside, server.ipv4, port) == "reset"
    (entry,) = (await server.logged(count=before + 1))[before:]
    assert (entry["message"], entry["error"]) == (
        "connection failed",
        "attempted recursive call to ourselves",
    )


@pytest.mark.parametrize("port", [15001, 15006, 15008])
async def test_calling_ones_own_ztunnel_by_loopback_is_refused(standard: StandardMesh, port: int) -> None:
    # Connections to loopback are not redirected, so this reaches the port itself with itself as destination.
    client = standard.client
    before = len(client.access_log())
    assert await refused_by(client, "127.0.0.1", port, say=b"x" * 20) in {"end", "reset"}
    (entry,) = (await client.logged(count=before + 1))[before:]
    assert entry["message"] == "connection failed"
    if port != 15008:
        assert entry["error"] == "attempted recursive call to ourselves"


@pytest.mark.parametrize("port", [15001, 15006, 15008])
async def test_calling_another_pods_ztunnel_over_the_mesh_is_refused(
    standard: StandardMesh, port: int
) -> None:
    client, server = standard.client, standard.server
    before = len(server.access_log()), len(client.access_log())
    assert await refused_by(client, server.ipv4, port, say=b"x") == "reset"
    (inbound,) = (await server.logged(count=before[0] + 1))[before[0] :]
    assert inbound["error"] == "attempted recursive call to ourselves"
    (outbound,) = (await client.logged(count=before[1] + 1))[before[1] :]
    assert outbound["error"] == "http status: 503 Service Unavailable"


async def test_a_connection_to_nobody_is_reported(standard: StandardMesh) -> None:
    client = standard.client
    before = len(client.access_log())
    assert await refused_by(client, standard.outside.ipv4, 9, say=b"x") == "reset"
    (entry,) = (await client.logged(count=before + 1))[before:]
    assert entry["error"] == "io error: Connection refused (os error 111)"


async def test_both_redirection_backends_carry_traffic(standard: StandardMesh) -> None:
    mesh = standard.mesh
    mesh.redirection_backend = "nftables"
    pod = mesh.node("a").pod("nftables")
    try:
        mesh.start()
        await mesh.update()
        async with serve(standard.server, 8080) as application, serve(pod, 8081, echo) as own:
            async with await pod.connect(standard.server.ipv4, 8080) as stream:
                await stream.send_all(b"out")
                assert await read_exactly(stream, 3) == b"out"
            async with await standard.client.connect(pod.ipv4, 8081) as stream:
                await stream.send_all(b"in")
                assert await read_exactly(stream, 2) == b"in"
        assert application.peer_addresses == [pod.ipv4]
        assert own.peer_addresses == [standard.client.ipv4]
        (entry,) = await pod.logged(direction="inbound")
        assert entry["src.identity"] == standard.client.identity
    finally:
        mesh.redirection_backend = None
        mesh.remove_pod(pod)
