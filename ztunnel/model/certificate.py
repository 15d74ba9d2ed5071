"""A workload's certificate, as the CA issued it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ztunnel.model.identity import Identity


@dataclass(frozen=True, slots=True)
class Certificate:
    """The certificate of a workload, its key, and the roots that it trusts.

    All in PEM. chain: the leaf, then its intermediates. roots: several during a root rotation. not_before,
    not_after: of the leaf, in seconds since the epoch. The key is never shown by ``repr()``, logged or
    dumped.
    """

    identity: Identity
    private_key: bytes = field(repr=False)
    chain: tuple[bytes, ...]
    roots: tuple[bytes, ...]
    not_before: float
    not_after: float

    @property
    def refresh_at(self) -> float:
        """When to renew it: at half of its life."""
        return self.not_before + (self.not_after - self.not_before) / 2
