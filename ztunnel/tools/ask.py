"""Requests to a running ztunnel's admin server, and the exit statuses of commands."""

from __future__ import annotations

import http.client
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from ztunnel.errors import ZtunnelError

Decoded = TypeVar("Decoded")

ADMIN = "http://127.0.0.1:15000"
ADMIN_TIMEOUT = 15.0
"""Seconds to wait for one response."""

REFUSED, UNCLEAR = 1, 2
"""Exit statuses: the answer is no; the question could not be answered."""


class AskError(ZtunnelError):
    """A ztunnel could not be asked."""

    code = "ZT-EXP-004"


class Answer(NamedTuple):
    """The admin server's response."""

    status: int
    body: bytes


def admin_address(admin: str) -> tuple[str, int]:
    """Returns host and port of an admin server. Without a port it is 15000. Raises ValueError."""
    parts = urlsplit(admin if "://" in admin else f"http://{admin}")
    if parts.scheme != "http":
        raise ValueError("an admin server speaks http")
    return parts.hostname or "", parts.port or 15000


def get(admin: str, path: str, query: Mapping[str, str], *, method: str = "GET", body: bytes = b"") -> Answer:
    """Ask the admin server at a base URL. Returns its response. Raises AskError when there is none."""
    try:
        connection = http.client.HTTPConnection(*admin_address(admin), timeout=ADMIN_TIMEOUT)
        try:
            target = f"{path}?{urlencode(query)}" if query else path
            connection.request(method, target, body=body or None)
            response = connection.getresponse()
            return Answer(response.status, response.read())
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise AskError(
            f"No ztunnel answers at {admin}: {error}. In a cluster: "
            "kubectl -n istio-system port-forward POD 15000, or kubectl exec into its pod."
        ) from error


def decode(answer: Answer, admin: str, path: str, kind: type[Decoded]) -> Decoded:
    """Returns the value of a JSON answer. Raises AskError for another one, of what is no ztunnel."""
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AskError(f"What answers at {admin} does not know {path}: {error}") from error


def read_file(path: str) -> bytes:
    """Returns a file's bytes, those of standard input for ``-``. Raises AskError."""
    try:
        return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise AskError(f"cannot read {path}: {error.strerror}") from error


def fail(error: ZtunnelError) -> int:
    """Print an error in the form of the start of ztunnel. Returns the exit status."""
    sys.stderr.write(f"Error: {error} ({error.code})\n")
    return UNCLEAR
