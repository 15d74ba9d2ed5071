"""A TLS connection as an ordinary trio stream, for whoever wants one: tests, tools, TLS in a tunnel."""

from __future__ import annotations

import operator
from types import TracebackType
from typing import Final

import trio

from ztunnel.tls.connection import CHUNK, TlsConnection
from ztunnel.tls.tls_errors import TlsError
from ztunnel.tls.transports import StreamTls

# How long an orderly close may wait for a peer that does not read.
_CLOSE_SECONDS: Final = 5.0


class _Guard:
    """Refuses a second task where only one can be."""

    __slots__ = ("_held", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._held = False

    def __enter__(self) -> None:
        if self._held:
            raise trio.BusyResourceError(self._text)
        self._held = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = False


class TlsStream(trio.abc.HalfCloseableStream):
    """A `HalfCloseableStream` over a TLS connection whose handshake is done.

    `send_eof` sends a close_notify and leaves the other direction open. `receive_some` gives an empty
    answer only for a close_notify; an end without one raises trio.BrokenResourceError, as every
    failure does, with the TlsError or OSError as its cause. `aclose` says close_notify, waits at most
    ``close_seconds`` for it to go out, and closes the connection with what is below it.
    """

    def __init__(self, connection: TlsConnection, *, close_seconds: float = _CLOSE_SECONDS) -> None:
        self.connection = connection
        self._close_seconds = close_seconds
        self._sending = _Guard("another task is already sending on this stream")
        self._receiving = _Guard("another task is already receiving from this stream")
        self._eof_sent = False
        self._closed = False

    def _check_sendable(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed")
        if self._eof_sent:
            raise trio.ClosedResourceError("this stream's sending side was closed by send_eof")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of ``data``. After a cancellation nobody knows how much went out: close the stream."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            self._check_sendable()
            view = memoryview(data).cast("B")
            try:
                while view:
                    sent = self.connection.try_send(view)
                    if sent:
                        view = view[sent:]
                    else:
                        await self.connection.wait_sendable()
            except (OSError, TlsError) as error:
                raise trio.BrokenResourceError(str(error)) from error

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the transport may take more."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            self._check_sendable()
            try:
                await self.connection.wait_send_might_not_block()
            except (OSError, TlsError) as error:
                raise trio.BrokenResourceError(str(error)) from error

    async def send_eof(self) -> None:
        """Tell the peer that nothing more will come."""
        with self._sending:
            await trio.lowlevel.checkpoint()
            if self._closed:
                raise trio.ClosedResourceError("this stream was closed")
            if self._eof_sent:
                return
            self._eof_sent = True
            try:
                while not self.connection.close_notify():
                    await self.connection.wait_sendable()
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for some bytes; empty at the peer's orderly end."""
        with self._receiving:
            await trio.lowlevel.checkpoint()
            if max_bytes is None:
                max_bytes = CHUNK
            elif operator.index(max_bytes) < 1:
                raise ValueError("max_bytes must be at least 1")
            if self._closed:
                raise trio.ClosedResourceError("this stream was closed")
            try:
                while (data := self.connection.try_receive(max_bytes)) is None:
                    await self.connection.wait_receivable()
            except (OSError, TlsError) as error:
                raise trio.BrokenResourceError(str(error)) from error
            return data

    async def aclose(self) -> None:
        """Close in order if the peer lets us, and in any case."""
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        connection = self.connection
        transport = connection.transport if isinstance(connection, StreamTls) else None
        try:
            with trio.move_on_after(self._close_seconds):
                await trio.lowlevel.checkpoint()
                while not connection.close_notify():
                    await connection.wait_sendable()
        except (OSError, trio.ClosedResourceError, trio.BusyResourceError):
            # The peer is gone, or another task is at it: there is nobody to tell.
            pass
        finally:
            connection.close()
            if transport is not None:
                await transport.aclose()
