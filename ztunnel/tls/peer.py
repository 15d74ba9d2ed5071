"""Who the peer's certificate says it is, and whether that is whom we want. Pure functions.

OpenSSL has verified the chain when these are asked: signatures, dates, extended key usage. What is left
is the mesh's own: SPIFFE identities in the URI SANs, the trust domain, the list of expected identities,
revocation. DNS names, IP addresses and the subject are never looked at.
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
    """What is of interest in one certificate.

    ``identities`` are the SPIFFE identities in order; ``skipped`` the URI SANs that are none.
    """

    certificate: x509.Certificate
    identities: tuple[Identity, ...]
    skipped: tuple[str, ...]
    is_authority: bool


# A node talks to some hundreds of workloads and the same few CAs again and again. One entry is about 3 KiB.
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

    ``chain`` is the leaf, its intermediates, the trust anchor: what `Revocations.revoked` takes when
    the lists change. ``identities`` are the leaf's SPIFFE identities in order (empty for none),
    ``skipped`` its URI SANs that are no SPIFFE identity, worth a warning.
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

    Returns the client's identity for policy, which is its first one, whichever matched.
    Raises TrustDomainError.
    """
    if any(identity.trust_domain == trust_domain for identity in peer.identities):
        return peer.identities[0]
    found = tuple((i.trust_domain, i.namespace, i.service_account) for i in peer.identities)
    raise TrustDomainError(Side.SERVER, trust_domain, found)


def check_expected_identity(peer: PeerCertificate, expected: Sequence[str]) -> Identity:
    """The client's rule: at least one identity of the server is expected. An empty list admits nobody.

    Returns the first that matched. Raises PeerIdentityError.
    """
    for identity in peer.identities:
        if str(identity) in expected:
            return identity
    raise PeerIdentityError(
        Side.CLIENT, tuple(expected), tuple(str(identity) for identity in peer.identities)
    )
