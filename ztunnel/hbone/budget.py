"""How many bytes of window all tunnels of a process may lend: give back to peers before they are consumed."""

from __future__ import annotations

from ztunnel.bounds import DEFAULTS


class WindowBudget:
    """The bytes that tunnels may lend together. All tunnels of a process share one object.

    limit: the most bytes that may be lent at a time. lent: bytes that are lent now.
    """

    __slots__ = ("lent", "limit")

    def __init__(self, limit: int = DEFAULTS.tunnel.lent_bytes) -> None:
        self.limit = limit
        self.lent = 0

    def take(self, count: int) -> int:
        """Lend up to ``count`` bytes. Returns how many were left to lend."""
        granted = max(0, min(count, self.limit - self.lent))
        self.lent += granted
        return granted

    def give(self, count: int) -> None:
        """Repay ``count`` bytes: they are no longer held."""
        self.lent -= count
