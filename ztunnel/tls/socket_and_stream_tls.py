"""The two kinds of TLS connections: over a socket, and over any stream."""

from __future__ import annotations

import errno
import fcntl
import socket
import sys
import termios
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from ztunnel.loop.watch import Watch
from ztunnel.tls.context import TlsContext
from ztunnel.tls.openssl import WANT_READ
from ztunnel.tls.records import REFUSED
from ztunnel.tls.scratch import CHUNK
from ztunnel.tls.tls_connection import TlsConnection


class SocketTls(TlsConnection):
    """TLS over a connected, non-blocking socket. It owns the socket and closes it."""

    def __init__(
        self, context: TlsContext, sock: socket.socket, expected_identities: Sequence[str] | None = None
    ) -> None:
        super().__init__(context, expected_identities)
        self._socket = sock
        self._watch = Watch(sock)
        self._drained = False

    @property
    def socket(self) -> socket.socket:
        """The socket, for its addresses and options. Only this connection may read and write it."""
        return self._socket

    @property
    def unacknowledged(self) -> int:
        """How many bytes the peer's kernel has not acknowledged."""
        if self._closed:
            return 0
        try:
            return int.from_bytes(fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except OSError:
            return 0

    @property
    def bulk(self) -> bool:
        """Whether much data flows; see `TlsTransport.bulk`."""
        return self._watch.bulk

    @bulk.setter
    def bulk(self, bulk: bool) -> None:
        self._watch.bulk = bulk

    @property
    def peer_closed(self) -> bool:
        """See `TlsTransport.peer_closed`."""
        return self._watch.ended

    def _receive(self, limit: int) -> tuple[bytes, int, int] | None:
        # A short read has emptied the socket, so the next read would most likely only return EAGAIN. If bytes
        # have come meanwhile, the wait that follows returns at once.
        if self._drained:
            self._drained = False
            return None
        received = self._records.receive(self._socket, limit)
        self._has_read(None if received is None else received[1], limit)
        return received

    def _fetch(self, limit: int) -> int | None:
        if self._drained:
            self._drained = False
            return None
        size = self._records.fetch(self._socket, limit)
        self._has_read(size, limit)
        return size

    def _has_read(self, size: int | None, limit: int) -> None:
        """Note what a read says about the socket. size: what it gave, None for nothing now."""
        if size is None:
            self._watch.emptied()
        elif 0 < size < limit:
            self._drained = True
            self._watch.emptied()

    def _send(self, data: bytes | bytearray | memoryview) -> int:
        return self._records.send(self._socket, data)

    def _flush(self) -> bool:
        return not self._records.flush(self._socket)

    def cut_off(self) -> None:
        """Half-close the socket; see `TlsConnection.cut_off`."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the peer has closed it already

    def _close_transport(self) -> None:
        if self._socket.fileno() >= 0:
            self._watch.close()
            self._socket.close()

    async def wait_receivable(self, handler: Callable[[], bool] | None = None) -> None:
        """Wait until the socket is readable. Returns at once if plaintext is waiting here."""
        if self._closed:
            raise trio.ClosedResourceError("this TLS connection was closed")
        if self.at_rest():
            await self._watch.readable(handler)
        self._drained = False

    def at_rest(self) -> bool:
        """Whether no plaintext is waiting here. Gives memory back that the last reads needed, if so."""
        self._drained = False
        if self._ahead:
            return False
        self._records.slim()
        return True

    async def wait_sendable(self) -> None:
        """Wait until the socket is writable."""
        if self._closed:
            raise trio.ClosedResourceError("this TLS connection was closed")
        await self._watch.writable()


class ByteStream(Protocol):
    """The part of a stream that `StreamTls` uses, for instance of a stream inside an HBONE tunnel."""

    async def send_all(self, data: bytes) -> None:
        """Send all of it."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """Wait for some bytes; empty at the end."""

    async def aclose(self) -> None:
        """Close it."""


class StreamTls(TlsConnection):
    """TLS over any stream. `close` does not close the stream; the caller closes it.

    A stream has no ``try_`` calls, so the waits do the work: `wait_receivable` reads from it, `wait_sendable`
    writes to it. When a write is cancelled, a record may be incomplete on the stream; after that sending
    raises OSError.
    """

    def __init__(
        self, context: TlsContext, transport: ByteStream, expected_identities: Sequence[str] | None = None
    ) -> None:
        super().__init__(context, expected_identities)
        self._transport = transport
        self._arrived: bytes | bytearray | None = None
        self._broken: OSError | None = None
        self._sending = False

    @property
    def transport(self) -> ByteStream:
        """The stream below."""
        return self._transport

    def _fetch(self, limit: int) -> int | None:
        arrived = self._arrived
        if arrived is None:
            if self._broken is not None:
                raise self._broken
            return None
        if not arrived:
            return 0
        taken = min(limit, len(arrived))
        self._records.feed(arrived[:taken])
        self._arrived = arrived[taken:] if taken < len(arrived) else None
        return taken

    def _receive(self, limit: int) -> tuple[bytes, int, int] | None:
        size = self._fetch(limit)
        if not size:
            return None if size is None else (b"", 0, WANT_READ)
        data, error = self._records.decrypt()
        return data, size, error

    def _send(self, data: bytes | bytearray | memoryview) -> int:
        if not self._records.encrypt(data):
            return REFUSED
        if self._broken is not None:
            raise self._broken
        return self._records.unsent

    def _flush(self) -> bool:  # only wait_sendable sends
        if not self._records.unsent:
            return True
        if self._broken is not None:
            raise self._broken
        return False

    def cut_off(self) -> None:
        """Does nothing: the stream itself informs its peer."""

    def _close_transport(self) -> None:
        self._arrived = None

    async def wait_receivable(self, handler: Callable[[], bool] | None = None) -> None:
        """Read from the stream once. Returns at once if something is waiting here."""
        del handler  # this task has to read from the stream itself
        if self._closed:
            raise trio.ClosedResourceError("this TLS connection was closed")
        if self._ahead or self._arrived is not None or self._broken is not None:
            await trio.lowlevel.checkpoint()
            return
        self._records.slim()
        try:
            self._arrived = await self._transport.receive_some(CHUNK)
        except trio.BrokenResourceError as error:
            self._broken = ConnectionResetError(errno.ECONNRESET, "the stream below TLS broke")
            self._broken.__cause__ = error

    async def wait_sendable(self) -> None:
        """Write all records to the stream."""
        if self._closed:
            raise trio.ClosedResourceError("this TLS connection was closed")
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this TLS connection")
        if self._broken is not None:
            raise self._broken
        data = self._records.waiting
        if not data:
            await trio.lowlevel.checkpoint()
            return
        self._sending = True
        done = False
        try:
            await self._transport.send_all(data)
            done = True
        except trio.BrokenResourceError as error:
            raise BrokenPipeError(errno.EPIPE, "the stream below TLS broke") from error
        finally:
            self._sending = False
            if done:
                self._records.discard(len(data))
            else:
                self._broken = BrokenPipeError(errno.EPIPE, "a TLS record was cut off on its way out")
