"""What the CA client makes of tokens, roots and answers. Over real gRPC: test_ca_over_grpc."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.logs import capture_logs
from ztunnel.bounds import DEFAULTS
from ztunnel.certs.ca_client import CREATE_CERTIFICATE, CaClient
from ztunnel.certs.certificate_errors import (
    CaChainError,
    CaError,
    CaRootsError,
    CaTokenError,
    CaUnreachableError,
    WrongIdentityError,
)
from ztunnel.certs.fake_ca import IssuingCa
from ztunnel.certs.istio_ca import decode_response, encode_request
from ztunnel.config.model import Config, ProxyMode, RootFile, RootStatic, TokenFile, TokenStatic
from ztunnel.grpc.status import GrpcChannelError, GrpcStatusError
from ztunnel.model.identity import Identity
from ztunnel.pb.istio.v1.auth import IstioCertificateRequest, IstioCertificateResponse

NOW = 1_700_000_000.0
WHO = Identity("cluster.local", "default", "client")
ROOT = IssuingCa(NOW)
CONFIG = Config(ca_root_cert=RootStatic(ROOT.pem.decode()), auth=TokenStatic("secret"), secret_ttl=600.0)


def sign(request: bytes, identity: Identity = WHO) -> bytes:
    """What a CA answers: a certificate for the key in the CSR."""
    csr = x509.load_pem_x509_csr(IstioCertificateRequest.parse(request).csr.encode())
    leaf = ROOT.certify_key(csr.public_key(), identity, not_before=NOW, not_after=NOW + 600)
    return bytes(IstioCertificateResponse(cert_chain=[leaf.decode(), ROOT.pem.decode()]))


class Channel:
    """A gRPC channel that answers with `sign`, or as ``answer`` says."""

    def __init__(self, roots: bytes) -> None:
        self.roots = roots
        self.calls: list[tuple[str, bytes, list[tuple[str, str | bytes]], float]] = []
        self.answer: bytes | Exception | None = None
        self.hold = trio.Event()
        self.hold.set()
        self.closed = False

    async def unary(self, method, request, *, metadata=(), deadline_seconds):
        self.calls.append((method, request, list(metadata), deadline_seconds))
        await self.hold.wait()
        assert not self.closed
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer if self.answer is not None else sign(request)

    async def aclose(self) -> None:
        self.closed = True


class Kit:
    def __init__(self, config: Config = CONFIG) -> None:
        self.channels: list[Channel] = []
        self.client = CaClient(config, self.make)

    def make(self, roots: bytes) -> Channel:
        if b"BEGIN" not in roots:
            raise GrpcChannelError("there is no root certificate")
        self.channels.append(Channel(roots))
        return self.channels[-1]


async def test_a_node_asks_for_a_pods_identity():
    kit = Kit(replace(CONFIG, ca_headers=(("x", "y"),), cluster_id="c1"))
    certificate = await kit.client.issue(WHO)
    assert certificate.identity == WHO
    assert certificate.roots == (ROOT.pem,)
    ((method, request, metadata, deadline),) = kit.channels[0].calls
    assert (method, deadline) == (CREATE_CERTIFICATE, DEFAULTS.control.ca_call)
    assert metadata == [("authorization", "Bearer secret"), ("clusterid", "c1"), ("x", "y")]
    message = IstioCertificateRequest.parse(request)
    assert message.validity_duration == 600
    assert message.metadata is not None
    assert list(message.metadata.fields) == ["ImpersonatedIdentity"]
    assert message.metadata.fields["ImpersonatedIdentity"].string_value == str(WHO)


async def test_a_dedicated_proxy_asks_for_itself_and_takes_what_it_gets():
    kit = Kit(replace(CONFIG, proxy_mode=ProxyMode.DEDICATED))
    kit.client._make_channel(ROOT.pem)
    await kit.client.issue(WHO)
    request = kit.channels[-1].calls[0][1]
    assert IstioCertificateRequest.parse(request).metadata is None
    kit.channels[-1].answer = None
    other = Identity("cluster.local", "default", "other")
    kit.channels[-1].unary = lambda *args, **_: _soon(sign(args[1], other))  # type: ignore[method-assign]
    assert len((await kit.client.issue(WHO)).chain) == 1


async def _soon(value: bytes) -> bytes:
    return value


async def test_another_identity_than_the_one_asked_for_is_refused():
    kit = Kit()
    await kit.client.issue(WHO)
    other = Identity("cluster.local", "default", "other")
    with pytest.raises(WrongIdentityError, match="did not find expected SAN: spiffe://"):
        await kit.client.issue(other)


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (
            GrpcStatusError("UNAUTHENTICATED", "request impersonation authentication failure"),
            CaUnreachableError,
            r"signing gRPC error \(The request does not have valid authentication credentials\): request imp",
        ),
        (GrpcStatusError("DEADLINE_EXCEEDED", "Deadline Exceeded"), CaUnreachableError, "Deadline expired"),
        (GrpcChannelError("bad metadata"), CaTokenError, "bad metadata"),
        (b"\x0a\xff", CaChainError, "cannot be read"),
        (bytes(IstioCertificateResponse()), CaChainError, "chain returned from CA is empty for: spiffe"),
        (bytes(IstioCertificateResponse(cert_chain=["x"])), CaChainError, "no root certificate present"),
    ],
)
async def test_every_failure_is_a_ca_error(answer, kind, text):
    kit = Kit()
    await kit.client.issue(WHO)
    kit.channels[0].answer = answer
    with pytest.raises(kind, match=text):
        await kit.client.issue(WHO)


async def test_a_chain_of_one_is_warned_about():
    kit = Kit()
    await kit.client.issue(WHO)
    kit.channels[0].answer = bytes(IstioCertificateResponse(cert_chain=["x"]))
    with capture_logs("warn") as logs, pytest.raises(CaError):
        await kit.client.issue(WHO)
    assert [record.message for record in logs] == [f"no chain certs for: {WHO}"]


async def test_the_token_is_read_for_each_call(tmp_path: Path):
    path = tmp_path / "token"
    kit = Kit(replace(CONFIG, auth=TokenFile(str(path))))
    with pytest.raises(CaTokenError):
        await kit.client.issue(WHO)
    path.write_text("")
    with pytest.raises(CaTokenError, match="token file exists, but was empty"):
        await kit.client.issue(WHO)
    for token in ("one", "two"):
        path.write_text(token)
        await kit.client.issue(WHO)
        assert kit.channels[0].calls[-1][2][0] == ("authorization", f"Bearer {token}")


async def test_new_roots_make_a_new_channel_and_calls_on_the_old_one_end_in_peace(tmp_path: Path):
    path = tmp_path / "root.pem"
    path.write_bytes(ROOT.pem)
    kit = Kit(replace(CONFIG, ca_root_cert=RootFile(str(path))))
    await kit.client.issue(WHO)
    await kit.client.issue(WHO)
    (old,) = kit.channels
    old.hold = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kit.client.issue, WHO)
        await trio.testing.wait_all_tasks_blocked()
        path.write_bytes(IssuingCa(NOW).pem)
        await kit.client.issue(WHO)
        assert len(kit.channels) == 2
        closed = [old.closed]
        old.hold.set()
    assert [*closed, old.closed] == [False, True]
    await kit.client.aclose()
    assert kit.channels[1].closed


async def test_roots_that_cannot_be_read_any_more_leave_the_channel_in_use(tmp_path: Path):
    path = tmp_path / "root.pem"
    kit = Kit(replace(CONFIG, ca_root_cert=RootFile(str(path))))
    with pytest.raises(CaRootsError):
        await kit.client.issue(WHO)
    path.write_bytes(ROOT.pem)
    await kit.client.issue(WHO)
    for broken in (None, b"half written"):
        path.unlink() if broken is None else path.write_bytes(broken)
        await kit.client.issue(WHO)
    assert len(kit.channels) == 1


def test_the_messages_are_what_protobuf_says():
    data = encode_request("csr", 86_400, WHO)
    assert encode_request("csr", 86_400, None) == b"\x0a\x03csr\x18\x80\xa3\x05"
    assert str(WHO).encode() in data
    assert decode_response(b"\x0a\x01a\x0a\x01b") == ["a", "b"]


@pytest.mark.parametrize("bad", [b"\x0a", b"\x08\x01", b"\x0f\x01", b"\x0a\x01\xff"])
def test_bytes_that_are_no_answer_are_refused(bad):
    with pytest.raises(ValueError, match="not a certificate response"):
        decode_response(bad)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_texts_or_refused(data):
    with suppress(ValueError):
        assert all(isinstance(one, str) for one in decode_response(data))


def test_grpcio_is_not_loaded_before_a_channel_is_made():
    code = (
        "import sys, ztunnel.certs.ca_client, ztunnel.certs.manager, ztunnel.tls, ztunnel.certs.crl\n"
        "assert 'grpc' not in sys.modules and 'betterproto2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
