"""Revocation lists of an issuing CA."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from ztunnel.certs.fake_ca import IssuingCa


def revoke(ca: IssuingCa, serials: Sequence[int], now: float) -> bytes:
    """Returns a revocation list of the CA, in PEM, that was made a day ago and is out of date already."""
    yesterday = datetime.fromtimestamp(now - 86_400, UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.subject)
        .last_update(yesterday)
        .next_update(datetime.fromtimestamp(now - 3_600, UTC))
    )
    for serial in serials:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(yesterday).build()
        )
    return builder.sign(ca._key, hashes.SHA256()).public_bytes(Encoding.PEM)
