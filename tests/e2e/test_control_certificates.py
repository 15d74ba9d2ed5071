"""Certificates from istiod's CA in running ztunnels: renewal, failure, new roots, revocation, TLS options."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio
from OpenSSL import SSL

from tests.support.census import take_census
from tests.support.control_plane import ControlledMesh, service
from tests.support.fake_ca import FakeCertificateAuthority
from tests.support.fake_istiod import FakeIstiod
from tests.support.pod import MeshPod, eventually
from tests.support.raw_tls import KeyPair, RawTls, TlsAlertError, TlsChoices, TlsEndError
from tests.support.traffic import ended_by, read_exactly, refused_by, serve
from ztunnel.pb.istio import workload as pb
from ztunnel.tls import openssl as tls_openssl
from ztunnel.xds.xds_session import ADDRESS_TYPE

LIFETIME = 6
"""Seconds; renewal is after three."""


async def exchanged(stream: trio.SocketStream) -> None:
    """See that a connection is alive."""
    await stream.send_all(b"x")
    assert await read_exactly(stream, 1) == b"x"


def without_complaint(pod: MeshPod) -> bool:
    """Whether a pod's ztunnel is ready, and has nothing to add."""
    return pod.ztunnel.http("GET", 15021, "/healthz/ready?verbose") == (200, "ready\n")


def closed_without_a_trace(name: str) -> None:
    census = take_census(name)
    assert census.empty, census


@dataclass
class Pair:
    """A client and a server on two nodes, and their control plane."""

    plane: ControlledMesh
    client: MeshPod
    server: MeshPod

    @property
    def istiod(self) -> FakeIstiod:
        return self.plane.istiod

    async def renewed(self, times: int = 1) -> None:
        """Wait until each identity has been given so many further certificates."""
        pods = (self.client, self.server)
        before = {pod.identity: self._count(pod) for pod in pods}
        await trio.to_thread.run_sync(
            self.istiod.wait_until,
            lambda _: all(self._count(pod) >= before[pod.identity] + times for pod in pods),
        )

    def _count(self, pod: MeshPod) -> int:
        return sum(one.identity == pod.identity for one in self.istiod.issued)

    @contextlib.asynccontextmanager
    async def traffic(self) -> AsyncIterator[list[int]]:
        """One connection for all the time, and others that come and go, none of which may fail.

        Gives a list that grows with each of them. Each makes a tunnel of its own, with the certificates of
        its moment, since an unused one is released at once.
        """
        done: list[int] = []

        async def come_and_go() -> None:
            while True:
                async with await self.client.connect(self.server.ipv4, 8080) as stream:
                    await exchanged(stream)
                done.append(1)
                await trio.sleep(0.2)

        async with (
            serve(self.server, 8080),
            serve(self.server, 8081),
            await self.client.connect(self.server.ipv4, 8081) as stream,
        ):
            await exchanged(stream)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(come_and_go)
                yield done
                nursery.cancel_scope.cancel()
            await exchanged(stream)


@pytest.fixture(scope="module")
def short_lived() -> Iterator[Pair]:
    """Certificates that live for seconds."""
    environment = {"SECRET_TTL": f"{LIFETIME}s", "POOL_UNUSED_RELEASE_TIMEOUT": "20ms"}
    with ControlledMesh.open(environment=environment) as plane:
        pair = Pair(plane, plane.mesh.node("a").pod("client"), plane.mesh.node("b").pod("server"))
        plane.start()
        yield pair
        name = plane.mesh.machine.name
    closed_without_a_trace(name)


async def test_certificates_are_renewed_at_half_life_while_traffic_flows(short_lived: Pair) -> None:
    pair = short_lived
    async with pair.traffic() as done:
        await pair.renewed(2)
        assert len(done) > 5
    assert {one.validity for one in pair.istiod.issued} == {LIFETIME}
    _, tasks = pair.client.ztunnel.http("GET", 15000, "/debug/tasks")
    assert f"certificate {pair.client.identity}" in tasks


async def test_the_last_good_certificate_is_used_while_renewal_fails(short_lived: Pair) -> None:
    pair = short_lived
    pods = [pair.client, pair.server]

    def kept() -> list[MeshPod]:
        text = "retaining existing valid certificate until"
        return [pod for pod in pods if pod.ztunnel.log_lines(text)]

    async with pair.traffic() as done:
        await pair.renewed()
        pair.istiod.misbehaviour.refuse_certificates = "request impersonation authentication failure"
        try:
            # Who renews first: until its certificate ends, half a lifetime later, that of the other does not.
            await eventually(kept, "told that it is kept")
            before = len(done)
            await eventually(lambda: len(done) > before + 1, "used further on")
            _, text = kept()[0].ztunnel.http("GET", 15021, "/healthz/ready?verbose")
            assert "certificates: 1 cannot be renewed, signing gRPC error (The request does not have" in text
            assert "request impersonation authentication failure" in text
        finally:
            pair.istiod.misbehaviour.refuse_certificates = ""
        await pair.renewed()
    for pod in pods:
        await eventually(partial(without_complaint, pod), f"ready without a complaint: {pod.name}")


