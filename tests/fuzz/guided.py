"""One target under atheris (libFuzzer): ``python -m tests.fuzz.guided TARGET [libFuzzer's arguments]``.

A development tool; `python -m tests.fuzz` runs it, for there is one target a process.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["ztunnel"]):
    from tests.fuzz.targets import TARGETS

if __name__ == "__main__":
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, TARGETS[name])
    atheris.Fuzz()
