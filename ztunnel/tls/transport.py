"""The interface between a TLS connection and the transport of its records."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable


class TlsTransport(ABC):
    """The transport's part of a TLS connection (implemented in `ztunnel.tls.socket_and_stream_tls`)."""

    @property
    def unacknowledged(self) -> int:
        """How many sent bytes are not known to have arrived at the peer, as far as this is known."""
        return 0

    @property
    def bulk(self) -> bool:
        """Whether much data flows (`ztunnel.loop.watch.Watch`), as its user has noted. For a socket only."""
        return False

    @bulk.setter
    def bulk(self, bulk: bool) -> None:
        del bulk

    def at_rest(self) -> bool:
        """Whether nothing that was read waits here. Gives memory back that the last reads needed, if so."""
        return False

    @property
    def peer_closed(self) -> bool:
        """Whether the peer is known to send no more, though not all that it sent may be read."""
        return False

    @abstractmethod
    def _fetch(self, limit: int) -> int | None:
        """Read up to ``limit`` bytes, which OpenSSL reads next.

        Returns how many, 0 at the end, None for not now. Raises OSError.
        """

    @abstractmethod
    def _receive(self, limit: int) -> tuple[bytes, int, int] | None:
        """Read up to ``limit`` bytes and decrypt them; see `Records.receive`."""

    @abstractmethod
    def _send(self, data: bytes | bytearray | memoryview) -> int:
        """Encrypt ``data`` and send as much as goes now; see `Records.send`."""

    @abstractmethod
    def _flush(self) -> bool:
        """Send the records that wait. Returns True when none do. Raises OSError."""

    @abstractmethod
    def cut_off(self) -> None:
        """After a failed send: end our direction of the transport, so that the peer does not wait."""

    @abstractmethod
    def _close_transport(self) -> None:
        """Close the transport if the connection owns it."""

    @abstractmethod
    async def wait_receivable(self, handler: Callable[[], bool] | None = None) -> None:
        """Wait until `try_receive` may have something. Raises trio.ClosedResourceError if closed.

        handler: see `Watch.readable`; a transport that has no `Watch` never calls it.
        """

    @abstractmethod
    async def wait_sendable(self) -> None:
        """Wait until `try_send` or `close_notify` may continue. Raises trio.ClosedResourceError if closed."""
