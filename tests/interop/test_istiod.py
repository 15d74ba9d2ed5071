"""Istiod's own discovery server against our client and store, over a real stream.

Each kind of object arrives, changes and is removed, and takes effect in the decisions that connections get.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from random import Random

import pytest
import trio

from tests.interop import objects as k8s
from tests.interop.istiod_peer import Istiod
from tests.support.logs import capture_logs
from tests.support.xds_conversation import hear, resource, response
from ztunnel.bounds import DEFAULTS
from ztunnel.config.model import Config, RootStatic
from ztunnel.decide.authorize import authorize
from ztunnel.decide.dns_names import answer
from ztunnel.decide.plans import (
    OutboundPlan,
    OutboundProtocol,
    OutboundRequest,
    PolicyFacts,
    Refusal,
    Verdict,
)
from ztunnel.decide.route import route
from ztunnel.messages import MeshDelta, Rejected
from ztunnel.model.address import SocketAddress
from ztunnel.model.identity import Identity
from ztunnel.model.workload import Protocol, Workload
from ztunnel.observe.logging import LogRecord
from ztunnel.state.store import MeshStore
from ztunnel.xds.connect import connector
from ztunnel.xds.node import encode_node
from ztunnel.xds.xds_client import XdsClient
from ztunnel.xds.xds_session import ADDRESS_TYPE, AUTHORIZATION_TYPE, XdsSession

LOCAL_NETWORK = "network-1"
REMOTE_NETWORK = "network-2"
CLIENT = k8s.pod("client", "10.0.0.1", account="client")
WEB = k8s.pod("web", "10.0.0.2", account="web")
WEB_SERVICE = k8s.service("web", "10.1.0.1")
CLIENT_IDENTITY = Identity("cluster.local", "default", "client")
NODE_METADATA = {"CLUSTER_ID": "Kubernetes", "ISTIO_VERSION": "1.31.0"}
BASE = [
    k8s.namespace("default"),
    k8s.namespace("istio-system", ambient=False, labels={"topology.istio.io/network": LOCAL_NETWORK}),
    k8s.node("node-1", region="r1", zone="z1"),
    k8s.gateway_class("istio-waypoint", "istio.io/mesh-controller"),
    k8s.gateway_class("istio-remote", "istio.io/unmanaged-gateway"),
    CLIENT,
    WEB,
    WEB_SERVICE,
]


class Ztunnel:
    """Our client and store at a running istiod, and the decisions that they lead to."""

    def __init__(self, istiod: Istiod, session: XdsSession, records: list[LogRecord]) -> None:
        self.istiod = istiod
        self.session = session
        self.records = records
        self.client: XdsClient | None = None
        self.store = MeshStore("node-1")
        self.terminations: list[str] = []
        self.bytes: dict[str, int] = {}
        self._changed = trio.Event()

    async def apply_delta(self, delta: MeshDelta) -> list[Rejected]:
        application = self.store.begin(delta)
        while not application.step():
            await trio.lowlevel.checkpoint()
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        return [Rejected(name, reason) for name, reason in application.rejected]

    def terminated(self, reason: str) -> None:
        self.terminations.append(reason)
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def demand(self, key: str) -> bool:
        assert self.client is not None
        return await self.client.demand(key)

    def message(self, url: str, size: int) -> None:
        self.bytes[url] = self.bytes.get(url, 0) + size

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something is true of the store."""
        while not condition():
            await self._changed.wait()

    async def apply(self, *objects: str) -> None:
        await trio.to_thread.run_sync(self.istiod.apply, *objects)

    async def delete(self, *objects: str) -> None:
        await trio.to_thread.run_sync(self.istiod.delete, *objects)

    async def hold(self, *, on: bool) -> None:
        await trio.to_thread.run_sync(lambda: self.istiod.hold(on=on))

    def pod(self, name: str) -> Workload | None:
        return self.store.workload(f"Kubernetes//Pod/default/{name}")

    def known_pod(self, name: str) -> Workload:
        workload = self.pod(name)
        assert workload is not None
        return workload

    def outbound(self, destination: str, port: int) -> OutboundPlan | Refusal:
        """Where the client's connection to an address goes."""
        request = OutboundRequest(
            self.known_pod("client"), socket("10.0.0.1", 40_000), socket(destination, port), LOCAL_NETWORK
        )
        return route(self.store, request, Random(1), illegal_ports=frozenset())

    def next_hop(self, destination: str, port: int) -> str | None:
        """The address that would be dialled."""
        plan = self.outbound(destination, port)
        return str(plan.next_hop) if isinstance(plan, OutboundPlan) else None

    def inbound(self, port: int = 8080, identity: Identity | None = CLIENT_IDENTITY) -> Verdict:
        """What policy says to the client's connection to the web pod; without an identity it is plaintext."""
        facts = PolicyFacts(socket("10.0.0.1", 40_000), socket("10.0.0.2", port), identity)
        return authorize(self.store, self.known_pod("web"), facts)


