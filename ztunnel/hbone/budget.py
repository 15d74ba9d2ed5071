"""Window that peers get back although its bytes are still held: how much, over all tunnels of a process."""

from __future__ import annotations

MIB = 1 << 20


class WindowBudget:
    """A number of bytes that tunnels may lend, shared by all that are given this object.

    limit: bytes that may be lent at a time. lent: bytes that are.
    """

    __slots__ = ("lent", "limit")

    def __init__(self, limit: int = 128 * MIB) -> None:
        self.limit = limit
        self.lent = 0

    def take(self, count: int) -> int:
        """Lend up to ``count`` bytes; returns how many there were."""
        granted = max(0, min(count, self.limit - self.lent))
        self.lent += granted
        return granted

    def give(self, count: int) -> None:
        """They are not held any more."""
        self.lent -= count
