"""Turns OpenSSL's reasons for a failed handshake into our errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ztunnel.tls.openssl import ALERT_REASONS
from ztunnel.tls.tls_errors import (
    AlertReceivedError,
    BadEncodingError,
    BadHandshakeError,
    BadSignatureError,
    IncompatiblePeerError,
    NoApplicationProtocolError,
    NoCertificateError,
    NotTlsError,
    Side,
    TlsHandshakeError,
)

# Reasons are compared by their texts. Their numbers are no more part of OpenSSL's interface, and say less.
_NOT_TLS_REASONS: Final = frozenset(
    {
        "http request",
        "https proxy request",
        "wrong version number",
        "packet length too long",
        "bad record type",
        "record too small",
        "invalid record",
        "not on record boundary",
    }
)
_INCOMPATIBLE_REASONS: Final = frozenset(
    {
        "unsupported protocol",
        "no shared cipher",
        "no suitable key share",
        "no suitable groups",
        "no shared groups",
        "no suitable signature algorithm",
        "no shared signature algorithms",
        "no protocols available",
        "bad key share",
    }
)
_SIGNATURE_REASONS: Final = frozenset({"bad signature", "wrong signature type", "wrong signature length"})


def explain_failure(side: Side, errors: Sequence[tuple[int, str]]) -> TlsHandshakeError:
    """Returns the error for OpenSSL's error queue (oldest first) after a failed handshake on our ``side``."""
    for number, reason in errors:
        if ALERT_REASONS < number < ALERT_REASONS + 256:
            return AlertReceivedError(side, number - ALERT_REASONS)
        if reason in _NOT_TLS_REASONS:
            return NotTlsError(side)
        if reason == "peer did not return a certificate":
            return NoCertificateError(side)
        if reason == "no application protocol":
            return NoApplicationProtocolError(side)
        if reason in _INCOMPATIBLE_REASONS:
            return IncompatiblePeerError(side, reason)
        if reason in _SIGNATURE_REASONS:
            return BadSignatureError(side)
    reasons = [reason for _, reason in errors]
    if any("asn1" in reason.lower() or "cert length" in reason for reason in reasons):
        return BadEncodingError(side)
    return BadHandshakeError(side, reasons[0] if reasons else "the connection broke off")
