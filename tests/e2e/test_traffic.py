"""Traffic between workloads: it arrives, both ways, as who it is, and the logs and metrics say so."""

from __future__ import annotations

import pytest
import trio

from tests.e2e.conftest import StandardMesh
from tests.support.pod import MeshPod
from tests.support.traffic import echo, read_all, read_exactly, refused_by, serve

ASKED, ANSWERED = b"hello world", b"hello worldhello world"


async def echo_twice(stream: trio.SocketStream) -> None:
    while data := await stream.receive_some(65_536):
        await stream.send_all(data * 2)


async def ask(client: MeshPod, address: str, port: int) -> None:
    async with await client.connect(address, port) as stream:
        await stream.send_all(ASKED)
        assert await read_exactly(stream, len(ANSWERED)) == ANSWERED
        await stream.send_eof()
        assert await read_all(stream) == b""


async def test_both_sides_log_the_connection_with_both_identities(standard: StandardMesh) -> None:
    client, server = standard.client, standard.server
    known = len(client.access_log()), len(server.access_log())
    async with serve(server, 8080, echo_twice) as application:
        await ask(client, server.ipv4, 8080)
    assert application.peer_addresses == [client.ipv4]
    (outbound,) = (await client.logged(count=known[0] + 1))[known[0] :]
    (inbound,) = (await server.logged(count=known[1] + 1))[known[1] :]
    common = {
        "level": "info",
        "scope": "access",
        "message": "connection complete",
        "src.workload": "client",
        "src.namespace": "default",
        "src.identity": client.identity,
        "src.cluster": "Kubernetes",
        "dst.addr": f"{server.ipv4}:15008",
        "dst.hbone_addr": f"{server.ipv4}:8080",
        "dst.workload": "server",
        "dst.namespace": "default",
        "dst.identity": server.identity,
        "dst.cluster": "Kubernetes",
    }
    for entry, direction, sent, received in (
        (outbound, "outbound", len(ASKED), len(ANSWERED)),
        (inbound, "inbound", len(ANSWERED), len(ASKED)),
    ):
        assert {key: entry.get(key) for key in common} == common
        assert entry["src.addr"].startswith(f"{client.ipv4}:")
        assert (entry["direction"], entry["bytes_sent"], entry["bytes_recv"]) == (direction, sent, received)
        assert entry["duration"].endswith("ms")
        assert "error" not in entry


@pytest.mark.parametrize("name", ["IPv4", "IPv6", "VIP"])
async def test_every_kind_of_address_leads_there(standard: StandardMesh, name: str) -> None:
    client, server = standard.client, standard.server
    address, port = {
        "IPv4": (server.ipv4, 8080),
        "IPv6": (server.ipv6, 8080),
        "VIP": (standard.vip, 80),
    }[name]
    before, known = len(client.access_log()), len(server.access_log())
    async with serve(server, 8080, echo_twice) as application:
        await ask(client, address, port)
    expected = client.ipv6 if name == "IPv6" else client.ipv4
    assert application.peer_addresses == [expected]
    (entry,) = (await client.logged(count=before + 1))[before:]
    assert ("dst.service" in entry) == (name == "VIP")
    # The server's side names it in all cases: it is the one service that leads to this port.
    (inbound,) = (await server.logged(count=known + 1))[known:]
    assert inbound["dst.service"] == "web.default.svc.cluster.local"
    if name == "VIP":
        assert entry["dst.service"] == "web.default.svc.cluster.local"
    port_of_tunnel = entry["dst.addr"].rpartition(":")[2]
    assert port_of_tunnel == "15008"


async def test_a_pod_that_calls_its_own_address_does_not_leave_the_kernel(standard: StandardMesh) -> None:
    # istio-cni's rules accept what goes out over loopback.
    server = standard.server
    before = len(server.access_log())
    async with serve(server, 8080, echo_twice) as application:
        await ask(server, server.ipv4, 8080)
    assert application.peer_addresses == [server.ipv4]
    assert len(server.access_log()) == before


@pytest.mark.parametrize("source", ["same node", "itself by its service"])
async def test_near_destinations_go_the_same_way(standard: StandardMesh, source: str) -> None:
    server = standard.server
    if source == "same node":
        client, server = standard.client, standard.other
    else:
        client = server
    address, port = (standard.vip, 80) if source == "itself by its service" else (server.ipv4, 8080)
    before = len(client.access_log(direction="outbound"))
    async with serve(server, 8080, echo_twice):
        await ask(client, address, port)
    (entry,) = (await client.logged(count=before + 1, direction="outbound"))[before:]
    assert entry["dst.addr"] == f"{server.ipv4}:15008"
    assert entry["src.identity"] == client.identity


async def test_metrics_count_bytes_and_connections_at_both_reporters(standard: StandardMesh) -> None:
    client, server = standard.other, standard.server
    labels = {
        "source_principal": client.identity,
        "destination_principal": server.identity,
        "source_workload": "other-deployment",
        "source_workload_namespace": "elsewhere",
        "destination_workload": "server-deployment",
        "connection_security_policy": "mutual_tls",
        "request_protocol": "tcp",
        "response_flags": "-",
    }
    names = {
        "istio_tcp_connections_opened_total": 3,
        "istio_tcp_connections_closed_total": 3,
        "istio_tcp_received_bytes_total": 3 * len(ASKED),
        "istio_tcp_sent_bytes_total": 3 * len(ANSWERED),
    }
    reporters = ((client, "source"), (server, "destination"))
    before = {
        (reporter, name): pod.metric(name, reporter=reporter, **labels)
        for pod, reporter in reporters
        for name in names
    }
    async with serve(server, 8080, echo_twice):
        for _ in range(3):
            await ask(client, standard.vip, 80)
    for pod, reporter in reporters:
        closed = before[reporter, "istio_tcp_connections_closed_total"] + 3
        await pod.metric_reaches(closed, "istio_tcp_connections_closed_total", reporter=reporter, **labels)
        for name, grown in names.items():
            assert pod.metric(name, reporter=reporter, **labels) - before[reporter, name] == grown, (
                name,
                reporter,
            )


async def test_nothing_listening_is_told_to_the_client_and_logged_on_both_sides(
    standard: StandardMesh,
) -> None:
    client, server = standard.client, standard.server
    before = len(client.access_log()), len(server.access_log())
    assert await refused_by(client, server.ipv4, 9, say=b"x") == "reset"
    (outbound,) = (await client.logged(count=before[0] + 1))[before[0] :]
    (inbound,) = (await server.logged(count=before[1] + 1))[before[1] :]
    assert (outbound["level"], outbound["error"]) == ("error", "http status: 503 Service Unavailable")
    assert (inbound["level"], inbound["error"]) == (
        "error",
        "connection failed: Connection refused (os error 111)",
    )


async def test_many_small_messages_keep_their_order(standard: StandardMesh) -> None:
    async with (
        serve(standard.server, 8080, echo),
        await standard.client.connect(standard.vip, 80) as stream,
    ):
        for number in range(500):
            message = f"{number:06}".encode()
            await stream.send_all(message)
            assert await read_exactly(stream, 6) == message


async def test_a_server_that_speaks_first_is_heard(standard: StandardMesh) -> None:
    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"220 ready\r\n")
        await echo(stream)

    async with (
        serve(standard.server, 2525, greet),
        await standard.client.connect(standard.server.ipv4, 2525) as stream,
    ):
        assert await read_exactly(stream, 11) == b"220 ready\r\n"
        await stream.send_all(b"QUIT")
        assert await read_exactly(stream, 4) == b"QUIT"
