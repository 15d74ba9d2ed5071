"""What every test has: see the module that each fixture comes from."""

from __future__ import annotations

import pytest
import trio.testing

from tests.clock import make_patient_clock


@pytest.fixture
def autojump_clock() -> trio.testing.MockClock:
    """In place of pytest-trio's, which runs ahead of threads, files and sockets."""
    return make_patient_clock()
