"""Reading a CA's answer, and making the request."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ztunnel.certs.certificate_errors import CaChainError, CaError, WrongIdentityError
from ztunnel.certs.chain import read_chain, split_pem
from ztunnel.certs.fake_ca import IssuingCa
from ztunnel.certs.request import make_signing_request
from ztunnel.model.identity import Identity

NOW = 1_700_000_000.0
WHO = Identity("cluster.local", "default", "client")
ROOT = IssuingCa(NOW)
MIDDLE = ROOT.intermediate(NOW)
GOOD = MIDDLE.certify(WHO, not_before=NOW, not_after=NOW + 3600)
ANSWER = [pem.decode() for pem in (*GOOD.chain, *GOOD.roots)]


def test_leaf_intermediates_and_roots_are_told_apart():
    certificate = read_chain(WHO, GOOD.private_key, ANSWER, check_identity=True)
    assert certificate == GOOD
    assert certificate.refresh_at == NOW + 1800
    assert "PRIVATE" not in repr(certificate)


def test_a_root_bundle_is_split():
    other = IssuingCa(NOW, name="other")
    bundle = ROOT.pem.decode() + "\n# a comment\n" + other.pem.decode()
    certificate = read_chain(WHO, GOOD.private_key, [*ANSWER[:-1], bundle], check_identity=True)
    assert certificate.roots == (ROOT.pem, other.pem) == split_pem(bundle.encode())


def test_without_intermediates_the_chain_is_the_leaf():
    leaf = ROOT.certify(WHO, not_before=NOW, not_after=NOW + 60)
    answer = [leaf.chain[0].decode(), ROOT.pem.decode()]
    assert read_chain(WHO, leaf.private_key, answer, check_identity=True).chain == leaf.chain


OTHER = Identity("cluster.local", "default", "other")
FOREIGN = ROOT.certify(OTHER, not_before=NOW, not_after=NOW + 60)
NAMELESS = ROOT.certify(WHO, not_before=NOW, not_after=NOW + 60, uris=())
SECOND = ROOT.certify(WHO, not_before=NOW, not_after=NOW + 60, uris=[str(OTHER), str(WHO)])


@pytest.mark.parametrize(
    ("key", "answer", "kind", "text"),
    [
        (GOOD.private_key, [], CaChainError, f"chain returned from CA is empty for: {WHO}"),
        (GOOD.private_key, ANSWER[:1], CaChainError, "no root certificate present"),
        (GOOD.private_key, ["nonsense", ANSWER[-1]], CaChainError, "cannot be read"),
        (GOOD.private_key, [ANSWER[0], "nonsense"], CaChainError, "cannot be read"),
        (FOREIGN.private_key, ANSWER, CaChainError, "not for our key"),
        (
            FOREIGN.private_key,
            [FOREIGN.chain[0].decode(), ANSWER[-1]],
            WrongIdentityError,
            f"did not find expected SAN: {WHO}",
        ),
        (NAMELESS.private_key, [NAMELESS.chain[0].decode(), ANSWER[-1]], WrongIdentityError, "expected SAN"),
        (SECOND.private_key, [SECOND.chain[0].decode(), ANSWER[-1]], WrongIdentityError, "expected SAN"),
    ],
)
def test_a_bad_answer_is_named(key, answer, kind, text):
    with pytest.raises(kind, match=text):
        read_chain(WHO, key, answer, check_identity=True)


def test_in_dedicated_mode_the_ca_decides_who_we_are():
    answer = [FOREIGN.chain[0].decode(), ANSWER[-1]]
    assert read_chain(WHO, FOREIGN.private_key, answer, check_identity=False).chain == FOREIGN.chain


def odd_leaf(key, *, extension: bytes | None = None, lifetime: int = 60) -> str:
    """A leaf as no CA of ours makes it: any kind of key, an extension of any bytes, or none, any lifetime."""
    name = x509.Name([])
    begin = datetime.fromtimestamp(NOW, UTC)
    builder = x509.CertificateBuilder(
        name, name, key.public_key(), 1, begin, begin + timedelta(seconds=lifetime)
    )
    if extension is not None:
        san = x509.UnrecognizedExtension(x509.OID_SUBJECT_ALTERNATIVE_NAME, extension)
        builder = builder.add_extension(san, critical=False)
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, digest).public_bytes(Encoding.PEM).decode()


EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)
ED_KEY = ed25519.Ed25519PrivateKey.generate()


@pytest.mark.parametrize(
    ("key", "leaf", "kind", "text"),
    [
        (EC_KEY, odd_leaf(EC_KEY), WrongIdentityError, "expected SAN"),
        (EC_KEY, odd_leaf(EC_KEY, extension=b"nonsense"), CaChainError, "cannot be read"),
        (ED_KEY, odd_leaf(ED_KEY), CaChainError, "neither an EC nor an RSA key"),
    ],
    ids=["no names", "names of nonsense", "a key of another kind"],
)
def test_an_odd_leaf_is_named(key, leaf, kind, text):
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(kind, match=text):
        read_chain(WHO, pem, [leaf, ANSWER[-1]], check_identity=True)


@pytest.mark.parametrize(("lifetime", "valid"), [(60, True), (0, False)])
def test_a_certificate_that_is_never_valid_is_refused(lifetime, valid):
    pem = RSA_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    answer = [odd_leaf(RSA_KEY, lifetime=lifetime), ANSWER[-1]]
    if valid:
        assert read_chain(WHO, pem, answer, check_identity=False).not_after == NOW + lifetime
    else:
        with pytest.raises(CaChainError, match="is never valid"):
            read_chain(WHO, pem, answer, check_identity=False)


@settings(deadline=None)
@given(st.lists(st.one_of(st.sampled_from(ANSWER), st.text(max_size=80)), max_size=4))
def test_no_answer_raises_anything_else(answer):
    # Another kind of exception would end the identity's rotation.
    with suppress(CaError):
        assert read_chain(WHO, GOOD.private_key, answer, check_identity=True).identity == WHO


def test_the_request_is_as_istiod_has_always_got_it():
    request = make_signing_request(WHO)
    csr = x509.load_pem_x509_csr(request.csr.encode())
    assert csr.is_signature_valid
    assert csr.subject == x509.Name([])
    (extension,) = csr.extensions
    assert extension.critical
    assert isinstance(extension.value, x509.SubjectAlternativeName)
    assert list(extension.value) == [x509.UniformResourceIdentifier(str(WHO))]
    hash_algorithm = csr.signature_hash_algorithm
    assert hash_algorithm is not None
    assert hash_algorithm.name == "sha256"
    key = load_pem_private_key(request.private_key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp256r1"
    assert request.private_key.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert csr.public_key() == key.public_key()
    assert "PRIVATE" not in repr(request)


def test_each_request_has_its_own_key():
    assert make_signing_request(WHO).private_key != make_signing_request(WHO).private_key


def test_an_identity_that_no_uri_can_carry_is_refused():
    with pytest.raises(ValueError, match=r".+"):
        make_signing_request(Identity("clüster.local", "default", "x"))


def test_roots_are_kept_as_single_pems():
    assert [x509.load_pem_x509_certificate(pem) for pem in GOOD.roots] == [ROOT.certificate]
    assert ROOT.certificate.public_bytes(Encoding.PEM) == ROOT.pem
