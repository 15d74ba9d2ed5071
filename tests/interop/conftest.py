"""What the interop tests share: the real istiod, compiled once."""

from __future__ import annotations

import pytest

from tests.interop import istiod_peer


@pytest.fixture(scope="session")
def istiod_binary() -> None:
    """Compile istiod (minutes, the first time), or skip with what is missing."""
    try:
        istiod_peer.build()
    except RuntimeError as error:
        pytest.skip(f"the real istiod cannot be built: {error}")
