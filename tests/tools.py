"""The programs of scripts/tools in tests: used where they are, asked for where they are not."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "tools"


def find_tool(name: str) -> str:
    """The path of a program of scripts/tools. A test skips without it, with CI=true it fails."""
    found = subprocess.run([SCRIPT, "--find", name], capture_output=True, text=True, check=False)
    if found.returncode == 0:
        return found.stdout.strip()
    reason = found.stderr.strip()
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
