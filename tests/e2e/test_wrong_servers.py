"""HBONE servers that are not whom the mesh expects get not one byte of the application's data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import trio
from OpenSSL import SSL

from tests.support.mesh import Mesh
from tests.support.pod import MeshPod
from tests.support.quiet import quiet
from tests.support.raw_hbone import RawHbone, answer_all, raw_server
from tests.support.raw_tls import KeyPair, TlsChoices, unrelated_root
from tests.support.traffic import read_exactly, refused_by


@dataclass
class ImpostorMesh:
    """A pod served by ztunnel, and one whose HBONE server is played by the test."""

    mesh: Mesh
    client: MeshPod
    server: MeshPod
    vip: str

    @property
    def root(self) -> KeyPair:
        return KeyPair.load(self.mesh.root)


@pytest.fixture(scope="module")
def impostor() -> Iterator[ImpostorMesh]:
    with Mesh.open() as mesh:
        client = mesh.node("a").pod("client")
        server = mesh.node("b").pod("server", captured=False)
        vip = mesh.service("web", ports={80: 8080}, endpoints=[server])
        mesh.start()
        yield ImpostorMesh(mesh, client, server, vip)


@pytest.fixture(autouse=True)
def _quiet(impostor: ImpostorMesh) -> None:
    quiet([impostor.client])


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (
            "another identity",
            "io error: invalid peer certificate: Other(OtherError(identity verification error: peer did not",
        ),
        ("another trust domain", "peer did not present the expected SAN"),
        ("another CA", "io error: "),
        ("no name", "io error: "),
        ("TLS 1.2", "io error: "),
        ("no TLS", "io error: "),
    ],
)
async def test_a_wrong_server_gets_nothing(impostor: ImpostorMesh, name: str, error: str) -> None:
    server, root = impostor.server, impostor.root
    own = {
        "another identity": lambda: root.issue("spiffe://cluster.local/ns/default/sa/impostor"),
        "another trust domain": lambda: root.issue(server.identity.replace("cluster.local", "other.domain")),
        "another CA": lambda: unrelated_root().issue(server.identity),
        "no name": lambda: root.issue(None),
        "TLS 1.2": lambda: root.issue(server.identity),
        "no TLS": lambda: root.issue(server.identity),
    }[name]()
    seen = bytearray()
    before = len(impostor.client.access_log())

    async def without_tls(stream: trio.SocketStream) -> None:
        async with stream:
            seen.extend(await stream.receive_some(10_000))
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def connect_and_fail() -> None:
        assert await refused_by(impostor.client, server.ipv4, 8080, say=b"very secret") == "reset"

    if name == "no TLS":
        listener = server.listen(15008)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, without_tls, [listener])
            await connect_and_fail()
            nursery.cancel_scope.cancel()
        assert b"secret" not in seen
    else:
        version = SSL.TLS1_2_VERSION if name == "TLS 1.2" else None
        async with raw_server(server, TlsChoices(own, version=version)) as played:
            await connect_and_fail()
        assert played.requests == []
    (entry,) = (await impostor.client.logged(count=before + 1))[before:]
    assert (entry["level"], entry["message"]) == ("error", "connection complete")
    assert error in entry["error"]
    assert entry["error"].count("io error: ") == 1


async def test_the_request_is_the_references(impostor: ImpostorMesh) -> None:
    server, client = impostor.server, impostor.client
    async with raw_server(server, TlsChoices(impostor.root.issue(server.identity))) as played:
        async with await client.connect(impostor.vip, 80) as stream:
            await stream.send_all(b"hello")
            assert await read_exactly(stream, 5) == b"hello"
            source = stream.socket.getsockname()
        (connection,) = played.connections
        (request,) = connection.streams.values()
        names = [name for name, _ in request.headers]
        headers = dict(request.headers)
        assert names == [":method", ":authority", "baggage", "forwarded", "traceparent"]
        assert headers[":method"] == "CONNECT"
        assert headers[":authority"] == f"{server.ipv4}:8080"
        assert headers["baggage"] == (
            "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,"
            "k8s.deployment.name=client-deployment,service.name=client,service.version=v1"
        )
        assert headers["forwarded"] == f'for="{source[0]}:{source[1]}";host=web.default.svc.cluster.local'
        version, trace, parent, flags = headers["traceparent"].split("-")
        assert (version, len(trace), len(parent), flags) == ("00", 32, 16, "00")
        settings = connection.h2.remote_settings
        assert settings.enable_push == 0
        assert settings.initial_window_size == 4_194_304
        assert settings.max_frame_size == 1_048_576
        assert settings.max_header_list_size == 16_384
        assert connection.h2.outbound_flow_control_window == 16_777_216 - len(b"hello")
        assert connection.tls.peer_uri() == client.identity
        assert connection.tls.ssl.get_servername() is None, "no SNI"
        assert connection.tls.ssl.get_protocol_version_name() == "TLSv1.3"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, "http status: 401 Unauthorized"),
        (503, "http status: 503 Service Unavailable"),
        (400, "http status: 400 Bad Request"),
        (204, "http status: 204 No Content"),
    ],
)
async def test_any_status_but_200_is_a_failure(impostor: ImpostorMesh, status: int, error: str) -> None:
    async def answer(connection: RawHbone) -> None:
        # The application's data is there before the refusal, so closing resets.
        await trio.sleep(0.2)
        await answer_all(connection, status)

    before = len(impostor.client.access_log())
    choices = TlsChoices(impostor.root.issue(impostor.server.identity))
    async with raw_server(impostor.server, choices, answer) as played:
        assert await refused_by(impostor.client, impostor.server.ipv4, 8080, say=b"very secret") == "reset"
        assert all(request.data == b"" for request in played.requests)
    (entry,) = (await impostor.client.logged(count=before + 1))[before:]
    assert entry["error"] == error


async def test_nobody_on_the_hbone_port(impostor: ImpostorMesh) -> None:
    before = len(impostor.client.access_log())
    assert await refused_by(impostor.client, impostor.server.ipv4, 8080) == "reset"
    (entry,) = (await impostor.client.logged(count=before + 1))[before:]
    assert entry["error"].startswith("io error: Connection refused")
    assert impostor.client.metric("istio_tcp_connections_failed_total", response_flags="CONNECT") >= 1
