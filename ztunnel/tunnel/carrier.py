"""What a stream of a tunnel needs from that tunnel, and how it tells its user that it is closed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ztunnel.bounds import TunnelBounds
from ztunnel.hbone import HboneConnection

if TYPE_CHECKING:
    from ztunnel.tunnel.tunnel_stream import TunnelStream


class StreamClosedError(Exception):
    """The stream was reset, or the tunnel was lost.

    code: the HTTP/2 error code, None for a lost tunnel.
    """

    def __init__(self, code: int | None, text: str) -> None:
        super().__init__(text)
        self.code = code


class Carrier(Protocol):
    """What a stream needs from its tunnel."""

    @property
    def bounds(self) -> TunnelBounds:
        """The limits of waiting."""

    @property
    def hbone(self) -> HboneConnection:
        """The sans-IO connection."""

    @property
    def blocked(self) -> bool:
        """Whether nothing should be sent now, because TLS would block."""

    @property
    def failure(self) -> str | None:
        """Why the tunnel ended, for a log line."""

    def flush(self) -> None:
        """Write the output of the sans-IO connection."""

    def forget(self, stream: TunnelStream) -> None:
        """Remove a stream whose user has closed it."""