async def test_roots_are_exchanged_without_a_connection_lost(short_lived: Pair) -> None:
    pair = short_lived
    old, new = pair.istiod.ca, FakeCertificateAuthority("the next root of the mesh")
    async with pair.traffic() as done:
        pair.istiod.root_bundle = old.root + new.root
        await pair.renewed()
        pair.istiod.ca = new  # from now on one may have a certificate of the new root, the other of the old
        await pair.renewed()
        pair.istiod.root_bundle = new.root
        await pair.renewed(2)
        before = len(done)
        await eventually(lambda: len(done) > before + 1, "used further on")
    # Who has a certificate of the old root only is not let in any more.
    identity = pair.client.identity
    with pytest.raises((TlsAlertError, TlsEndError)):
        await shake_hands(
            pair.client, pair.server, TlsChoices(KeyPair(old.key, old.certificate).issue(identity))
        )
    await shake_hands(pair.client, pair.server, TlsChoices(KeyPair(new.key, new.certificate).issue(identity)))


async def shake_hands(client: MeshPod, server: MeshPod, choices: TlsChoices) -> int:
    """A handshake at a server's HBONE port, up to the server's first frame; gives the TLS version."""
    # Where redirection does not reach: ztunnel's own pod.
    home = client.mesh.deployment.nodes[client.pod.node.name].homes[-1]  # type: ignore[attr-defined]  # of NodeDeployment
    away = MeshPod(client.mesh, home, "istio-system", "ztunnel", captured=False, registered=False)
    stream = await away.connect(server.ipv4, 15008)
    tls = RawTls(stream, choices, server=False)
    try:
        await tls.handshake()
        with trio.fail_after(10):
            assert await tls.receive()
        return tls.ssl.get_protocol_version()
    finally:
        await tls.close()


@dataclass
class Revocable:
    """Three nodes with different ideas of TLS, and a revocation file for all."""

    plane: ControlledMesh
    client: MeshPod
    modern: MeshPod
    lenient: MeshPod
    revocations: Path

    def revoke(self, *certificates: bytes) -> None:
        """Write the list anew, as a ConfigMap's update does."""
        new = self.revocations.with_suffix(".new")
        new.write_bytes(self.plane.ca.revocations(*certificates))
        new.rename(self.revocations)

    def own(self, pod: MeshPod) -> KeyPair:
        """A certificate for a pod's identity that its ztunnel does not have."""
        return KeyPair(self.plane.ca.key, self.plane.ca.certificate).issue(pod.identity)


@pytest.fixture(scope="module")
def revocable() -> Iterator[Revocable]:
    with ControlledMesh.open() as plane:
        mesh = plane.mesh
        directory = plane.directory / "crl"
        directory.mkdir()
        revocations = directory / "ca-crl.pem"
        revocations.touch()
        mesh.environment["CRL_PATH"] = str(revocations)
        client = mesh.node("plain").pod("client")
        modern = mesh.node("modern").pod("modern")
        lenient = mesh.node("lenient").pod("lenient")
        plane.deployment.node(mesh, modern.pod.node).launch({"COMPLIANCE_POLICY": "pqc"})
        plane.deployment.node(mesh, lenient.pod.node).launch({"TLS12_ENABLED": "true"})
        for node in plane.deployment.nodes.values():
            node.current.wait_ready()
        plane.start()
        yield Revocable(plane, client, modern, lenient, revocations)
        name = mesh.machine.name
    closed_without_a_trace(name)


@pytest.mark.parametrize("way", [("client", "modern"), ("modern", "client"), ("lenient", "modern")])
async def test_ztunnels_with_different_tls_options_understand_each_other(
    revocable: Revocable, way: tuple[str, str]
) -> None:
    source, target = (getattr(revocable, name) for name in way)
    async with serve(target, 8080), await source.connect(target.ipv4, 8080) as stream:
        await exchanged(stream)
    (line,) = await target.logged(direction="inbound", src__workload=source.name)
    assert line["src.identity"] == source.identity


async def test_with_the_compliance_policy_only_a_post_quantum_key_exchange_is_taken(
    revocable: Revocable,
) -> None:
    @dataclass(frozen=True)
    class Groups(TlsChoices):
        groups: bytes = b"X25519"

        def context(self) -> SSL.Context:
            context = TlsChoices.context(self)
            assert tls_openssl.set_groups(context, self.groups)
            return context

    own = revocable.own(revocable.client)
    classic, modern = Groups(own), Groups(own, groups=b"X25519MLKEM768")
    assert await shake_hands(revocable.client, revocable.lenient, classic) == SSL.TLS1_3_VERSION
    assert await shake_hands(revocable.client, revocable.modern, modern) == SSL.TLS1_3_VERSION
    with pytest.raises(TlsAlertError, match="handshake failure"):
        await shake_hands(revocable.client, revocable.modern, classic)


