"""A real ztunnel process under istiod's own discovery server: what istiod sends acts on connections.

The Kubernetes objects name the addresses of the fixture's pods, so that traffic meets what istiod made of
them. Certificates come from the built-in CA: this istiod has none to give.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dns.message
import dns.rdatatype
import pytest
import trio

from tests.interop import objects as k8s
from tests.interop.istiod_peer import Istiod
from tests.support.census import take_census
from tests.support.mesh import Mesh
from tests.support.namespaces import needs_namespaces
from tests.support.node_deployment import NodeDeployment
from tests.support.pod import MeshPod
from tests.support.traffic import ended_by, read_exactly, serve

pytestmark = needs_namespaces

NODE = "node-1"
VIP = "10.1.0.1"
PATIENCE = 20.0


@dataclass
class Cluster:
    """A node with pods that istiod knows as Kubernetes pods, and one outside the mesh."""

    mesh: Mesh
    istiod: Istiod
    client: MeshPod
    web: MeshPod
    outside: MeshPod
    gateway: MeshPod

    async def apply(self, *objects: str) -> None:
        await trio.to_thread.run_sync(self.istiod.apply, *objects)

    async def delete(self, *objects: str) -> None:
        await trio.to_thread.run_sync(self.istiod.delete, *objects)

    async def dump_until(self, condition: Callable[[dict[str, Any]], object]) -> None:
        """Wait until something is true of ztunnel's config dump."""
        with trio.fail_after(PATIENCE):
            while not condition(await trio.to_thread.run_sync(self.client.config_dump)):  # noqa: ASYNC110 - in another process
                await trio.sleep(0.05)

    async def answered(self, source: MeshPod, address: str, port: int) -> bool:
        """Whether a connection to an echoing application works."""
        try:
            async with await source.connect(address, port) as stream:
                await stream.send_all(b"x")
                return await read_exactly(stream, 1) == b"x"
        except (OSError, trio.BrokenResourceError, AssertionError):
            return False

    async def until_answered(self, expected: bool, source: MeshPod, address: str, port: int) -> None:
        with trio.fail_after(PATIENCE):
            while await self.answered(source, address, port) is not expected:  # noqa: ASYNC110 - in another process
                await trio.sleep(0.05)


def kubernetes_pod(pod: MeshPod, **options: Any) -> str:
    """A pod of the fixture as Kubernetes has it."""
    return k8s.pod(pod.name, pod.ipv4, account=pod.serviceaccount, on_node=NODE, **options)


