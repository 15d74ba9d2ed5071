"""The OpenSSL calls that pyOpenSSL does not have, or has at a high cost.

pyOpenSSL makes contexts and connections for us. It is built on cryptography's binding, whose ``lib`` and
``ffi`` are called directly, here and in `ztunnel.tls.context`, `ztunnel.tls.tls_connection`,
`ztunnel.tls.records` and `ztunnel.tls.scratch`, for:

- the verify callback. pyOpenSSL's can refuse a certificate but cannot say why, and OpenSSL chooses the alert
  by the reason. The alerts that the mesh promises need `X509_STORE_CTX_set_error`;
- the ALPN callback, in which pyOpenSSL cannot answer "no_application_protocol";
- the list of key exchange groups;
- the record path: `SSL_read` and `SSL_write` on memory BIOs. For each call, pyOpenSSL allocates as much as
  was asked for, copies what came, and reads one record. Measured (AES-256-GCM, CPU-seconds a GiB, kernel
  copies included, same machine): pyOpenSSL on a socket 0.32 to send and 0.74 to receive; this way 0.28 and
  0.26.

The names used (``Context._context``, ``Connection._ssl``, ``Connection._from_ssl``) are private to pyOpenSSL.
They have not changed since 2014, the lock file pins the version, and tests/tls/test_openssl.py fails if they
are gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL

lib: Final[Any] = Binding.lib
ffi: Final[Any] = Binding.ffi

Pointer: TypeAlias = Any
"""A C pointer of cffi."""

WANT_READ: Final[int] = lib.SSL_ERROR_WANT_READ
ZERO_RETURN: Final[int] = lib.SSL_ERROR_ZERO_RETURN

# OpenSSL numbers reasons that are received alerts from here on (SSL_AD_REASON_OFFSET).
ALERT_REASONS: Final = 1000

# Errors that are taken from OpenSSL's queue at a time; it keeps 16 (ERR_NUM_ERRORS).
_LONGEST_QUEUE: Final = 32


def ssl_of(connection: SSL.Connection) -> Pointer:
    """Returns the SSL object inside a pyOpenSSL connection. It is valid as long as the connection."""
    return connection._ssl  # noqa: SLF001  # see the module's text


def outgoing_bio_of(connection: SSL.Connection) -> Pointer:
    """Returns the memory BIO into which a connection without a socket writes its records."""
    return connection._from_ssl  # noqa: SLF001  # see the module's text


def address_of(pointer: Pointer) -> int:
    """Returns a pointer's address, which identifies an object in a callback."""
    return int(ffi.cast("uintptr_t", pointer))


def function_address(name: str, signature: str) -> int:
    """Returns the address of one of OpenSSL's functions, for C code.

    signature: cffi's name for the type of a pointer to it. Raises LookupError if there is no such function.
    """
    original = getattr(lib, "_original_lib", lib)
    try:
        pointer = ffi.addressof(original, name)
    except (AttributeError, TypeError) as error:
        raise LookupError(f"cryptography gives no address of {name}") from error
    found = ffi.typeof(pointer).cname
    if found != signature:
        raise LookupError(f"cryptography's {name} is {found}, not {signature}")
    return address_of(pointer)


def take_errors() -> list[tuple[int, str]]:
    """Empty this thread's error queue. Returns (reason number, reason text), oldest first.

    The queue must be empty before each call whose result is examined with SSL_get_error.
    """
    errors: list[tuple[int, str]] = []
    while (code := lib.ERR_get_error()) != 0 and len(errors) < _LONGEST_QUEUE:
        text = lib.ERR_reason_error_string(code)
        reason = ffi.string(text).decode() if text else "unknown reason"
        errors.append((lib.ERR_GET_REASON(code), reason))
    lib.ERR_clear_error()
    return errors


def certificate_der(certificate: Pointer) -> bytes:
    """Returns the DER bytes of an X509 object."""
    bio = lib.BIO_new(lib.BIO_s_mem())
    try:
        if lib.i2d_X509_bio(bio, certificate) != 1:
            lib.ERR_clear_error()
            raise ValueError("the certificate cannot be encoded")
        data = ffi.new("char **")
        size = lib.BIO_get_mem_data(bio, data)
        return bytes(ffi.buffer(data[0], size))
    finally:
        lib.BIO_free(bio)


