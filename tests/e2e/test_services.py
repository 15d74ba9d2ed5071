"""Services: whom a virtual address leads to, at which port, and when it leads nowhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio

from tests.e2e.name_server import ResolvingDeployment, name_server
from tests.support.census import take_census
from tests.support.mesh import Mesh
from tests.support.pod import MeshPod, eventually
from tests.support.quiet import quiet
from tests.support.raw_hbone import raw_server
from tests.support.raw_tls import KeyPair, TlsChoices
from tests.support.traffic import Handler, read_all, read_exactly, refused_by, serve
from ztunnel.bounds import DEFAULTS

NAMED = "spiffe://cluster.local/ns/default/sa/named"


@dataclass
class Services:
    """A client, two servers in the mesh (one in its zone), one outside ztunnel's care, and their services."""

    mesh: Mesh
    client: MeshPod
    near: MeshPod
    far: MeshPod
    plain: MeshPod
    never: MeshPod
    sick: MeshPod
    outside: MeshPod
    resolver: MeshPod
    vips: dict[str, str] = field(default_factory=dict)


def locality(zone: str) -> dict[str, str]:
    return {"region": "r1", "zone": zone, "subzone": ""}


def balancer(mode: str, *scopes: str, health: str = "OnlyHealthy") -> dict[str, Any]:
    return {"mode": mode, "routingPreferences": list(scopes), "healthPolicy": health}


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    deployment = ResolvingDeployment()
    with Mesh.open(deployment=deployment) as mesh:
        one, two = mesh.node("a"), mesh.node("b")
        near_zone, far_zone = {"locality": locality("z1")}, {"locality": locality("z2")}
        client = one.pod("client", workload=dict(near_zone))
        near = two.pod("near", workload=near_zone | {"capacity": 3})
        far = two.pod("far", workload=dict(far_zone))
        plain = two.pod("plain", captured=False, protocol="TCP")
        never = two.pod("never", captured=False, protocol="TCP", workload={"capacity": 0})
        sick = two.pod("sick", captured=False, protocol="TCP", workload={"status": "Unhealthy"})
        outside = two.pod("outside", captured=False, registered=False)
        resolver = two.pod("resolver", captured=False, registered=False)
        played = two.pod("played", captured=False)
        named = two.pod(
            "named", captured=False, workload={"workloadIps": [], "hostname": "named.example.com"}
        )
        lost = two.pod("lost", captured=False, workload={"workloadIps": [], "hostname": "lost.example.com"})
        named.protocol = lost.protocol = "TCP"
        deployment.resolver = resolver
        made = Services(mesh, client, near, far, plain, never, sick, outside, resolver)
        web = {80: 8080}

        def define(name: str, ports: dict[int, int] = web, *pods: MeshPod, **fields: Any) -> None:
            made.vips[name] = mesh.service(name, ports=ports, endpoints=pods, **fields)

        define("weighted", web, near, far, never)
        define("mixed", web, far, plain)
        zone = ("Region", "Zone")
        define("failover", web, near, far, loadBalancer=balancer("Failover", *zone))
        define("failover-far", web, far, loadBalancer=balancer("Failover", *zone))
        define("strict", web, near, far, loadBalancer=balancer("Strict", *zone))
        define("strict-far", web, far, loadBalancer=balancer("Strict", *zone))
        define("sick", web, sick, far)
        define("all-sick", web, sick)
        define("sick-anyway", web, sick, loadBalancer=balancer("Standard", health="AllowAll"))
        define("headless", web, near, vips=())
        define("empty")
        define("ports", {80: 8080, 81: 9090, 82: 0}, near, far)
        hostname = "ports.default.svc.cluster.local"
        near.workload["services"][f"default/{hostname}"] = {80: 8080, 82: 7070}
        far.workload["services"][f"default/{hostname}"] = {80: 8081}
        define("wide", web, near, vips=(), cidrVips=[{"network": "", "cidr": "10.97.0.0/16"}])
        define("narrow", web, far, vips=(), cidrVips=[{"network": "", "cidr": "10.97.5.0/24"}])
        define("past", web, near, vips=[outside.ipv4], loadBalancer=balancer("Passthrough"))
        for families in ("IPv4", "IPv6", "Dual"):
            number = len(mesh.services) + 10
            vips = [f"10.96.0.{number}", f"fd96::{number:x}"]
            define(f"family-{families}", web, near, vips=vips, ipFamilies=families)
        define("vouched", web, played, subjectAltNames=[NAMED])
        define("by-name", web, named)
        define("by-lost-name", web, lost)
        made.vips["played"] = played.ipv4
        mesh.start()
        yield made
        name = mesh.machine.name
    census = take_census(name)
    assert census.empty, census


@pytest.fixture(autouse=True)
def _quiet(services: Services) -> None:
    quiet([services.client])


