"""The ``certificates`` part of the admin's config dump (docs/protocol/operations.md#admin-dump)."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any, TypedDict

from cryptography import x509

from ztunnel.certs.rotation import Rotation

_TIME = "%Y-%m-%dT%H:%M:%SZ"


class DumpedCertificate(TypedDict):
    """One certificate.

    ``pem``: base64 of the PEM text (which is base64 itself), because dashboards expect that.
    """

    expirationTime: str
    pem: str
    serialNumber: str
    validFrom: str


class DumpedIdentity(TypedDict):
    """One identity. ``state``: Available, Initializing, or Unavailable with its reason."""

    certChain: list[DumpedCertificate]
    identity: str
    rootCerts: list[DumpedCertificate]
    state: str


def dump_certificates(rotations: Iterable[Rotation], now: float) -> list[DumpedIdentity]:
    """Returns the dump of all identities, in the order given. No key is in it.

    ``now`` is in epoch seconds.
    """
    return [_identity(rotation, now) for rotation in rotations]


def certificate_states(rotations: Iterable[Rotation], now: float) -> list[dict[str, Any]]:
    """Returns the state of each identity's certificate, for people, without keys and PEM.

    ``now`` is in epoch seconds. An unknown time is None.
    """
    return [_state(rotation, now) for rotation in rotations]


def _state(rotation: Rotation, now: float) -> dict[str, Any]:
    certificate = rotation.certificate
    shown: dict[str, Any] = {
        "identity": str(rotation.identity),
        "phase": rotation.phase.value,
        "nextAttemptSeconds": round(rotation.due_at(now) - now, 1),
        "failures": rotation.failures,
        "lastError": str(rotation.error) if rotation.error is not None else None,
        "lastErrorCode": rotation.error.code if rotation.error is not None else None,
    }
    if certificate is not None:
        leaf = x509.load_pem_x509_certificate(certificate.chain[0])
        shown |= {
            "issuer": leaf.issuer.rfc4514_string(),
            "serialNumber": f"{leaf.serial_number:x}",
            "validFrom": leaf.not_valid_before_utc.strftime(_TIME),
            "expires": leaf.not_valid_after_utc.strftime(_TIME),
            "expiresInSeconds": round(certificate.not_after - now, 1),
            "roots": [_subject(pem) for pem in certificate.roots],
        }
    return shown


def _subject(pem: bytes) -> str:
    root = x509.load_pem_x509_certificate(pem)
    return f"{root.subject.rfc4514_string()}, until {root.not_valid_after_utc.strftime(_TIME)}"


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
