"""All errors of mesh TLS, each with a code and the text that log queries know.

The texts are those of the Rust ztunnel (docs/protocol/data-path.md#texts-and-flags): at the server a debug
form after ``tls handshake error: ``, at the client a readable form after ``io error: ``. They name the cause
but do not help much, so each error also has an `explanation`: one sentence about what happened and where to
look.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar

from ztunnel.errors import ZtunnelError


class Side(Enum):
    """Our side of the handshake."""

    CLIENT = "client"
    SERVER = "server"


# Spelled as the Rust ztunnel prints them (RFC 8446 section 6, RFC 5246 section 7.2).
ALERT_NAMES = {
    0: "CloseNotify",
    10: "UnexpectedMessage",
    20: "BadRecordMac",
    22: "RecordOverflow",
    40: "HandshakeFailure",
    42: "BadCertificate",
    43: "UnsupportedCertificate",
    44: "CertificateRevoked",
    45: "CertificateExpired",
    46: "CertificateUnknown",
    47: "IllegalParameter",
    48: "UnknownCA",
    49: "AccessDenied",
    50: "DecodeError",
    51: "DecryptError",
    70: "ProtocolVersion",
    71: "InsufficientSecurity",
    80: "InternalError",
    86: "InappropriateFallback",
    90: "UserCanceled",
    109: "MissingExtension",
    110: "UnsupportedExtension",
    112: "UnrecognisedName",
    113: "BadCertificateStatusResponse",
    115: "UnknownPSKIdentity",
    116: "CertificateRequired",
    120: "NoApplicationProtocol",
}


def alert_name(number: int) -> str:
    """Returns the name of a TLS alert; for an unassigned one its number."""
    return ALERT_NAMES.get(number, f"Unknown({number})")


def _also_means(alert: int) -> str:
    """Returns another meaning of an alert: TLS has one alert for both ends of a certificate's life."""
    return " (our certificate has expired or is not valid yet, by the peer's clock)" if alert == 45 else ""


class TlsError(ZtunnelError):
    """The base class of all errors of mesh TLS."""

    code: ClassVar[str] = "ZT-TLS-001"


class TlsContextError(TlsError):
    """Our own certificate, key or roots cannot be used. No connection was attempted."""

    code: ClassVar[str] = "ZT-TLS-002"

    def __init__(self, reason: str) -> None:
        super().__init__(f"tls error: {reason}")


class TlsTruncatedError(TlsError):
    """The peer's bytes ended without a close_notify: the peer was killed, or the connection was cut."""

    code: ClassVar[str] = "ZT-TLS-003"

    def __init__(self) -> None:
        super().__init__("peer closed connection without sending TLS close_notify")


class TlsAlertError(TlsError):
    """The peer ended an established connection with a fatal alert.

    In TLS 1.3 a client learns in this way, after its own handshake, that its certificate was refused.
    """

    code: ClassVar[str] = "ZT-TLS-004"

    def __init__(self, alert: int) -> None:
        super().__init__(f"received fatal alert: {alert_name(alert)}{_also_means(alert)}")
        self.alert = alert


class TlsProtocolError(TlsError):
    """An established connection received bytes that are not a valid record: damaged or forged."""

    code: ClassVar[str] = "ZT-TLS-005"

    def __init__(self, reason: str) -> None:
        super().__init__(f"invalid TLS record: {reason}")


class TlsHandshakeError(TlsError):
    """The base class of all reasons why a handshake failed. No application data was sent.

    side: our side. explanation: a full sentence for a person.
    """

    code: ClassVar[str] = "ZT-TLS-010"
    # The parts of both texts, for causes that need only a name.
    debug_text: ClassVar[str] = "General"
    display_text: ClassVar[str] = "unexpected error"
    explanation: str = "The TLS handshake failed."

    def __init__(self, side: Side, debug: str | None = None, display: str | None = None) -> None:
        self.side = side
        if side is Side.SERVER:
            text = f"tls handshake error: {self._wrapped(debug or self.debug_text)}"
        else:
            text = f"io error: {display or self.display_text}"
        super().__init__(text)

    @staticmethod
    def _wrapped(debug: str) -> str:
        return f"Custom {{ kind: InvalidData, error: {debug} }}"


