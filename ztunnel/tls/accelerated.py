"""The compiled form of the record path (`accelerator.c`), if it was built and fits.

It is optional: `Records` does the same in Python. One call of the compiled part stands for some ten of
Python's and of cffi's; docs/performance.md has the figures. It calls the OpenSSL inside "cryptography", by
the addresses of its functions. So there is one OpenSSL in the process, whose objects are made and freed as
before.

Addresses of objects. An `AcceleratedRecords` holds pyOpenSSL's connection, which holds the SSL object, which
holds the BIO. So what its two addresses point to lives as long as it does, and nothing else has them.
"""

from __future__ import annotations

import socket
from typing import Final

from OpenSSL import SSL

from ztunnel.tls.openssl import address_of, function_address, lib
from ztunnel.tls.records import Records

_missing = ""
try:
    import ztunnel.tls._accelerator as _accelerator  # noqa: PLR0402  # unlike "from" it tells absence apart
except ModuleNotFoundError:
    _missing = "the compiled part was not built"
except ImportError as error:
    _missing = f"the compiled part does not load ({error})"

# The types of the functions as accelerator.c declares them.
SIGNATURES: Final = {
    "ERR_clear_error": "void(*)()",
    "SSL_read": "int(*)(SSL *, void *, int)",
    "SSL_write": "int(*)(SSL *, void *, int)",
    "SSL_get_error": "int(*)(SSL *, int)",
    "SSL_set_bio": "void(*)(SSL *, BIO *, BIO *)",
    "BIO_new_mem_buf": "BIO *(*)(void *, int)",
    "BIO_set_mem_eof_return": "long(*)(BIO *, int)",
    "BIO_get_mem_data": "long(*)(BIO *, char * *)",
    "BIO_read": "int(*)(BIO *, void *, int)",
    "OpenSSL_version_num": "unsigned long(*)()",
}


def _bind() -> str | None:
    """Give the compiled part OpenSSL's functions. Returns why it cannot be used, or None."""
    if _missing:
        return _missing
    try:
        addresses = {name: function_address(name, kind) for name, kind in SIGNATURES.items()}
    except LookupError as error:
        return str(error)
    if _accelerator.bind(addresses) != lib.OpenSSL_version_num():
        return "the functions that were found are of another OpenSSL"
    return None


_unavailable: Final = _bind()


def unavailable() -> str | None:
    """Returns why the compiled part cannot be used here, or None if it can."""
    return _unavailable


class AcceleratedRecords(Records):
    """`Records` whose calls with a socket are compiled. Not where it is `unavailable`."""

    __slots__ = ("_outgoing_address", "_ssl_address")

    def __init__(self, connection: SSL.Connection) -> None:
        super().__init__(connection)
        self._ssl_address = address_of(self._ssl)
        self._outgoing_address = address_of(self._outgoing)

    def receive(self, sock: socket.socket, limit: int) -> tuple[bytes, int, int] | None:
        """See `Records.receive`."""
        return _accelerator.receive(self._ssl_address, self._outgoing_address, sock.fileno(), limit)

    def send(self, sock: socket.socket, data: bytes | bytearray | memoryview) -> int:
        """See `Records.send`."""
        self.largest = max(self.largest, len(data))
        return _accelerator.transmit(self._ssl_address, self._outgoing_address, sock.fileno(), data)

    def flush(self, sock: socket.socket) -> int:
        """See `Records.flush`."""
        return _accelerator.flush(self._ssl_address, self._outgoing_address, sock.fileno())

    def slim(self) -> None:
        """See `Records.slim`."""
        outgoing = self._outgoing
        super().slim()
        if self._outgoing is not outgoing:
            self._outgoing_address = address_of(self._outgoing)


def records_kind(*, accelerated: bool) -> type[Records]:
    """Returns the class for new connections: the compiled one if it is wanted and can be used."""
    return AcceleratedRecords if accelerated and unavailable() is None else Records
