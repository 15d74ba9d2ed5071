"""One ztunnel a node under a control plane: the mesh and certificates from istiod, pods from the CNI."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial

import grpc
import pytest
import trio

from tests.support.census import take_census
from tests.support.control_plane import ControlledMesh, deny, membership, service, workload
from tests.support.fake_ca import FakeCertificateAuthority
from tests.support.fake_istiod import Stream, server_that_never_answers
from tests.support.pod import MeshPod, eventually
from tests.support.raw_tls import KeyPair, RawTls, TlsChoices
from tests.support.traffic import ended_by, read_exactly, refused_by, serve
from ztunnel.demo.dedicated import Ztunnel, dedicated_environment
from ztunnel.pb.istio import workload as pb
from ztunnel.xds.xds_session import ADDRESS_TYPE, AUTHORIZATION_TYPE

CERTIFIED_NAME = "istiod.other-name"


@dataclass
class Controlled:
    """Two nodes with a pod each, a third pod that comes and goes, and their control plane."""

    plane: ControlledMesh
    client: MeshPod
    server: MeshPod
    spare: MeshPod

    @property
    def ztunnels(self) -> list[MeshPod]:
        """A pod of each node."""
        return [self.client, self.server]

    @property
    def streams(self) -> list[Stream]:
        """What is open at istiod."""
        return [stream for stream in self.plane.istiod.streams if stream.is_open]

    async def settled(self, type_url: str) -> None:
        """Wait until every ztunnel has answered what was pushed."""
        await trio.to_thread.run_sync(self.plane.istiod.wait_settled, type_url)

    def warnings(self, pod: MeshPod) -> list[str]:
        """The warnings and errors that the xDS client of a pod's ztunnel has logged."""
        lines = pod.log(scope="ztunnel::xds::client")
        return [line["message"] for line in lines if line["level"] in {"warn", "error"}]

    @staticmethod
    def terminations(pod: MeshPod) -> set[tuple[str, float]]:
        """How often the streams of a pod's ztunnel have ended so far, by reason."""
        samples = pod.metrics("istio_xds_connection_terminations_total")
        return {(sample.labels["reason"], sample.value) for sample in samples}

    def told(self, pod: MeshPod, count: int, text: str) -> bool:
        """Whether a warning after the first ``count`` has a text."""
        return any(text in line for line in self.warnings(pod)[count:])


@pytest.fixture(scope="module")
def controlled() -> Iterator[Controlled]:
    environment = {
        "ALT_XDS_HOSTNAME": CERTIFIED_NAME,
        "ALT_CA_HOSTNAME": CERTIFIED_NAME,
        "XDS_HEADER_x-purpose": "xds of tests",
        "CA_HEADER_X-Purpose": "certificates of tests",
        "ISTIO_META_CLUSTER_ID": "cluster-7",
    }
    with ControlledMesh.open(environment=environment, names=[CERTIFIED_NAME]) as plane:
        client = plane.mesh.node("a").pod("client")
        server = plane.mesh.node("b").pod("server")
        spare = plane.mesh.node("b").pod("spare")
        plane.start()
        # A test that lets istiod hang would hold what is under way then, until the CA client gives it up.
        wanted = {pod.identity for pod in (client, server, spare)}
        plane.istiod.wait_until(lambda it: wanted <= {one.identity for one in it.issued})
        yield Controlled(plane, client, server, spare)
        for node in plane.deployment.nodes.values():
            for ztunnel in node.ztunnels:
                assert not ztunnel.log_lines("Traceback"), ztunnel.process.output()[-8000:]
        name = plane.mesh.machine.name
    census = take_census(name)
    assert census.empty, census


@contextlib.asynccontextmanager
async def established(client: MeshPod, server: MeshPod) -> AsyncIterator[trio.SocketStream]:
    """A connection with a byte exchanged, to a server that echoes."""
    async with serve(server, 8080), await client.connect(server.ipv4, 8080) as stream:
        await exchanged(stream)
        yield stream


async def exchanged(stream: trio.SocketStream) -> None:
    """See that a connection is alive."""
    await stream.send_all(b"x")
    assert await read_exactly(stream, 1) == b"x"


