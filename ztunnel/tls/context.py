"""TLS contexts of the mesh: made from one workload's certificate, with every check built in.

A context belongs to one certificate and one side. Making one takes a quarter of a millisecond (parsing keys
and roots), so callers keep it until the certificate or the revocation lists change. Connections that were
made from it before stay valid.

The checks are fixed here and in the verify step below; no caller can switch one off:

- TLS 1.3 (1.2 only if the options say so), AES-GCM suites, the named groups, ALPN h2, no renegotiation, no
  resumption, no early data, no SNI;
- the chain leads to one of the roots that came with our own certificate. As with webpki each root is a trust
  anchor as it is: it may itself be an intermediate, and its dates are ignored;
- dates, and extended key usage if a certificate has one;
- the revocation lists;
- at the server the client's trust domain, at the client the expected identities.

All of them run inside the handshake, so a refused peer gets an alert that says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from OpenSSL import SSL, crypto

from ztunnel.model.certificate import Certificate
from ztunnel.tls import openssl as tls_openssl
from ztunnel.tls.accelerated import records_kind
from ztunnel.tls.malformed import MALFORMED
from ztunnel.tls.openssl import VerifyStep, lib
from ztunnel.tls.peer import (
    MalformedCertificateError,
    PeerCertificate,
    check_expected_identity,
    check_trust_domain,
    parse_certificate,
)
from ztunnel.tls.revocation import Revocations
from ztunnel.tls.tls_errors import (
    BadEncodingError,
    BadSignatureError,
    ExpiredCertificateError,
    NotYetValidCertificateError,
    PeerCertificateError,
    RevokedCertificateError,
    Side,
    TlsContextError,
    UnknownIssuerError,
    UnsuitableCertificateError,
    WrongPurposeError,
)

PROTOCOL: Final = b"h2"

_TLS13_SUITES: Final = b"TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256"
_TLS12_SUITES: Final = (
    b"ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES128-GCM-SHA256:"
    b"ECDHE-RSA-AES256-GCM-SHA384:ECDHE-RSA-AES128-GCM-SHA256"
)
_GROUPS: Final = b"X25519:P-256:P-384:X25519MLKEM768"
_POST_QUANTUM_GROUPS: Final = b"X25519MLKEM768"

_MOST_INTERMEDIATES: Final = 6

# A table in OpenSSL turns an X509 error into an alert. We choose errors for the alert that they give; this
# one is not in the table, which gives certificate_unknown.
_CERTIFICATE_UNKNOWN: Final[int] = lib.X509_V_ERR_PERMITTED_VIOLATION
_CERTIFICATE_REVOKED: Final[int] = lib.X509_V_ERR_CERT_REVOKED
_CERTIFICATE_EXPIRED: Final[int] = lib.X509_V_ERR_CERT_HAS_EXPIRED
_BAD_CERTIFICATE: Final[int] = lib.X509_V_ERR_CERT_REJECTED

_DATE_ERRORS: Final = frozenset({lib.X509_V_ERR_CERT_HAS_EXPIRED, lib.X509_V_ERR_CERT_NOT_YET_VALID})

_REFUSALS: Final[dict[int, type[PeerCertificateError]]] = {
    lib.X509_V_ERR_CERT_HAS_EXPIRED: ExpiredCertificateError,
    lib.X509_V_ERR_CERT_NOT_YET_VALID: NotYetValidCertificateError,
    lib.X509_V_ERR_INVALID_PURPOSE: WrongPurposeError,
    lib.X509_V_ERR_CERT_SIGNATURE_FAILURE: BadSignatureError,
    lib.X509_V_ERR_UNABLE_TO_DECRYPT_CERT_SIGNATURE: BadSignatureError,
    lib.X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT: UnknownIssuerError,
    lib.X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: UnknownIssuerError,
    lib.X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: UnknownIssuerError,
    lib.X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT: UnknownIssuerError,
    lib.X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN: UnknownIssuerError,
    lib.X509_V_ERR_CERT_UNTRUSTED: UnknownIssuerError,
    lib.X509_V_ERR_INVALID_CA: UnknownIssuerError,
    lib.X509_V_ERR_ERROR_IN_CERT_NOT_BEFORE_FIELD: BadEncodingError,
    lib.X509_V_ERR_ERROR_IN_CERT_NOT_AFTER_FIELD: BadEncodingError,
    lib.X509_V_ERR_INVALID_EXTENSION: BadEncodingError,
}


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """The options that an operator may choose.

    tls12: TLS 1.2 in addition to 1.3 (TLS12_ENABLED).
    post_quantum_only: only the key exchange X25519MLKEM768 (COMPLIANCE_POLICY=pqc).
    accelerated: the compiled record path, where it is available (ZTUNNEL_TLS_ACCELERATOR).
    """

    tls12: bool = False
    post_quantum_only: bool = False
    accelerated: bool = True


class Verification:
    """The checks of one handshake: what is expected goes in, the verified peer or a refusal comes out."""

    __slots__ = ("expected", "peer", "refusal", "side")

    def __init__(self, side: Side, expected: Sequence[str]) -> None:
        self.side = side
        self.expected = tuple(expected)
        self.peer: PeerCertificate | None = None
        self.refusal: Exception | None = None


class TlsContext:
    """One side's TLS configuration for one certificate. Made by `client_context` and `server_context`."""

    __slots__ = (
        "_anchors",
        "_kept",
        "_running",
        "records",
        "revocations",
        "side",
        "ssl_context",
        "trust_domain",
    )

    def __init__(
        self, side: Side, certificate: Certificate, options: TlsOptions, revocations: Revocations | None
    ) -> None:
        self.side = side
        self.revocations = revocations
        self.records = records_kind(accelerated=options.accelerated)
        self._running: dict[int, Verification] = {}
        try:
            leaf, *intermediates = _certificates(certificate.chain)
            roots = _certificates(certificate.roots)
            own = parse_certificate(leaf.public_bytes(Encoding.DER))
        except ValueError as error:
            raise TlsContextError(
                f"a certificate of {certificate.identity} cannot be read: {error}"
            ) from error
        if not roots:
            raise TlsContextError(f"there is no root certificate for {certificate.identity}")
        self.trust_domain = (own.identities or (certificate.identity,))[0].trust_domain
        self._anchors = frozenset(root.public_bytes(Encoding.DER) for root in roots)
        context = SSL.Context(SSL.TLS_SERVER_METHOD if side is Side.SERVER else SSL.TLS_CLIENT_METHOD)
        self.ssl_context = context
        _set_policy(context, options)
        _set_identity(context, certificate, leaf, intermediates)
        store = context.get_cert_store()
        if store is None:
            raise TlsContextError("OpenSSL made a context without a certificate store")
        store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        for root in roots:
            store.add_cert(crypto.X509.from_cryptography(root))
        # They must live as long as OpenSSL may call them.
        kept = [tls_openssl.set_verify(context, self._verify, require=True)]
        if side is Side.SERVER:
            for root in roots:
                context.add_client_ca(root)
            kept.append(tls_openssl.set_required_protocol(context, PROTOCOL))
        else:
            context.set_alpn_protos([PROTOCOL])
        self._kept = kept

    def begin(self, ssl: int, verification: Verification) -> None:
        """Check the handshake of the SSL object at this address with ``verification``, until `end`."""
        self._running[ssl] = verification

    def end(self, ssl: int) -> None:
        """The handshake of the SSL object at this address has ended."""
        self._running.pop(ssl, None)

    def _verify(self, step: VerifyStep) -> bool:
        verification = self._running.get(step.connection)
        if verification is None:
            # A handshake that was not registered, such as a renegotiation, is always refused.
            step.error = _CERTIFICATE_UNKNOWN
            return False
        try:
            if not step.ok:
                return self._overrule(step, verification)
            if step.depth == 0:
                self._check_peer(step, verification)
        except PeerCertificateError as refusal:
            verification.refusal = refusal
            revoked = isinstance(refusal, RevokedCertificateError)
            step.error = _CERTIFICATE_REVOKED if revoked else _CERTIFICATE_UNKNOWN
            return False
        except MalformedCertificateError:
            verification.refusal = BadEncodingError(self.side)
            step.error = _BAD_CERTIFICATE
            return False
        except Exception as problem:  # noqa: BLE001  # it crosses C code; the handshake raises it afterwards
            verification.refusal = problem
            step.error = _CERTIFICATE_UNKNOWN
            return False
        return True

    def _overrule(self, step: VerifyStep, verification: Verification) -> bool:
        """OpenSSL refuses a certificate. Only a wrong date of a trust anchor is overruled."""
        error = step.error
        if error in _DATE_ERRORS:
            if step.depth > 0 and step.current in self._anchors:
                step.error = lib.X509_V_OK
                return True
            # OpenSSL's alert for "not yet valid" is bad_certificate; in the mesh it is certificate_expired
            # for both.
            verification.refusal = _REFUSALS[error](self.side)
            step.error = _CERTIFICATE_EXPIRED
            return False
        kind = _REFUSALS.get(error)
        verification.refusal = (
            kind(self.side) if kind else UnsuitableCertificateError(self.side, step.error_text)
        )
        return False

    def _check_peer(self, step: VerifyStep, verification: Verification) -> None:
        """Check the mesh's own rules, after OpenSSL has accepted the chain. Raises PeerCertificateError."""
        peer = PeerCertificate.from_chain(step.chain, self.side)
        if self.revocations and self.revocations.revoked(peer.chain) is not None:
            raise RevokedCertificateError(self.side)
        if self.side is Side.SERVER:
            check_trust_domain(peer, self.trust_domain)
        else:
            check_expected_identity(peer, verification.expected)
        verification.peer = peer