class HandshakeTimeoutError(TlsHandshakeError):
    """The handshake took too long."""

    code: ClassVar[str] = "ZT-TLS-011"
    display_text = "deadline has elapsed"
    explanation = (
        "The peer did not finish the TLS handshake in time: it hangs, or packets are lost on the way."
    )

    @staticmethod
    def _wrapped(debug: str) -> str:
        return "Elapsed(())"


class HandshakeEofError(TlsHandshakeError):
    """The peer closed or reset the connection during the handshake. ``silent``: before its first byte."""

    code: ClassVar[str] = "ZT-TLS-012"
    debug_text = '"tls handshake eof"'
    display_text = "tls handshake eof"
    explanation = (
        "The peer closed the connection during the TLS handshake without saying why: it stopped, it has no "
        "certificate yet, or something between us cut the connection."
    )

    def __init__(self, side: Side, *, silent: bool = False) -> None:
        super().__init__(side)
        self.silent = silent

    @staticmethod
    def _wrapped(debug: str) -> str:
        return f"Custom {{ kind: UnexpectedEof, error: {debug} }}"


class NotTlsError(TlsHandshakeError):
    """The peer does not speak TLS, but for instance plain HTTP."""

    code: ClassVar[str] = "ZT-TLS-013"
    debug_text = "InvalidMessage(InvalidContentType)"
    display_text = "received corrupt message of type InvalidContentType"
    explanation = "The peer does not speak TLS on this port: it sends plaintext, or it is not a mesh proxy."


class NoCertificateError(TlsHandshakeError):
    """The client presented no certificate."""

    code: ClassVar[str] = "ZT-TLS-014"
    debug_text = "NoCertificatesPresented"
    display_text = "peer sent no certificates"
    explanation = "The peer presented no certificate: it is not part of the mesh, or not configured for mTLS."


class NoApplicationProtocolError(TlsHandshakeError):
    """The two ends have no ALPN protocol in common; only h2 is accepted."""

    code: ClassVar[str] = "ZT-TLS-015"
    debug_text = "NoApplicationProtocol"
    display_text = "peer doesn't support any known protocol"
    explanation = "The peer offered ALPN protocols but not h2, the only one that HBONE is spoken over."


class IncompatiblePeerError(TlsHandshakeError):
    """No TLS version, cipher suite or key exchange group in common."""

    code: ClassVar[str] = "ZT-TLS-016"
    explanation = (
        "The peer and we have no TLS version, cipher suite or key exchange group in common. TLS 1.3 is "
        "required unless TLS12_ENABLED is true; COMPLIANCE_POLICY=pqc admits X25519MLKEM768 only."
    )

    def __init__(self, side: Side, reason: str) -> None:
        name = "".join(word.capitalize() for word in reason.split())
        super().__init__(side, f"PeerIncompatible({name})", f"peer is incompatible: {name}")


class BadHandshakeError(TlsHandshakeError):
    """The peer broke the rules of the handshake in a way that has no error of its own here."""

    code: ClassVar[str] = "ZT-TLS-017"
    explanation = "The peer's handshake messages are malformed or not allowed at their place."

    def __init__(self, side: Side, reason: str) -> None:
        super().__init__(side, f"PeerMisbehaved({reason})", f"peer misbehaved: {reason}")


class AlertReceivedError(TlsHandshakeError):
    """The peer refused our handshake with an alert."""

    code: ClassVar[str] = "ZT-TLS-018"
    explanation = "The peer refused the handshake; the alert's name says why, the peer's own log says more."

    def __init__(self, side: Side, alert: int) -> None:
        name = alert_name(alert)
        meaning = _also_means(alert)
        super().__init__(side, f"AlertReceived({name}){meaning}", f"received fatal alert: {name}{meaning}")
        self.alert = alert


class PeerCertificateError(TlsHandshakeError):
    """The base class of all reasons to refuse the peer's certificate."""

    code: ClassVar[str] = "ZT-TLS-020"
    cause: ClassVar[str] = "Other"

    def __init__(self, side: Side, cause: str | None = None) -> None:
        name = cause or self.cause
        super().__init__(side, f"InvalidCertificate({name})", f"invalid peer certificate: {name}")


