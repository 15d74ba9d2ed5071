"""HBONE clients that are wrong are refused before the application hears of them, with the reason logged."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator

import pytest
import trio
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import SSL

from tests.e2e.conftest import StandardMesh
from tests.support.local_file import Exact
from tests.support.raw_hbone import HBONE_PORT, RawStream, connect_headers, raw_client
from tests.support.raw_tls import KeyPair, RawTls, TlsAlertError, TlsChoices, TlsEndError, unrelated_root
from tests.support.traffic import Server, serve

GOOD = "spiffe://cluster.local/ns/default/sa/outside"
OTHER_DOMAIN = "spiffe://other.domain/ns/default/sa/outside"

EARLY_FIELDS = {"level", "time", "scope", "message", "src.addr", "dst.addr", "direction", "error"}
OUR_FIELDS = {"code", "connection"}
"""All that a line says of a connection that is refused before anything is known of it; ours come last."""


@pytest.fixture
async def application(standard: StandardMesh) -> AsyncIterator[Server]:
    """What nobody may reach."""
    async with serve(standard.server, 8080) as server:
        yield server


def choices(standard: StandardMesh, name: str) -> TlsChoices:
    root = KeyPair.load(standard.mesh.root)
    hour = dt.timedelta(hours=1)
    return {
        "good": lambda: TlsChoices(root.issue(GOOD)),
        "no certificate": lambda: TlsChoices(None),
        "another CA": lambda: TlsChoices(unrelated_root().issue(GOOD)),
        "another trust domain": lambda: TlsChoices(root.issue(OTHER_DOMAIN)),
        "no SPIFFE identity": lambda: TlsChoices(root.issue("https://example.com/")),
        "no name at all": lambda: TlsChoices(root.issue(None)),
        "expired": lambda: TlsChoices(root.issue(GOOD, valid=(-2 * hour, -hour))),
        "not yet valid": lambda: TlsChoices(root.issue(GOOD, valid=(hour, 2 * hour))),
        "for servers only": lambda: TlsChoices(root.issue(GOOD, usages=(ExtendedKeyUsageOID.SERVER_AUTH,))),
        "TLS 1.2": lambda: TlsChoices(root.issue(GOOD), version=SSL.TLS1_2_VERSION),
        "ALPN http/1.1": lambda: TlsChoices(root.issue(GOOD), alpn=(b"http/1.1",)),
        "ChaCha20 only": lambda: TlsChoices(root.issue(GOOD), ciphers=b"TLS_CHACHA20_POLY1305_SHA256"),
    }[name]()


@pytest.mark.parametrize(
    ("name", "alert", "logged"),
    [
        ("no certificate", "certificate required", "NoCertificatesPresented"),
        ("another CA", "unknown ca", ""),
        ("another trust domain", "certificate unknown", "SanTrustDomainError"),
        ("no SPIFFE identity", "certificate unknown", "SanTrustDomainError"),
        ("no name at all", "certificate unknown", "SanTrustDomainError"),
        ("expired", "certificate expired", ""),
        ("not yet valid", "certificate expired", ""),
        ("for servers only", "unsupported certificate", ""),
        ("TLS 1.2", "protocol version", ""),
        ("ALPN http/1.1", "no application protocol", "NoApplicationProtocol"),
        ("ChaCha20 only", "handshake failure", ""),
    ],
)
async def test_a_wrong_handshake_is_refused(
    standard: StandardMesh, application: Server, name: str, alert: str, logged: str
) -> None:
    server = standard.server
    before = len(server.access_log())
    with pytest.raises(TlsAlertError, match=alert):
        # In TLS 1.3 the client may learn of the refusal only when it reads.
        async with raw_client(standard.outside, server.ipv4, choices(standard, name)) as client:
            await client.connect(f"{server.ipv4}:8080")
    (entry,) = (await server.logged(count=before + 1))[before:]
    assert (entry["level"], entry["message"], entry["direction"]) == ("warn", "connection failed", "inbound")
    assert entry["src.addr"].startswith(f"{standard.outside.ipv4}:")
    assert entry["dst.addr"] == f"{server.ipv4}:15008"
    assert entry.keys() == EARLY_FIELDS | OUR_FIELDS
    assert entry["error"].startswith("tls handshake error: Custom { kind: InvalidData, error: ")
    assert logged in entry["error"]
    assert application.peers == []


async def test_plaintext_on_the_hbone_port_is_refused(standard: StandardMesh, application: Server) -> None:
    before = len(standard.server.access_log())
    async with await standard.outside.connect(standard.server.ipv4, HBONE_PORT) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        (entry,) = (await standard.server.logged(count=before + 1))[before:]
    assert entry.keys() == EARLY_FIELDS | OUR_FIELDS
    assert entry["message"] == "connection failed"
    assert entry["error"] == (
        "tls handshake error: Custom { kind: InvalidData, error: InvalidMessage(InvalidContentType) }"
    )
    assert application.peers == []


async def test_a_client_that_never_handshakes_holds_nobody_up(
    standard: StandardMesh, application: Server
) -> None:
    async with await standard.outside.connect(standard.server.ipv4, HBONE_PORT) as silent:
        async with raw_client(standard.outside, standard.server.ipv4, choices(standard, "good")) as client:
            stream = await client.connect(f"{standard.server.ipv4}:8080")
            assert stream.status == 200
            assert await client.exchange(stream, b"hello") == b"hello"
        await silent.send_all(b"\x16")


async def test_no_alpn_at_all_is_accepted(standard: StandardMesh, application: Server) -> None:
    own = KeyPair.load(standard.mesh.root).issue(GOOD)
    async with raw_client(standard.outside, standard.server.ipv4, TlsChoices(own, alpn=())) as client:
        stream = await client.connect(f"{standard.server.ipv4}:8080")
        assert await client.exchange(stream, b"hello") == b"hello"


def assert_refused(stream: RawStream, status: int) -> None:
    assert stream.status == status
    assert stream.headers == [(":status", str(status))], "no other header"
    assert stream.ended
    assert stream.data == b""


@pytest.mark.parametrize(
    ("headers", "status", "error"),
    [
        (connect_headers("10.77.1.10:8080"), 400, "ip mismatch: 10.77.2.10 != 10.77.1.10"),
        (connect_headers("[fd77:1::a]:8080"), 400, "ip mismatch: 10.77.2.10 != fd77:1::a"),
        (connect_headers("10.77.2.10"), 400, "no valid authority pseudo header: 10.77.2.10"),
        (
            connect_headers("nowhere.default.svc.cluster.local:80"),
            503,
            "no service or workload for hostname: nowhere.default.svc.cluster.local",
        ),
        (
            connect_headers("web.default.svc.cluster.local:81"),
            503,
            "requested service web.default.svc.cluster.local:81 found, but cannot resolve port",
        ),
        (connect_headers("10.77.2.10:15008"), 503, "attempted recursive call to ourselves"),
        (connect_headers("10.77.2.10:15001"), 503, "attempted recursive call to ourselves"),
        (connect_headers("10.77.2.10:15006"), 503, "attempted recursive call to ourselves"),
        (
            [(":method", "GET"), (":scheme", "https"), (":authority", "10.77.2.10:8080"), (":path", "/")],
            400,
            "expected method CONNECT, got GET",
        ),
        (
            [(":method", "POST"), (":scheme", "https"), (":authority", "10.77.2.10:8080"), (":path", "/")],
            400,
            "expected method CONNECT, got POST",
        ),
    ],
)
async def test_a_wrong_request_gets_its_status_and_the_tunnel_stays(
    standard: StandardMesh, application: Server, headers: list[tuple[str, str]], status: int, error: str
) -> None:
    server = standard.server
    assert server.ipv4 == "10.77.2.10"
    before = len(server.access_log())
    async with raw_client(standard.outside, server.ipv4, choices(standard, "good")) as client:
        refused = await client.request(headers)
        await client.until(lambda: refused.ended)
        assert_refused(refused, status)
        (entry,) = (await server.logged(count=before + 1))[before:]
        assert (entry["level"], entry["message"]) == ("warn", "connection failed")
        assert entry["error"] == error
        assert application.peers == []
        stream = await client.connect(f"{server.ipv4}:8080")
        assert await client.exchange(stream, b"still here") == b"still here"


@pytest.mark.parametrize(
    "headers",
    [
        [(":method", "CONNECT"), (":authority", "10.77.2.10:8080"), (":path", "/")],
        [(":method", "CONNECT"), (":authority", "10.77.2.10:8080"), (":scheme", "https")],
        [(":method", "CONNECT"), (":authority", "10.77.2.10:8080"), (":protocol", "websocket")],
        [(":method", "CONNECT"), (":authority", "not an authority")],
        [(":authority", "10.77.2.10:8080")],
    ],
)
async def test_a_malformed_request_resets_its_stream_alone(
    standard: StandardMesh, application: Server, headers: list[tuple[str, str]]
) -> None:
    async with raw_client(standard.outside, standard.server.ipv4, choices(standard, "good")) as client:
        refused = await client.request(headers)
        assert refused.reset == 1, "PROTOCOL_ERROR"
        assert refused.headers == []
        assert application.peers == []
        stream = await client.connect(f"{standard.server.ipv4}:8080")
        assert await client.exchange(stream, b"still here") == b"still here"


@pytest.mark.parametrize("authority", ["web.default.svc.cluster.local:80", "somebody@10.77.2.10:8080"])
async def test_hostnames_and_user_names_in_the_authority_work(
    standard: StandardMesh, application: Server, authority: str
) -> None:
    async with raw_client(standard.outside, standard.server.ipv4, choices(standard, "good")) as client:
        stream = await client.connect(authority)
        assert stream.status == 200
        assert await client.exchange(stream, b"hello") == b"hello"


@pytest.mark.parametrize(
    ("action", "rules", "reason"),
    [
        (
            "Allow",
            [[[{"principals": [Exact("cluster.local/ns/x/sa/y")]}]]],
            "allow policies exist, but none allowed",
        ),
        ("Deny", [[[{"namespaces": [Exact("default")]}]]], "explicitly denied by: default/test"),
        ("Deny", [[[{"destinationPorts": [8080]}]]], "explicitly denied by: default/test"),
        ("Deny", [[[{"sourceIps": ["10.77.2.0/24"]}]]], "explicitly denied by: default/test"),
    ],
)
async def test_a_policy_that_refuses_answers_401(
    standard: StandardMesh, application: Server, action: str, rules: list[object], reason: str
) -> None:
    server = standard.server
    standard.mesh.policy("test", action=action, rules=rules)
    await standard.mesh.update()
    before = len(server.access_log())
    async with raw_client(standard.outside, server.ipv4, choices(standard, "good")) as client:
        refused = await client.connect(f"{server.ipv4}:8080")
        await client.until(lambda: refused.ended)
        assert_refused(refused, 401)
    (entry,) = (await server.logged(count=before + 1))[before:]
    assert (entry["level"], entry["message"]) == ("error", "connection complete")
    assert entry["error"].startswith(f"connection closed due to policy rejection: {reason}")
    assert entry["src.identity"] == GOOD
    assert application.peers == []
    assert (
        server.metric("istio_tcp_connections_failed_total", response_flags="DENY", source_principal=GOOD) >= 1
    )


async def test_the_settings_and_answers_are_the_references(
    standard: StandardMesh, application: Server
) -> None:
    async with raw_client(standard.outside, standard.server.ipv4, choices(standard, "good")) as client:
        assert client.tls.ssl.get_alpn_proto_negotiated() == b"h2"
        assert client.tls.ssl.get_protocol_version_name() == "TLSv1.3"
        assert client.tls.peer_uri() == standard.server.identity
        stream = await client.connect(f"{standard.server.ipv4}:8080")
        settings = client.h2.remote_settings
        assert settings.initial_window_size == 4_194_304
        assert settings.max_frame_size == 1_048_576
        assert settings.max_concurrent_streams == 200
        assert settings.max_header_list_size == 65_536
        await client.until(lambda: client.h2.outbound_flow_control_window == 16_777_216)
        assert [name for name, _ in stream.headers] == [":status", "baggage"]
        assert dict(stream.headers)["baggage"].startswith(
            "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,"
            "k8s.deployment.name=server-deployment,service.name=server,service.version=v1"
        )


async def test_a_client_that_vanishes_is_logged(standard: StandardMesh, application: Server) -> None:
    before = len(standard.server.access_log())
    async with raw_client(standard.outside, standard.server.ipv4, choices(standard, "good")) as client:
        stream = await client.connect(f"{standard.server.ipv4}:8080")
        await client.exchange(stream, b"hello")
        await client.tls.stream.aclose()
        (entry,) = (await standard.server.logged(count=before + 1))[before:]
    assert entry["error"] == "receive: client disconnected before all data was written"


async def receive_until_the_end(tls: RawTls) -> None:
    with trio.fail_after(10):
        while True:
            await tls.receive()


async def test_garbage_after_the_handshake_ends_only_that_connection(
    standard: StandardMesh, application: Server
) -> None:
    stream = await standard.outside.connect(standard.server.ipv4, HBONE_PORT)
    async with stream:
        tls = RawTls(stream, choices(standard, "good"), server=False)
        await tls.handshake()
        await tls.send(b"this is no HTTP/2 preface, nor anything like it" * 10)
        with pytest.raises((TlsEndError, TlsAlertError)):
            await receive_until_the_end(tls)
    async with raw_client(standard.outside, standard.server.ipv4, choices(standard, "good")) as client:
        again = await client.connect(f"{standard.server.ipv4}:8080")
        assert await client.exchange(again, b"hello") == b"hello"
