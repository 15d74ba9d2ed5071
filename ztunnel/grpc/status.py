"""The results of gRPC calls: status codes, errors; and the check of metadata."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar, Final, TypeAlias

from ztunnel.errors import ZtunnelError

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
"""Key (in lower case) and value. The value may be bytes only if the key ends in ``-bin``."""

# https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, "Custom-Metadata".
_KEY: Final = re.compile(r"[0-9a-z_.-]+")
_VALUE: Final = re.compile(r"[\x20-\x7e]*")

# The texts of the status codes in the Rust ztunnel's log lines.
_MEANINGS: Final = {
    "OK": "The operation completed successfully",
    "CANCELLED": "The operation was cancelled",
    "UNKNOWN": "Unknown error",
    "INVALID_ARGUMENT": "Client specified an invalid argument",
    "DEADLINE_EXCEEDED": "Deadline expired before operation could complete",
    "NOT_FOUND": "Some requested entity was not found",
    "ALREADY_EXISTS": "Some entity that we attempted to create already exists",
    "PERMISSION_DENIED": "The caller does not have permission to execute the specified operation",
    "RESOURCE_EXHAUSTED": "Some resource has been exhausted",
    "FAILED_PRECONDITION": "The system is not in a state required for the operation's execution",
    "ABORTED": "The operation was aborted",
    "OUT_OF_RANGE": "Operation was attempted past the valid range",
    "UNIMPLEMENTED": "Operation is not implemented or not supported",
    "INTERNAL": "Internal error",
    "UNAVAILABLE": "The service is currently unavailable",
    "DATA_LOSS": "Unrecoverable data loss or corruption",
    "UNAUTHENTICATED": "The request does not have valid authentication credentials",
}


class GrpcStatusError(ZtunnelError):
    """A call ended with this status.

    status: the code's name in capitals; a stream that the server ended without an error has ``OK``. details:
        the peer's message.
    """

    code: ClassVar[str] = "ZT-NET-101"

    def __init__(self, status: str, details: str) -> None:
        super().__init__(f"gRPC status {status}: {details}" if details else f"gRPC status {status}")
        self.status = status
        self.details = details

    @property
    def meaning(self) -> str:
        """The meaning of the code, as in the log lines of the mesh."""
        return _MEANINGS.get(self.status, "Unknown error")


class GrpcChannelError(ZtunnelError):
    """A channel cannot be used: no usable roots, or metadata that a header cannot carry."""

    code: ClassVar[str] = "ZT-NET-102"


def check_metadata(metadata: Metadata) -> None:
    """Raise GrpcChannelError for what a header cannot carry.

    The error shows no value, since it may be a token.
    """
    for key, value in metadata:
        if not _KEY.fullmatch(key):
            raise GrpcChannelError(
                f"the metadata key {key!r} cannot be sent: it has to be of lower case letters, digits, - _ ."
            )
        if isinstance(value, str) and not _VALUE.fullmatch(value):
            raise GrpcChannelError(
                f"the value of the metadata {key!r} cannot be sent: it has to be one line of ASCII text; a "
                "token file that ends with a newline is a usual cause"
            )
