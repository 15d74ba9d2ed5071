"""The configuration of this process: of its environment, its files and its CPUs."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ztunnel.config.load import load_config
from ztunnel.config.model import Config

_NO_SUCH_PATH = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}


def load_from_machine(environ: Mapping[str, str], args: Sequence[str] = ()) -> Config:
    """Returns `load_config` of the environment given, with the files and CPUs that are really there.

    A CPU counts when this process may run on it. Raises ConfigError.
    """
    return load_config(environ, read_file=read_text_file, cpu_count=len(os.sched_getaffinity(0)), args=args)


def read_text_file(path: str) -> str | None:
    """Returns a file's text.

    None when nothing is there, or when the text cannot be a path (as PEM text cannot).

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