class VerifyStep:
    """One call of OpenSSL's verify callback: what it found, and the means to change the result.

    Valid only during the callback.
    """

    __slots__ = ("_store", "ok")

    def __init__(self, store: Pointer, *, ok: bool) -> None:
        self._store = store
        self.ok = ok

    @property
    def connection(self) -> int:
        """The address of the SSL object that is being verified."""
        index = lib.SSL_get_ex_data_X509_STORE_CTX_idx()
        return address_of(lib.X509_STORE_CTX_get_ex_data(self._store, index))

    @property
    def error(self) -> int:
        """OpenSSL's X509_V_ERR number of what is wrong with the current certificate."""
        return int(lib.X509_STORE_CTX_get_error(self._store))

    @error.setter
    def error(self, number: int) -> None:
        lib.X509_STORE_CTX_set_error(self._store, number)

    @property
    def error_text(self) -> str:
        """The error in words."""
        return str(ffi.string(lib.X509_verify_cert_error_string(self.error)).decode())

    @property
    def depth(self) -> int:
        """The position of the current certificate in the chain, 0 for the leaf."""
        return int(lib.X509_STORE_CTX_get_error_depth(self._store))

    @property
    def current(self) -> bytes:
        """The current certificate's DER bytes."""
        return certificate_der(lib.X509_STORE_CTX_get_current_cert(self._store))

    @property
    def chain(self) -> list[bytes]:
        """The DER bytes of the chain that OpenSSL built, leaf first, trust anchor last."""
        stack = lib.X509_STORE_CTX_get1_chain(self._store)
        try:
            certificates = [lib.sk_X509_value(stack, i) for i in range(lib.sk_X509_num(stack))]
            try:
                return [certificate_der(certificate) for certificate in certificates]
            finally:
                for certificate in certificates:
                    lib.X509_free(certificate)
        finally:
            lib.sk_X509_free(stack)


def set_verify(context: SSL.Context, verify: Callable[[VerifyStep], bool], *, require: bool) -> Pointer:
    """Call ``verify`` for each certificate of the peer's chain; it returns True to continue.

    An exception in ``verify`` refuses the peer. The caller keeps the returned object as long as connections
    of the context exist.

    require: whether a peer without a certificate is refused.
    """

    def call(ok: int, store: Pointer) -> int:
        return 1 if verify(VerifyStep(store, ok=bool(ok))) else 0

    callback = ffi.callback("int (*)(int, X509_STORE_CTX *)", call, error=0)
    mode = lib.SSL_VERIFY_PEER | (lib.SSL_VERIFY_FAIL_IF_NO_PEER_CERT if require else 0)
    lib.SSL_CTX_set_verify(_context(context), mode, callback)
    return callback


def set_required_protocol(context: SSL.Context, protocol: bytes) -> Pointer:
    """As a server, answer an ALPN offer with ``protocol``, or with the alert no_application_protocol.

    It is not called for a client that offers nothing. The caller keeps the returned object, as for
    `set_verify`.
    """
    answer = ffi.new("unsigned char[]", protocol)

    def call(
        _ssl: Pointer, out: Pointer, out_length: Pointer, offer: Pointer, offer_length: int, _arg: Pointer
    ) -> int:
        if protocol not in split_protocols(bytes(ffi.buffer(offer, offer_length))):
            return int(lib.SSL_TLSEXT_ERR_ALERT_FATAL)
        out[0] = answer
        out_length[0] = len(protocol)
        return int(lib.SSL_TLSEXT_ERR_OK)

    callback = ffi.callback(
        "int (*)(SSL *, unsigned char **, unsigned char *, const unsigned char *, unsigned int, void *)",
        call,
        error=lib.SSL_TLSEXT_ERR_ALERT_FATAL,
    )
    lib.SSL_CTX_set_alpn_select_cb(_context(context), callback, ffi.NULL)
    return (callback, answer)


def split_protocols(offer: bytes) -> list[bytes]:
    """Returns the protocol names in an ALPN offer (RFC 7301 section 3.1: a length byte before each)."""
    names = []
    while offer:
        length = offer[0]
        names.append(offer[1 : 1 + length])
        offer = offer[1 + length :]
    return names


def set_groups(context: SSL.Context, groups: bytes) -> bool:
    """Set the key exchange groups, preferred first, separated by colons. Returns False if one is unknown."""
    done: bool = lib.SSL_CTX_set1_curves_list(_context(context), groups) == 1
    lib.ERR_clear_error()
    return done


def _context(context: SSL.Context) -> Pointer:
    return context._context  # noqa: SLF001  # see the module's text