def client_context(
    certificate: Certificate, options: TlsOptions, revocations: Revocations | None = None
) -> TlsContext:
    """Returns a context for connections that the certificate's workload opens. Raises TlsContextError."""
    return TlsContext(Side.CLIENT, certificate, options, revocations)


def server_context(
    certificate: Certificate, options: TlsOptions, revocations: Revocations | None = None
) -> TlsContext:
    """Returns a context for connections that the certificate's workload accepts. Raises TlsContextError."""
    return TlsContext(Side.SERVER, certificate, options, revocations)


def _set_policy(context: SSL.Context, options: TlsOptions) -> None:
    """Set versions, suites and groups, and switch off what is not used."""
    context.set_min_proto_version(SSL.TLS1_2_VERSION if options.tls12 else SSL.TLS1_3_VERSION)
    context.set_max_proto_version(SSL.TLS1_3_VERSION)
    context.set_tls13_ciphersuites(_TLS13_SUITES)
    context.set_cipher_list(_TLS12_SUITES)
    if not tls_openssl.set_groups(context, _POST_QUANTUM_GROUPS if options.post_quantum_only else _GROUPS):
        raise TlsContextError("this OpenSSL does not have all key exchange groups of the mesh")
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION)
    # As webpki does. No mesh has more intermediates, and each one costs a signature check.
    context.set_verify_depth(_MOST_INTERMEDIATES)
    # A connection frees its record buffers while it has nothing to read or write: 6 to 33 KiB less.
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    # Records are written into memory, which never blocks, so one call may write several.
    context.clear_mode(lib.SSL_MODE_ENABLE_PARTIAL_WRITE)


def _set_identity(
    context: SSL.Context,
    certificate: Certificate,
    leaf: x509.Certificate,
    intermediates: Iterable[x509.Certificate],
) -> None:
    """Set the certificate that we present: leaf and intermediates, never the root."""
    try:
        key = load_pem_private_key(certificate.private_key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Without the cause, because its text might quote a part of the key.
        raise TlsContextError(f"the private key of {certificate.identity} cannot be read") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise TlsContextError(f"the private key of {certificate.identity} is neither an EC nor an RSA key")
    try:
        context.use_certificate(leaf)
        context.use_privatekey(key)
        context.check_privatekey()
        for intermediate in intermediates:
            context.add_extra_chain_cert(intermediate)
    except SSL.Error as error:
        raise TlsContextError(
            f"certificate and private key of {certificate.identity} do not belong together"
        ) from error


def _certificates(pems: Iterable[bytes]) -> list[x509.Certificate]:
    """Read PEM texts, each of one or more certificates. Raises ValueError."""
    try:
        return [one for pem in pems for one in x509.load_pem_x509_certificates(pem)]
    except MALFORMED as error:
        raise ValueError(str(error)) from error
