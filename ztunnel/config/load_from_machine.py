"""The configuration of this process, from its environment, the machine's files and its CPUs."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ztunnel.config.load import load_config
from ztunnel.config.model import Config

_NO_SUCH_PATH = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}


def load_from_machine(environ: Mapping[str, str], args: Sequence[str] = ()) -> Config:
    """Returns `load_config` of the given environment, with the files and CPUs of this machine.

    Only CPUs on which this process may run count. Raises ConfigError.
    """
    return load_config(environ, read_file=read_text_file, cpu_count=len(os.sched_getaffinity(0)), args=args)


def read_text_file(path: str) -> str | None:
    """Returns a file's text. Returns None if it does not exist, or the text cannot be a path (as PEM cannot).

    Raises OSError or UnicodeDecodeError when the file cannot be read.
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
