"""The roots for verifying the control plane, and the token for it: both are read again for each use.

Both rotate while the process runs, so they are not cached. The files are small and in memory (a projected
volume), so they are read without a thread.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from ztunnel.config.model import AuthSource, RootCert, RootFile, RootStatic, TokenFile
from ztunnel.errors import ZtunnelError


class RootsError(ZtunnelError):
    """The root certificates of the control plane cannot be read."""

    code = "ZT-NET-111"


class TokenError(ZtunnelError):
    """The service account token cannot be read, or its file is empty."""

    code = "ZT-NET-112"


def read_roots(source: RootCert) -> bytes:
    """Returns the roots as PEM. Raises `RootsError` for a file that cannot be read and for an empty store."""
    match source:
        case RootFile(path):
            try:
                return Path(path).read_bytes()
            except OSError as error:
                raise RootsError(
                    f"TLS Error: cannot read the root certificate {path}: {error.strerror}"
                ) from None
        case RootStatic(pem):
            return pem.encode()
        case _:
            certificates = ssl.create_default_context().get_ca_certs(binary_form=True)
            if not certificates:
                raise RootsError("TLS Error: the operating system's store has no root certificates")
            return "".join(map(ssl.DER_cert_to_PEM_cert, certificates)).encode()


def read_token(source: AuthSource | None) -> str | None:
    """Returns the token exactly as in its file; None if none is configured. Raises `TokenError`."""
    if source is None:
        return None
    if not isinstance(source, TokenFile):
        return source.token
    try:
        token = Path(source.path).read_text(encoding="utf-8")
    except OSError as error:
        raise TokenError(f"cannot read the token file {source.path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise TokenError(f"the token file {source.path} is not text") from None
    if not token:
        raise TokenError("token file exists, but was empty")
    return token


def authorization(source: AuthSource | None, cluster_id: str) -> list[tuple[str, str]]:
    """Returns the call metadata that authenticates us; empty without a token. Raises `TokenError`."""
    token = read_token(source)
    if token is None:
        return []
    return [("authorization", f"Bearer {token}"), ("clusterid", cluster_id)]
