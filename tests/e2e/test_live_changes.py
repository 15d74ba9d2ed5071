"""Changes of the mesh act on established connections, not only on new ones."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
import trio
from h2.errors import ErrorCodes

from tests.e2e.conftest import StandardMesh
from tests.support.local_file import Exact, Presence
from tests.support.pod import MeshPod, eventually
from tests.support.raw_hbone import raw_client
from tests.support.raw_tls import KeyPair, TlsAlertError, TlsChoices
from tests.support.traffic import Server, ended_by, read_exactly, refused_by, serve


@contextlib.asynccontextmanager
async def established(client: MeshPod, server: MeshPod) -> AsyncIterator[tuple[trio.SocketStream, Server]]:
    """A connection with a byte exchanged."""
    async with serve(server, 8080) as application, await client.connect(server.ipv4, 8080) as stream:
        await stream.send_all(b"x")
        assert await read_exactly(stream, 1) == b"x"
        yield stream, application


async def test_a_new_deny_policy_closes_what_it_denies_and_nothing_else(standard: StandardMesh) -> None:
    client, other, server = standard.client, standard.other, standard.server
    before = len(server.access_log())
    async with established(client, server) as (denied, application):
        async with await other.connect(server.ipv4, 8080) as allowed:
            await allowed.send_all(b"x")
            assert await read_exactly(allowed, 1) == b"x"
            rules = [[[{"principals": [Exact(client.principal)]}]]]
            standard.mesh.policy("late", action="Deny", rules=rules)
            await standard.mesh.update()
            assert await ended_by(denied) == "reset"
            await allowed.send_all(b"still allowed")
            assert await read_exactly(allowed, 13) == b"still allowed"
        [failure] = application.failures
        assert isinstance(failure.__cause__, ConnectionResetError), "what was cut off did not end in order"
        (entry,) = [
            entry
            for entry in (await server.logged(count=before + 2))[before:]
            if entry["src.workload"] == "client"
        ]
    assert (entry["level"], entry["message"]) == ("error", "connection complete")
    assert entry["error"] == "connection closed due to policy change"
    assert server.metric("istio_tcp_connections_failed_total", response_flags="DENY") >= 1
    told = [line for line in server.log() if "no longer allowed after a policy update" in line["message"]]
    assert any(client.identity in line["message"] for line in told), told


async def test_removing_the_policy_that_allowed_closes_too(standard: StandardMesh) -> None:
    client, server = standard.client, standard.server
    mesh = standard.mesh
    mine = mesh.policy("mine", rules=[[[{"principals": [Exact(client.principal)]}]]], workloads=[server])
    mesh.policy("others", rules=[[[{"principals": [Exact("cluster.local/ns/x/sa/y")]}]]], workloads=[server])
    await mesh.update()
    async with established(client, server) as (stream, _):
        mesh.remove_policy(mine)
        await mesh.update()
        assert await ended_by(stream) == "reset"


async def test_plaintext_connections_are_closed_as_well(standard: StandardMesh) -> None:
    server = standard.server
    async with established(standard.outside, server) as (stream, _):
        standard.mesh.policy("strict", action="Deny", rules=[[[{"notPrincipals": [Presence()]}]]])
        await standard.mesh.update()
        assert await ended_by(stream) == "reset"


async def test_a_workload_that_comes_under_a_policy_loses_what_it_denies(standard: StandardMesh) -> None:
    client, server, mesh = standard.client, standard.server, standard.mesh
    rules = [[[{"principals": [Exact(client.principal)]}]]]
    key = mesh.policy("selected", action="Deny", rules=rules, workloads=[server])
    server.workload["authorizationPolicies"].remove(key)
    await mesh.update()
    async with established(client, server) as (stream, _):
        server.workload["authorizationPolicies"].append(key)
        await mesh.update()
        assert await ended_by(stream) == "reset"


async def test_a_change_that_changes_nothing_for_a_connection_leaves_it_alone(standard: StandardMesh) -> None:
    async with established(standard.client, standard.server) as (stream, _):
        standard.mesh.policy("unrelated", action="Deny", rules=[[[{"destinationPorts": [1]}]]])
        standard.mesh.policy("dry", action="Deny", rules=[[]], dry_run=True)
        await standard.mesh.update()
        await stream.send_all(b"still here")
        assert await read_exactly(stream, 10) == b"still here"


async def test_new_connections_follow_the_policy_of_the_moment(standard: StandardMesh) -> None:
    client, server, mesh = standard.client, standard.server, standard.mesh
    key = mesh.policy("toggle", action="Deny", rules=[[[{"destinationPorts": [8080]}]]])
    await mesh.update()
    async with serve(server, 8080) as application:
        assert await refused_by(client, server.ipv4, 8080, say=b"x") == "reset"
        assert application.peers == []
        mesh.remove_policy(key)
        await mesh.update()
        async with await client.connect(server.ipv4, 8080) as stream:
            await stream.send_all(b"x")
            assert await read_exactly(stream, 1) == b"x"


async def test_a_server_that_moves_to_another_trust_domain_loses_who_would_be_refused_by_now(
    standard: StandardMesh,
) -> None:
    server, mesh = standard.server, standard.mesh
    own = KeyPair.load(mesh.root).issue("spiffe://cluster.local/ns/default/sa/outside")
    before = len(server.access_log())
    async with (
        serve(server, 8080) as application,
        raw_client(standard.outside, server.ipv4, TlsChoices(own)) as client,
    ):
        stream = await client.connect(f"{server.ipv4}:8080")
        await client.exchange(stream, b"before")
        server.workload["trustDomain"] = "other.domain"
        await mesh.update()
        await client.until(lambda: stream.reset is not None)
        assert stream.reset == ErrorCodes.CANCEL
        # The tunnel is of the old days, and what comes through it is not better for that.
        assert (await client.connect(f"{server.ipv4}:8080")).status == 401
        with pytest.raises(TlsAlertError, match="certificate unknown"):
            async with raw_client(standard.outside, server.ipv4, TlsChoices(own)) as late:
                await late.connect(f"{server.ipv4}:8080")
        assert len(application.peers) == 1
    entries = (await server.logged(count=before + 3))[before:]
    assert [entry["error"].partition(", [")[0] for entry in entries] == [
        "connection closed due to policy change",
        "connection closed due to policy rejection: no identity of the peer is of trust domain other.domain",
        'tls handshake error: Custom { kind: InvalidData, error: InvalidCertificate(Other(OtherError(SanTrustDomainError("other.domain"',  # noqa: E501  # one text
    ]
    assert all(
        entry["src.identity"] == "spiffe://cluster.local/ns/default/sa/outside" for entry in entries[:2]
    )


async def test_a_client_leaves_a_server_that_has_become_somebody_else(standard: StandardMesh) -> None:
    client, server, mesh = standard.client, standard.server, standard.mesh
    before = len(client.access_log())
    denied = client.metric("istio_tcp_connections_failed_total", response_flags="DENY")
    async with established(client, server) as (stream, _):
        server.workload["serviceAccount"] = "somebody-else"
        await mesh.update()
        assert await ended_by(stream) == "reset"
        (entry,) = (await client.logged(count=before + 1))[before:]
        assert (entry["level"], entry["direction"]) == ("error", "outbound")
        assert entry["error"] == "connection closed due to policy change"
        assert entry["dst.identity"] == server.identity
        assert client.metric("istio_tcp_connections_failed_total", response_flags="DENY") == denied + 1


async def test_a_change_of_trust_domain_ends_connections_between_two_ztunnels(standard: StandardMesh) -> None:
    client, server, mesh = standard.client, standard.server, standard.mesh
    before = len(client.access_log())
    async with established(client, server) as (stream, application):
        server.workload["trustDomain"] = "other.domain"
        await mesh.update()
        assert await ended_by(stream) == "reset"
        assert len(application.peers) == 1
    (entry,) = (await client.logged(count=before + 1))[before:]
    # Who notices first says so; to the other it is then the peer that has ended it.
    assert entry.get("error") in {"connection closed due to policy change", None}


async def test_a_broken_file_is_reported_and_changes_nothing(standard: StandardMesh) -> None:
    client, server, mesh = standard.client, standard.server, standard.mesh
    before = len(server.log(level="error")) + len(server.log(level="warn"))
    good = mesh.file.read_text()
    try:
        new = mesh.file.with_suffix(".new")
        new.write_text("workloads: [{surprise: 1}]\n")
        new.rename(mesh.file)
        await eventually(
            lambda: len(server.log(level="error")) + len(server.log(level="warn")) > before,
            "told of the broken file",
        )
        async with established(client, server):
            pass
    finally:
        mesh.file.with_suffix(".new").write_text(good)
        mesh.file.with_suffix(".new").rename(mesh.file)


@pytest.mark.parametrize("change", ["protocol", "address"])
async def test_new_connections_follow_the_workload_of_the_moment(standard: StandardMesh, change: str) -> None:
    client, legacy, mesh = standard.client, standard.legacy, standard.mesh
    if change == "protocol":
        legacy.workload["protocol"] = "HBONE"
    else:
        legacy.workload["workloadIps"] = ["10.99.0.1"]
    await mesh.update()
    before = len(client.access_log())
    if change == "protocol":
        # The mesh says HBONE, and nobody serves it there.
        async with serve(legacy, 8080):
            await refused_by(client, legacy.ipv4, 8080, say=b"x")
    else:
        async with established(client, legacy):
            pass
    (entry,) = (await client.logged(count=before + 1))[before:]
    assert ("dst.workload" in entry) == (change == "protocol")
