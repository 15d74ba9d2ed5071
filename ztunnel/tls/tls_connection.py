"""TLS connections for the tunnel driver: a small, non-blocking interface over OpenSSL.

`ztunnel.tls.records` does the work of one read and one write; this module keeps a connection's state.

Two consequences matter for the reader of the code:

- All that was read from the transport is decrypted at once. If that gave more than was asked for, the rest
  waits in ``_ahead`` (at most `CHUNK` bytes).
- A record that was made must be sent, in order. If the socket does not take all of it, `try_send` cannot take
  it back. It returns "would block", notes how much plaintext these records contain, and counts that as sent
  when the caller comes back with the same bytes. So bytes that were reported as sent are always in the
  kernel.

All methods of one connection belong to one thread. One task may read while another one writes.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence

import trio
from OpenSSL import SSL

from ztunnel.bounds import DEFAULTS
from ztunnel.model.identity import Identity
from ztunnel.tls.context import PROTOCOL, TlsContext, Verification
from ztunnel.tls.openssl import (
    ALERT_REASONS,
    WANT_READ,
    ZERO_RETURN,
    Pointer,
    address_of,
    lib,
    ssl_of,
    take_errors,
)
from ztunnel.tls.peer import PeerCertificate, check_expected_identity
from ztunnel.tls.reasons import explain_failure
from ztunnel.tls.records import REFUSED
from ztunnel.tls.scratch import CHUNK, RECORD
from ztunnel.tls.tls_errors import (
    HandshakeEofError,
    HandshakeTimeoutError,
    NoApplicationProtocolError,
    NoCertificateError,
    Side,
    TlsAlertError,
    TlsError,
    TlsProtocolError,
    TlsTruncatedError,
)
from ztunnel.tls.transport import TlsTransport


class TlsConnection(TlsTransport):
    """One TLS connection over some transport.

    Call `handshake` first. Afterwards ``try_*`` never block, and ``wait_*`` wait until it makes sense to try
    again. `close` frees everything, and closes the transport if the connection owns it.
    """

    def __init__(self, context: TlsContext, expected_identities: Sequence[str] | None) -> None:
        is_client = context.side is Side.CLIENT
        if is_client != (expected_identities is not None):
            raise ValueError("a client says which identities it expects, a server does not")
        self._context = context
        self._connection = SSL.Connection(context.ssl_context, None)
        if is_client:
            self._connection.set_connect_state()
        else:
            self._connection.set_accept_state()
        self._ssl: Pointer = ssl_of(self._connection)
        self._records = context.records(self._connection)
        self._verification = Verification(context.side, expected_identities or ())
        self._ahead = b""
        self._owed = 0
        self._ended = False
        self._failure: TlsError | None = None
        self._notified = False
        self._closed = False

    # Known after the handshake.

    @property
    def side(self) -> Side:
        """Our side: client or server."""
        return self._context.side

    @property
    def peer(self) -> PeerCertificate:
        """The peer's verified certificate. Raises RuntimeError before the handshake is done."""
        peer = self._verification.peer
        if peer is None:
            raise RuntimeError("the TLS handshake has not finished")
        return peer

    @property
    def peer_identities(self) -> tuple[Identity, ...]:
        """The peer's SPIFFE identities, in the certificate's order."""
        return self.peer.identities

    @property
    def peer_identity(self) -> Identity:
        """The identity of the peer: a client's first one, or a server's first expected one."""
        if self._context.side is Side.CLIENT:
            return check_expected_identity(self.peer, self._verification.expected)
        return self.peer.identities[0]

    @property
    def alpn(self) -> str | None:
        """The negotiated application protocol: ``h2``, or None if the peer does not support ALPN."""
        return self._connection.get_alpn_proto_negotiated().decode("ascii", "replace") or None

    @property
    def version(self) -> str:
        """The protocol version, for instance ``TLSv1.3``."""
        return self._connection.get_protocol_version_name()

    @property
    def cipher(self) -> str | None:
        """The cipher suite's name."""
        return self._connection.get_cipher_name()

    @property
    def group(self) -> str | None:
        """The key exchange group's name."""
        return self._connection.get_group_name()

    # The handshake.

    async def handshake(
        self,
        deadline_seconds: float,
        *,
        alert_seconds: float = DEFAULTS.connection.alert_timeout,
        turn: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Do the handshake and check the peer completely, within ``deadline_seconds``.

        turn: waits until OpenSSL may process what has come, which it then does at once. None: always.

        Raises a TlsHandshakeError; an alert was sent to the peer if possible. After that, or after a
        cancellation, the caller can only close the connection.
        """
        address = address_of(self._ssl)
        self._context.begin(address, self._verification)
        try:
            with trio.move_on_after(deadline_seconds) as scope:
                await self._agree(alert_seconds, turn)
            if scope.cancelled_caught:
                raise HandshakeTimeoutError(self.side)
        finally:
            self._context.end(address)

    async def _agree(self, alert_seconds: float, turn: Callable[[], Awaitable[None]] | None) -> None:
        heard = False
        try:
            while not self._advance():
                await self._flushed()
                if not await self._fetched(turn):
                    raise HandshakeEofError(self.side, silent=not heard)
                heard = True
            # Together with the last handshake message a client may have sent requests, a server tickets.
            self._ahead, error = self._records.decrypt()
            if error != WANT_READ:
                self._note_end(error)
            self._check_outcome()
            # A TLS 1.3 server only has tickets left to send, and nobody waits for them: they go out with the
            # first data.
            if not self._flush() and not (self.side is Side.SERVER and self.version == "TLSv1.3"):
                await self._flushed()
        except (OSError, trio.BrokenResourceError) as error:
            raise HandshakeEofError(self.side, silent=not heard) from error
        except TlsError:
            await self._send_alert(alert_seconds)
            raise

    async def _fetched(self, turn: Callable[[], Awaitable[None]] | None) -> int:
        """Wait for the peer's next bytes and let OpenSSL read them next. Returns how many, 0 at the end.

        Other connections use the same buffer, so the caller must not wait before OpenSSL has read it.
        """
        while True:
            await self.wait_receivable()
            if turn is not None:
                await turn()
            size = self._fetch(CHUNK)
            if size is not None:
                return size

    def _advance(self) -> bool:
        """Let OpenSSL process what came. Returns True when the handshake is complete."""
        lib.ERR_clear_error()
        result = lib.SSL_do_handshake(self._ssl)
        if result == 1:
            return True
        if lib.SSL_get_error(self._ssl, result) == WANT_READ:
            return False
        refusal = self._verification.refusal
        errors = take_errors()
        raise refusal or explain_failure(self.side, errors)

    def _check_outcome(self) -> None:
        """Check what must hold after a handshake that OpenSSL has accepted."""
        if self._verification.peer is None:
            raise NoCertificateError(self.side)
        if self._connection.get_alpn_proto_negotiated() not in {PROTOCOL, b""}:
            raise NoApplicationProtocolError(self.side)

    async def _send_alert(self, within_seconds: float) -> None:
        """Send the alert to the peer, if it can be sent soon."""
        with trio.move_on_after(within_seconds):
            try:
                await self._flushed()
            except (OSError, trio.BrokenResourceError):
                return

    async def _flushed(self) -> None:
        while not self._flush():
            await self.wait_sendable()

    # Data.

    def try_receive(self, max_bytes: int = CHUNK) -> bytes | None:
        """Returns up to ``max_bytes`` (at least 1) of what the peer sent.

        None means that nothing is there now: use `wait_receivable`. Empty means that the peer sends no more.
        Raises TlsTruncatedError if its bytes ended without a close_notify, TlsAlertError if it sent an alert,
        TlsProtocolError for bytes that are no valid record, OSError if the transport failed,
        trio.ClosedResourceError after `close`. What came before an end or an error is returned first.
        """
        if self._closed:
            raise trio.ClosedResourceError("this TLS connection was closed")
        data = self._ahead
        while not data:
            if self._failure is not None:
                raise self._failure
            if self._ended:
                return b""
            received = self._receive(max(RECORD, min(max_bytes, CHUNK)))
            if received is None:
                return None
            data, size, error = received
            if size == 0:
                self._failure = TlsTruncatedError()
                raise self._failure
            if error != WANT_READ:
                self._note_end(error)
        if len(data) > max_bytes:
            self._ahead = data[max_bytes:]
            return data[:max_bytes]
        self._ahead = b""
        return data

    def try_send(self, data: bytes | bytearray | memoryview) -> int:
        """Encrypt and send from the beginning of ``data``. Returns how many bytes were sent.

        0 means not now: use `wait_sendable`. After a partial send, the next call must begin with exactly the
        bytes that were not taken (at any place in memory) and may have more behind them. Raises OSError if
        the transport failed, TlsError if the peer ended the connection with an alert,
        trio.ClosedResourceError after `close`.
        """
        if self._closed:
            raise trio.ClosedResourceError("this TLS connection was closed")
        if not self._flush():
            return 0
        sent = self._owed
        if sent:
            self._owed = 0
            if len(data) < sent:
                raise ValueError(f"{len(data)} bytes were given where at least {sent} have to be given again")
        if len(data) == sent:
            return sent
        if sent or len(data) > CHUNK:
            data = memoryview(data)[sent : sent + CHUNK]
        left = self._send(data)
        if left == 0:
            return sent + len(data)
        if left == REFUSED:
            raise self._send_failure()
        self._owed = len(data)
        return sent

    def _send_failure(self) -> Exception:
        errors = take_errors()
        if self._failure is not None:
            return self._failure
        if self._notified:
            return BrokenPipeError(errno.EPIPE, "this side has already ended its half of the TLS connection")
        return TlsProtocolError(errors[0][1] if errors else "the connection cannot send any more")

    @property
    def unsent(self) -> int:
        """How many bytes of records were made and not yet taken by the transport."""
        return 0 if self._closed else self._records.unsent

    def close_notify(self) -> bool:
        """Send close_notify: the peer sees an orderly end. What it sends can still be read.

        Returns True if the transport took it, or has failed. Returns False if it would block: use
        `wait_sendable` and call again, or do without.
        """
        if self._closed:
            return True
        if not self._notified:
            self._notified = True
            lib.ERR_clear_error()
            lib.SSL_shutdown(self._ssl)
            lib.ERR_clear_error()
        try:
            return self._flush()
        except OSError:
            self._records.discard(self.unsent)
            return True

    def close(self) -> None:
        """Close the transport, if the connection owns it. Tasks that wait get trio.ClosedResourceError.

        Sends nothing: call `close_notify` before for an orderly end. It may be called twice.
        """
        if not self._closed:
            self._closed = True
            self._ahead = b""
            self._close_transport()

    def _note_end(self, error: int) -> None:
        errors = take_errors()
        if error == ZERO_RETURN:
            self._ended = True
            return
        number, reason = errors[0] if errors else (0, "the connection broke off")
        if ALERT_REASONS < number < ALERT_REASONS + 256:
            self._failure = TlsAlertError(number - ALERT_REASONS)
        else:
            self._failure = TlsProtocolError(reason)
            # OpenSSL has an alert ready for the peer.
            try:
                self._flush()
            except OSError:
                return