async def reaches(client: MeshPod, server: MeshPod, port: int = 8080) -> None:
    """See that a new connection works; the server echoes."""
    async with await client.connect(server.ipv4, port) as stream:
        await exchanged(stream)


async def test_traffic_flows_with_certificates_for_each_pods_identity(controlled: Controlled) -> None:
    client, server, istiod = controlled.client, controlled.server, controlled.plane.istiod
    async with established(client, server):
        pass
    line = (await server.logged(direction="inbound", src__workload="client"))[-1]
    assert line["src.identity"] == client.identity
    issued = {one.identity: one for one in istiod.issued}
    assert {client.identity, server.identity} <= issued.keys()
    assert issued[client.identity].validity == 86_400
    for metadata in (istiod.streams[0].metadata, issued[client.identity].metadata):
        assert metadata["authorization"] == f"Bearer {istiod.token}"
        assert metadata["clusterid"] == "cluster-7"
    assert istiod.streams[0].metadata["x-purpose"] == "xds of tests"
    assert issued[client.identity].metadata["x-purpose"] == "certificates of tests"
    node = istiod.streams[0].requests[0].node
    assert node is not None
    assert node.metadata is not None
    assert node.metadata.fields["NODE_NAME"].string_value in {"a", "b"}


async def test_neither_pods_nor_readiness_before_the_first_sync(controlled: Controlled) -> None:
    plane = controlled.plane
    istiod = plane.istiod
    streams = len(istiod.streams)
    istiod.misbehaviour.hang = True
    node = plane.deployment.node(plane.mesh, plane.mesh.node("c").node)
    try:
        ztunnel = node.launch()
        await trio.to_thread.run_sync(istiod.wait_until, lambda it: len(it.streams) > streams)
        await eventually(lambda: ztunnel.http("GET", 15021, "/healthz/ready")[0] == 500, "served")
        assert not ztunnel.ready()
        _, text = ztunnel.http("GET", 15021, "/healthz/ready?verbose")
        assert "state manager: pending for" in text
        assert f"last error: connecting to {istiod.address}" in text
        assert node.cni.connections == []
    finally:
        istiod.misbehaviour.hang = False
    istiod.end_streams(grpc.StatusCode.OK)
    await eventually(ztunnel.ready, "ready", 20)
    await trio.to_thread.run_sync(node.cni.wait_ready)
    assert ztunnel.process.stop(grace=10) == 0


async def test_a_pushed_policy_acts_on_live_connections_and_its_removal_on_new_ones(
    controlled: Controlled,
) -> None:
    client, server, istiod = controlled.client, controlled.server, controlled.plane.istiod
    async with established(client, server) as stream:
        istiod.put("default/late", deny("late", principal=client.principal))
        assert await ended_by(stream) == "reset"
        await server.logged(error="connection closed due to policy change")
        assert await refused_by(client, server.ipv4, 8080) == "reset"
        istiod.remove("default/late", type_url=AUTHORIZATION_TYPE)
        await controlled.settled(AUTHORIZATION_TYPE)
        await reaches(client, server)


async def test_a_service_works_whichever_comes_first_it_or_its_endpoints(controlled: Controlled) -> None:
    client, server, istiod = controlled.client, controlled.server, controlled.plane.istiod
    ports = {80: 8080}
    for vip, name, endpoints_first in (("10.96.0.1", "late", True), ("10.96.0.2", "early", False)):
        steps = [
            partial(controlled.plane.register, server, services=membership(name, ports)),
            partial(
                istiod.put,
                f"default/{name}.default.svc.cluster.local",
                pb.Address(service=service(name, vip, ports)),
            ),
        ]
        for step in steps if endpoints_first else reversed(steps):
            step()
            await controlled.settled(ADDRESS_TYPE)
        async with serve(server, 8080), await client.connect(vip, 80) as stream:
            await exchanged(stream)
    controlled.plane.register(server)
    istiod.remove(*[f"default/{name}.default.svc.cluster.local" for name in ("late", "early")])
    await controlled.settled(ADDRESS_TYPE)


