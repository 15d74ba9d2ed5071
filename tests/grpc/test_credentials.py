"""The control plane's roots and the token for it, as files and as the operating system's store."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography import x509

from tests.support.fake_ca import FakeCertificateAuthority
from ztunnel.config.model import RootFile, RootStatic, RootSystem, TokenFile, TokenStatic
from ztunnel.grpc.credentials import RootsError, TokenError, authorization, read_roots, read_token


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The operating system's store of this process: one file, empty at first."""
    file, directory = tmp_path / "store.pem", tmp_path / "certs"
    file.touch()
    directory.mkdir()
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    monkeypatch.setenv("SSL_CERT_DIR", str(directory))
    return file


def test_the_operating_systems_roots_are_read_for_each_use(store: Path):
    with pytest.raises(RootsError, match="store has no root certificates"):
        read_roots(RootSystem())
    first, second = FakeCertificateAuthority("first"), FakeCertificateAuthority("second")
    store.write_bytes(first.root + second.root)
    found = x509.load_pem_x509_certificates(read_roots(RootSystem()))
    assert {one.subject for one in found} == {first.certificate.subject, second.certificate.subject}


def test_roots_from_a_file_or_a_text(tmp_path: Path):
    file = tmp_path / "roots.pem"
    with pytest.raises(RootsError, match=r"cannot read the root certificate .*roots\.pem: No such file"):
        read_roots(RootFile(str(file)))
    file.write_bytes(b"roots")
    assert read_roots(RootFile(str(file))) == b"roots"
    assert read_roots(RootStatic("roots")) == b"roots"


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, "No such file"), (b"", "was empty"), (b"\xff\xfe", "is not text")],
)
def test_a_token_that_cannot_be_used_is_an_error_that_names_no_token(tmp_path: Path, content, text):
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(TokenError, match=text):
        read_token(TokenFile(str(file)))


def test_what_a_call_carries(tmp_path: Path):
    (tmp_path / "token").write_text("word")
    wanted = [("authorization", "Bearer word"), ("clusterid", "c1")]
    assert authorization(TokenFile(str(tmp_path / "token")), "c1") == wanted
    assert authorization(TokenStatic("word"), "c1") == wanted
    assert authorization(None, "c1") == []
