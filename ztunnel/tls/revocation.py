"""Checks whether issuers have revoked certificates.

The rules (docs/protocol/operations.md#revocation-lists): the whole chain is checked; a certificate without a
list of its issuer counts as good; a list past its next update still counts. OpenSSL's rules differ, so its
own CRL check stays off, and `Revocations.revoked` decides, for a handshake and later for an open connection.

A list applies to a certificate if it has the same issuer and is signed by the key that also signed the
certificate. So during a root rotation, when two CAs have the same name, each list applies only to its own CA.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ztunnel.tls.malformed import MALFORMED

# How many (list, key) pairs are cached as verified. A mesh has a few CAs; the limit only matters for the
# intermediates that peers send.
_MOST_VERDICTS = 256


class InvalidRevocationListError(ValueError):
    """The bytes are not a usable revocation list. ``str()`` says why."""


@dataclass(slots=True, eq=False)
class RevocationList:
    """One issuer's list. Its values are read at once; its signature is checked when it is needed."""

    crl: x509.CertificateRevocationList
    issuer: x509.Name
    serials: frozenset[int]
    _signed_by: dict[bytes, bool] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, data: bytes) -> RevocationList:
        """Read one list, in PEM or DER. Raises InvalidRevocationListError."""
        try:
            if data.lstrip().startswith(b"-----BEGIN"):
                crl = x509.load_pem_x509_crl(data)
            else:
                crl = x509.load_der_x509_crl(data)
            serials = set()
            for entry in crl:
                if _has_extension(entry, x509.CertificateIssuer):
                    raise InvalidRevocationListError(
                        "it is an indirect list, which names certificates of other issuers"
                    )
                serials.add(entry.serial_number)
            issuer = crl.issuer
        except MALFORMED as error:
            if isinstance(error, InvalidRevocationListError):
                raise
            raise InvalidRevocationListError(str(error)) from error
        return cls(crl, issuer, frozenset(serials))

    def is_signed_by(self, key: CertificateIssuerPublicKeyTypes) -> bool:
        """Returns whether this key has signed the list. The result is cached."""
        name = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        verdict = self._signed_by.get(name)
        if verdict is None:
            try:
                verdict = self.crl.is_signature_valid(key)
            except MALFORMED:
                # A key of another kind than the signature cannot be the signer.
                verdict = False
            if len(self._signed_by) >= _MOST_VERDICTS:
                self._signed_by.clear()
            self._signed_by[name] = verdict
        return verdict


def _has_extension(entry: x509.RevokedCertificate, kind: type[x509.ExtensionType]) -> bool:
    try:
        entry.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return False
    return True


class Revocations:
    """The lists in force. Immutable: a new value replaces it when they change. May be empty."""

    __slots__ = ("_by_issuer",)

    def __init__(self, lists: Iterable[RevocationList] = ()) -> None:
        by_issuer: dict[x509.Name, list[RevocationList]] = {}
        for one in lists:
            by_issuer.setdefault(one.issuer, []).append(one)
        self._by_issuer = by_issuer

    @classmethod
    def parse(cls, crls: Iterable[bytes]) -> Revocations:
        """Build from single lists, each PEM or DER, as `RevocationsChanged` carries them.

        Raises InvalidRevocationListError if one cannot be read.
        """
        return cls(RevocationList.parse(crl) for crl in crls)

    def __bool__(self) -> bool:
        """Returns whether there is any list."""
        return bool(self._by_issuer)

    def __len__(self) -> int:
        return sum(len(lists) for lists in self._by_issuer.values())

    def revoked(self, chain: Sequence[x509.Certificate]) -> x509.Certificate | None:
        """Returns the first revoked certificate of a verified chain (leaf first, trust anchor last), or None.

        The trust anchor is not checked, because it has no issuer that could revoke it.
        """
        if not self._by_issuer:
            return None
        for certificate, issuer in pairwise(chain):
            for one in self._by_issuer.get(certificate.issuer, ()):
                if certificate.serial_number in one.serials and one.is_signed_by(_key_of(issuer)):
                    return certificate
        return None


def _key_of(certificate: x509.Certificate) -> CertificateIssuerPublicKeyTypes:
    """Returns an issuer's key. It has verified a signature in this chain, so it is of a signing kind."""
    key: CertificateIssuerPublicKeyTypes = certificate.public_key()  # type: ignore[assignment]  # see above
    return key
