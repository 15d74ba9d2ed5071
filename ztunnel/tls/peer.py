"""The identity in the peer's certificate, and whether it is an expected one. Pure functions.

OpenSSL has verified the chain before: signatures, dates, extended key usage. These functions apply the mesh's
own rules: SPIFFE identities in the URI SANs, the trust domain, the list of expected identities, revocation.
DNS names, IP addresses and the subject are ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509

from ztunnel.model.identity import Identity, InvalidIdentityError
from ztunnel.tls.malformed import MALFORMED
from ztunnel.tls.tls_errors import PeerIdentityError, Side, TrustDomainError, UnsuitableCertificateError


class MalformedCertificateError(ValueError):
    """A certificate or one of its extensions cannot be decoded."""


@dataclass(frozen=True, slots=True)
class ParsedCertificate:
    """The parts of one certificate that matter.

    identities: the SPIFFE identities in their order. skipped: the URI SANs that are not SPIFFE identities.
    """

    certificate: x509.Certificate
    identities: tuple[Identity, ...]
    skipped: tuple[str, ...]
    is_authority: bool


# A node meets some hundreds of workloads and the same few CAs again and again. One entry is about 3 KiB.
@lru_cache(maxsize=512)
def parse_certificate(der: bytes) -> ParsedCertificate:
    """Read a certificate. Raises MalformedCertificateError."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        extensions = certificate.extensions
    except MALFORMED as error:
        raise MalformedCertificateError(str(error)) from error
    identities: list[Identity] = []
    skipped: list[str] = []
    is_authority = False
    for extension in extensions:
        value = extension.value
        if isinstance(value, x509.SubjectAlternativeName):
            for uri in value.get_values_for_type(x509.UniformResourceIdentifier):
                try:
                    identities.append(Identity.parse(uri))
                except InvalidIdentityError:
                    skipped.append(uri)
        elif isinstance(value, x509.BasicConstraints):
            is_authority = value.ca
    return ParsedCertificate(certificate, tuple(identities), tuple(skipped), is_authority)


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """The verified certificate of a peer.

    chain: the leaf, its intermediates, the trust anchor; the argument of `Revocations.revoked` when the lists
        change.
    identities: the leaf's SPIFFE identities in their order, perhaps none.
    skipped: its URI SANs that are not SPIFFE identities, for a warning.
    """

    identities: tuple[Identity, ...]
    skipped: tuple[str, ...]
    chain: tuple[x509.Certificate, ...]

    @property
    def serial_number(self) -> int:
        """The leaf's serial number."""
        return self.chain[0].serial_number

    @classmethod
    def from_chain(cls, ders: Sequence[bytes], side: Side) -> PeerCertificate:
        """Read a chain that OpenSSL verified, leaf first.

        Raises MalformedCertificateError, and UnsuitableCertificateError for a CA's certificate as a leaf.
        """
        parsed = [parse_certificate(der) for der in ders]
        leaf = parsed[0]
        if leaf.is_authority:
            raise UnsuitableCertificateError(side, "a CA's certificate is used as a workload's own")
        return cls(leaf.identities, leaf.skipped, tuple(one.certificate for one in parsed))


def check_trust_domain(peer: PeerCertificate, trust_domain: str) -> Identity:
    """The server's rule: at least one identity of the client is in our own trust domain.

    Returns the client's identity for policy: its first one, even if another one matched. Raises
    TrustDomainError.
    """
    if any(identity.trust_domain == trust_domain for identity in peer.identities):
        return peer.identities[0]
    found = tuple((i.trust_domain, i.namespace, i.service_account) for i in peer.identities)
    raise TrustDomainError(Side.SERVER, trust_domain, found)


def check_expected_identity(peer: PeerCertificate, expected: Sequence[str]) -> Identity:
    """The client's rule: at least one identity of the server is expected. An empty list admits no server.

    Returns the first one that matched. Raises PeerIdentityError.
    """
    for identity in peer.identities:
        if str(identity) in expected:
            return identity
    raise PeerIdentityError(
        Side.CLIENT, tuple(expected), tuple(str(identity) for identity in peer.identities)
    )
