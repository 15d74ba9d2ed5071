"""What we use below pyOpenSSL is there, and behaves as the modules above expect."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL

from tests.support.tls_peers import CLIENT_CERTIFICATE
from ztunnel.tls import openssl as tls_openssl
from ztunnel.tls.peer import MalformedCertificateError, parse_certificate


def test_the_private_names_of_pyopenssl_are_there():
    connection = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
    assert tls_openssl.address_of(tls_openssl.ssl_of(connection)) > 0
    assert tls_openssl.address_of(tls_openssl.outgoing_bio_of(connection)) > 0


def test_groups_that_openssl_does_not_have_are_reported():
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    assert tls_openssl.set_groups(context, b"X25519:X25519MLKEM768")
    assert not tls_openssl.set_groups(context, b"X25519:NoSuchGroup")
    assert tls_openssl.take_errors() == []


def test_the_error_queue_is_emptied():
    tls_openssl.lib.ERR_put_error(20, 0, 134, b"here", 1)
    errors = tls_openssl.take_errors()
    assert [number for number, _ in errors] == [134]
    assert tls_openssl.take_errors() == []


@given(st.lists(st.binary(min_size=1, max_size=255), max_size=6))
def test_protocol_offers_are_split(names):
    offer = b"".join(bytes([len(name)]) + name for name in names)
    assert tls_openssl.split_protocols(offer) == names


@given(st.binary(max_size=100))
def test_any_offer_can_be_split(offer):
    assert sum(len(name) + 1 for name in tls_openssl.split_protocols(offer)) <= len(offer) + 1


@given(st.binary(max_size=300), st.integers(0, 500))
def test_damaged_certificates_are_refused_in_words(junk, at):
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    der = x509.load_pem_x509_certificate(CLIENT_CERTIFICATE.chain[0]).public_bytes(Encoding.DER)
    with pytest.raises(MalformedCertificateError):
        parse_certificate(junk)
    damaged = der[: at % len(der)] + junk
    if damaged != der:
        # No other exception: a certificate is read or refused.
        with suppress(MalformedCertificateError):
            parse_certificate(damaged)
