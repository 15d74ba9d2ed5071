"""The record path of one TLS connection: between plaintext, OpenSSL's memory and a socket.

How it works. OpenSSL never uses a socket. Received records are read into a scratch buffer that all
connections of a thread share, and this is wrapped as a read-only BIO. OpenSSL decrypts all of it into a
second scratch buffer, from which one `bytes` of exactly the right size is cut. Records to send are written
into the connection's own memory BIO, and the socket's `send` reads that memory directly. So `CHUNK` bytes
take one `recv` or one `send`, where OpenSSL on a socket makes three system calls for each record. Only what
arrived is allocated, and an idle connection has no buffer at all.

When a method returns, no ciphertext is left in the scratch buffer, because the next connection will use it.
OpenSSL itself keeps a partial record.
"""

from __future__ import annotations

import socket

from OpenSSL import SSL

from ztunnel.tls.openssl import WANT_READ, Pointer, ffi, lib, outgoing_bio_of, ssl_of
from ztunnel.tls.scratch import PLAIN_SIZE, RECORD, scratch

# The memory of an outgoing BIO never shrinks. A BIO that has held more than this is replaced when it is idle.
_KEPT_OUTGOING = 2 * RECORD

REFUSED = -1
"""What `Records.send` returns when OpenSSL does not encrypt; its error queue says why."""


class Records:
    """The records of one connection, as pyOpenSSL made it without a socket. All calls belong to one thread.

    largest: the most plaintext that one call encrypted since `slim`.
    """

    __slots__ = ("_connection", "_outgoing", "_ssl", "largest")

    def __init__(self, connection: SSL.Connection) -> None:
        # The SSL object lives as long as pyOpenSSL's object, and the outgoing BIO as long as the SSL object.
        self._connection = connection
        self._ssl: Pointer = ssl_of(connection)
        self._outgoing: Pointer = outgoing_bio_of(connection)
        self.largest = 0

    # With a socket: the hot path.

    def receive(self, sock: socket.socket, limit: int) -> tuple[bytes, int, int] | None:
        """Read once, up to ``limit`` bytes (at most `CHUNK`), and decrypt what came.

        Returns the plaintext, how many bytes the socket gave (0: its end), and SSL_get_error of the last
        SSL_read: WANT_READ unless the records ended or are wrong. None means that the socket has nothing now.
        Raises OSError.
        """
        size = self.fetch(sock, limit)
        if size is None:
            return None
        if size == 0:
            return b"", 0, WANT_READ
        data, error = self.decrypt()
        return data, size, error

    def send(self, sock: socket.socket, data: bytes | bytearray | memoryview) -> int:
        """Encrypt ``data`` (1 to `CHUNK` bytes) and send the records; nothing may be unsent before.

        Returns how many bytes of records the socket did not take, or `REFUSED`. Raises OSError.
        """
        if not self.encrypt(data):
            return REFUSED
        return self.flush(sock)

    def flush(self, sock: socket.socket) -> int:
        """Send the records that wait. Returns how many of their bytes still do. Raises OSError."""
        pending = scratch.pending
        while size := lib.BIO_get_mem_data(self._outgoing, pending):
            try:
                taken = sock.send(ffi.buffer(pending[0], size))
            except (BlockingIOError, InterruptedError):
                return int(size)
            self.discard(taken)
        return 0

    # The parts, for handshakes and for streams.

    def fetch(self, sock: socket.socket, limit: int) -> int | None:
        """Read once, and let OpenSSL read it next. Returns how many bytes, 0 at the end, None for not now."""
        try:
            size = sock.recv_into(scratch.cipher_view, limit)
        except (BlockingIOError, InterruptedError):
            return None
        if size:
            self._feed(size)
        return size

    def feed(self, data: bytes | bytearray) -> None:
        """Let OpenSSL read these bytes (1 to `CHUNK`) next."""
        scratch.cipher_view[: len(data)] = data
        self._feed(len(data))

    def _feed(self, size: int) -> None:
        bio = lib.BIO_new_mem_buf(scratch.cipher_pointer, size)
        if bio == ffi.NULL:
            raise MemoryError("OpenSSL has no memory for a buffer")
        lib.BIO_set_mem_eof_return(bio, -1)
        lib.SSL_set_bio(self._ssl, bio, self._outgoing)

    def decrypt(self) -> tuple[bytes, int]:
        """Returns all plaintext of what was fed, and SSL_get_error of the last SSL_read."""
        total = 0
        ssl = self._ssl
        plain = scratch.plain
        read = lib.SSL_read
        lib.ERR_clear_error()
        while (size := read(ssl, plain + total, PLAIN_SIZE - total)) > 0:
            total += size
        error = lib.SSL_get_error(ssl, size)
        # Copied before another connection uses the buffer.
        return (ffi.buffer(plain, total)[:] if total else b""), error

    def encrypt(self, data: bytes | bytearray | memoryview) -> bool:
        """Make records of ``data`` (1 to `CHUNK` bytes), which then wait. Returns False if refused."""
        self.largest = max(self.largest, len(data))
        lib.ERR_clear_error()
        with ffi.from_buffer(data) as pointer:
            return bool(lib.SSL_write(self._ssl, pointer, len(data)) > 0)

    @property
    def unsent(self) -> int:
        """How many bytes of records wait."""
        return int(lib.BIO_get_mem_data(self._outgoing, scratch.pending))

    @property
    def waiting(self) -> bytes:
        """A copy of the records that wait."""
        size = lib.BIO_get_mem_data(self._outgoing, scratch.pending)
        return bytes(ffi.buffer(scratch.pending[0], size)) if size else b""

    def discard(self, size: int) -> None:
        """Drop bytes from the front of the records that wait."""
        while size > 0:
            dropped = lib.BIO_read(self._outgoing, scratch.plain, min(size, PLAIN_SIZE))
            if dropped <= 0:
                return
            size -= dropped

    def slim(self) -> None:
        """Before a wait: free the memory of an outgoing BIO that was large and is empty.

        Everything that was fed has been read by then, so an empty BIO takes the incoming one's place too.
        """
        if self.largest <= _KEPT_OUTGOING or self.unsent:
            return
        self.largest = 0
        incoming, outgoing = lib.BIO_new(lib.BIO_s_mem()), lib.BIO_new(lib.BIO_s_mem())
        if ffi.NULL in (incoming, outgoing):
            lib.BIO_free(incoming)
            lib.BIO_free(outgoing)
            return
        lib.SSL_set_bio(self._ssl, incoming, outgoing)
        self._outgoing = outgoing