async def test_a_workload_that_is_removed_is_no_longer_of_the_mesh(controlled: Controlled) -> None:
    client, spare, istiod = controlled.client, controlled.spare, controlled.plane.istiod
    async with established(client, spare):
        pass
    istiod.remove(spare.uid)
    await controlled.settled(ADDRESS_TYPE)
    assert spare.uid not in {one["uid"] for one in client.config_dump()["workloads"]}
    # Its certificate goes with the last workload of its identity on the node.
    identities = {one["identity"] for one in spare.config_dump()["certificates"]}
    assert spare.identity not in identities
    assert controlled.server.identity in identities
    await refused_by(client, spare.ipv4, 8080)  # nobody listens there: it was passed through as it is
    (line,) = await client.logged(dst__addr=f"{spare.ipv4}:8080")
    assert "dst.workload" not in line
    controlled.plane.register(spare)
    await controlled.settled(ADDRESS_TYPE)
    async with established(client, spare):
        pass


class TestBadInput:
    async def test_what_is_good_in_a_response_is_applied_and_what_is_bad_is_named(
        self, controlled: Controlled
    ) -> None:
        client, server, plane = controlled.client, controlled.server, controlled.plane
        istiod = plane.istiod
        duplicate = workload(server, uid="Kubernetes//Pod/default/duplicate", name="duplicate", node="x")
        duplicate.tunnel_protocol = pb.TunnelProtocol.NONE
        broken = workload(
            server, uid="Kubernetes//Pod/default/odd", name="odd", node="x", addresses=[b"12345"]
        )
        istiod.put_all(
            [
                ("Kubernetes//Pod/default/odd", pb.Address(workload=broken)),
                ("Kubernetes//Pod/default/garbage", b"\x0a\xff\xff\xff"),
                ("Kubernetes//Pod/default/duplicate", pb.Address(workload=duplicate)),
                (
                    "default/new.default.svc.cluster.local",
                    pb.Address(service=service("new", "10.96.0.3", {})),
                ),
            ]
        )
        await controlled.settled(ADDRESS_TYPE)
        text = "Kubernetes//Pod/default/odd: failed to parse address, had 5 bytes; "
        for stream in controlled.streams:
            nack = stream.nacks(ADDRESS_TYPE)[-1].error_detail
            assert nack is not None
            assert nack.code == 0
            assert nack.message.startswith(text + "Kubernetes//Pod/default/garbage: decode: ")
        dump = client.config_dump()
        assert {one["name"] for one in dump["services"]} == {"new"}
        names = {one["name"] for one in dump["workloads"]}
        assert {"client", "server", "duplicate"} <= names
        assert names.isdisjoint({"odd", "garbage"})
        # A line may be written a moment after what it tells of.
        refusals = partial(client.log, level="error", message="sending response", type="Nack")
        await eventually(
            lambda: any(line["error"].startswith(text) for line in refusals()), "a line about it"
        )
        # The pod's own entry, reached over HBONE, wins over the one that came later for its address.
        async with established(client, server):
            pass
        removed = ["Kubernetes//Pod/default/odd", "Kubernetes//Pod/default/garbage"]
        removed += ["Kubernetes//Pod/default/duplicate", "default/new.default.svc.cluster.local"]
        istiod.remove(*removed, "never/was.there", "Kubernetes//Pod/never/was", "nonsense")
        await controlled.settled(ADDRESS_TYPE)
        assert all(stream.requests[-1].error_detail is None for stream in controlled.streams)
        unknown = partial(client.log, message="tried to remove service, but it was not found", level="warn")
        await eventually(unknown, "a warning about it")
        async with established(client, server):
            pass

    async def test_a_policy_that_cannot_be_understood_does_not_widen_access(
        self, controlled: Controlled
    ) -> None:
        client, server, istiod = controlled.client, controlled.server, controlled.plane.istiod
        strict = deny("strict", principal=client.principal)
        istiod.put("default/strict", strict)
        await controlled.settled(AUTHORIZATION_TYPE)
        # A later version of it with an action that does not exist.
        istiod.put("default/strict", bytes(strict) + b"\x20\x63", type_url=AUTHORIZATION_TYPE)
        await controlled.settled(AUTHORIZATION_TYPE)
        for seen in controlled.streams:
            nack = seen.nacks(AUTHORIZATION_TYPE)[-1].error_detail
            assert nack is not None
            assert nack.message == "default/strict: decode error: unknown enumeration value 99"
        async with serve(server, 8080):
            await refused_by(client, server.ipv4, 8080)
        istiod.remove("default/strict", type_url=AUTHORIZATION_TYPE)
        await controlled.settled(AUTHORIZATION_TYPE)
        async with established(client, server):
            pass


