"""Checks the header fields that a peer sent, and reads the request or response in them.

A malformed message ends its stream; the other streams of the connection continue (RFC 9113 section 8.1.1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from ztunnel.hbone.events import Headers

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch
_BAD_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_STATUS = re.compile(rb"[1-9][0-9][0-9]").fullmatch

# RFC 3986 section 3.2: optional userinfo, then a bracketed literal or a name, then optionally a port. The
# port may be anything here: a bad port is answered with 400 later, while a bad syntax resets the stream.
_AUTHORITY = re.compile(
    rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=:%]*@)?"
    rb"(?:\[[A-Za-z0-9\-._~!$&'()*+,;=:%]*\]|[A-Za-z0-9\-._~!$&'()*+,;=]*)"
    rb"(?::[A-Za-z0-9\-._~!$&'()*+,;=]*)?"
).fullmatch

_CONNECTION_SPECIFIC = frozenset(
    (b"connection", b"transfer-encoding", b"upgrade", b"keep-alive", b"proxy-connection")
)
# Names that are known to be well-formed: their characters need no check.
_USUAL_NAMES = frozenset((b"baggage", b"forwarded", b"traceparent", b"x-forwarded-network", b"tracestate"))


class RequestFields(NamedTuple):
    """A well-formed request. ``authority`` is "" if there was none."""

    method: str
    authority: str
    headers: Headers


class ResponseFields(NamedTuple):
    """A well-formed response."""

    status: int
    headers: Headers


def read_request(fields: Iterable[tuple[bytes, bytes]]) -> RequestFields | None:
    """Returns the request, or None when it is malformed.

    Malformed is: no ``:method``; a CONNECT with ``:scheme``, ``:path`` or ``:protocol``; another method
    without ``:scheme`` or ``:path``, or with ``:protocol``; an ``:authority`` that is empty or breaks the
    syntax of RFC 3986; and everything that ``_split`` refuses. The caller answers these with 400, so they are
    not malformed: another method than CONNECT, no ``:authority``, an ``:authority`` without port or with a
    bad one.
    """
    parts = _split(fields)
    if parts is None:
        return None
    pseudo, headers = parts
    method = pseudo.pop(b":method", b"")
    authority = pseudo.pop(b":authority", None)
    if not _METHOD(method):
        return None
    if method != b"CONNECT" and not (pseudo.pop(b":scheme", None) and pseudo.pop(b":path", None)):
        return None
    if pseudo:
        return None
    if authority is None:
        authority = b""
    elif not authority or authority.endswith(b"@") or not _AUTHORITY(authority):
        return None
    return RequestFields(method.decode("ascii"), authority.decode("ascii"), headers)


def read_response(fields: Iterable[tuple[bytes, bytes]]) -> ResponseFields | None:
    """Returns the response, or None when it is malformed or has no ``:status`` of three digits."""
    parts = _split(fields)
    if parts is None:
        return None
    pseudo, headers = parts
    status = pseudo.pop(b":status", b"")
    if pseudo or not _STATUS(status):
        return None
    return ResponseFields(int(status), headers)


def sound_trailers(fields: Iterable[tuple[bytes, bytes]]) -> bool:
    """Returns whether the fields are well-formed trailers: these have no pseudo-header fields."""
    parts = _split(fields)
    return parts is not None and not parts[0]


def _split(fields: Iterable[tuple[bytes, bytes]]) -> tuple[dict[bytes, bytes], Headers] | None:
    """Separate pseudo-header fields from the others. Returns None for what RFC 9113 sections 8.2, 8.3 forbid.

    The rules: pseudo-header fields come first, each once; names are in lower case and of token characters;
    values have no control characters; fields of an HTTP/1 connection are not allowed.
    """
    pseudo: dict[bytes, bytes] = {}
    headers: list[tuple[bytes, bytes]] = []
    for name, value in fields:
        if _BAD_VALUE(value):
            return None
        if name[:1] == b":":
            if headers or name in pseudo:
                return None
            pseudo[name] = value
            continue
        if name not in _USUAL_NAMES and (
            not _NAME(name)
            or name in _CONNECTION_SPECIFIC
            or (name == b"te" and value.lower() != b"trailers")
        ):
            return None
        headers.append((name, value))
    return pseudo, tuple(headers)
