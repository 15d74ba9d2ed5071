"""Reads a CA's answer: leaf, intermediates, roots.

The answer is a list of PEM texts: the leaf, the intermediates one by one, and at last the root bundle, which
has several certificates during a root rotation (docs/protocol/operations.md#ca-client).
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from ztunnel.certs.certificate_errors import CaChainError, WrongIdentityError
from ztunnel.model.certificate import Certificate
from ztunnel.model.identity import Identity
from ztunnel.tls.malformed import MALFORMED


def split_pem(pem: bytes) -> tuple[bytes, ...]:
    """Split a PEM text into one PEM for each certificate, in order. Raises ValueError if it has none."""
    try:
        return tuple(one.public_bytes(Encoding.PEM) for one in x509.load_pem_x509_certificates(pem))
    except MALFORMED as error:
        raise ValueError(str(error)) from error


def read_chain(
    identity: Identity, private_key: bytes, answer: Sequence[str], *, check_identity: bool
) -> Certificate:
    """Make a `Certificate` from a CA's answer to the request with ``private_key`` (PKCS#8 PEM).

    check_identity: whether the leaf's first URI SAN must be ``identity``. In dedicated mode the CA issues for
        the caller's own identity, so it is not checked.

    Raises CaChainError or WrongIdentityError.
    """
    if not answer:
        raise CaChainError(f"chain returned from CA is empty for: {identity}")
    if len(answer) == 1:
        raise CaChainError(f"no root certificate present in the chain that the CA returned for: {identity}")
    try:
        leaf, *more = [one for pem in answer[:-1] for one in x509.load_pem_x509_certificates(pem.encode())]
        roots = split_pem(answer[-1].encode())
        not_before, not_after = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
        uris = uri_names(leaf)
        matches = _public_bytes(leaf.public_key()) == _public_bytes_of_private(private_key)
    except MALFORMED as error:
        raise CaChainError(
            f"the chain that the CA returned for {identity} cannot be read: {error}"
        ) from error
    if not matches:
        raise CaChainError(f"the certificate that the CA returned for {identity} is not for our key")
    if check_identity and (not uris or uris[0] != str(identity)):
        raise WrongIdentityError(str(identity))
    if not_after <= not_before:
        raise CaChainError(f"the certificate that the CA returned for {identity} is never valid")
    return Certificate(
        identity=identity,
        private_key=private_key,
        chain=tuple(one.public_bytes(Encoding.PEM) for one in (leaf, *more)),
        roots=roots,
        not_before=not_before,
        not_after=not_after,
    )


def uri_names(certificate: x509.Certificate) -> list[str]:
    """Returns the URI SANs of a certificate, in order. Raises ValueError if its extensions cannot be read."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    except MALFORMED as error:
        raise ValueError(str(error)) from error
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _public_bytes(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise ValueError("its key is neither an EC nor an RSA key")  # noqa: TRY004  # of the CA's data, not of our code
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _public_bytes_of_private(private_key: bytes) -> bytes:
    key = load_pem_private_key(private_key, password=None)
    return _public_bytes(key.public_key())