class UnknownIssuerError(PeerCertificateError):
    """The certificate does not chain to a root that our own certificate came with."""

    code: ClassVar[str] = "ZT-TLS-021"
    cause = "UnknownIssuer"
    explanation = (
        "The peer's certificate was issued by a CA that we do not trust: another mesh, or a root rotation "
        "that one of us has not followed yet."
    )


class ExpiredCertificateError(PeerCertificateError):
    """The certificate, or an intermediate of it, has expired."""

    code: ClassVar[str] = "ZT-TLS-022"
    cause = "Expired"
    explanation = (
        "The peer's certificate has expired: its renewal fails, or one of the two clocks is wrong. "
        "/debug/certificates of the peer's ztunnel has the renewal's last error."
    )


class NotYetValidCertificateError(PeerCertificateError):
    """The certificate, or an intermediate of it, is not valid yet."""

    code: ClassVar[str] = "ZT-TLS-023"
    cause = "NotValidYet"
    explanation = "The peer's certificate is not valid yet: one of the two clocks is wrong."


class RevokedCertificateError(PeerCertificateError):
    """The certificate, or an intermediate of it, is on a revocation list in force."""

    code: ClassVar[str] = "ZT-TLS-024"
    cause = "Revoked"
    explanation = "The peer's certificate, or one that issued it, is on the revocation list at CRL_PATH."


class WrongPurposeError(PeerCertificateError):
    """The certificate has an extended key usage that does not allow this use."""

    code: ClassVar[str] = "ZT-TLS-025"
    cause = "InvalidPurpose"
    explanation = "The peer's certificate has a key usage that does not allow its side of a TLS connection."


class BadSignatureError(PeerCertificateError):
    """A signature in the chain, or the proof of possession of the key, is wrong."""

    code: ClassVar[str] = "ZT-TLS-026"
    cause = "BadSignature"
    explanation = "A signature in the peer's certificate chain does not verify: it is damaged or forged."


class BadEncodingError(PeerCertificateError):
    """The certificate cannot be read."""

    code: ClassVar[str] = "ZT-TLS-027"
    cause = "BadEncoding"
    explanation = "The peer's certificate cannot be decoded."


class UnsuitableCertificateError(PeerCertificateError):
    """The chain breaks another rule, for instance a CA's certificate used as a workload's own."""

    code: ClassVar[str] = "ZT-TLS-028"
    explanation = "The peer's certificate chain breaks a rule of X.509."

    def __init__(self, side: Side, reason: str) -> None:
        super().__init__(side, f'Other(OtherError("{reason}"))')
        self.explanation = f"The peer's certificate chain is refused: {reason}."


class TrustDomainError(PeerCertificateError):
    """No SPIFFE identity of the client is in our own trust domain."""

    code: ClassVar[str] = "ZT-TLS-029"

    def __init__(self, side: Side, trust_domain: str, found: tuple[tuple[str, str, str], ...]) -> None:
        spiffe = ", ".join(
            f'Spiffe {{ trust_domain: "{td}", namespace: "{ns}", service_account: "{sa}" }}'
            for td, ns, sa in found
        )
        super().__init__(side, f'Other(OtherError(SanTrustDomainError("{trust_domain}", [{spiffe}])))')
        names = ",".join(f"spiffe://{td}/ns/{ns}/sa/{sa}" for td, ns, sa in found)
        self.explanation = (
            "identity verification error: peer did not present the expected trustdomain "
            f"({trust_domain}), got {names}"
        )


class PeerIdentityError(PeerCertificateError):
    """No SPIFFE identity of the server is one of those that the connection's plan expects."""

    code: ClassVar[str] = "ZT-TLS-030"

    def __init__(self, side: Side, expected: tuple[str, ...], found: tuple[str, ...]) -> None:
        reason = (
            "identity verification error: peer did not present the expected SAN "
            f"({','.join(expected)}), got {','.join(found)}"
        )
        super().__init__(side, f"Other(OtherError({reason}))")
        self.explanation = (
            f"The server's certificate is for {', '.join(found) or 'no SPIFFE identity'}, but the mesh says "
            f"that {' or '.join(expected) or 'nobody'} is at this address: the address was reused, or the "
            "proxy there answers for another workload."
        )
