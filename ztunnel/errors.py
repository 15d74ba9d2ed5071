"""The base class of all errors that a person can see, and how an error's code gets into a log line.

Each concrete class has a stable code (``ZT-TLS-003``). Its text is a full sentence, or the Rust ztunnel's
text where log queries depend on it. Each code has a row in docs/errors.md; a test checks that.
"""

from __future__ import annotations

from typing import ClassVar


class ZtunnelError(Exception):
    """An error with a stable code. ``str()`` is the text for a log line, without the code."""

    code: ClassVar[str] = "ZT-INT-001"


def os_error_text(error: OSError) -> str:
    """Returns the text of a system error that log queries know: ``Connection refused (os error 111)``."""
    if error.errno is None or error.strerror is None:
        return str(error)
    return f"{error.strerror} (os error {error.errno})"
