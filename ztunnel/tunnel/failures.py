"""How a connection can end badly: the text of its access log line, and the response flag of its metrics.

Texts and flags are the existing implementation's, since dashboards and log queries depend on them
(docs/protocol/data-path.md#texts-and-flags). The code is ours and stands in docs/errors.md.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import ClassVar

from ztunnel.decide.plans import Refusal
from ztunnel.errors import ZtunnelError, os_error_text


def _begins_with(prefix: str, text: str) -> str:
    """The text with the prefix, once: errors of a TLS handshake bring it themselves."""
    return text if text.startswith(prefix) else prefix + text


class ConnectionFailure(ZtunnelError):
    """The base: why a connection was not made, or did not end well. ``flag`` is its response flag."""

    flag: ClassVar[str] = "CONNECT"
    elsewhere: bool = False
    """Whether another endpoint may well take a connection that failed so, before a byte was forwarded."""


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
    """An endpoint has not taken the connection yet, and there may be others that are quicker."""

    code = "ZT-NET-014"
    flag = "NETWORK_POLICY"
    elsewhere = True

    def __init__(self, seconds: float) -> None:
        super().__init__(f"io error: not connected within {seconds:g} s")
        self.waited = seconds


class ClientGoneError(ConnectionFailure):
    """The client reset its connection, or its stream, before anybody had taken it."""

    code = "ZT-NET-016"

    def __init__(self) -> None:
        super().__init__("client disconnected before the connection was established")


class ApplicationDialError(ConnectionFailure):
    """The application did not take the connection."""

    code = "ZT-NET-012"

    def __init__(self, text: str) -> None:
        super().__init__(f"connection failed: {text}")


_NOT_REACHED = frozenset({502, 503, 504})


class RefusedByPeerError(ConnectionFailure):
    """The other end answered our CONNECT with something else than 200."""

    code = "ZT-HBN-010"

    def __init__(self, status: int) -> None:
        try:
            reason = HTTPStatus(status).phrase
        except ValueError:
            reason = "<unknown status code>"
        super().__init__(f"http status: {status} {reason}")
        self.status = status
        # The peer was reached, and what is behind it was not. Any other status is about what we asked for.
        self.elsewhere = status in _NOT_REACHED


class Http2Error(ConnectionFailure):
    """The tunnel or our stream on it ended before it carried anything."""

    code = "ZT-HBN-011"
    flag = "H2_HANDSHAKE_FAILURE"
    elsewhere = True

    def __init__(self, text: str) -> None:
        super().__init__(f"h2 failed: {text}")


class StreamRefusedError(Http2Error):
    """The other end refused our stream without having looked at it, on several tunnels one after another."""

    code = "ZT-HBN-013"


class TunnelLostError(Http2Error):
    """The tunnel ended while our stream on it waited for its answer, or before a stream could be opened."""

    code = "ZT-HBN-014"


class ConnectTimeoutError(ConnectionFailure):
    """The other end took our CONNECT and never answered it."""

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
    """Authorization policy refuses the connection."""

    code = "ZT-POL-001"
    flag = "DENY"

    def __init__(self, reason: str) -> None:
        super().__init__(f"connection closed due to policy rejection: {reason}")


class PolicyChangedError(ConnectionFailure):
    """The connection was let in, and by now would not be."""

    code = "ZT-POL-002"
    flag = "DENY"

    def __init__(self) -> None:
        super().__init__("connection closed due to policy change")


class RevokedError(ConnectionFailure):
    """The peer's certificate has been revoked while the connection was open."""

    code = "ZT-TLS-040"
    flag = "CERT_REVOKED"

    def __init__(self) -> None:
        super().__init__("connection closed: peer certificate revoked by CRL")


class PoolClosedError(ConnectionFailure):
    """The pod went away while the connection waited for a tunnel."""

    code = "ZT-DRN-002"

    def __init__(self) -> None:
        super().__init__("pool draining")


class DrainedError(ConnectionFailure):
    """The connection outlived the drain's deadline, or its pod."""

    code = "ZT-DRN-001"
    flag = "-"

    def __init__(self) -> None:
        super().__init__("connection closed due to connection drain")


class RelayError(ConnectionFailure):
    """Copying ended with an error that is not an application's own end or reset."""

    code = "ZT-NET-013"


class UnknownWorkloadError(ConnectionFailure):
    """The control plane has not told us of the pod that a connection belongs to."""

    code = "ZT-XDS-020"

    def __init__(self, name: str, namespace: str, service_account: str) -> None:
        super().__init__(
            f"failed to fetch information about local workload: {service_account}.{namespace} ({name})"
        )


class RouteRefusedError(ConnectionFailure):
    """There is nowhere to send the connection. The text, and the code on the instance, are the decision's."""

    code = "ZT-RTE-000"

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


class InternalError(ConnectionFailure):
    """A bug of ours in the task of one connection."""

    code = "ZT-INT-002"

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"internal error: {type(error).__name__}: {error}")
