"""Waypoints that are behind a ztunnel of their own, and every way to refer to one."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import pytest
import trio

from tests.support.census import take_census
from tests.support.mesh import Mesh, waypoint
from tests.support.pod import MeshPod
from tests.support.quiet import quiet
from tests.support.raw_hbone import raw_client
from tests.support.raw_tls import KeyPair, TlsChoices
from tests.support.traffic import Server, echo, read_exactly, refused_by, serve

TUNNEL_PORT = 15088
SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
HOSTNAME = "{}.default.svc.cluster.local"
WAYPOINTS = ("none", "proxy", "spoofed", "bare")


@dataclass
class Sandwich:
    """A client, a server, and a waypoint of each kind, all served by ztunnel; a service behind each."""

    mesh: Mesh
    client: MeshPod
    server: MeshPod
    twin: MeshPod
    raw: MeshPod
    waypoints: dict[str, MeshPod] = field(default_factory=dict)
    vips: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def sandwich() -> Iterator[Sandwich]:
    with Mesh.open() as mesh:
        client, server = mesh.node("a").pod("client"), mesh.node("b").pod("server")
        twin = mesh.node("a").pod("twin", serviceaccount="bare")
        raw = mesh.node("a").pod("raw", captured=False)
        made = Sandwich(mesh, client, server, twin, raw)
        tunnels: dict[str, dict[str, Any]] = {
            "none": {"applicationTunnel": {"protocol": "NONE", "port": TUNNEL_PORT}},
            "proxy": {"applicationTunnel": {"protocol": "PROXY", "port": TUNNEL_PORT}},
            "spoofed": {"applicationTunnel": {"protocol": "PROXY", "port": TUNNEL_PORT}},
            "bare": {},
        }
        for name in WAYPOINTS:
            pod = mesh.node("b").pod(name, workload=tunnels[name])
            made.waypoints[name] = pod
            # As the control plane makes them: with a tunnel the service has no ports, else the HBONE port.
            ports = {15008: 15008} if name == "bare" else {}
            made.vips[f"waypoint {name}"] = mesh.service(name, ports=ports, endpoints=[pod])
            reference = waypoint(f"default/{HOSTNAME.format(name)}")
            web = f"web-{name}"
            number = len(mesh.services) + 10
            vips = [f"10.96.0.{number}", f"fd96::{number:x}"]
            made.vips[f"{name} IPv6"] = vips[1]
            made.vips[name] = mesh.service(
                web, ports={80: 8080}, endpoints=[server], waypoint=reference, vips=vips
            )
        made.waypoints["spoofed"].environment["LOCALHOST_APP_TUNNEL"] = "false"
        bare = made.waypoints["bare"]
        server.workload["waypoint"] = waypoint(bare)
        by_vip = waypoint(made.vips["waypoint bare"])
        made.vips["by vip"] = mesh.service("by-vip", ports={80: 8080}, endpoints=[server], waypoint=by_vip)
        bare.workload["hostname"] = "bare.example.com"
        by_name = waypoint("default/bare.example.com")
        made.vips["by name"] = mesh.service("by-name", ports={80: 8080}, endpoints=[server], waypoint=by_name)
        mesh.start()
        yield made
        name = mesh.machine.name
    census = take_census(name)
    assert census.empty, census


@pytest.fixture(autouse=True)
def _quiet(sandwich: Sandwich) -> None:
    quiet([sandwich.client, sandwich.server, *sandwich.waypoints.values()])


@dataclass
class ProxyHeader:
    """What a PROXY protocol v2 header said."""

    source: tuple[str, int]
    destination: tuple[str, int]
    tlvs: dict[int, bytes]


async def read_proxy_header(stream: trio.SocketStream) -> ProxyHeader:
    head = await read_exactly(stream, 16)
    assert head[:12] == SIGNATURE
    assert head[12] == 0x21, "version 2, command PROXY"
    assert head[13] in {0x11, 0x21}, "TCP over IPv4 or IPv6"
    body = await read_exactly(stream, int.from_bytes(head[14:16], "big"))
    size = 4 if head[13] == 0x11 else 16
    source, destination = ip_address(body[:size]), ip_address(body[size : 2 * size])
    ports = struct.unpack_from("!HH", body, 2 * size)
    rest, tlvs = body[2 * size + 4 :], {}
    while rest:
        length = int.from_bytes(rest[1:3], "big")
        tlvs[rest[0]] = rest[3 : 3 + length]
        rest = rest[3 + length :]
    return ProxyHeader((str(source), ports[0]), (str(destination), ports[1]), tlvs)


@asynccontextmanager
async def proxy_server(pod: MeshPod, address: str) -> AsyncIterator[tuple[Server, list[ProxyHeader]]]:
    headers: list[ProxyHeader] = []

    async def handler(stream: trio.SocketStream) -> None:
        headers.append(await read_proxy_header(stream))
        await echo(stream)

    async with serve(pod, TUNNEL_PORT, handler, address) as server:
        yield server, headers


def made_from(address: str) -> dict[str, Any]:
    """What tells the log line of a connection from those of others."""
    return {"src.addr": address}


async def ask(client: MeshPod, address: str, port: int = 80) -> str:
    """Have some bytes echoed. Returns our own address on that connection, as logs show it."""
    async with await client.connect(address, port) as stream:
        await stream.send_all(b"hello")
        assert await read_exactly(stream, 5) == b"hello"
        host, own_port, *_ = stream.socket.getsockname()
        return f"[{host}]:{own_port}" if ":" in host else f"{host}:{own_port}"


async def test_without_a_protocol_the_waypoint_sees_only_the_bytes(sandwich: Sandwich) -> None:
    client, gateway = sandwich.client, sandwich.waypoints["none"]
    before = len(gateway.access_log())
    async with serve(gateway, TUNNEL_PORT) as application:
        own = await ask(client, sandwich.vips["none"])
    assert application.peer_addresses == [client.ipv4]
    (out,) = await client.logged(**made_from(own))
    (into,) = (await gateway.logged(count=before + 1))[before:]
    for entry in (out, into):
        assert entry["dst.addr"] == f"{gateway.ipv4}:15008"
        assert entry["dst.hbone_addr"] == f"{sandwich.vips['none']}:80"
        assert entry["dst.identity"] == gateway.identity
        assert entry["src.identity"] == client.identity
    assert out["dst.service"] == HOSTNAME.format("web-none")


@pytest.mark.parametrize("name", ["proxy", "spoofed"])
@pytest.mark.parametrize("version", [4, 6])
async def test_the_proxy_header_says_who_and_where_to(sandwich: Sandwich, name: str, version: int) -> None:
    client, gateway = sandwich.client, sandwich.waypoints[name]
    six = version == 6
    vip = sandwich.vips[f"{name} IPv6" if six else name]
    source = client.ipv6 if six else client.ipv4
    # On loopback by default, else on the pod's address and with the client's shown as the source.
    local = name == "proxy"
    loopback = "::1" if six else "127.0.0.1"
    address = loopback if local else gateway.ipv6 if six else gateway.ipv4
    async with proxy_server(gateway, address) as (application, headers):
        await ask(client, vip)
    (header,) = headers
    assert application.peer_addresses == [loopback if local else source]
    assert header.source[0] == source
    assert header.destination == (vip, 80)
    assert header.tlvs == {0xD0: client.identity.encode()}


async def test_a_host_as_authority_is_named_by_its_services_address(sandwich: Sandwich) -> None:
    client, gateway = sandwich.client, sandwich.waypoints["proxy"]
    choices = TlsChoices(KeyPair.load(sandwich.mesh.root).issue(client.identity))
    async with (
        proxy_server(gateway, "127.0.0.1") as (_, headers),
        raw_client(sandwich.raw, gateway.ipv4, choices) as raw,
    ):
        stream = await raw.connect(f"{HOSTNAME.format('web-proxy')}:80")
        assert stream.status == 200
        assert await raw.exchange(stream, b"hello") == b"hello"
        unknown = await raw.connect("nobody.example.com:80")
        assert unknown.status == 503
    (header,) = headers
    assert header.source[0] == sandwich.raw.ipv4
    assert header.destination == (sandwich.vips["proxy"], 80)
    assert header.tlvs == {0xD0: client.identity.encode()}


async def test_policy_sees_the_tunnels_port(sandwich: Sandwich) -> None:
    client, gateway, mesh = sandwich.client, sandwich.waypoints["none"], sandwich.mesh
    async with serve(gateway, TUNNEL_PORT) as application:
        for port, denied in ((80, False), (TUNNEL_PORT, True)):
            rules = [[[{"destinationPorts": [port]}]]]
            key = mesh.policy("port", action="Deny", rules=rules, workloads=[gateway])
            await mesh.update()
            if denied:
                assert await refused_by(client, sandwich.vips["none"], 80) == "reset"
            else:
                await ask(client, sandwich.vips["none"])
            mesh.remove_policy(key)
            await mesh.update()
        assert len(application.peers) == 1


@pytest.mark.parametrize("how", ["bare", "by vip", "by name", "pod"])
async def test_a_waypoint_without_tunnel_gets_the_port_asked_for(sandwich: Sandwich, how: str) -> None:
    client, gateway, server = sandwich.client, sandwich.waypoints["bare"], sandwich.server
    address, port = (server.ipv4, 8080) if how == "pod" else (sandwich.vips[how], 80)
    async with serve(gateway, port) as application:
        own = await ask(client, address, port)
    assert application.peer_addresses == [client.ipv4]
    (entry,) = await client.logged(**made_from(own))
    assert entry["dst.addr"] == f"{gateway.ipv4}:15008"
    assert entry["dst.hbone_addr"] == f"{address}:{port}"


async def test_a_pod_that_is_no_waypoint_takes_nobody_elses_connections(sandwich: Sandwich) -> None:
    client, server = sandwich.client, sandwich.server
    choices = TlsChoices(KeyPair.load(sandwich.mesh.root).issue(client.identity))
    async with serve(server, 8080) as application, raw_client(sandwich.raw, server.ipv4, choices) as raw:
        for authority in (f"{sandwich.vips['bare']}:8080", f"{client.ipv4}:8080", "192.0.2.1:8080"):
            assert (await raw.connect(authority)).status == 400
        assert (await raw.connect(f"{server.ipv4}:8080")).status == 200
    assert len(application.peers) == 1


async def test_what_comes_from_the_waypoint_itself_goes_on_to_the_pod(sandwich: Sandwich) -> None:
    gateway, server, twin = sandwich.waypoints["bare"], sandwich.server, sandwich.twin
    async with serve(server, 8080) as application, serve(gateway, 8080) as again:
        await ask(gateway, server.ipv4, 8080)
        assert (len(application.peers), len(again.peers)) == (1, 0)
        (entry,) = (await gateway.logged(direction="outbound", dst__hbone_addr=f"{server.ipv4}:8080"))[-1:]
        assert entry["dst.addr"] == f"{server.ipv4}:15008"
        # The identity alone does not make a waypoint; the address has to be its own too.
        assert twin.identity == gateway.identity
        await ask(twin, server.ipv4, 8080)
        assert (len(application.peers), len(again.peers)) == (1, 1)


async def test_a_services_waypoint_applies_to_the_waypoint_too(sandwich: Sandwich) -> None:
    gateway, server = sandwich.waypoints["bare"], sandwich.server
    async with serve(server, 8080) as application, serve(gateway, 80) as again:
        await ask(gateway, sandwich.vips["bare"])
        assert (len(application.peers), len(again.peers)) == (0, 1)