async def test_a_reconnect_shows_the_token_of_the_moment_and_trusts_the_roots_of_the_moment(
    controlled: Controlled,
) -> None:
    plane = controlled.plane
    istiod, count = plane.istiod, len(plane.istiod.streams)
    istiod.token = "the next token"
    plane.token_file.write_text(istiod.token)
    plane.ca = FakeCertificateAuthority("the next root of istiod")
    plane.root_file.write_bytes(plane.ca.root)
    istiod.kill()
    plane.serve(plane.ca)
    await trio.to_thread.run_sync(
        istiod.wait_until, lambda it: len([one for one in it.streams[count:] if one.requests]) >= 2
    )
    assert {one.metadata["authorization"] for one in istiod.streams[count:]} == {"Bearer the next token"}
    first = istiod.streams[-1].first(ADDRESS_TYPE)
    assert first is not None
    assert controlled.server.uid in first.initial_resource_versions
    # So does the CA client, for the next certificate.
    newcomer = plane.mesh.node("a").pod("newcomer")
    plane.register(newcomer)
    await trio.to_thread.run_sync(
        istiod.wait_until, lambda it: any(one.identity == newcomer.identity for one in it.issued)
    )
    assert istiod.issued[-1].metadata["authorization"] == "Bearer the next token"


FAULTS = {
    "killed": "Connection refused",
    "garbage": "failed to decode Protobuf message: DeltaDiscoveryResponse, near byte 2",
    "refused token": "(hint: check the control plane logs for more information)",
    "silent": "Unavailable",
    "hung": "no response from the control plane; its name does not resolve, or it is hung, overloaded",
    "other CA": "(hint: is its certificate from a root in XDS_ROOT_CA, and for its name?)",
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_the_loss_of_the_control_plane_stops_no_traffic_is_told_and_heals(
    controlled: Controlled, fault: str
) -> None:
    client, server, plane = controlled.client, controlled.server, controlled.plane
    istiod = plane.istiod
    counts = [len(controlled.warnings(pod)) for pod in controlled.ztunnels]
    terminations = controlled.terminations(client)
    silence = contextlib.ExitStack()
    async with established(client, server) as stream:
        match fault:
            case "killed":
                istiod.kill()
            case "garbage":
                istiod.misbehaviour.garbage = True
                istiod.end_streams(grpc.StatusCode.OK)
            case "refused token":
                istiod.misbehaviour.refuse_token = True
                istiod.end_streams(grpc.StatusCode.OK)
            case "hung":
                istiod.misbehaviour.hang = True
                istiod.end_streams(grpc.StatusCode.OK)
            case "silent":
                istiod.kill()
                with plane.home.namespace.entered():
                    silence.enter_context(server_that_never_answers(port=istiod.port, host=istiod.host))
            case "other CA":
                istiod.kill()
                plane.serve(FakeCertificateAuthority("somebody else's"))
        try:
            for pod, count in zip(controlled.ztunnels, counts, strict=True):
                told = partial(controlled.told, pod, count, FAULTS[fault])
                await eventually(told, f"told by {pod.name}'s ztunnel", timeout=25)
            await exchanged(stream)
            await reaches(client, server)
            for pod in controlled.ztunnels:
                status, text = pod.ztunnel.http("GET", 15021, "/healthz/ready?verbose")
                assert (status, text[:6]) == (200, "ready\n")
                assert f"control plane: not connected to {istiod.address}, " in text
                assert FAULTS[fault] in text or "has sent no response within 15s" in text
        finally:
            istiod.misbehaviour.garbage = istiod.misbehaviour.refuse_token = False
            silence.close()
            if fault == "hung":
                istiod.resume()
            if fault in {"killed", "silent", "other CA"}:
                istiod.kill()
                plane.serve(plane.ca)
        istiod.put("default/healed", deny("healed", principal=client.principal))
        assert await ended_by(stream, timeout=20) == "reset"
    istiod.remove("default/healed", type_url=AUTHORIZATION_TYPE)
    await trio.to_thread.run_sync(
        istiod.wait_until, lambda it: len([one for one in it.streams if one.is_open and one.requests]) == 2
    )
    await controlled.settled(AUTHORIZATION_TYPE)
    # An end in good order sets the waits between attempts back.
    count = len(istiod.streams)
    istiod.end_streams(grpc.StatusCode.OK)
    await trio.to_thread.run_sync(
        istiod.wait_until, lambda it: len([one for one in it.streams[count:] if one.requests]) == 2
    )
    async with established(client, server):
        pass
    grown = {reason for reason, _ in controlled.terminations(client) - terminations}
    # A control plane that only hangs has ended its streams in good order, and none was open afterwards.
    assert grown & ({"Complete"} if fault == "hung" else {"ConnectionError", "Error"})


def dedicated(controlled: Controlled, pod: str, **extra: str) -> tuple[MeshPod, Ztunnel]:
    """A pod of that name on node a, and a ztunnel for it alone, which is starting. extra: more variables."""
    plane = controlled.plane
    own = plane.mesh.node("a").pod(pod, redirection=None)
    plane.register(own)
    environment = dedicated_environment(
        namespace=own.namespace,
        name=own.name,
        service_account=own.serviceaccount,
        mesh_file=plane.mesh.file,
        root=plane.mesh.root,
        inherit=os.environ,
        extra=plane.mesh.environment | {"LOG_FORMAT": "json"} | extra,
    )
    return own, Ztunnel.start(plane.mesh.machine, pod, environment, own.pod.namespace)


async def test_a_dedicated_ztunnel_asks_for_its_own_certificate_and_impersonates_nobody(
    controlled: Controlled,
) -> None:
    plane = controlled.plane
    own, ztunnel = dedicated(controlled, "alone")
    ztunnel.wait_ready()
    ca = plane.istiod.ca
    choices = TlsChoices(KeyPair(ca.key, ca.certificate).issue(controlled.client.identity))
    away = MeshPod(plane.mesh, plane.home, "istio-system", "istiod", captured=False, registered=False)
    tls = RawTls(await away.connect(own.ipv4, 15008), choices, server=False)
    await tls.handshake()
    assert tls.peer_uri() == own.identity
    await tls.close()
    (asked,) = [one for one in plane.istiod.issued if one.identity == own.identity and not one.impersonated]
    assert asked.metadata["x-purpose"] == "certificates of tests"
    assert all(one.impersonated for one in plane.istiod.issued if one is not asked)
    assert ztunnel.process.stop(grace=10) == 0
    plane.istiod.remove(own.uid)
    plane.mesh.pods.remove(own)


@pytest.mark.parametrize(("pod", "alternative"), [("two-names", CERTIFIED_NAME), ("one-name", "")])
async def test_a_ztunnel_ends_while_the_ca_does_not_answer(
    controlled: Controlled, pod: str, alternative: str
) -> None:
    plane = controlled.plane
    with contextlib.ExitStack() as silence:
        with plane.home.namespace.entered():
            port, accepted = silence.enter_context(server_that_never_answers(host=plane.istiod.host))
        own, ztunnel = dedicated(
            controlled,
            pod,
            CA_ADDRESS=f"https://{plane.istiod.host}:{port}",
            ALT_CA_HOSTNAME=alternative,
            # Shorter than an attempt to connect, which is under way when the program ends.
            CONNECTION_TERMINATION_DEADLINE="500ms",
        )
        ztunnel.wait_ready()
        away = MeshPod(plane.mesh, plane.home, "istio-system", "istiod", captured=False, registered=False)
        async with await away.connect(own.ipv4, 15008):
            await eventually(lambda: bool(accepted), "the CA is asked")
        status = ztunnel.process.stop(grace=10)
    plane.istiod.remove(own.uid)
    plane.mesh.pods.remove(own)
    assert status == 0
