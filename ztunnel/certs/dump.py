"""The ``certificates`` part of the admin's config dump (operations reference, 3.3)."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import TypedDict

from cryptography import x509

from ztunnel.certs.rotation import Rotation

_TIME = "%Y-%m-%dT%H:%M:%SZ"


class DumpedCertificate(TypedDict):
    """One certificate. ``pem`` is base64 of the PEM text, which is base64 itself: dashboards expect it so."""

    expirationTime: str
    pem: str
    serialNumber: str
    validFrom: str


class DumpedIdentity(TypedDict):
    """One identity: ``state`` is Available, Initializing, or Unavailable with its reason."""

    certChain: list[DumpedCertificate]
    identity: str
    rootCerts: list[DumpedCertificate]
    state: str


def dump_certificates(rotations: Iterable[Rotation], now: float) -> list[DumpedIdentity]:
    """The dump of all identities, in the order given. No key is in it. ``now`` is in epoch seconds."""
    return [_identity(rotation, now) for rotation in rotations]


def _identity(rotation: Rotation, now: float) -> DumpedIdentity:
    certificate = rotation.valid(now)
    if certificate is not None:
        return {
            "certChain": [_certificate(pem) for pem in certificate.chain],
            "identity": str(rotation.identity),
            "rootCerts": [_certificate(pem) for pem in certificate.roots],
            "state": "Available",
        }
    answer = rotation.answer(now)
    return {
        "certChain": [],
        "identity": str(rotation.identity),
        "rootCerts": [],
        "state": "Initializing" if answer is None else f"Unavailable: {answer}",
    }


def _certificate(pem: bytes) -> DumpedCertificate:
    certificate = x509.load_pem_x509_certificate(pem)
    return {
        "expirationTime": certificate.not_valid_after_utc.strftime(_TIME),
        "pem": base64.b64encode(pem).decode(),
        "serialNumber": str(certificate.serial_number),
        "validFrom": certificate.not_valid_before_utc.strftime(_TIME),
    }
