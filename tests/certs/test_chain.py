"""Reading a CA's answer, and making the request."""

from __future__ import annotations

from contextlib import suppress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
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