def socket(ip: str, port: int) -> SocketAddress:
    return SocketAddress(ip_address(ip), port)


@pytest.fixture
def istiod(istiod_binary: None, tmp_path: Path) -> Iterator[Istiod]:
    with Istiod(tmp_path, k8s.documents(BASE)) as running:
        yield running


@asynccontextmanager
async def connected(
    istiod: Istiod,
    *,
    on_demand: bool = False,
    knows: int = 0,
    xds_request: int = DEFAULTS.control.xds_request,
) -> AsyncIterator[Ztunnel]:
    """A client that has synced. ``knows``: from an earlier stream it knows so many names that are gone."""
    config = Config(
        xds_address=istiod.address,
        xds_root_cert=RootStatic(istiod.ca.root.decode()),
        pod_name="ztunnel-1",
        pod_namespace="istio-system",
        local_node="node-1",
        local_ip="10.0.0.250",
        proxy_metadata=NODE_METADATA,
    )
    bounds = replace(DEFAULTS.control, xds_request=xds_request)
    session = XdsSession(encode_node(config, []), on_demand=on_demand, bounds=bounds)
    if knows:
        session.open()
        names = (f"Kubernetes//Pod/default/a-pod-that-was-here-before-{n}" for n in range(knows))
        hear(session, response(*(resource(name, "0123456789abcdef") for name in names)))
        session.close()
    with capture_logs("debug") as records, trio.fail_after(120):
        ztunnel = Ztunnel(istiod, session, records)
        client = XdsClient(
            session, connector(config), ztunnel.apply_delta, address=istiod.address, metrics=ztunnel
        )
        ztunnel.client = client
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run, name="xds")
            if xds_request <= DEFAULTS.control.xds_request:
                await client.ready.wait()
            with trio.fail_after(30):
                yield ztunnel
            nursery.cancel_scope.cancel()
    assert not [record for record in records if "Nack" in map(str, record.fields.values())]


async def test_a_pod_arrives_changes_and_is_removed(istiod):
    async with connected(istiod) as z:
        web = z.known_pod("web")
        assert str(web.addresses[0]) == "10.0.0.2"
        assert web.protocol is Protocol.HBONE
        assert str(web.identity) == "spiffe://cluster.local/ns/default/sa/web"
        assert (web.node, web.network, web.locality.region) == ("node-1", LOCAL_NETWORK, "r1")
        assert z.store.workload_by_address(LOCAL_NETWORK, ip_address("10.0.0.2")) == web
        plan = z.outbound("10.0.0.2", 8080)
        assert isinstance(plan, OutboundPlan)
        assert (plan.protocol, str(plan.next_hop)) == (OutboundProtocol.HBONE, "10.0.0.2:15008")

        await z.apply(k8s.pod("web", "10.0.0.2", account="other", captured=False))
        await z.until(lambda: z.known_pod("web").service_account == "other")
        assert z.known_pod("web").protocol is Protocol.TCP
        plan = z.outbound("10.0.0.2", 8080)
        assert isinstance(plan, OutboundPlan)
        assert plan.protocol is OutboundProtocol.TCP

        await z.delete(WEB)
        await z.until(lambda: z.pod("web") is None)
        assert z.store.workload_by_address(LOCAL_NETWORK, ip_address("10.0.0.2")) is None


async def test_a_service_arrives_changes_and_is_removed(istiod):
    async with connected(istiod) as z:
        assert z.next_hop("10.1.0.1", 80) == "10.0.0.2:15008"

        await z.apply(k8s.service("web", "10.1.0.2", ports={81: 8081}))
        await z.until(lambda: z.store.services_by_vip(LOCAL_NETWORK, ip_address("10.1.0.2")))
        plan = z.outbound("10.1.0.2", 81)
        assert isinstance(plan, OutboundPlan)
        assert plan.authority == "10.0.0.2:8081"
        assert not z.store.services_by_vip(LOCAL_NETWORK, ip_address("10.1.0.1"))

        await z.delete(WEB_SERVICE)
        await z.until(lambda: z.store.service("default", "web.default.svc.cluster.local") is None)
        assert z.known_pod("web")


