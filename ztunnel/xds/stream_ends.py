"""What follows the end of an xDS stream: the log line, the counter's label and the backoff.

A table, without I/O.

The backoff starts at 10 ms and doubles up to 3 s, without jitter. A successful connection alone does not
reset it; only the ends of normal operation do (istiod ends every stream after about half an hour, and a
restart of istiod ends all of them).

Differences from the Rust ztunnel. Its backoff grows to 15 s; during that time a ztunnel that has never synced
is not ready and new pods are unknown, although istiod is back. Errors of our own, such as an unreadable root
file, get a backoff like other errors (the Rust ztunnel retries without a pause). So does a stream that the
server ends cleanly without having sent anything.

Sources: docs/protocol/state-and-xds.md#ends-and-retries; gRPC status codes
(grpc.io/docs/guides/status-codes).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ztunnel.bounds import DEFAULTS, ControlBounds
from ztunnel.observe.durations import duration_text

_UNKNOWN = "Unknown"
_CANCELLED = "Cancelled"
_DEADLINE_EXCEEDED = "DeadlineExceeded"
_UNAVAILABLE = "Unavailable"
_ORDERLY = ("transport is closing", "received prior goaway", "GOAWAY received; Error code: 0")
"""Parts of an Unavailable's message when the server shut down in an orderly way; the last is grpcio's."""


class StreamPhase(Enum):
    """The phase of a stream when it ended."""

    CONNECTING = "connecting"
    """No response headers came: dialling, TLS, the token, or a refusal of the server."""
    ESTABLISHED = "established"
    """Response headers came."""


class Reason(Enum):
    """The label of the termination counter."""

    CONNECTION_ERROR = "ConnectionError"
    ERROR = "Error"
    RECONNECT = "Reconnect"
    COMPLETE = "Complete"


@dataclass(frozen=True, slots=True)
class StreamRefused:
    """The stream ended with a gRPC status.

    code: the status name in CamelCase. message: its message. text: the whole status, for people.
    """

    phase: StreamPhase
    code: str
    message: str
    text: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The stream ended by an error of our own: an unreadable file, an invalid response, no answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Closed:
    """The server ended the stream with status OK. ``spoke``: whether it sent at least one response."""

    spoke: bool


StreamEnd = StreamRefused | Failed | Closed


@dataclass(frozen=True, slots=True)
class Retry:
    """What to do after an end: count it under ``reason``, log ``message`` at ``level``, ``wait`` (seconds).

    backoff: the state to pass to the next `after`.
    """

    reason: Reason
    level: str
    message: str
    wait: float
    backoff: float


def after(end: StreamEnd, backoff: float, address: str, bounds: ControlBounds = DEFAULTS.control) -> Retry:
    """Returns what to do after an end.

    backoff: the state so far, at first `ControlBounds.xds_first_backoff`.
    """
    first = bounds.xds_first_backoff
    longer = min(bounds.xds_longest_backoff, backoff * 2)
    match end:
        case Closed(spoke=True):
            return Retry(Reason.COMPLETE, "warn", "XDS client complete", 0.0, first)
        case Closed():
            return Retry(Reason.COMPLETE, "warn", "XDS client complete", longer, longer)
        case Failed():
            text = f"XDS client error: {end.text}, retrying in {duration_text(longer)}"
            return Retry(Reason.ERROR, "warn", text, longer, longer)
        case StreamRefused(phase=StreamPhase.CONNECTING):
            text = (
                f"XDS client connection error: gRPC connection error connecting to {address}: {end.text}, "
                f"retrying in {duration_text(longer)}"
            )
            return Retry(Reason.CONNECTION_ERROR, "warn", text, longer, longer)
        case StreamRefused() if _is_orderly(end):
            text = f"XDS client terminated: gRPC error {end.text}, retrying in {duration_text(first)}"
            return Retry(Reason.RECONNECT, "debug", text, first, first)
        case StreamRefused():
            text = f"XDS client error: gRPC error {end.text}, retrying in {duration_text(longer)}"
            return Retry(Reason.ERROR, "warn", text, longer, longer)


def _is_orderly(end: StreamRefused) -> bool:
    if end.code in {_UNKNOWN, _CANCELLED, _DEADLINE_EXCEEDED}:
        return True
    return end.code == _UNAVAILABLE and any(phrase in end.message for phrase in _ORDERLY)


def status_text(code: str, message: str, *, details: str = "", source: str = "") -> str:
    """Returns a gRPC status as log lines show it, with a hint for some common causes."""
    text = f'status: {code}, message: "{message}"'
    if "authentication failure" in message:
        text += " (hint: check the control plane logs for more information)"
    if details:
        text += f", details: {details}"
    if source:
        text += f", source: {source}"
    if "Temporary failure in name resolution" in source or "DNS resolution failed" in message:
        text += " (hint: is the DNS server reachable?)"
    if "CERTIFICATE_VERIFY_FAILED" in message or "verify failed" in message.lower():
        text += " (hint: is its certificate from a root in XDS_ROOT_CA, and for its name?)"
    return text
