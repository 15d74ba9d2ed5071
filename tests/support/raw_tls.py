"""Peers of a ztunnel that may be wrong on purpose: their certificates, and TLS with any options."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A private key and the certificate for it."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def load(cls, path: Path) -> KeyPair:
        """Returns both from one PEM file, as `ztunnel.certs.shared_root` writes it."""
        pem = path.read_bytes()
        key = serialization.load_pem_private_key(pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return cls(key, x509.load_pem_x509_certificates(pem)[0])

    def issue(
        self,
        uri: str | None,
        *,
        valid: tuple[dt.timedelta, dt.timedelta] = (dt.timedelta(hours=-1), dt.timedelta(hours=1)),
        usages: tuple[x509.ObjectIdentifier, ...] = (
            ExtendedKeyUsageOID.SERVER_AUTH,
            ExtendedKeyUsageOID.CLIENT_AUTH,
        ),
    ) -> KeyPair:
        """Returns a certificate of this CA for a SPIFFE URI, or for no name. ``valid``: relative to now."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + valid[0])
            .not_valid_after(now + valid[1])
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        )
        if uri is not None:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
            builder = builder.add_extension(names, critical=True)
        return KeyPair(key, builder.sign(self.key, hashes.SHA256()))


def unrelated_root() -> KeyPair:
    """Returns the root of some other CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "another CA")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return KeyPair(key, certificate)


class TlsAlertError(Exception):
    """The peer ended TLS with an alert; the text is OpenSSL's name for it."""


class TlsEndError(Exception):
    """The peer ended the connection; ``clean`` if with close_notify."""

    def __init__(self, *, clean: bool) -> None:
        super().__init__("close_notify" if clean else "the TCP connection ended")
        self.clean = clean


@dataclass(frozen=True, slots=True)
class TlsChoices:
    """How to speak TLS. The peer's certificate is asked for and never checked."""

    own: KeyPair | None
    alpn: tuple[bytes, ...] = (b"h2",)
    version: int | None = None
    ciphers: bytes | None = None

    def context(self) -> SSL.Context:
        context = SSL.Context(SSL.TLS_METHOD)
        if self.version is not None:
            context.set_min_proto_version(self.version)
            context.set_max_proto_version(self.version)
        if self.ciphers is not None:
            context.set_tls13_ciphersuites(self.ciphers)
        if self.own is not None:
            context.use_certificate(self.own.certificate)
            context.use_privatekey(self.own.key)
        if self.alpn:
            context.set_alpn_protos(list(self.alpn))
            wanted = list(self.alpn)
            context.set_alpn_select_callback(
                lambda _, offered: next((p for p in wanted if p in offered), b"")
            )
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, lambda *_: True)
        return context


class RawTls:
    """TLS over a stream, step by step."""

    def __init__(self, stream: trio.abc.Stream, choices: TlsChoices, *, server: bool) -> None:
        self.stream = stream
        self._sending = trio.Lock()
        self.ssl = SSL.Connection(choices.context(), None)
        if server:
            self.ssl.set_accept_state()
        else:
            self.ssl.set_connect_state()

    async def handshake(self, timeout: float = 30) -> None:
        """Do the handshake. Raises TlsAlertError or TlsEndError; a TLS 1.3 server may refuse later."""
        with trio.fail_after(timeout):
            while True:
                try:
                    self.ssl.do_handshake()
                except SSL.WantReadError:
                    await self.flush()
                    await self._fill()
                except SSL.Error as error:
                    raise _alert(error) from None
                else:
                    await self.flush()
                    return

    async def send(self, data: bytes) -> None:
        while data:
            sent = self.ssl.send(data[:16384])
            data = data[sent:]
            await self.flush()

    async def receive(self, limit: int = 65_536) -> bytes:
        """Returns some bytes. Raises TlsAlertError or TlsEndError."""
        while True:
            try:
                return self.ssl.recv(limit)
            except SSL.WantReadError:
                await self.flush()
                await self._fill()
            except SSL.ZeroReturnError:
                raise TlsEndError(clean=True) from None
            except SSL.Error as error:
                raise _alert(error) from None

    async def flush(self) -> None:
        """Send what TLS has to send. If the peer is gone, `receive` raises the reason."""
        async with self._sending:
            while True:
                try:
                    data = self.ssl.bio_read(65_536)
                except SSL.WantReadError:
                    return
                try:
                    await self.stream.send_all(data)
                except trio.BrokenResourceError:
                    return

    async def _fill(self) -> None:
        try:
            data = await self.stream.receive_some(65_536)
        except trio.BrokenResourceError:
            data = b""
        if not data:
            raise TlsEndError(clean=False)
        self.ssl.bio_write(data)

    async def close(self, *, notify: bool = True) -> None:
        if notify:
            try:
                self.ssl.shutdown()
                await self.flush()
            except (SSL.Error, trio.BrokenResourceError, trio.ClosedResourceError):
                pass
        await self.stream.aclose()

    def peer_uri(self) -> str:
        """Returns the first URI in the peer's certificate."""
        peer = self.ssl.get_peer_certificate(as_cryptography=True)
        assert peer is not None
        names = peer.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return names.value.get_values_for_type(x509.UniformResourceIdentifier)[0]


def _alert(error: SSL.Error) -> TlsAlertError:
    reasons = [entry[-1] for entry in error.args[0]] if error.args and error.args[0] else ["?"]
    return TlsAlertError(", ".join(reasons))
