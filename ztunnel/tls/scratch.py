"""The two buffers that all TLS connections of a thread read through (see `ztunnel.tls.tls_connection`)."""

from __future__ import annotations

import threading
from typing import Final

from ztunnel.tls.openssl import ffi

# Bytes of plaintext that one call encrypts at most, and about the bytes of ciphertext that one call reads.
# Sizes between 64 KiB and 256 KiB were measured to be best; this is eight full records.
CHUNK: Final = 128 * 1024
RECORD: Final = 16 * 1024
# Room for the part of a record that OpenSSL kept from an earlier call.
PLAIN_SIZE: Final = CHUNK + 2 * RECORD


class Scratch(threading.local):
    """The two buffers that all connections of a thread use in turn.

    Their content is never needed across an await.
    """

    def __init__(self) -> None:
        self.cipher = bytearray(CHUNK)
        self.cipher_view = memoryview(self.cipher)
        self.cipher_pointer = ffi.from_buffer(self.cipher)
        self.plain = ffi.new("char[]", PLAIN_SIZE)
        self.pending = ffi.new("char **")


scratch = Scratch()