async def test_a_pod_that_is_not_ready_is_no_endpoint(istiod):
    async with connected(istiod) as z:
        await z.apply(k8s.pod("web", "10.0.0.2", account="web", ready=False))
        await z.until(lambda: isinstance(z.outbound("10.1.0.1", 80), Refusal))
        await z.apply(WEB)
        await z.until(lambda: z.next_hop("10.1.0.1", 80) == "10.0.0.2:15008")


async def test_a_headless_service_is_answered_with_the_addresses_of_its_pods(istiod):
    def addresses(z: Ztunnel) -> set[str]:
        found = answer(
            z.store,
            z.known_pod("client"),
            "peers.default.svc.cluster.local.",
            1,
            search_domains=(),
            cluster_domain="cluster.local",
            ipv6_enabled=True,
            preferred_namespace=None,
            random=Random(1),
        )
        return set(map(str, found.addresses))

    headless = k8s.service("peers", "None", selector={"app": "peer"})
    async with connected(istiod) as z:
        await z.apply(headless, k8s.pod("peer-1", "10.0.0.21", labels={"app": "peer"}))
        await z.until(lambda: addresses(z) == {"10.0.0.21"})
        await z.apply(k8s.pod("peer-2", "10.0.0.22", labels={"app": "peer"}))
        await z.until(lambda: addresses(z) == {"10.0.0.21", "10.0.0.22"})
        await z.delete(k8s.pod("peer-1", "10.0.0.21"))
        await z.until(lambda: addresses(z) == {"10.0.0.22"})
        await z.delete(headless)
        await z.until(lambda: addresses(z) == set())


async def test_a_deny_policy_takes_effect_changes_and_goes(istiod):
    deny = "{action: DENY, rules: [{to: [{operation: {ports: ['%s']}}]}]}"
    async with connected(istiod) as z:
        assert z.inbound(9999).allowed
        await z.apply(k8s.policy("deny", deny % 9999))
        await z.until(lambda: not z.inbound(9999).allowed)
        assert z.inbound(9999).policy == "default/deny"
        assert z.inbound(8080).allowed
        await z.apply(k8s.policy("deny", deny % 8080))
        await z.until(lambda: not z.inbound(8080).allowed)
        assert z.inbound(9999).allowed
        await z.delete(k8s.policy("deny", "{}"))
        await z.until(lambda: z.inbound(8080).allowed)


async def test_an_allow_policy_for_a_selection_lets_only_its_principals_in(istiod):
    allow = (
        "{action: ALLOW, selector: {matchLabels: {app: web}}, "
        "rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/client]}}]}]}"
    )
    stranger = Identity("cluster.local", "default", "stranger")
    async with connected(istiod) as z:
        assert z.inbound(identity=stranger).allowed
        await z.apply(k8s.policy("only-client", allow))
        await z.until(lambda: not z.inbound(identity=stranger).allowed)
        assert z.inbound().allowed
        assert z.known_pod("web").authorization_policies == ("default/only-client",)
        await z.delete(k8s.policy("only-client", "{}"))
        await z.until(lambda: z.inbound(identity=stranger).allowed)


async def test_an_allow_policy_without_rules_lets_nobody_in(istiod):
    async with connected(istiod) as z:
        await z.apply(k8s.policy("nobody", "{}"))
        await z.until(lambda: not z.inbound().allowed)


async def test_strict_mutual_tls_refuses_plaintext_until_it_is_permissive_again(istiod):
    async with connected(istiod) as z:
        assert z.inbound(identity=None).allowed
        await z.apply(k8s.peer_authentication("strict", "STRICT"))
        await z.until(lambda: not z.inbound(identity=None).allowed)
        assert z.inbound(identity=None).policy == "istio-system/istio_converted_static_strict"
        assert z.inbound().allowed
        await z.apply(k8s.peer_authentication("strict", "PERMISSIVE"))
        await z.until(lambda: z.inbound(identity=None).allowed)
        await z.apply(k8s.peer_authentication("only-web", "STRICT", selector="app: web"))
        await z.until(lambda: not z.inbound(identity=None).allowed)
        await z.delete(k8s.peer_authentication("only-web", "STRICT"))
        await z.until(lambda: z.inbound(identity=None).allowed)


