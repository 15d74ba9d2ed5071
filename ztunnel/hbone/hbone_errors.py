"""HTTP/2 error codes, their texts, and the exceptions of this package."""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar, Literal

from ztunnel.errors import ZtunnelError


class ErrorCode(IntEnum):
    """The codes of RST_STREAM and GOAWAY (RFC 9113 section 7). Unknown codes of a peer stay plain ints."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


# Log queries match on these texts, so they are the ones of the Rust ztunnel, word for word.
_TEXTS: dict[int, str] = {
    ErrorCode.NO_ERROR: "not a result of an error",
    ErrorCode.PROTOCOL_ERROR: "unspecific protocol error detected",
    ErrorCode.INTERNAL_ERROR: "unexpected internal error encountered",
    ErrorCode.FLOW_CONTROL_ERROR: "flow-control protocol violated",
    ErrorCode.SETTINGS_TIMEOUT: "settings ACK not received in timely manner",
    ErrorCode.STREAM_CLOSED: "received frame when stream half-closed",
    ErrorCode.FRAME_SIZE_ERROR: "frame with invalid size",
    ErrorCode.REFUSED_STREAM: "refused stream before processing any application logic",
    ErrorCode.CANCEL: "stream no longer needed",
    ErrorCode.COMPRESSION_ERROR: "unable to maintain the header compression state",
    ErrorCode.CONNECT_ERROR: (
        "connection established in response to a CONNECT request was reset or abnormally closed"
    ),
    ErrorCode.ENHANCE_YOUR_CALM: "detected excessive load generating behavior",
    ErrorCode.INADEQUATE_SECURITY: "security properties do not meet minimum requirements",
    ErrorCode.HTTP_1_1_REQUIRED: "endpoint requires HTTP/1.1",
}


def code_text(code: int) -> str:
    """Returns the text of an HTTP/2 error code, "unknown reason" for an unknown one."""
    return _TEXTS.get(code, "unknown reason")


def error_text(
    scope: Literal["stream", "connection"],
    origin: Literal["received", "detected", "sent by user"],
    code: int,
) -> str:
    """Returns the log text for an RST_STREAM (scope stream) or a GOAWAY (scope connection).

    origin: ``received`` if the peer sent the frame, ``detected`` if we sent it because the peer broke a rule,
    ``sent by user`` if we sent it for our caller. Example: ``stream error received: stream no longer
    needed``.
    """
    return f"{scope} error {origin}: {code_text(code)}"


class CannotOpenStreamError(ZtunnelError):
    """``HboneClient.connect`` was called while ``can_open`` is false."""

    code: ClassVar[str] = "ZT-HBN-001"

    def __init__(self, reason: str) -> None:
        super().__init__(f"No stream can be opened on this tunnel: {reason}.")
        self.reason = reason


class Violation(Exception):
    """A peer broke a rule, and this ends the connection. ``HboneConnection.receive`` catches it."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code