async def test_tls_12_is_taken_only_where_it_is_enabled(revocable: Revocable) -> None:
    choices = TlsChoices(revocable.own(revocable.client), version=SSL.TLS1_2_VERSION)
    assert await shake_hands(revocable.client, revocable.lenient, choices) == SSL.TLS1_2_VERSION
    with pytest.raises(TlsAlertError, match="protocol version"):
        await shake_hands(revocable.client, revocable.modern, choices)


async def test_a_revoked_certificate_loses_its_tunnels_and_gets_no_new_ones(revocable: Revocable) -> None:
    client, lenient, modern = revocable.client, revocable.lenient, revocable.modern
    serial = next(one for one in revocable.plane.istiod.issued if one.identity == client.identity).certificate
    metric = "istio_crl_policy_rejections_total"
    async with serve(lenient, 8080), serve(modern, 8080):
        async with (
            await client.connect(lenient.ipv4, 8080) as revoked,
            await modern.connect(lenient.ipv4, 8080) as other,
        ):
            await exchanged(revoked)
            await exchanged(other)
            revocable.revoke(serial)
            assert await ended_by(revoked) == "reset"
            await exchanged(other)
        error = "connection closed: peer certificate revoked by CRL"
        assert await lenient.logged(error=error, src__workload="client")
        assert lenient.metric("istio_tcp_connections_failed_total", response_flags="CERT_REVOKED") == 1
        assert lenient.metric(metric, reporter="destination") >= 1
        before = lenient.metric(metric, reporter="destination")
        assert await refused_by(client, lenient.ipv4, 8080, say=b"x") == "reset"
        await lenient.metric_reaches(before + 1, metric, reporter="destination")
        # A list that cannot be read changes nothing; an empty one takes the revocation back.
        revocable.revocations.write_bytes(b"-----BEGIN X509 CRL-----\nnonsense\n-----END X509 CRL-----\n")
        await eventually(lambda: lenient.ztunnel.log_lines("is invalid"), "told of the invalid file")
        assert await refused_by(client, lenient.ipv4, 8080, say=b"x") == "reset"
        count = len(lenient.ztunnel.log_lines("revocation lists loaded"))
        revocable.revoke()
        await eventually(
            lambda: len(lenient.ztunnel.log_lines("revocation lists loaded")) > count, "read once more"
        )
        async with await client.connect(lenient.ipv4, 8080) as again:
            await exchanged(again)


async def test_on_demand_what_connections_need_is_asked_for(short_lived: Pair) -> None:
    pair = short_lived
    plane, istiod = pair.plane, pair.istiod
    node = plane.mesh.node("lazy")
    lazy = node.pod("lazy")
    plane.register(lazy)
    running = plane.deployment.node(plane.mesh, node.node)
    running.start(XDS_ON_DEMAND="true")
    plane.mesh.start()
    hostname = "asked.default.svc.cluster.local"
    message = pb.Address(service=service("asked", "10.96.0.9", {80: 8080}))
    istiod.put(f"default/{hostname}", message, aliases=["/10.96.0.9"])
    ports = pb.PortList(ports=[pb.Port(service_port=80, target_port=8080)])
    plane.register(pair.server, services={f"default/{hostname}": ports})
    await trio.to_thread.run_sync(istiod.wait_settled, ADDRESS_TYPE)
    assert {one["name"] for one in lazy.config_dump()["workloads"]} == {"lazy"}
    async with serve(pair.server, 8080):
        async with await lazy.connect(pair.server.ipv4, 8080) as stream:
            await exchanged(stream)
        (line,) = await lazy.logged(direction="outbound")
        assert (line["dst.workload"], line["dst.hbone_addr"]) == ("server", f"{pair.server.ipv4}:8080")
        async with await lazy.connect("10.96.0.9", 80) as stream:
            await exchanged(stream)
    stream_seen = istiod.streams[-1]
    asked = [name for one in stream_seen.requests for name in one.resource_names_subscribe]
    assert {f"/{pair.server.ipv4}", "/10.96.0.9"} <= set(asked)
    names = {one["name"] for one in lazy.config_dump()["workloads"]}
    assert names == {"lazy", "server"}
    # What istiod does not know either goes as it is, and is not waited for.
    outside = plane.mesh.node("b").pod("outside", captured=False, registered=False)
    with trio.fail_after(4):
        async with serve(outside, 8080), await lazy.connect(outside.ipv4, 8080) as stream:
            await exchanged(stream)