async def test_a_waypoint_is_on_the_way_to_the_service_that_uses_it(istiod):
    uses = k8s.service("web", "10.1.0.1", labels={"istio.io/use-waypoint": "gate"})
    gate_pod = k8s.pod(
        "gate-1", "10.0.0.9", account="gate", labels={"gateway.networking.k8s.io/gateway-name": "gate"}
    )
    async with connected(istiod) as z:
        await z.apply(uses, gate_pod, k8s.waypoint("gate", "10.0.0.9"))
        await z.until(lambda: z.next_hop("10.1.0.1", 80) == "10.0.0.9:15008")
        plan = z.outbound("10.1.0.1", 80)
        assert isinstance(plan, OutboundPlan)
        assert plan.waypoint
        assert plan.authority == "10.1.0.1:80"
        await z.apply(WEB_SERVICE)
        await z.until(lambda: z.next_hop("10.1.0.1", 80) == "10.0.0.2:15008")
        await z.apply(uses)
        await z.until(lambda: z.next_hop("10.1.0.1", 80) == "10.0.0.9:15008")
        await z.delete(k8s.waypoint("gate", "10.0.0.9"))
        await z.until(lambda: z.next_hop("10.1.0.1", 80) == "10.0.0.2:15008")


async def test_a_service_entry_arrives_changes_and_is_removed(istiod):
    entry = (
        "{hosts: [ext.example.com], addresses: [240.0.0.5], "
        "ports: [{number: 443, name: tls, protocol: TLS}], resolution: STATIC, "
        "location: MESH_EXTERNAL, endpoints: [{address: %s}]}"
    )
    async with connected(istiod) as z:
        await z.apply(k8s.service_entry("ext", entry % "192.0.2.7"))
        await z.until(lambda: z.next_hop("240.0.0.5", 443) == "192.0.2.7:443")
        assert z.store.service("default", "ext.example.com") is not None
        await z.apply(k8s.service_entry("ext", entry % "192.0.2.8"))
        await z.until(lambda: z.next_hop("240.0.0.5", 443) == "192.0.2.8:443")
        await z.delete(k8s.service_entry("ext", entry % "192.0.2.8"))
        await z.until(lambda: z.store.service("default", "ext.example.com") is None)
        uid = "Kubernetes/networking.istio.io/ServiceEntry/default/ext/192.0.2.8"
        await z.until(lambda: z.store.workload(uid) is None)


async def test_a_workload_of_a_second_network_is_reached_through_its_gateway(istiod):
    far = f"{{address: 10.0.0.1, network: {REMOTE_NETWORK}, serviceAccount: far, labels: {{app: far}}}}"
    uid = "Kubernetes/networking.istio.io/WorkloadEntry/default/far"
    async with connected(istiod) as z:
        await z.apply(
            k8s.network_gateway("east-west", "10.9.9.9", REMOTE_NETWORK),
            k8s.service("far", "10.1.0.5"),
            k8s.workload_entry("far", far, labels={"app": "far"}),
        )
        await z.until(lambda: z.next_hop("10.1.0.5", 80) == "10.9.9.9:15008")
        plan = z.outbound("10.1.0.5", 80)
        assert isinstance(plan, OutboundPlan)
        assert plan.protocol is OutboundProtocol.DOUBLE_HBONE
        workload = z.store.workload(uid)
        assert workload is not None
        assert workload.network == REMOTE_NETWORK
        # The same address in our network is another workload.
        assert z.store.workload_by_address(LOCAL_NETWORK, ip_address("10.0.0.1")) == z.pod("client")
        await z.delete(k8s.network_gateway("east-west", "10.9.9.9", REMOTE_NETWORK))
        await z.until(lambda: z.next_hop("10.1.0.5", 80) != "10.9.9.9:15008")
        await z.delete(k8s.workload_entry("far", far))
        await z.until(lambda: z.store.workload(uid) is None)


async def test_with_multi_network_on_the_other_network_is_one_workload_with_a_capacity(
    istiod_binary, tmp_path
):
    far = "{address: 10.200.0.%d, network: %s, serviceAccount: far, labels: {app: far}}"
    entries = [
        k8s.workload_entry(f"far-{n}", far % (n, REMOTE_NETWORK), labels={"app": "far"}) for n in (1, 2, 3)
    ]
    gateway = k8s.network_gateway("east-west", "10.9.9.9", REMOTE_NETWORK)
    service = k8s.service("far", "10.1.0.5", labels={"istio.io/global": "true"})
    with Istiod(tmp_path, k8s.documents([*BASE, gateway, service, *entries]), multi_network=True) as istiod:
        async with connected(istiod) as z:
            await z.until(lambda: z.next_hop("10.1.0.5", 80) == "10.9.9.9:15008")
            plan = z.outbound("10.1.0.5", 80)
            assert isinstance(plan, OutboundPlan)
            assert plan.protocol is OutboundProtocol.DOUBLE_HBONE
            far_service = z.store.service("default", "far.default.svc.cluster.local")
            assert far_service is not None
            (uid,) = z.store.endpoints(far_service)
            assert uid.startswith(f"{REMOTE_NETWORK}/SplitHorizonWorkload/")
            horizon = z.store.workload(uid)
            assert horizon is not None
            assert (horizon.capacity, horizon.addresses) == (3, ())
            await z.delete(entries[0])
            await z.until(lambda: (w := z.store.workload(uid)) is not None and w.capacity == 2)


