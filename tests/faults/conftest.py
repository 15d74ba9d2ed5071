"""The ports of a data plane are fixed, so its tests run in a network namespace of their own if they may."""

from __future__ import annotations

import pytest

from tests.support.grpc_end import wait_for_the_end_of_grpc
from tests.support.own_namespace import own_network_namespace

__all__ = ["own_network_namespace"]


@pytest.fixture(autouse=True)
def nothing_of_grpc() -> None:
    """What a test before this one left to grpcio is gone, so that it is in no census."""
    wait_for_the_end_of_grpc()
