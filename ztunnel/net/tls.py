"""Mesh TLS: what the rest of the program uses of it. The parts are in the ``tls_*`` modules beside this one.

`client_context` and `server_context` make a `TlsContext` from a workload's certificate; keep it, making one
costs half as much as a handshake. `SocketTls` and `StreamTls` are connections with non-blocking calls,
`TlsStream` a trio stream over either. Errors are in `ztunnel.net.tls_errors`.
"""

from __future__ import annotations

from ztunnel.net.tls_connection import CHUNK, TlsConnection, verify_server_identity
from ztunnel.net.tls_context import TlsContext, TlsOptions, client_context, server_context
from ztunnel.net.tls_errors import (
    PeerCertificateError,
    PeerIdentityError,
    RevokedCertificateError,
    Side,
    TlsAlertError,
    TlsContextError,
    TlsError,
    TlsHandshakeError,
    TlsProtocolError,
    TlsTruncatedError,
)
from ztunnel.net.tls_peer import PeerCertificate
from ztunnel.net.tls_revocation import InvalidRevocationListError, RevocationList, Revocations
from ztunnel.net.tls_stream import TlsStream
from ztunnel.net.tls_transports import SocketTls, StreamTls, Transport

__all__ = [
    "CHUNK",
    "InvalidRevocationListError",
    "PeerCertificate",
    "PeerCertificateError",
    "PeerIdentityError",
    "RevocationList",
    "Revocations",
    "RevokedCertificateError",
    "Side",
    "SocketTls",
    "StreamTls",
    "TlsAlertError",
    "TlsConnection",
    "TlsContext",
    "TlsContextError",
    "TlsError",
    "TlsHandshakeError",
    "TlsOptions",
    "TlsProtocolError",
    "TlsStream",
    "TlsTruncatedError",
    "Transport",
    "client_context",
    "server_context",
    "verify_server_identity",
]
