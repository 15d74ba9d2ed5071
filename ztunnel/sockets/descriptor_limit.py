"""The limit of open descriptors, and the reserve that traffic may not use.

The kernel gives out the lowest free number. So a new descriptor with number n means that all below n are
taken, and it is enough to compare the new number with a line below the limit; nothing has to be counted.
Traffic stops at that line. The descriptors above it are for the admin and metrics servers, the xDS and CA
connections, and the descriptors that the CNI passes.

A connection that is accepted needs a second descriptor, for its dial. So accepting stops a little earlier, at
``accept_line``: a client is reset before anything is done for it, and not after.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass

_UNLIMITED_STAND_IN = 1 << 20


@dataclass(frozen=True, slots=True)
class DescriptorLimit:
    """The soft limit before and after. ``str()`` is the text for the log."""

    before: int
    after: int

    def __str__(self) -> str:
        return f"set file descriptor limits from {self.before} to {self.after}"


def raise_descriptor_limit() -> DescriptorLimit:
    """Raise the soft limit of open descriptors to the hard one.

    Raises OSError or ValueError; the caller only logs a warning.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return DescriptorLimit(soft, resource.getrlimit(resource.RLIMIT_NOFILE)[0])


@dataclass(frozen=True, slots=True)
class DescriptorBudget:
    """The limit for traffic: descriptors in the reserve, the highest numbers, are not for it."""

    limit: int
    reserve: int

    @classmethod
    def current(cls) -> DescriptorBudget:
        """Returns the budget under the limit in force. A sixteenth is reserved, at least 16, at most 256."""
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        limit = _UNLIMITED_STAND_IN if soft == resource.RLIM_INFINITY else soft
        return cls(limit, max(16, min(256, limit // 16)))

    @property
    def accept_line(self) -> int:
        """The first number at which no connection is accepted any more."""
        return max(0, self.limit - self.reserve - self.reserve // 2)

    def full(self, descriptor: int) -> bool:
        """Returns whether an accepted connection has to go, by its descriptor; the caller then resets it."""
        return descriptor >= self.accept_line

    def spent(self, descriptor: int) -> bool:
        """Returns whether a new descriptor is in the reserve; traffic then closes it."""
        return descriptor >= self.limit - self.reserve
