"""A root of the built-in CA that several ztunnels share.

With ``FAKE_CA=true`` each ztunnel is a CA of its own, so two of them do not trust each other.
``ZTUNNEL_FAKE_CA_ROOT`` names a PEM file with a key and its self-signed certificate; all ztunnels with the
same file trust each other. The demo and the tests write such a file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from ztunnel.certs.fake_ca import IssuingCa
from ztunnel.errors import ZtunnelError

VARIABLE: Final = "ZTUNNEL_FAKE_CA_ROOT"


class SharedRootError(ZtunnelError):
    """The file of ZTUNNEL_FAKE_CA_ROOT cannot be used; the text says why."""

    code = "ZT-CA-090"


class SharedRoot(IssuingCa):
    """A root CA that can be written to a file and read again."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        # Not the constructor of IssuingCa, which would make another key.
        self._key = key
        self.parent = None
        self.subject = certificate.subject
        self.certificate = certificate

    @classmethod
    def make(cls, now: float, name: str = "ztunnel shared root") -> Self:
        """Returns a new root. ``now`` is in epoch seconds."""
        root = IssuingCa(now, name=name)
        return cls(root._key, root.certificate)  # noqa: SLF001 - of the same family of classes

    @classmethod
    def parse(cls, pem: bytes) -> Self:
        """Read what `pem_with_key` wrote. Raises ValueError."""
        key = load_pem_private_key(pem, None)
        certificate = x509.load_pem_x509_certificate(pem)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("its key is not an elliptic curve key")  # noqa: TRY004 - the input is wrong
        if key.public_key() != certificate.public_key():
            raise ValueError("its certificate belongs to another key")
        return cls(key, certificate)

    @property
    def pem_with_key(self) -> bytes:
        """The key and the certificate. Whoever has it can take every identity of the mesh."""
        key = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return key + self.pem


def load_root(path: str) -> SharedRoot:
    """Returns the root in a file, for `FakeCa`. Raises SharedRootError."""
    try:
        return SharedRoot.parse(Path(path).read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise SharedRootError(f"{VARIABLE}={path} is not a key and a certificate in PEM: {error}") from error


def write_root(path: Path, now: float) -> Path:
    """Make a root and write it to a new file that only its owner can read. Raises FileExistsError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(SharedRoot.make(now).pem_with_key)
    return path
