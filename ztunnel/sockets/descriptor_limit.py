"""The limit of open descriptors, and the share of it that traffic may not take.

The kernel gives out the lowest free number. So a new descriptor with the number n tells that all below it are
taken, and "is there enough left?" needs no counting: it is a comparison with the number just given. Traffic
(accepted and dialled connections) stops at a line below the limit; what lies above the line is for the admin
and metrics servers, the xDS and CA connections, and the descriptors that the CNI passes.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass

_UNLIMITED_STAND_IN = 1 << 20


@dataclass(frozen=True, slots=True)
class DescriptorLimit:
    """What the soft limit was and is. ``str()`` is the line for the log."""

    before: int
    after: int

    def __str__(self) -> str:
        return f"set file descriptor limits from {self.before} to {self.after}"


def raise_descriptor_limit() -> DescriptorLimit:
    """Raise the soft limit of open descriptors to the hard one.

    Raises OSError or ValueError, for which a warning is enough.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return DescriptorLimit(soft, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


@dataclass(frozen=True, slots=True)
class DescriptorBudget:
    """How far traffic may go: descriptors numbered ``line`` and above are not for it."""

    limit: int
    reserve: int

    @classmethod
    def current(cls) -> DescriptorBudget:
        """Returns the budget under the limit in force: a sixteenth is kept back, at least 16, at most 256."""
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        limit = _UNLIMITED_STAND_IN if soft == resource.RLIM_INFINITY else soft
        return cls(limit, max(16, min(256, limit // 16)))

    @property
    def line(self) -> int:
        """The first number that traffic may not use."""
        return max(0, self.limit - self.reserve)

    def spent(self, descriptor: int) -> bool:
        """Returns whether a descriptor just made by traffic is one too many, to be closed again."""
        return descriptor >= self.limit - self.reserve
