"""Two ztunnels that read the same root file trust each other's built-in CA."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from ztunnel.certs.fake_ca import FakeCa
from ztunnel.certs.shared_root import SharedRoot, SharedRootError, load_root, write_root
from ztunnel.model.identity import Identity

NOW = 1_800_000_000.0
WHO = Identity("cluster.local", "default", "client")


async def test_certificates_of_two_cas_with_one_root_have_the_same_root_and_its_signature(
    tmp_path: Path,
) -> None:
    path = write_root(tmp_path / "root.pem", NOW)
    first = await FakeCa(lambda: NOW, root=load_root(str(path))).issue(WHO)
    second = await FakeCa(lambda: NOW, root=load_root(str(path))).issue(WHO)
    assert first.roots == second.roots
    root = x509.load_pem_x509_certificate(first.roots[0])
    for certificate in (first, second):
        x509.load_pem_x509_certificate(certificate.chain[0]).verify_directly_issued_by(root)


def test_only_the_owner_can_read_the_file_and_it_is_never_overwritten(tmp_path: Path) -> None:
    path = write_root(tmp_path / "root.pem", NOW)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        write_root(path, NOW)


def test_what_is_no_root_is_refused_with_the_name_of_the_variable(tmp_path: Path) -> None:
    first, second = SharedRoot.make(NOW), SharedRoot.make(NOW)
    rsa_key = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    mixed = first.pem_with_key.removesuffix(first.pem) + second.pem
    for content in (b"", b"nonsense", first.pem, mixed, rsa_key + first.pem):
        path = tmp_path / "root.pem"
        path.write_bytes(content)
        with pytest.raises(SharedRootError, match=f"ZTUNNEL_FAKE_CA_ROOT={path}"):
            load_root(str(path))
    with pytest.raises(SharedRootError, match="No such file"):
        load_root(str(tmp_path / "missing.pem"))
