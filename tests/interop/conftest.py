"""What the interop tests share: the real istiod, compiled once."""

from __future__ import annotations

import os

import pytest

from tests.interop import istiod_peer
from tests.needs import unavailable


@pytest.fixture(scope="session")
def istiod_binary() -> None:
    """Compile istiod where that is wanted (minutes, the first time), else say how to have it.

    It is wanted by `make interop` and in CI; `make test` uses one that is there already.
    """
    wanted = os.environ.get("CI") == "true" or os.environ.get("BUILD_ISTIOD") == "1"
    if not wanted and not istiod_peer.is_built():
        unavailable("the real istiod is not built yet; make it with: make interop")
    try:
        istiod_peer.build()
    except RuntimeError as error:
        unavailable(f"the real istiod cannot be built: {error}")
