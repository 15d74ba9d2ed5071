"""The configuration of this process: of its environment, its files and its CPUs."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ztunnel.config.files import read_text_file
from ztunnel.config.load import load_config
from ztunnel.config.model import Config


def load_from_machine(args: Sequence[str] = ()) -> Config:
    """`load_config` with what is really there. Raises ConfigError."""
    return load_config(os.environ, read_file=read_text_file, cpu_count=os.cpu_count() or 1, args=args)