def says(text: str) -> Handler:
    async def handler(stream: trio.SocketStream) -> None:
        await stream.send_all(text.encode())
        await stream.send_eof()
        await read_all(stream)

    return handler


@asynccontextmanager
async def serving(services: Services, *extra: tuple[MeshPod, int]) -> AsyncIterator[None]:
    """Each server tells its name and port to whoever connects."""
    every = [
        (pod, 8080) for pod in (services.near, services.far, services.plain, services.never, services.sick)
    ]
    async with AsyncExitStack() as stack:
        for pod, port in [*every, *extra]:
            await stack.enter_async_context(serve(pod, port, says(f"{pod.name}:{port}")))
        yield


async def ask(client: MeshPod, address: str, port: int = 80) -> str:
    async with await client.connect(address, port) as stream:
        answer = await read_all(stream)
        await stream.send_eof()
        return answer.decode()


async def spread(services: Services, name: str, count: int) -> Counter[str]:
    found: Counter[str] = Counter()
    for _ in range(count):
        found[await ask(services.client, services.vips[name])] += 1
    return found


async def refused(client: MeshPod, address: str, port: int = 80) -> dict[str, Any]:
    """Connect to what refuses; gives the access log line."""
    before = len(client.access_log(level="error")), len(client.access_log(level="warn"))
    assert await refused_by(client, address, port) == "reset"
    found: list[dict[str, Any]] = []

    def told() -> bool:
        # The lines of connections that went before may still be coming; they have no errors.
        for level, count in zip(("error", "warn"), before, strict=True):
            found.extend(client.access_log(level=level)[count:])
        return bool(found)

    await eventually(told, f"told why {address}:{port} refused")
    (entry,) = found
    return entry


async def test_connections_are_spread_by_capacity_over_all_localities(services: Services) -> None:
    async with serving(services):
        found = await spread(services, "weighted", 80)
    assert set(found) == {"near:8080", "far:8080"}, "capacity 0 gets nothing"
    # Three to one: 60 and 20, with a standard deviation of 4.
    assert 40 < found["near:8080"] < 78


async def test_endpoints_in_the_mesh_and_outside_serve_side_by_side(services: Services) -> None:
    before = len(services.client.access_log())
    async with serving(services):
        found = await spread(services, "mixed", 30)
    assert set(found) == {"far:8080", "plain:8080"}
    entries = (await services.client.logged(count=before + 30))[before:]
    assert {entry["dst.addr"] for entry in entries} == {
        f"{services.far.ipv4}:15008",
        f"{services.plain.ipv4}:8080",
    }
    assert {entry["dst.service"] for entry in entries} == {"mixed.default.svc.cluster.local"}
    for entry in entries:
        assert ("dst.identity" in entry) == (entry["dst.workload"] == "far")


@pytest.mark.parametrize(
    ("name", "only"),
    [
        ("failover", "near"),
        ("failover-far", "far"),
        ("strict", "near"),
        ("sick", "far"),
        ("sick-anyway", "sick"),
    ],
)
async def test_locality_and_health_bound_the_choice(services: Services, name: str, only: str) -> None:
    async with serving(services):
        assert set(await spread(services, name, 8)) == {f"{only}:8080"}


async def penalty_over() -> None:
    """Wait until an endpoint that refused is no longer avoided, for the tests that follow."""
    await trio.sleep(DEFAULTS.connection.ejection_time)


async def test_a_preferred_endpoint_that_refuses_is_passed_over_without_a_failed_request(
    services: Services,
) -> None:
    client = services.client
    before = client.metric("istio_tcp_connections_failed_total", destination_workload="near-deployment")
    async with serve(services.far, 8080, says("far")):
        assert set(await spread(services, "failover", 8)) == {"far"}
    failed = client.metric("istio_tcp_connections_failed_total", destination_workload="near-deployment")
    assert failed == before + 1, "the others avoid it for a moment"
    (told,) = client.log(message="trying another endpoint")
    assert told["error"] == "http status: 503 Service Unavailable"
    await penalty_over()


async def test_strict_locality_is_not_left_even_for_a_refusal(services: Services) -> None:
    async with serve(services.far, 8080) as application:
        entry = await refused(services.client, services.vips["strict"])
    assert entry["error"] == "http status: 503 Service Unavailable"
    assert application.peers == []
    await penalty_over()


@pytest.mark.parametrize(
    ("name", "port"),
    [("strict-far", 80), ("all-sick", 80), ("empty", 80), ("weighted", 81), ("ports", 443)],
    ids=["strict", "unhealthy", "no endpoints", "unknown port", "unknown port of several"],
)
async def test_a_service_without_anybody_for_it_refuses(services: Services, name: str, port: int) -> None:
    async with serving(services):
        entry = await refused(services.client, services.vips[name], port)
    assert (entry["level"], entry["message"]) == ("warn", "connection failed")
    assert entry["error"] == f"no healthy upstream: {services.vips[name]}:{port}"
    assert set(entry) & {"src.identity", "dst.workload", "dst.service", "bytes_sent"} == set()


