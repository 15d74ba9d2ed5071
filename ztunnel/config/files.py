"""The reader of files that the program gives to `load_config`."""

from __future__ import annotations

import errno
from pathlib import Path

_NO_SUCH_PATH = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}


def read_text_file(path: str) -> str | None:
    """A file's text; None when nothing is there, or when the text cannot be a path (as PEM text cannot).

    Raises OSError or UnicodeDecodeError when something is there that cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except ValueError as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        return None  # a NUL byte within
    except OSError as error:
        if error.errno in _NO_SUCH_PATH:
            return None
        raise
