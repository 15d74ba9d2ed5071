"""A workload's certificate as the CA gave it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ztunnel.model.identity import Identity


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a workload proves its identity with, and what it trusts.

    All PEM. ``chain`` is the leaf, then its intermediates; ``roots`` may be several (a rotation is under
    way). ``not_before`` and ``not_after`` are the leaf's, in seconds since the epoch. The key is never
    shown by ``repr()``, logged or dumped.
    """

    identity: Identity
    private_key: bytes = field(repr=False)
    chain: tuple[bytes, ...]
    roots: tuple[bytes, ...]
    not_before: float
    not_after: float

    @property
    def refresh_at(self) -> float:
        """When to fetch the next one: at half of this one's life."""
        return self.not_before + (self.not_after - self.not_before) / 2