async def test_a_namespace_label_and_a_nodes_locality_reach_the_pods(istiod):
    async with connected(istiod) as z:
        await z.apply(k8s.node("node-1", region="r2", zone="z2"))
        await z.until(lambda: z.known_pod("web").locality.region == "r2")
        labels = {"istio.io/use-waypoint": "gate"}
        await z.apply(
            k8s.namespace("default", labels=labels), k8s.waypoint("gate", "10.0.0.9", traffic="all")
        )
        await z.until(lambda: z.known_pod("web").waypoint is not None)
        await z.apply(k8s.namespace("default"))
        await z.until(lambda: z.known_pod("web").waypoint is None)


async def test_after_a_gap_only_the_difference_comes_and_what_was_deleted_goes(istiod):
    async with connected(istiod) as z:
        await z.apply(k8s.policy("deny", "{action: DENY, rules: [{to: [{operation: {ports: ['9999']}}]}]}"))
        await z.until(lambda: not z.inbound(9999).allowed)
        await z.hold(on=True)
        before = dict(z.bytes)
        await z.delete(WEB_SERVICE, k8s.policy("deny", "{}"))
        await z.apply(k8s.pod("late", "10.0.0.30"))
        assert z.store.service("default", "web.default.svc.cluster.local") is not None
        await z.hold(on=False)
        await z.until(lambda: z.pod("late"))
        await z.until(lambda: z.inbound(9999).allowed)
        assert z.store.service("default", "web.default.svc.cluster.local") is None
        assert z.known_pod("web")
        assert set(z.session.versions(ADDRESS_TYPE)) == {
            f"Kubernetes//Pod/default/{name}" for name in ("client", "web", "late")
        }
        assert z.session.versions(AUTHORIZATION_TYPE) == {}
        assert z.terminations
        # The two pods that were known and had not changed did not come again.
        assert z.bytes[ADDRESS_TYPE] - before[ADDRESS_TYPE] < 400
        assert [r for r in z.records if r.message == "Stream established"][1:]


async def test_more_known_names_than_istiod_takes_in_a_message_are_synced_anyway(istiod):
    async with connected(istiod, knows=60_000) as z:
        await z.until(lambda: len(z.session.versions(ADDRESS_TYPE)) == 3)
        assert z.next_hop("10.1.0.1", 80) == "10.0.0.2:15008"
        assert z.terminations == []


async def test_without_the_bound_istiod_would_refuse_the_request_each_time(istiod):
    async with connected(istiod, knows=60_000, xds_request=20_000_000) as z:
        await z.until(lambda: len(z.terminations) >= 2)
        assert [r for r in z.records if "received message larger than max" in r.message]
        assert z.pod("web") is None


async def test_on_demand_istiod_answers_addresses_names_and_absence_and_pushes_what_changes(istiod):
    far_away = k8s.pod("far", "10.0.0.40", on_node="node-2")
    async with connected(istiod, on_demand=True) as z:
        # istiod sends the workloads of our own node unasked.
        await z.until(lambda: z.pod("web"))
        await z.apply(far_away)
        while z.pod("far") is None:  # istiod may be asked before it has looked at the new object
            assert await z.demand(f"{LOCAL_NETWORK}/10.0.0.40")
        assert z.known_pod("far").node == "node-2"
        assert await z.demand("default/web.default.svc.cluster.local")
        assert z.next_hop("10.1.0.1", 80) == "10.0.0.2:15008"

        unknown = f"{LOCAL_NETWORK}/10.0.0.41"
        assert await z.demand(unknown)
        assert z.store.workload_by_address(LOCAL_NETWORK, ip_address("10.0.0.41")) is None
        await z.apply(k8s.pod("later", "10.0.0.41", on_node="node-2"))
        # The same key again, which istiod would not answer if nothing else changed with it.
        while z.pod("later") is None:
            assert await z.demand(unknown)

        await z.apply(k8s.pod("far", "10.0.0.40", account="other", on_node="node-2"))
        await z.until(lambda: z.known_pod("far").service_account == "other")
        await z.delete(far_away)
        await z.until(lambda: z.pod("far") is None)