async def test_a_headless_service_is_reached_by_its_pods_addresses(services: Services) -> None:
    client, near = services.client, services.near
    before = len(client.access_log())
    async with serving(services):
        assert await ask(client, near.ipv4, 8080) == "near:8080"
    (entry,) = (await client.logged(count=before + 1))[before:]
    assert entry["dst.addr"] == f"{near.ipv4}:15008"
    assert "dst.service" not in entry


async def test_ports_are_the_workloads_own_then_the_services(services: Services) -> None:
    near, far, vip = services.near, services.far, services.vips["ports"]
    extra = [(near, 9090), (far, 9090), (far, 8081), (near, 7070)]
    async with serving(services, *extra):
        # Three of four connections go to one of them: sixty miss the other once in thirty million runs.
        found = {port: {await ask(services.client, vip, port) for _ in range(60)} for port in (80, 81, 82)}
    assert found == {
        80: {"near:8080", "far:8081"},
        81: {"near:9090", "far:9090"},
        # A named port, which only one of them has.
        82: {"near:7070"},
    }


async def test_a_range_of_addresses_leads_to_its_service_and_the_narrower_range_wins(
    services: Services,
) -> None:
    async with serving(services):
        assert await ask(services.client, "10.97.0.7") == "near:8080"
        assert await ask(services.client, "10.97.200.1") == "near:8080"
        assert await ask(services.client, "10.97.5.9") == "far:8080"
    entry = await refused(services.client, "10.97.5.9", 81)
    assert entry["error"] == "no healthy upstream: 10.97.5.9:81"


async def test_passthrough_goes_to_the_address_itself(services: Services) -> None:
    client, outside = services.client, services.outside
    before = len(client.access_log())
    async with serving(services, (outside, 80)):
        assert await ask(client, outside.ipv4) == "outside:80"
    (entry,) = (await client.logged(count=before + 1))[before:]
    assert entry["dst.addr"] == f"{outside.ipv4}:80"
    assert "dst.service" not in entry


@pytest.mark.parametrize("families", ["IPv4", "IPv6", "Dual"])
@pytest.mark.parametrize("asked", [4, 6])
async def test_the_services_families_choose_the_address(
    services: Services, families: str, asked: int
) -> None:
    client, near = services.client, services.near
    vip = services.vips[f"family-{families}"]
    if asked == 6:
        vip = f"fd96::{int(vip.rpartition('.')[2]):x}"
    before = len(client.access_log())
    async with serving(services):
        assert await ask(client, vip) == "near:8080"
    told = (await client.logged(count=before + 1))[before:]
    assert len(told) == 1, told
    (entry,) = told
    v6 = families == "IPv6" or (families == "Dual" and asked == 6)
    assert entry["dst.addr"] == (f"[{near.ipv6}]:15008" if v6 else f"{near.ipv4}:15008")


async def test_a_services_alternative_names_are_accepted_for_the_service_alone(services: Services) -> None:
    client, mesh = services.client, services.mesh
    (played,) = [pod for pod in mesh.pods if pod.name == "played"]
    choices = TlsChoices(KeyPair.load(mesh.root).issue(NAMED))
    async with raw_server(played, choices) as server:
        async with await client.connect(services.vips["vouched"], 80) as stream:
            await stream.send_all(b"hello")
            assert await read_exactly(stream, 5) == b"hello"
        requests = len(server.requests)
        entry = await refused(client, played.ipv4, 8080)
        assert len(server.requests) == requests
    assert "peer did not present the expected SAN" in entry["error"]
    assert NAMED in entry["error"]


async def test_a_workload_known_by_name_is_resolved_when_it_is_needed(services: Services) -> None:
    client, plain = services.client, services.plain
    names = {"named.example.com": [plain.ipv4]}
    before = client.metric("istio_on_demand_dns_total")
    seen = len(client.access_log())
    async with name_server(services.resolver, names) as resolver, serving(services):
        for _ in range(2):
            assert await ask(client, services.vips["by-name"]) == "plain:8080"
        assert sorted(set(resolver.asked)) == ["named.example.com A", "named.example.com AAAA"]
        assert resolver.asked.count("named.example.com A") == 1, "the second time it is remembered"
        entry = await refused(client, services.vips["by-lost-name"])
    assert entry["message"] == "connection failed"
    assert (
        entry["error"]
        == f"no ip addresses were resolved for workload: {services.mesh.cluster}//Pod/default/lost"
    )
    (first, *_) = (await client.logged(count=seen + 3))[seen:]
    assert (first["dst.addr"], first["dst.workload"]) == (f"{plain.ipv4}:8080", "named")
    counted = client.metrics("istio_on_demand_dns_total", hostname="named.example.com")
    assert [sample.value for sample in counted] == [2]
    assert client.metric("istio_on_demand_dns_total") == before + 3
