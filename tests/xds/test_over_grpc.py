"""The client against a fake istiod over real TLS gRPC on loopback: what it sends, and what it survives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import trio

from tests.support.fake_ca import FakeCertificateAuthority
from tests.support.fake_istiod import TOKEN, FakeIstiod, server_that_never_answers
from tests.support.logs import capture_logs
from ztunnel.bounds import DEFAULTS, ControlBounds
from ztunnel.config.model import Config, RootFile, RootStatic, TokenFile, TokenStatic
from ztunnel.config.parse_values import authority
from ztunnel.messages import MeshDelta, Rejected, ResourceKind
from ztunnel.observe.logging import LogRecord
from ztunnel.xds.connect import connector
from ztunnel.xds.node import encode_node
from ztunnel.xds.xds_client import XdsClient
from ztunnel.xds.xds_session import ADDRESS_TYPE, AUTHORIZATION_TYPE, XdsSession

ISTIOD_NAME = "istiod.istio-system.svc"


class Mesh:
    """The least of a store: names with their bytes. Refuses bodies that start with ``bad``."""

    def __init__(self) -> None:
        self.known: dict[ResourceKind, dict[str, bytes]] = {kind: {} for kind in ResourceKind}
        self.changed = trio.Event()

    async def apply(self, delta: MeshDelta) -> list[Rejected]:
        await trio.lowlevel.checkpoint()
        known = self.known[delta.kind]
        rejected = []
        for resource in delta.resources:
            if resource.body.startswith(b"bad"):
                rejected.append(Rejected(resource.name, "it is bad"))
            else:
                known[resource.name] = resource.body
        for name in delta.removed:
            known.pop(name, None)
        changed, self.changed = self.changed, trio.Event()
        changed.set()
        return rejected

    @property
    def addresses(self) -> dict[str, bytes]:
        return self.known[ResourceKind.ADDRESS]

    async def until(self, condition: Callable[[Mesh], object]) -> None:
        while not condition(self):
            await self.changed.wait()


class Counters:
    def __init__(self) -> None:
        self.terminations: list[str] = []
        self.messages: list[tuple[str, int]] = []
        self.ended = trio.Event()

    def terminated(self, reason: str) -> None:
        self.terminations.append(reason)
        ended, self.ended = self.ended, trio.Event()
        ended.set()

    def message(self, url: str, size: int) -> None:
        self.messages.append((url, size))


class Peer:
    """A running client with what it writes to."""

    def __init__(self, client: XdsClient, mesh: Mesh, counters: Counters, records: list[LogRecord]) -> None:
        self.client = client
        self.mesh = mesh
        self.counters = counters
        self.records = records

    def lines(self, text: str) -> list[LogRecord]:
        return [record for record in self.records if text in record.message]

    async def until_ended(self, reason: str, times: int = 1) -> None:
        while self.counters.terminations.count(reason) < times:
            await self.counters.ended.wait()


@pytest.fixture(scope="module")
def ca() -> FakeCertificateAuthority:
    return FakeCertificateAuthority()


@pytest.fixture
def istiod(ca: FakeCertificateAuthority) -> Iterator[FakeIstiod]:
    with FakeIstiod(ca) as server:
        yield server


def config_for(istiod: FakeIstiod, **changes: object) -> Config:
    config = Config(
        xds_address=istiod.address,
        xds_root_cert=RootStatic(istiod.ca.root.decode()),
        auth=TokenStatic(istiod.token),
        pod_name="ztunnel-1",
        pod_namespace="istio-system",
        local_node="node-1",
    )
    return replace(config, **changes)  # type: ignore[arg-type]  # fields by name


@asynccontextmanager
async def running(config: Config, bounds: ControlBounds = DEFAULTS.control) -> AsyncIterator[Peer]:
    mesh, counters = Mesh(), Counters()
    session = XdsSession(encode_node(config, []), on_demand=config.xds_on_demand)
    assert config.xds_address is not None
    client = XdsClient(
        session,
        connector(config, bounds),
        mesh.apply,
        address=config.xds_address,
        metrics=counters,
        bounds=bounds,
    )
    with capture_logs("debug") as records, trio.fail_after(600):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run, name="xds")
            yield Peer(client, mesh, counters, records)
            nursery.cancel_scope.cancel()


async def in_thread(call: Callable[..., object], *args: object) -> None:
    await trio.to_thread.run_sync(lambda: call(*args))


async def test_resources_arrive_change_and_go_and_each_response_is_acknowledged(istiod):
    istiod.put("a", b"one")
    istiod.put("ns/p", b"policy", type_url=AUTHORIZATION_TYPE)
    async with running(config_for(istiod)) as peer:
        await peer.client.ready.wait()
        assert peer.mesh.known[ResourceKind.AUTHORIZATION] == {"ns/p": b"policy"}
        assert peer.mesh.addresses == {"a": b"one"}
        istiod.put("a", b"two")
        istiod.put("b", b"new")
        await peer.mesh.until(lambda mesh: mesh.addresses == {"a": b"two", "b": b"new"})
        istiod.remove("a")
        await peer.mesh.until(lambda mesh: mesh.addresses == {"b": b"new"})
        await in_thread(istiod.wait_until, lambda s: len(s.streams[0].acks(ADDRESS_TYPE)) == 4)
        assert sum(size for url, size in peer.counters.messages if url == ADDRESS_TYPE) == 9
        assert peer.lines("Stream established")


async def test_a_refused_resource_is_nacked_by_name_and_the_others_stay(istiod):
    istiod.put_all([("a", b"good"), ("b", b"bad one"), ("c", b"fine")])
    async with running(config_for(istiod)) as peer:
        await in_thread(istiod.wait_until, lambda s: s.streams and s.streams[0].nacks(ADDRESS_TYPE))
        (nack,) = istiod.streams[0].nacks(ADDRESS_TYPE)
        assert nack.error_detail is not None
        assert (nack.error_detail.code, nack.error_detail.message) == (0, "b: it is bad")
        assert sorted(peer.mesh.addresses) == ["a", "c"]
        assert not peer.client.ready.is_set()
        istiod.put("b", b"now good")
        await peer.client.ready.wait()


async def test_the_stream_carries_token_cluster_headers_and_node(istiod, tmp_path):
    token = tmp_path / "token"
    token.write_text(TOKEN)
    config = config_for(
        istiod,
        auth=TokenFile(str(token)),
        cluster_id="c1",
        xds_headers=(("x-extra", "value"),),
        proxy_metadata={"CLUSTER_ID": "c1"},
    )
    async with running(config) as peer:
        await peer.client.ready.wait()
    stream = istiod.streams[0]
    assert stream.metadata["authorization"] == f"Bearer {TOKEN}"
    assert stream.metadata["clusterid"] == "c1"
    assert stream.metadata["x-extra"] == "value"
    first = stream.first(ADDRESS_TYPE)
    assert first is not None
    assert first.node is not None
    assert first.node.id == "ztunnel~1.1.1.1~ztunnel-1.istio-system~istio-system.svc.cluster.local"
    assert first.node.metadata is not None
    assert first.node.metadata.to_dict()["CLUSTER_ID"] == "c1"


async def test_istiod_killed_and_back_sends_only_what_changed(istiod):
    istiod.put_all([("a", b"1"), ("b", b"2")])
    async with running(config_for(istiod)) as peer:
        await peer.client.ready.wait()
        await in_thread(istiod.kill)
        await peer.until_ended("ConnectionError")
        assert peer.mesh.addresses == {"a": b"1", "b": b"2"}
        assert peer.lines("XDS client connection error: gRPC connection error connecting to")
        istiod.remove("a")
        istiod.put("c", b"3")
        await in_thread(istiod.start)
        await peer.mesh.until(lambda mesh: mesh.addresses == {"b": b"2", "c": b"3"})
    first = istiod.streams[-1].first(ADDRESS_TYPE)
    assert first is not None
    assert sorted(first.initial_resource_versions) == ["a", "b"]
    assert sum(size for _, size in peer.counters.messages) == 3


async def test_a_refused_token_is_told_and_a_rotated_one_heals_it(istiod, tmp_path):
    token = tmp_path / "token"
    token.write_text("stale")
    async with running(config_for(istiod, auth=TokenFile(str(token)))) as peer:
        await peer.until_ended("ConnectionError")
        (line, *_) = peer.lines("XDS client connection error")
        assert (
            'status: Unauthenticated, message: "authentication failure: token is not known here"'
            in line.message
        )
        assert "(hint: check the control plane logs for more information)" in line.message
        assert peer.client.waiting_for is not None
        assert "Unauthenticated" in peer.client.waiting_for
        token.write_text(TOKEN)
        await peer.client.ready.wait()
    assert istiod.refused_tokens >= 1


@pytest.mark.parametrize("content", [None, ""])
async def test_a_token_file_that_is_gone_or_empty_is_told_and_heals(istiod, tmp_path, content):
    token = tmp_path / "token"
    if content is not None:
        token.write_text(content)
    async with running(config_for(istiod, auth=TokenFile(str(token)))) as peer:
        await peer.until_ended("ConnectionError")
        assert peer.lines(
            "token file exists, but was empty" if content == "" else "cannot read the token file"
        )
        token.write_text(TOKEN)
        await peer.client.ready.wait()


async def test_a_certificate_of_another_ca_is_refused_until_the_roots_are_rotated(istiod, tmp_path):
    other = FakeCertificateAuthority("other root")
    roots = tmp_path / "root-cert.pem"
    roots.write_bytes(other.root)
    async with running(config_for(istiod, xds_root_cert=RootFile(str(roots)))) as peer:
        await peer.until_ended("ConnectionError")
        (line, *_) = peer.lines("XDS client connection error")
        assert "CERTIFICATE_VERIFY_FAILED" in line.message
        assert not istiod.streams
        roots.write_bytes(other.root + istiod.ca.root)
        await peer.client.ready.wait()


async def test_an_unreadable_root_file_backs_off_and_heals(istiod, tmp_path):
    roots = tmp_path / "root-cert.pem"
    async with running(config_for(istiod, xds_root_cert=RootFile(str(roots)))) as peer:
        await peer.until_ended("Error", times=3)
        (line, *_) = peer.lines("XDS client error: TLS Error: cannot read the root certificate")
        assert line.message.endswith("retrying in 20ms")
        roots.write_bytes(istiod.ca.root)
        await peer.client.ready.wait()
        assert len(peer.counters.terminations) < 20


async def test_no_roots_at_all_trust_nobody(istiod):
    async with running(config_for(istiod, xds_root_cert=RootStatic(""))) as peer:
        await peer.until_ended("Error")
        assert peer.lines("there is no root certificate to verify")
        assert not istiod.streams


async def test_garbage_is_told_changes_nothing_and_heals(istiod):
    istiod.put("a", b"1")
    istiod.misbehaviour.garbage = True
    async with running(config_for(istiod)) as peer:
        await peer.until_ended("Error")
        assert peer.lines("failed to decode Protobuf message")
        assert peer.mesh.addresses == {}
        istiod.misbehaviour.garbage = False
        await peer.client.ready.wait()
        assert peer.mesh.addresses == {"a": b"1"}


async def test_a_hung_istiod_is_told_of_and_given_up_and_heals(istiod):
    bounds = ControlBounds(xds_silence_warning=0.1, xds_silence_limit=0.2)
    istiod.misbehaviour.hang = True
    async with running(config_for(istiod), bounds=bounds) as peer:
        await peer.until_ended("Error")
        assert peer.lines("XDS client: no response from the control plane")
        istiod.misbehaviour.hang = False
        await peer.client.ready.wait()


@pytest.mark.parametrize("speech", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["silent", "not TLS"])
async def test_a_port_that_is_no_istiod_is_a_connection_error(istiod, speech):
    with server_that_never_answers(speech) as (port, _):
        config = config_for(istiod, xds_address=f"https://127.0.0.1:{port}")
        async with running(config, ControlBounds(xds_connect=0.3)) as peer:
            await peer.until_ended("ConnectionError")


@pytest.mark.parametrize(
    ("code", "message", "reason"),
    [
        (grpc.StatusCode.OK, "", "Complete"),
        (grpc.StatusCode.CANCELLED, "", "Reconnect"),
        (grpc.StatusCode.UNAVAILABLE, "transport is closing", "Reconnect"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "slow down", "Error"),
    ],
)
async def test_each_way_to_end_a_stream_leads_to_another(istiod, code, message, reason):
    async with running(config_for(istiod)) as peer:
        await peer.client.ready.wait()
        istiod.end_streams(code, message)
        await peer.until_ended(reason)
        await in_thread(istiod.wait_until, lambda s: len(s.streams) == 2 and s.streams[1].acks(ADDRESS_TYPE))


async def test_the_certificate_may_be_for_the_alternative_name(ca):
    with FakeIstiod(ca, names=(ISTIOD_NAME,)) as istiod:
        async with running(config_for(istiod)) as peer:
            await peer.until_ended("ConnectionError")
        async with running(config_for(istiod, alt_xds_hostname=ISTIOD_NAME)) as peer:
            await peer.client.ready.wait()


async def test_on_demand_an_address_is_asked_for_and_answered_by_its_alias(istiod):
    istiod.put("uid-1", b"workload", aliases=["net/10.0.0.9"])
    async with running(config_for(istiod, xds_on_demand=True)) as peer:
        await peer.client.ready.wait()
        assert peer.mesh.addresses == {}
        assert await peer.client.demand("net/10.0.0.9")
        assert peer.mesh.addresses == {"uid-1": b"workload"}
        assert await peer.client.demand("net/10.0.0.10")
        assert await peer.client.demand("net/10.0.0.10"), "a key asked for before is answered again"
        istiod.put("uid-1", b"changed")
        await peer.mesh.until(lambda mesh: mesh.addresses == {"uid-1": b"changed"})


async def test_more_names_than_a_request_holds_are_synced_in_full(istiod):
    count = 60_000
    istiod.put_all([(f"Kubernetes//Pod/namespace/pod-with-a-long-name-{n}", b"x") for n in range(count)])
    async with running(config_for(istiod)) as peer:
        await peer.client.ready.wait()
        await in_thread(istiod.kill)
        gone, changed, *_ = list(peer.mesh.addresses)
        istiod.remove(gone)
        istiod.put(changed, b"y")
        await in_thread(istiod.start)
        await peer.mesh.until(lambda mesh: mesh.addresses[changed] == b"y")
        assert gone not in peer.mesh.addresses
        assert len(peer.mesh.addresses) == count - 1
        await in_thread(
            istiod.wait_until, lambda s: s.streams[-1].is_open and s.streams[-1].acks(ADDRESS_TYPE)
        )
        first = istiod.streams[-1].first(ADDRESS_TYPE)
        assert first is not None
        assert first.initial_resource_versions == {}


async def test_nothing_is_left_open_when_the_client_is_cancelled(istiod):
    def sockets() -> int:
        return sum(
            link.is_symlink() and str(link.readlink()).startswith("socket:")
            for link in Path("/proc/self/fd").iterdir()
        )

    async with running(config_for(istiod)) as peer:
        await peer.client.ready.wait()
    await in_thread(istiod.wait_until, lambda s: not s.streams[0].is_open)
    with trio.fail_after(20):
        before = sockets()
        async with running(config_for(istiod)) as peer:
            await peer.client.ready.wait()
        while sockets() > before:  # noqa: ASYNC110  # the kernel's table has no event to wait for
            await trio.sleep(0.05)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://istiod:15012", "istiod:15012"),
        ("https://[::1]:15012/path", "[::1]:15012"),
        ("https://istiod", "istiod:443"),
    ],
)
def test_the_target_is_host_and_port(address, expected):
    assert authority(address) == expected