@pytest.fixture(scope="module")
def cluster(istiod_binary: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory: Path = tmp_path_factory.mktemp("istiod")
    deployment = NodeDeployment()
    with Mesh.open(deployment=deployment) as mesh:
        node = mesh.node(NODE)
        client, web = node.pod("client"), node.pod("web")
        outside = mesh.node("other").pod("outside", captured=False, registered=False)
        gateway = mesh.node("other").pod("gateway", captured=False, registered=False)
        home = node.node.pod("home")
        objects = [
            k8s.namespace("default"),
            k8s.namespace("istio-system", ambient=False, labels={"topology.istio.io/network": "network-1"}),
            k8s.node(NODE),
            k8s.gateway_class("istio-waypoint", "istio.io/mesh-controller"),
            k8s.gateway_class("istio-remote", "istio.io/unmanaged-gateway"),
            kubernetes_pod(client),
            kubernetes_pod(web),
            k8s.service("web", VIP),
        ]
        istiod = Istiod(directory, k8s.documents(objects))
        with contextlib.ExitStack() as stack:
            # Both live in one namespace, whose loopback is their connection.
            with home.namespace.entered():
                stack.enter_context(istiod)
            root = directory / "root.pem"
            root.write_bytes(istiod.ca.root)
            mesh.environment |= {
                "XDS_ADDRESS": istiod.address,
                "XDS_ROOT_CA": str(root),
                "LOCAL_XDS_PATH": "",
                "NETWORK": "network-1",
                "POD_NAME": "ztunnel-1",
                "POD_NAMESPACE": "istio-system",
                "INSTANCE_IP": home.ipv4,
                "ISTIO_META_CLUSTER_ID": "Kubernetes",
                "ISTIO_META_ISTIO_VERSION": "1.31.0",
                "ISTIO_META_DNS_CAPTURE": "true",
            }
            running = deployment.node(mesh, node.node)
            running.launch(home=home).wait_ready(60)
            mesh.start()
            yield Cluster(mesh, istiod, client, web, outside, gateway)
            assert not running.current.log_lines("Traceback"), running.current.process.output()[-8000:]
            assert not running.current.log_lines("type=Nack")
        name = mesh.machine.name
    census = take_census(name)
    assert census.empty, census


@pytest.fixture
async def application(cluster: Cluster) -> AsyncIterator[None]:
    async with serve(cluster.web, 8080):
        yield


async def test_traffic_flows_by_pod_and_by_service(cluster: Cluster, application: None) -> None:
    assert await cluster.answered(cluster.client, cluster.web.ipv4, 8080)
    assert await cluster.answered(cluster.client, VIP, 80)
    lines = await cluster.web.logged(count=2, direction="inbound")
    assert {line["src.identity"] for line in lines} == {cluster.client.identity}


async def test_a_deny_policy_cuts_what_is_open_and_refuses_what_comes_until_it_goes(
    cluster: Cluster, application: None
) -> None:
    client, web = cluster.client, cluster.web
    rules = f'{{action: DENY, rules: [{{from: [{{source: {{principals: ["{client.principal}"]}}}}]}}]}}'
    async with await client.connect(web.ipv4, 8080) as stream:
        await stream.send_all(b"x")
        assert await read_exactly(stream, 1) == b"x"
        await cluster.apply(k8s.policy("deny", rules))
        assert await ended_by(stream, PATIENCE) == "reset"
    assert not await cluster.answered(client, web.ipv4, 8080)
    await cluster.delete(k8s.policy("deny", rules))
    await cluster.until_answered(True, client, web.ipv4, 8080)


async def test_strict_mutual_tls_keeps_plaintext_out(cluster: Cluster, application: None) -> None:
    outside, client, web = cluster.outside, cluster.client, cluster.web
    assert await cluster.answered(outside, web.ipv4, 8080)
    await cluster.apply(k8s.peer_authentication("default", "STRICT"))
    await cluster.until_answered(False, outside, web.ipv4, 8080)
    assert await cluster.answered(client, web.ipv4, 8080)
    await cluster.delete(k8s.peer_authentication("default", "STRICT"))
    await cluster.until_answered(True, outside, web.ipv4, 8080)


async def test_a_waypoint_is_dialled_for_the_service_that_uses_it(
    cluster: Cluster, application: None
) -> None:
    client, gateway = cluster.client, cluster.gateway
    labels = {"gateway.networking.k8s.io/gateway-name": "gate"}
    waypoint = k8s.waypoint("gate", gateway.ipv4), kubernetes_pod(gateway, labels=labels)
    await cluster.apply(*waypoint, k8s.service("web", VIP, labels={"istio.io/use-waypoint": "gate"}))
    await cluster.dump_until(lambda dump: any("waypoint" in service for service in dump["services"]))
    assert not await cluster.answered(client, VIP, 80)  # nobody listens at the waypoint
    (line,) = await client.logged(direction="outbound", dst__addr=f"{gateway.ipv4}:15008")
    assert "connection" in line["error"].lower()
    await cluster.apply(k8s.service("web", VIP))
    await cluster.until_answered(True, client, VIP, 80)
    await cluster.delete(*waypoint)


async def test_a_headless_service_is_resolved_to_its_pods(cluster: Cluster) -> None:
    headless = k8s.service("headless", "None", selector={"app": "web"})
    name = "headless.default.svc.cluster.local"
    await cluster.apply(headless)
    await cluster.dump_until(
        lambda dump: any(
            service["hostname"] == name and not service["vips"] and service["endpoints"]
            for service in dump["services"]
        )
    )
    found = await trio.to_thread.run_sync(resolve, cluster.client, name)
    assert found == [cluster.web.ipv4]
    await cluster.delete(headless)
    await cluster.dump_until(lambda dump: all(service["hostname"] != name for service in dump["services"]))


def resolve(pod: MeshPod, name: str) -> list[str]:
    """Ask the DNS proxy of a pod for the IPv4 addresses of a name."""
    query = dns.message.make_query(name, dns.rdatatype.A)
    with pod.socket(kind=socket.SOCK_DGRAM) as udp:
        udp.settimeout(PATIENCE)
        udp.sendto(query.to_wire(), ("127.0.0.1", 15053))
        answer = dns.message.from_wire(udp.recv(4096))
    return [str(record) for part in answer.answer for record in part]


async def test_another_network_is_reached_through_its_gateway(cluster: Cluster) -> None:
    client, gateway = cluster.client, cluster.gateway
    east_west = k8s.network_gateway("east-west", gateway.ipv4, "network-2")
    far = "{address: 10.200.0.1, network: network-2, serviceAccount: far, labels: {app: far}}"
    entry = partial(k8s.workload_entry, "far", far, labels={"app": "far"})
    await cluster.apply(east_west, k8s.service("far", "10.1.0.5"), entry())
    await cluster.dump_until(
        lambda dump: any(
            one["name"] == "far" and one.get("network") == "network-2" and "networkGateway" in one
            for one in dump["workloads"]
        )
    )
    before = len(client.access_log(dst__addr=f"{gateway.ipv4}:15008"))
    assert not await cluster.answered(client, "10.1.0.5", 80)  # nobody listens at the gateway
    lines = await client.logged(count=before + 1, dst__addr=f"{gateway.ipv4}:15008")
    assert lines[-1]["dst.service"] == "far.default.svc.cluster.local"
    await cluster.delete(entry(), east_west, k8s.service("far", "10.1.0.5"))
    await cluster.dump_until(lambda dump: all(one["name"] != "far" for one in dump["workloads"]))
