"""How a connection can fail: the text of its access log line, and the response flag of its metrics.

Texts and flags are those of the Rust ztunnel, because dashboards and log queries depend on them
(docs/protocol/data-path.md#texts-and-flags). The codes are ours; docs/errors.md lists them.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import ClassVar

from ztunnel.decide.plans import Refusal
from ztunnel.errors import ZtunnelError, os_error_text


def _begins_with(prefix: str, text: str) -> str:
    """Returns the text with the prefix. Errors of a TLS handshake have it already."""
    return text if text.startswith(prefix) else prefix + text


class ConnectionFailure(ZtunnelError):
    """The base class: why a connection could not be made, or why it ended early.

    ``flag``: its response flag.
    """

    flag: ClassVar[str] = "CONNECT"
    elsewhere: bool = False
    """Whether it makes sense to try another endpoint, as long as no byte was forwarded."""


class DialError(ConnectionFailure):
    """The next hop could not be reached, or TLS with it failed."""

    code = "ZT-NET-010"

    def __init__(self, text: str, *, elsewhere: bool = False, timed_out: bool = False) -> None:
        super().__init__(_begins_with("io error: ", text))
        self.elsewhere = elsewhere
        self.timed_out = timed_out


class HboneTimeoutError(ConnectionFailure):
    """Nobody answered on the HBONE port."""

    code = "ZT-NET-011"
    flag = "NETWORK_POLICY"
    elsewhere = True

    def __init__(self, text: str) -> None:
        super().__init__(f"connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: {text}")


class EndpointSlowError(ConnectionFailure):
    """An endpoint did not accept the connection within ``try_timeout``, and others may be faster."""

    code = "ZT-NET-014"
    flag = "NETWORK_POLICY"
    elsewhere = True

    def __init__(self, seconds: float) -> None:
        super().__init__(f"io error: not connected within {seconds:g} s")
        self.waited = seconds


class ClientGoneError(ConnectionFailure):
    """The client reset its connection, or its stream, before the connection was established."""

    code = "ZT-NET-016"

    def __init__(self) -> None:
        super().__init__("client disconnected before the connection was established")


class ApplicationDialError(ConnectionFailure):
    """The application did not accept the connection."""

    code = "ZT-NET-012"

    def __init__(self, text: str) -> None:
        super().__init__(f"connection failed: {text}")


_NOT_REACHED = frozenset({502, 503, 504})


class RefusedByPeerError(ConnectionFailure):
    """The peer answered our CONNECT with another status than 200."""

    code = "ZT-HBN-010"

    def __init__(self, status: int) -> None:
        try:
            reason = HTTPStatus(status).phrase
        except ValueError:
            reason = "<unknown status code>"
        super().__init__(f"http status: {status} {reason}")
        self.status = status
        # These say that the peer could not reach what is behind it. Any other status is about the request
        # itself, and another endpoint would give the same one.
        self.elsewhere = status in _NOT_REACHED


class Http2Error(ConnectionFailure):
    """The tunnel, or our stream on it, ended before it carried anything."""

    code = "ZT-HBN-011"
    flag = "H2_HANDSHAKE_FAILURE"
    elsewhere = True

    def __init__(self, text: str) -> None:
        super().__init__(f"h2 failed: {text}")


class StreamRefusedError(Http2Error):
    """The peer refused our stream unseen (REFUSED_STREAM), on several tunnels one after another."""

    code = "ZT-HBN-013"


class TunnelLostError(Http2Error):
    """The tunnel ended before our stream was opened or before its CONNECT was answered."""

    code = "ZT-HBN-014"


class ConnectTimeoutError(ConnectionFailure):
    """The peer did not answer our CONNECT in time."""

    code = "ZT-HBN-012"
    elsewhere = True

    def __init__(self, seconds: float) -> None:
        super().__init__(f"io error: no answer to CONNECT within {seconds:g} s")


class HandshakeRefusedError(ConnectionFailure):
    """A client's TLS handshake on 15008 failed."""

    code = "ZT-TLS-041"

    def __init__(self, error: Exception) -> None:
        text = os_error_text(error) if isinstance(error, OSError) else str(error)
        super().__init__(_begins_with("tls handshake error: ", text))
        self.__cause__ = error


class IdentityUnavailableError(ConnectionFailure):
    """There is no certificate for the pod's identity."""

    code = "ZT-CA-010"
    flag = "IDENTITY_ERROR"

    def __init__(self, text: str) -> None:
        super().__init__(f"identity error: {text}")


class PolicyRejectedError(ConnectionFailure):
    """An authorization policy refuses the connection."""

    code = "ZT-POL-001"
    flag = "DENY"

    def __init__(self, reason: str) -> None:
        super().__init__(f"connection closed due to policy rejection: {reason}")


class PolicyChangedError(ConnectionFailure):
    """The policies have changed and now refuse a connection that was allowed."""

    code = "ZT-POL-002"
    flag = "DENY"

    def __init__(self) -> None:
        super().__init__("connection closed due to policy change")


class RevokedError(ConnectionFailure):
    """The peer's certificate was revoked while the connection was open."""

    code = "ZT-TLS-040"
    flag = "CERT_REVOKED"

    def __init__(self) -> None:
        super().__init__("connection closed: peer certificate revoked by CRL")


class PoolClosedError(ConnectionFailure):
    """The pod was stopped while the connection waited for a tunnel."""

    code = "ZT-DRN-002"

    def __init__(self) -> None:
        super().__init__("pool draining")


class DrainedError(ConnectionFailure):
    """The connection was still open at the drain's deadline, or when its pod was removed."""

    code = "ZT-DRN-001"
    flag = "-"

    def __init__(self) -> None:
        super().__init__("connection closed due to connection drain")


class RelayError(ConnectionFailure):
    """Relaying ended with an error that is neither an end nor a reset by an application."""

    code = "ZT-NET-013"


class UnknownWorkloadError(ConnectionFailure):
    """The control plane has not sent the workload of the pod that a connection belongs to."""

    code = "ZT-XDS-020"

    def __init__(self, name: str, namespace: str, service_account: str) -> None:
        super().__init__(
            f"failed to fetch information about local workload: {service_account}.{namespace} ({name})"
        )


class RouteRefusedError(ConnectionFailure):
    """Routing refuses the connection. The text is that of the ``refusal``, and so is the code in the log."""

    code = "ZT-RTE-000"

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


class InternalError(ConnectionFailure):
    """A bug in ztunnel: the task of one connection raised an unexpected exception."""

    code = "ZT-INT-002"

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"internal error: {type(error).__name__}: {error}")
