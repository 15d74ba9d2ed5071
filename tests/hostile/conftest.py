"""The ports of a data plane are fixed, so its tests run in a network namespace of their own if they may."""

from __future__ import annotations

from tests.support.own_namespace import own_network_namespace

__all__ = ["own_network_namespace"]
