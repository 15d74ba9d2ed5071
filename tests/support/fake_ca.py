"""A certificate authority for tests: server certificates, and workload certificates from a CSR.

Its certificates have the extensions of istiod's own, which tests/xds/test_recorded.py checks.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_ACCEPTED = dt.timedelta(hours=1)
"""How far back validity reaches, for clocks that differ."""
_NEW = dt.timedelta(0)


def pem(certificate: x509.Certificate) -> bytes:
    """Returns a certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


class FakeCertificateAuthority:
    """One self-signed root, ``certificate``, with its ``key``. ``root`` is its PEM."""

    def __init__(self, name: str = "fake root") -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, name)])
        now = dt.datetime.now(dt.UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _ACCEPTED)
            .not_valid_after(now + dt.timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(certificate_sign=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        self.root = pem(self.certificate)

    def server(self, *names: str) -> tuple[bytes, bytes]:
        """Returns a server's key and chain, as PEM, for host names and IP addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        general: list[x509.GeneralName] = []
        for name in names:
            try:
                general.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                general.append(x509.DNSName(name))
        certificate = self._sign(key.public_key(), general, dt.timedelta(days=30))
        encoded = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return encoded, pem(certificate)

    def sign(
        self,
        csr: x509.CertificateSigningRequest,
        identity: str,
        lifetime: dt.timedelta,
        age: dt.timedelta = _NEW,
    ) -> bytes:
        """Returns a workload certificate, as PEM: the key of the CSR, the identity that the caller gives.

        age: how long ago its validity began.
        """
        key = csr.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise TypeError("the key of the CSR is not on an elliptic curve")
        return pem(self._sign(key, [x509.UniformResourceIdentifier(identity)], lifetime, age))

    def revocations(self, *certificates: bytes) -> bytes:
        """Returns a revocation list of this CA, as PEM, with these certificates (PEM, the first of each)."""
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._name)
            .last_update(now - _ACCEPTED)
            .next_update(now + dt.timedelta(days=1))
        )
        for encoded in certificates:
            serial = x509.load_pem_x509_certificates(encoded)[0].serial_number
            revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(revoked)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _sign(
        self,
        key: ec.EllipticCurvePublicKey,
        names: Sequence[x509.GeneralName],
        lifetime: dt.timedelta,
        age: dt.timedelta = _NEW,
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC) - age
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now)
            .not_valid_after(now + lifetime)
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(_key_usage(certificate_sign=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
            .sign(self.key, hashes.SHA256())
        )


def _key_usage(*, certificate_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not certificate_sign,
        content_commitment=False,
        key_encipherment=not certificate_sign,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certificate_sign,
        crl_sign=certificate_sign,
        encipher_only=False,
        decipher_only=False,
    )
