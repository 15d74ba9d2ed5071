"""The built-in CA of FAKE_CA=true: a root in memory that issues every identity to everybody.

For demos and tests.

The program uses only `FakeCa`. It is built on `IssuingCa`, which issues single certificates with any options,
also wrong ones: the TLS tests make their bad peers with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ztunnel.model.certificate import Certificate
from ztunnel.model.identity import Identity

# Clocks of a mesh differ a little; istiod backdates certificates by this much.
_BACKDATE_SECONDS: Final = 120.0  # not a bound: a certificate's
_ROOT_SECONDS: Final = 10 * 365 * 86_400.0  # not a bound: a certificate's
BOTH_USES: Final = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


class IssuingCa:
    """One CA certificate and its key: a root, or an intermediate made by `intermediate`.

    Times are epoch seconds.
    """

    def __init__(
        self,
        now: float,
        *,
        name: str = "cluster.local",
        lifetime: float = _ROOT_SECONDS,
        parent: IssuingCa | None = None,
    ) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.parent = parent
        self.subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])
        signer = parent if parent is not None else self
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self.subject)
            .issuer_name(signer.subject)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_moment(now - _BACKDATE_SECONDS))
            .not_valid_after(_moment(now + lifetime))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_CA_USAGE, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(signer._key, hashes.SHA256())  # noqa: SLF001  # another object of this class
        )

    def intermediate(self, now: float, name: str = "intermediate") -> IssuingCa:
        """Returns a CA below this one."""
        return IssuingCa(now, name=name, parent=self)

    @property
    def pem(self) -> bytes:
        """The CA's own certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    def certify(
        self,
        identity: Identity,
        *,
        not_before: float,
        not_after: float,
        uris: Sequence[str] | None = None,
        dns_names: Sequence[str] = (),
        usages: Sequence[x509.ObjectIdentifier] = BOTH_USES,
        roots: Sequence[bytes] | None = None,
        is_authority: bool = False,
    ) -> Certificate:
        """Returns a certificate with a new key. Its chain has this CA and those above it, without the root.

        ``roots``: the roots that its owner trusts (None: the root above this CA). Other arguments as in
        `certify_key`.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = self.certify_key(
            key.public_key(),
            identity,
            not_before=not_before,
            not_after=not_after,
            uris=uris,
            dns_names=dns_names,
            usages=usages,
            is_authority=is_authority,
        )
        chain = [leaf]
        top = self
        while top.parent is not None:
            chain.append(top.pem)
            top = top.parent
        return Certificate(
            identity=identity,
            private_key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
            chain=tuple(chain),
            roots=tuple(roots) if roots is not None else (top.pem,),
            not_before=float(int(not_before)),
            not_after=float(int(not_after)),
        )

    def certify_key(
        self,
        key: CertificatePublicKeyTypes,
        identity: Identity,
        *,
        not_before: float,
        not_after: float,
        uris: Sequence[str] | None = None,
        dns_names: Sequence[str] = (),
        usages: Sequence[x509.ObjectIdentifier] = BOTH_USES,
        is_authority: bool = False,
    ) -> bytes:
        """Returns a certificate (PEM) for a given public key.

        dns_names: the DNS SANs. uris: the URI SANs (None: the identity's; empty: none). usages: the extended
            key usages (empty: no such extension).
        """
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_moment(not_before))
            .not_valid_after(_moment(not_after))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(_LEAF_USAGE, critical=True)
        )
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        names: list[x509.GeneralName] = [
            x509.UniformResourceIdentifier(uri) for uri in ([str(identity)] if uris is None else uris)
        ]
        names += [x509.DNSName(name) for name in dns_names]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)


class FakeCa:
    """A `CertificateAuthority` in this process: it issues any identity at once, for ``lifetime`` seconds.

    All its certificates chain to one root: its own, or the given one (see `ztunnel.certs.shared_root`).
    ``clock`` returns epoch seconds.
    """

    def __init__(
        self, clock: Callable[[], float], *, lifetime: float = 86_400.0, root: IssuingCa | None = None
    ) -> None:
        self._clock = clock
        self._lifetime = lifetime
        self.root = root if root is not None else IssuingCa(clock())

    async def issue(self, identity: Identity) -> Certificate:
        """Returns a new certificate. It never fails for an identity that is a valid URI."""
        await trio.lowlevel.checkpoint()
        now = self._clock()
        return self.root.certify(identity, not_before=now - _BACKDATE_SECONDS, not_after=now + self._lifetime)


def _moment(seconds: float) -> datetime:
    # Times in certificates are whole seconds.
    return datetime.fromtimestamp(int(seconds), UTC)


_CA_USAGE: Final = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)
_LEAF_USAGE: Final = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=True,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
