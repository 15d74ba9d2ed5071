"""What a TLS connection needs of what carries its records."""

from __future__ import annotations

from abc import ABC, abstractmethod


class TlsTransport(ABC):
    """The transport's part of a TLS connection; `ztunnel.tls.socket_and_stream_tls` has both of them."""

    @property
    def unacknowledged(self) -> int:
        """How many bytes that were sent are not known to have arrived at the peer, as far as can be told."""
        return 0

    @abstractmethod
    def _transport_receive(self, limit: int) -> int | None:
        """Read up to ``limit`` bytes into the ciphertext buffer: how many, 0 at the end, None for not now."""

    @abstractmethod
    def _transport_send(self, data: memoryview) -> int:
        """Send from the beginning of ``data``: how many bytes, 0 for not now. Raises OSError."""

    @abstractmethod
    def cut_off(self) -> None:
        """Tell the peer, below TLS, that nothing more comes, after a send that failed: it must not wait."""

    @abstractmethod
    def _close_transport(self) -> None:
        """Close the transport if it is ours."""

    @abstractmethod
    async def wait_receivable(self) -> None:
        """Wait until `try_receive` may have something. Raises trio.ClosedResourceError if closed."""

    @abstractmethod
    async def wait_sendable(self) -> None:
        """Wait until `try_send` or `close_notify` may get on. Raises trio.ClosedResourceError if closed."""
