"""Revocation lists: who is refused, who is not, and what happens to established connections."""

from __future__ import annotations

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.revoking import revoke
from tests.support.tls_peers import (
    CA,
    CLIENT,
    CLIENT_CERTIFICATE,
    NOW,
    SERVER,
    SERVER_CERTIFICATE,
    Pair,
    certificate,
)
from ztunnel.certs.fake_ca import IssuingCa
from ztunnel.model.certificate import Certificate
from ztunnel.tls import tls_errors as errors
from ztunnel.tls.context import TlsOptions, client_context, server_context
from ztunnel.tls.revocation import InvalidRevocationListError, Revocations


def serial(certificate: Certificate) -> int:
    return x509.load_pem_x509_certificate(certificate.chain[0]).serial_number


def chain(certificate: Certificate) -> list[x509.Certificate]:
    return [x509.load_pem_x509_certificate(pem) for pem in (*certificate.chain, *certificate.roots)]


async def test_a_revoked_client_is_refused_with_the_right_alert():
    revocations = Revocations.parse([revoke(CA, [serial(CLIENT_CERTIFICATE)], NOW)])
    with Pair(server=server_context(SERVER_CERTIFICATE, TlsOptions(), revocations)) as pair:
        _, theirs = await pair.handshake()
        assert isinstance(theirs, errors.RevokedCertificateError)
        assert "InvalidCertificate(Revoked)" in str(theirs)


async def test_a_revoked_server_is_refused_and_told():
    revocations = Revocations.parse([revoke(CA, [serial(SERVER_CERTIFICATE)], NOW)])
    with Pair(client_context(CLIENT_CERTIFICATE, TlsOptions(), revocations)) as pair:
        ours, theirs = await pair.handshake()
        assert str(ours) == "io error: invalid peer certificate: Revoked"
        assert "AlertReceived(CertificateRevoked)" in str(theirs)


async def test_a_revoked_intermediate_refuses_all_below_it():
    intermediate = CA.intermediate(NOW)
    revocations = Revocations.parse([revoke(CA, [intermediate.certificate.serial_number], NOW)])
    context = server_context(SERVER_CERTIFICATE, TlsOptions(), revocations)
    with Pair(client_context(certificate(CLIENT, intermediate), TlsOptions()), context) as pair:
        _, theirs = await pair.handshake()
        assert isinstance(theirs, errors.RevokedCertificateError)


async def test_an_established_connection_can_be_asked_about_new_lists():
    with Pair() as pair:
        assert await pair.handshake() == (None, None)
        peer = pair.server.peer
        assert peer.serial_number == serial(CLIENT_CERTIFICATE)
        assert Revocations().revoked(peer.chain) is None
        new = Revocations.parse([revoke(CA, [peer.serial_number], NOW)])
        assert new.revoked(peer.chain) == peer.chain[0]


async def test_who_is_not_on_the_list_or_has_none_gets_through():
    elsewhere = IssuingCa(NOW, name="elsewhere")
    lists = [revoke(CA, [1, 2, 3], NOW), revoke(elsewhere, [serial(CLIENT_CERTIFICATE)], NOW)]
    context = server_context(SERVER_CERTIFICATE, TlsOptions(), Revocations.parse(lists))
    with Pair(server=context) as pair:
        assert await pair.handshake() == (None, None)


def test_a_list_speaks_only_for_the_key_that_signed_it():
    namesake = IssuingCa(NOW)
    assert namesake.subject == CA.subject
    forged = Revocations.parse([revoke(namesake, [serial(CLIENT_CERTIFICATE)], NOW)])
    assert forged.revoked(chain(CLIENT_CERTIFICATE)) is None
    both = Revocations.parse([revoke(namesake, [], NOW), revoke(CA, [serial(CLIENT_CERTIFICATE)], NOW)])
    assert both.revoked(chain(CLIENT_CERTIFICATE)) is not None


def test_the_trust_anchor_cannot_revoke_itself():
    revocations = Revocations.parse([revoke(CA, [CA.certificate.serial_number], NOW)])
    assert revocations.revoked(chain(CLIENT_CERTIFICATE)) is None


def test_pem_and_der_are_both_read():
    pem = revoke(CA, [serial(CLIENT_CERTIFICATE)], NOW)
    from cryptography.hazmat.primitives.serialization import Encoding

    der = x509.load_pem_x509_crl(pem).public_bytes(Encoding.DER)
    for data in (pem, der):
        assert Revocations.parse([data]).revoked(chain(CLIENT_CERTIFICATE)) is not None
    assert len(Revocations.parse([pem, der])) == 2
    assert not Revocations()


@settings(max_examples=60, deadline=None)
@given(
    junk=st.one_of(
        st.binary(max_size=200), st.binary(max_size=80).map(lambda b: b"-----BEGIN X509 CRL-----\n" + b)
    )
)
def test_nonsense_is_refused_in_words(junk):
    with pytest.raises(InvalidRevocationListError):
        Revocations.parse([junk])


def test_the_server_does_not_refuse_itself():
    # A list with our own serial is about us as a peer, not about making a context.
    revocations = Revocations.parse([revoke(CA, [serial(SERVER_CERTIFICATE)], NOW)])
    assert server_context(SERVER_CERTIFICATE, TlsOptions(), revocations).trust_domain == SERVER.trust_domain
