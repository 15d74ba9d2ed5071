"""The base of every error that a person can meet, and how its code gets into a log line.

Each concrete class names a stable code (``ZT-TLS-003``) and its text is a full sentence or, where log
consumers depend on it, the Rust ztunnel's text. Each code has a row in docs/errors.md, which a
test holds to be complete.
"""

from __future__ import annotations

from typing import ClassVar


class ZtunnelError(Exception):
    """An error with a stable code. ``str()`` is the text for a log line, without the code."""

    code: ClassVar[str] = "ZT-INT-001"


def os_error_text(error: OSError) -> str:
    """Returns the text that log consumers know for a system error: ``Connection refused (os error 111)``."""
    if error.errno is None or error.strerror is None:
        return str(error)
    return f"{error.strerror} (os error {error.errno})"
