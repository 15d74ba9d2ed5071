"""The two buffers that all TLS connections of a thread read through (see `ztunnel.tls.tls_connection`)."""

from __future__ import annotations

import threading
from typing import Final

from ztunnel.tls.openssl import ffi

# The most plaintext that one call encrypts, and about the most ciphertext that one call reads. Measured best
# between 64 KiB and 256 KiB; eight full records.
CHUNK: Final = 128 * 1024
RECORD: Final = 16 * 1024
# What OpenSSL may have of a record from an earlier call comes out beside the chunk.
PLAIN_SIZE: Final = CHUNK + 2 * RECORD


class Scratch(threading.local):
    """The two buffers that all connections of a thread use in turn, never across an await."""

    def __init__(self) -> None:
        self.cipher = bytearray(CHUNK)
        self.cipher_view = memoryview(self.cipher)
        self.cipher_pointer = ffi.from_buffer(self.cipher)
        self.plain = ffi.new("char[]", PLAIN_SIZE)
        self.pending = ffi.new("char **")


scratch = Scratch()
