"""Other networks: a tunnel to their gateway, and inside it a tunnel to the destination itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
import trio

from tests.e2e.east_west import gateway
from tests.support.census import take_census
from tests.support.local_file import Exact
from tests.support.mesh import Mesh, waypoint
from tests.support.pod import MeshPod, eventually
from tests.support.quiet import quiet
from tests.support.raw_hbone import raw_server
from tests.support.raw_tls import KeyPair, TlsChoices
from tests.support.traffic import (
    ended_by,
    pattern,
    read_all,
    read_exactly,
    receive_pattern,
    refused_by,
    send_pattern,
    serve,
)

HERE, THERE = "one", "two"


@dataclass
class Networks:
    """A client and a server on network one; on network two a gateway, a server with ztunnel, one played."""

    mesh: Mesh
    client: MeshPod
    local: MeshPod
    remote: MeshPod
    played: MeshPod
    gateway: MeshPod
    vips: dict[str, str] = field(default_factory=dict)

    def choices(self, identity: str) -> TlsChoices:
        return TlsChoices(KeyPair.load(self.mesh.root).issue(identity))

    def gateway_to(self, pod: MeshPod, *names: str, identity: str | None = None) -> Any:
        """The gateway, playing; it leads to one pod under the hostnames of these services."""
        choices = self.choices(identity or self.gateway.identity)
        return gateway(self.gateway, choices, {hostname(name): pod for name in names})


def hostname(name: str) -> str:
    return f"{name}.default.svc.cluster.local"


@pytest.fixture(scope="module")
def networks() -> Iterator[Networks]:
    with Mesh.open(environment={"NETWORK": HERE}) as mesh:
        here, there = mesh.node("a"), mesh.node("b")
        client = here.pod("client", workload={"network": HERE})
        local = here.pod("local", workload={"network": HERE})
        behind = there.pod("gateway", captured=False, workload={"network": THERE})
        reference = waypoint(f"{THERE}/{behind.ipv4}")
        place = {"network": THERE, "locality": {"region": "r2", "zone": "z2", "subzone": ""}}
        remote = there.pod("remote", workload=place | {"networkGateway": reference})
        remote.environment["NETWORK"] = THERE
        played = there.pod("played", captured=False, workload={"network": THERE, "networkGateway": reference})
        made = Networks(mesh, client, local, remote, played, behind)

        def define(name: str, *pods: MeshPod, **fields: Any) -> None:
            vip = mesh.service(name, ports={80: 8080}, endpoints=pods, **fields)
            mesh.services[-1]["vips"] = [f"{HERE}/{vip}", f"{THERE}/{vip}"]
            made.vips[name] = vip

        define("web", remote, subjectAltNames=[remote.identity])
        define("played", played, subjectAltNames=[played.identity])
        define("nameless", remote)
        prefer_here = {"mode": "Failover", "routingPreferences": ["Network"], "healthPolicy": "OnlyHealthy"}
        define("both", local, remote, subjectAltNames=[remote.identity], loadBalancer=prefer_here)
        by_service = there.pod("by-service", captured=False, workload=dict(place))
        mesh.service("east-west", ports={15009: 15008}, endpoints=[behind])
        by_service.workload["networkGateway"] = waypoint(f"default/{hostname('east-west')}", 15009)
        define("by-service", by_service, subjectAltNames=[remote.identity])
        without = there.pod("without", captured=False, workload=dict(place))
        define("without", without, subjectAltNames=[without.identity])
        lost = there.pod("lost", captured=False, workload=dict(place))
        lost.workload["networkGateway"] = waypoint(f"{THERE}/10.77.9.9")
        define("lost", lost, subjectAltNames=[lost.identity])
        # A waypoint there, for a service whose endpoint is here.
        mesh.service("waypoint", ports={15008: 15008}, endpoints=[played], subjectAltNames=[played.identity])
        define("waypointed", local, waypoint=waypoint(f"default/{hostname('waypoint')}"))
        mesh.start()
        yield made
        name = mesh.machine.name
    census = take_census(name)
    assert census.empty, census


@pytest.fixture(autouse=True)
def _quiet(networks: Networks) -> None:
    quiet([networks.client, networks.local, networks.remote])


async def ask(client: MeshPod, address: str) -> None:
    async with await client.connect(address, 80) as stream:
        await stream.send_all(b"hello")
        assert await read_exactly(stream, 5) == b"hello"
        await stream.send_eof()
        assert await read_all(stream) == b""


async def fails(client: MeshPod, address: str) -> dict[str, Any]:
    """A connection that must fail; gives its access log line."""
    before = len(client.access_log())
    assert await refused_by(client, address, 80, say=b"secret", timeout=30) == "reset"
    (entry,) = (await client.logged(count=before + 1))[before:]
    assert "error" in entry
    return entry


@pytest.mark.parametrize("name", ["web", "by-service"])
async def test_both_ends_know_each_other_through_the_gateway(networks: Networks, name: str) -> None:
    client, remote, behind = networks.client, networks.remote, networks.gateway
    before = len(client.access_log()), len(remote.access_log())
    labels = {"destination_workload": "remote-deployment", "destination_principal": remote.identity}
    counted = client.metric("istio_tcp_connections_closed_total", **labels)
    async with networks.gateway_to(remote, "web", "by-service") as played, serve(remote, 8080) as application:
        await ask(client, networks.vips[name])
        assert played.authorities == [f"{hostname(name)}:80"]
        (outer,) = played.server.requests
        headers = dict(outer.headers)
        assert headers["forwarded"].endswith(f";host={hostname(name)}")
        assert "x-forwarded-network" not in headers
        assert played.server.connections[0].tls.peer_uri() == client.identity
        await eventually(lambda: outer.ended or outer.reset is not None, "the end of the outer stream")
        assert played.resets == [], "the outer stream ends in order"
    assert application.peer_addresses == [behind.ipv4]
    (out,) = (await client.logged(count=before[0] + 1))[before[0] :]
    (into,) = (await remote.logged(count=before[1] + 1))[before[1] :]
    assert out["dst.addr"] == f"{behind.ipv4}:15008"
    assert (out["dst.workload"], out["dst.namespace"]) == ("remote-deployment", "default")
    assert (out["dst.identity"], out["dst.service"]) == (remote.identity, hostname(name))
    assert (out["bytes_sent"], out["bytes_recv"]) == (5, 5)
    for entry in (out, into):
        assert entry["level"] == "info", entry
        assert entry["dst.hbone_addr"] == f"{hostname(name)}:80"
        assert entry["src.identity"] == client.identity
    # The source is on another network: its address would mean somebody else here.
    assert (into["src.addr"].split(":")[0], into["src.workload"]) == (behind.ipv4, "client")
    await client.metric_reaches(counted + 1, "istio_tcp_connections_closed_total", **labels)
    opened = client.metrics("istio_tcp_connections_opened_total", **labels)
    assert {sample.labels["destination_zone"] for sample in opened} == {"z2"}


async def test_the_inner_request_is_the_references(networks: Networks) -> None:
    client, played = networks.client, networks.played
    before = len(client.access_log())
    async with (
        networks.gateway_to(played, "played") as behind,
        raw_server(played, networks.choices(played.identity)) as inner,
    ):
        await ask(client, networks.vips["played"])
        outer = behind.server.requests[0].headers
        (request,) = inner.requests
        (connection,) = inner.connections
    assert request.headers == [*outer, ("x-forwarded-network", HERE)]
    assert [name for name, _ in outer] == [":method", ":authority", "baggage", "forwarded", "traceparent"]
    assert connection.tls.peer_uri() == client.identity
    assert connection.h2.remote_settings.initial_window_size == 4_194_304
    # No baggage in the answer: only the identity is known.
    (entry,) = (await client.logged(count=before + 1))[before:]
    assert entry["dst.identity"] == played.identity
    assert "dst.workload" not in entry


async def test_connections_share_the_outer_tunnel_and_nothing_else(networks: Networks) -> None:
    client, played = networks.client, networks.played
    async with (
        networks.gateway_to(played, "played") as behind,
        raw_server(played, networks.choices(played.identity)) as inner,
    ):
        for _ in range(3):
            await ask(client, networks.vips["played"])
        assert len(behind.server.connections) == 1
        assert len(inner.connections) == 3


async def test_a_service_that_names_nobody_is_never_reached(networks: Networks) -> None:
    client, remote = networks.client, networks.remote
    before = client.metric("istio_tcp_connections_failed_total")
    async with networks.gateway_to(remote, "nameless") as behind, serve(remote, 8080) as application:
        entry = await fails(client, networks.vips["nameless"])
        assert behind.authorities == [f"{hostname('nameless')}:80"], "asked once"
    assert "peer did not present the expected SAN (), got" in entry["error"]
    assert application.peers == []
    assert client.metric("istio_tcp_connections_failed_total") == before + 1


async def test_an_inner_peer_that_is_somebody_else_gets_nothing(networks: Networks) -> None:
    client, played = networks.client, networks.played
    async with (
        networks.gateway_to(played, "played"),
        raw_server(played, networks.choices(networks.local.identity)) as inner,
    ):
        entry = await fails(client, networks.vips["played"])
        assert inner.requests == []
    assert "peer did not present the expected SAN" in entry["error"]


async def test_a_gateway_that_is_somebody_else_gets_nothing(networks: Networks) -> None:
    client, remote = networks.client, networks.remote
    async with networks.gateway_to(remote, "web", identity=networks.local.identity) as behind:
        entry = await fails(client, networks.vips["web"])
        assert behind.authorities == []
    assert "peer did not present the expected SAN" in entry["error"]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("without", "no valid routing destination for workload: Workload{without with uid "),
        ("lost", "unknown network gateway: network gateway GatewayAddress { destination: Address("),
    ],
)
async def test_a_network_without_a_gateway_is_not_reached(networks: Networks, name: str, error: str) -> None:
    entry = await fails(networks.client, networks.vips[name])
    assert entry["message"] == "connection failed"
    assert entry["error"].startswith(error)


async def test_an_endpoint_here_is_preferred_and_one_there_takes_over(networks: Networks) -> None:
    client, local, remote = networks.client, networks.local, networks.remote
    async with networks.gateway_to(remote, "both"), serve(remote, 8080) as far:
        async with serve(local, 8080) as near:
            for _ in range(5):
                await ask(client, networks.vips["both"])
            assert (len(near.peers), len(far.peers)) == (5, 0)
        await ask(client, networks.vips["both"])
        assert len(far.peers) == 1


async def test_a_waypoint_on_another_network_ends_the_inner_tunnel(networks: Networks) -> None:
    client, played = networks.client, networks.played
    async with (
        networks.gateway_to(played, "waypointed") as behind,
        raw_server(played, networks.choices(played.identity)) as inner,
    ):
        await ask(client, networks.vips["waypointed"])
        assert behind.authorities == [f"{hostname('waypointed')}:80"]
        assert [dict(request.headers)[":authority"] for request in inner.requests] == behind.authorities


async def test_bulk_data_both_ways_through_two_tunnels(networks: Networks) -> None:
    client, remote = networks.client, networks.remote
    total = 12_000_000

    async def both(stream: trio.SocketStream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_pattern, stream, total, Random(1))
            assert await receive_pattern(stream, total) == total
        await stream.send_eof()

    async with networks.gateway_to(remote, "web"), serve(remote, 8080, both) as application:
        with trio.fail_after(60):
            async with (
                await client.connect(networks.vips["web"], 80) as stream,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(send_pattern, stream, total, Random(2))
                assert await receive_pattern(stream) == total
        assert application.failures == []


async def test_the_last_bytes_arrive_when_the_server_has_ended_its_side_long_before(
    networks: Networks,
) -> None:
    """Both directions are over for us while megabytes still wait for the outer stream's window."""
    client, remote = networks.client, networks.remote
    total = 6_000_000
    received: list[int] = []
    done = trio.Event()

    async def slow_reader(stream: trio.SocketStream) -> None:
        await stream.send_eof()
        at = 0
        while data := await stream.receive_some(65_536):
            assert pattern(at, len(data)) == data
            at += len(data)
            await trio.sleep(0.005)
        received.append(at)
        done.set()

    async with networks.gateway_to(remote, "web") as behind, serve(remote, 8080, slow_reader) as application:
        async with await client.connect(networks.vips["web"], 80) as stream:
            assert await read_all(stream) == b""
            await send_pattern(stream, total, Random(3))
        with trio.fail_after(30):
            await done.wait()
        assert application.failures == []
        assert received == [total]
        assert behind.resets == []


async def test_what_policy_cuts_behind_a_gateway_ends_with_a_reset_on_both_sides(networks: Networks) -> None:
    """Cut in the inner tunnel, while the client is sending: the application must not take that for all."""
    client, remote, mesh = networks.client, networks.remote, networks.mesh
    ends: list[str] = []

    async def remember(stream: trio.SocketStream) -> None:
        assert await read_exactly(stream, 6) == b"a part"
        await stream.send_all(b"x")
        ends.append(await ended_by(stream))

    async with networks.gateway_to(remote, "web"), serve(remote, 8080, remember):
        async with await client.connect(networks.vips["web"], 80) as stream:
            await stream.send_all(b"a part")
            assert await read_exactly(stream, 1) == b"x"
            late = mesh.policy("late", action="Deny", rules=[[[{"notPrincipals": [Exact("nobody")]}]]])
            try:
                await mesh.update()
                assert await ended_by(stream) == "reset"
            finally:
                mesh.remove_policy(late)
                await mesh.update()
        await eventually(lambda: ends == ["reset"], "the application saw a reset")
