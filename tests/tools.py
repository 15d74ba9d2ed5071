"""What some tests need and a machine may not have: the programs of scripts/tools, and the image.

A test that cannot have it is skipped and says why; with ``CI=true`` it fails instead. See `tests.needs` for
programs of the distribution.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.needs import unavailable
from tests.support import image as images

SCRIPT = Path(__file__).parents[1] / "scripts" / "tools"

# What pip and venv say when it is the machine that is to blame, and not the Dockerfile.
NO_FAULT_OF_THE_STEPS = (
    "NewConnectionError",
    "NameResolutionError",
    "ConnectTimeoutError",
    "ProxyError",
    "ensurepip is not available",
)


def find_tool(name: str) -> str:
    """The path of a program of scripts/tools; the test ends where it has not been built."""
    found = subprocess.run([SCRIPT, "--find", name], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        unavailable(found.stderr.strip())
    return found.stdout.strip()


def build_image(**arguments: str) -> images.Image:
    """The image of the Dockerfile; the test ends where its packages cannot be had. See `images.build`."""
    try:
        return images.build(images.REPOSITORY / "Dockerfile", **arguments)
    except images.ImageError as error:
        if any(sign in str(error) for sign in NO_FAULT_OF_THE_STEPS):
            unavailable(f"the image cannot be built here: {error}")
        raise
