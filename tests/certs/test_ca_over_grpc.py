"""The CA client against a fake istiod over real TLS gRPC: impersonation, token, roots, failures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
from cryptography import x509

from tests.support.fake_ca import FakeCertificateAuthority
from tests.support.fake_istiod import FakeIstiod
from ztunnel.bounds import ControlBounds
from ztunnel.certs.ca_client import CaClient
from ztunnel.certs.certificate_errors import CaUnreachableError, WrongIdentityError
from ztunnel.config.model import Config, RootFile, RootStatic, TokenFile, TokenStatic
from ztunnel.model.identity import Identity

POD = Identity("cluster.local", "default", "web")


@pytest.fixture
def istiod():
    with FakeIstiod(FakeCertificateAuthority()) as server:
        yield server


def config_for(istiod: FakeIstiod) -> Config:
    return Config(
        ca_address=istiod.address,
        ca_root_cert=RootStatic(istiod.ca.root.decode()),
        auth=TokenStatic(istiod.token),
        cluster_id="c1",
        secret_ttl=3600,
        ca_headers=(("x-extra", "value"),),
    )


async def test_a_certificate_is_issued_to_the_impersonated_identity(istiod):
    async with CaClient(config_for(istiod)) as ca:
        certificate = await ca.issue(POD)
    leaf = x509.load_pem_x509_certificate(certificate.chain[0])
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [str(POD)]
    assert certificate.not_after - certificate.not_before == pytest.approx(3600, abs=1)
    (call,) = istiod.issued
    assert (call.identity, call.validity) == (str(POD), 3600)
    assert call.metadata["authorization"] == f"Bearer {istiod.token}"
    assert (call.metadata["clusterid"], call.metadata["x-extra"]) == ("c1", "value")


async def test_an_identity_that_istiod_does_not_grant_is_refused_with_its_words(istiod):
    istiod.identities = {str(Identity("cluster.local", "default", "other"))}
    async with CaClient(config_for(istiod)) as ca:
        with pytest.raises(CaUnreachableError, match="request impersonation authentication failure"):
            await ca.issue(POD)


async def test_a_certificate_for_another_identity_is_not_taken(istiod, monkeypatch):
    sign = istiod.ca.sign
    other = str(Identity("cluster.local", "default", "other"))
    monkeypatch.setattr(istiod.ca, "sign", lambda csr, _, lifetime: sign(csr, other, lifetime))
    async with CaClient(config_for(istiod)) as ca:
        with pytest.raises(WrongIdentityError):
            await ca.issue(POD)


async def test_a_stale_token_is_refused_and_a_rotated_one_is_read_for_the_next_call(istiod, tmp_path):
    token = tmp_path / "token"
    token.write_text("stale")
    async with CaClient(replace(config_for(istiod), auth=TokenFile(str(token)))) as ca:
        with pytest.raises(CaUnreachableError) as caught:
            await ca.issue(POD)
        assert caught.value.status == "UNAUTHENTICATED"
        token.write_text(istiod.token)
        assert await ca.issue(POD)


async def test_a_certificate_of_another_ca_is_refused_until_the_roots_are_rotated(istiod, tmp_path):
    roots = tmp_path / "root-cert.pem"
    roots.write_bytes(FakeCertificateAuthority("other").root)
    async with CaClient(replace(config_for(istiod), ca_root_cert=RootFile(str(roots)))) as ca:
        with pytest.raises(CaUnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
            await ca.issue(POD)
        roots.write_bytes(istiod.ca.root)
        assert await ca.issue(POD)


async def test_an_istiod_that_comes_back_is_used_again(istiod):
    async with CaClient(config_for(istiod)) as ca:
        assert await ca.issue(POD)
        await trio.to_thread.run_sync(istiod.kill)
        with pytest.raises(CaUnreachableError):
            await ca.issue(POD)
        await trio.to_thread.run_sync(istiod.start)
        with trio.fail_after(30):
            while True:
                try:
                    assert await ca.issue(POD)
                except CaUnreachableError:
                    await trio.sleep(0.05)
                else:
                    return


async def test_a_hung_ca_does_not_hold_a_call_for_ever(istiod):
    istiod.misbehaviour.hang = True
    with trio.fail_after(20):
        async with CaClient(config_for(istiod), bounds=ControlBounds(ca_call=0.3)) as ca:
            with pytest.raises(CaUnreachableError) as caught:
                await ca.issue(POD)
            assert caught.value.status == "DEADLINE_EXCEEDED"
            istiod.misbehaviour.hang = False
        async with CaClient(config_for(istiod), bounds=ControlBounds(ca_call=10)) as ca:
            assert await ca.issue(POD)
