"""Decides when to fetch which certificate. All rules of the secret manager are here, without clock or tasks.

Each identity is in one phase:

    QUEUED ──start──▶ FETCHING ──issued / failed──▶ WAITING ──its time comes──▶ QUEUED ...

Independent of the phase is what callers see: the certificate in force, or the error of the last attempt. An
identity with a valid certificate stays available while its renewal fails. One without a valid certificate is
unavailable: callers get the reason at once, until an attempt succeeds.

The rules (docs/protocol/operations.md#rotation):

| what | when or how many |
|---|---|
| fetches at a time | 8 |
| order | real time (a connection waits), warm-up (prefetch), background (renewal); then by due time |
| renewal | at half of the certificate's life |
| renewal, if that is over already (a clock is wrong) | at half of what is left, in 1 to 150 s |
| after a failure | 1 s, doubled each time, ±20 %, at most 150 s; once 15 minutes have gone by always 150 s |
| after a failure with a valid certificate | as above, but at its expiry at the latest |
| a connection asks for an unavailable identity | the next attempt is 2 s after the last one, at the latest |
| the clock was set back to before the last failure | the next attempt is at once |

Times are seconds since the epoch. Random numbers are uniform in [0, 1).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum

from ztunnel.bounds import DEFAULTS, ControlBounds
from ztunnel.certs.certificate_errors import CaChainError, CaError
from ztunnel.model.certificate import Certificate
from ztunnel.model.identity import Identity


class Priority(IntEnum):
    """Who wants a certificate; the lowest is served first."""

    REAL_TIME = 0
    WARMUP = 1
    BACKGROUND = 2


class RotationPhase(Enum):
    """What is going on for an identity."""

    QUEUED = "queued"
    FETCHING = "fetching"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a failed attempt leaves behind.

    ``valid_until`` is the expiry of the certificate that stays in force, None if there is none;
    ``next_attempt`` the time of the next one; ``overdue`` tells that less than a quarter of the certificate's
    life is left.
    """

    error: CaError
    next_attempt: float
    valid_until: float | None
    overdue: bool


@dataclass(slots=True)
class Rotation:
    """One identity."""

    identity: Identity
    phase: RotationPhase
    priority: Priority
    due: float
    certificate: Certificate | None = None
    error: CaError | None = None
    failures: int = 0
    failing_since: float = field(default=0.0)
    failed_at: float = field(default=0.0)

    def valid(self, now: float) -> Certificate | None:
        """Returns the certificate, if it is in force."""
        certificate = self.certificate
        return certificate if certificate is not None and now < certificate.not_after else None

    def due_at(self, now: float) -> float:
        """Returns when the next attempt is due.

        A failure in the future is one under a clock that was wrong and has been set back. Its pause would end
        as late.
        """
        return now if self.failures and now < self.failed_at else self.due

    def answer(self, now: float) -> Certificate | CaError | None:
        """Returns the certificate, or why there is none; None while the first attempt is under way."""
        certificate = self.valid(now)
        if certificate is not None:
            return certificate
        if self.error is not None:
            return self.error
        if self.certificate is not None:
            return CaChainError(
                f"the certificate of {self.identity} has expired and its renewal has not ended"
            )
        return None


class Rotations:
    """All identities of the node. Every method is synchronous and leaves the whole in a consistent state."""

    def __init__(self, bounds: ControlBounds = DEFAULTS.control) -> None:
        self._bounds = bounds
        self._all: dict[Identity, Rotation] = {}
        self._fetching = 0

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, identity: Identity) -> bool:
        return identity in self._all

    def get(self, identity: Identity) -> Rotation | None:
        """Returns the rotation of an identity, to look at."""
        return self._all.get(identity)

    def all(self) -> list[Rotation]:
        """Returns all rotations, ordered by identity's URI."""
        return sorted(self._all.values(), key=lambda rotation: str(rotation.identity))

    def want(self, identity: Identity, priority: Priority, now: float) -> bool:
        """Somebody wants a certificate of ``identity``. True if it was not known before.

        A known identity that is still queued for its first attempt moves up. One that waits after a failure,
        without a valid certificate, does not wait out its backoff when a connection asks: what was down for
        an hour may be back. Otherwise nothing changes.
        """
        rotation = self._all.get(identity)
        if rotation is None:
            self._all[identity] = Rotation(identity, RotationPhase.QUEUED, priority, now)
            return True
        if rotation.phase is RotationPhase.QUEUED and rotation.certificate is None and rotation.error is None:
            rotation.priority = min(rotation.priority, priority)
        if (
            priority is Priority.REAL_TIME
            and rotation.phase is RotationPhase.WAITING
            and rotation.failures > 0
            and rotation.valid(now) is None
        ):
            rotation.due = min(rotation.due, max(now, rotation.failed_at + self._bounds.ca_demanded_backoff))
            rotation.priority = Priority.REAL_TIME
        return False

    def forget(self, identity: Identity) -> bool:
        """The identity is not needed any more; a fetch under way is void. False if it was not known."""
        rotation = self._all.pop(identity, None)
        if rotation is None:
            return False
        if rotation.phase is RotationPhase.FETCHING:
            self._fetching -= 1
        return True

    def due(self, identity: Identity, now: float) -> float:
        """Returns how many seconds until an identity's next attempt is due.

        0 if it is due, queued or under way.
        """
        rotation = self._all[identity]
        return max(0.0, rotation.due_at(now) - now) if rotation.phase is RotationPhase.WAITING else 0.0

    def start(self, now: float) -> list[Identity]:
        """Returns the identities to fetch now, most urgent first.

        They count as being fetched from here on.
        """
        queued = []
        for rotation in self._all.values():
            if rotation.phase is RotationPhase.WAITING and rotation.due_at(now) <= now:
                rotation.phase = RotationPhase.QUEUED
            if rotation.phase is RotationPhase.QUEUED:
                queued.append(rotation)
        queued.sort(key=lambda rotation: (rotation.priority, rotation.due))
        chosen = queued[: max(0, self._bounds.ca_calls - self._fetching)]
        for rotation in chosen:
            rotation.phase = RotationPhase.FETCHING
        self._fetching += len(chosen)
        return [rotation.identity for rotation in chosen]

    def issued(self, identity: Identity, certificate: Certificate, now: float) -> None:
        """A fetch has brought a certificate.

        Raises CaChainError, and changes nothing, if it has already expired.
        """
        if certificate.not_after <= now:
            raise CaChainError(
                f"the certificate that the CA issued for {identity} has already expired; is our clock right?"
            )
        rotation = self._finish(identity)
        rotation.certificate = certificate
        rotation.error = None
        rotation.failures = 0
        rotation.due = certificate.refresh_at
        if rotation.due <= now:
            rest = (certificate.not_after - now) / 2
            rotation.due = now + min(
                max(rest, self._bounds.ca_first_backoff), self._bounds.ca_longest_backoff
            )

    def failed(self, identity: Identity, error: CaError, now: float, random: float) -> Renewal:
        """A fetch has failed."""
        rotation = self._finish(identity)
        if rotation.failures == 0:
            rotation.failing_since = now
        rotation.failed_at = now
        delay = backoff(rotation.failures, now - rotation.failing_since, random, self._bounds)
        rotation.failures += 1
        certificate = rotation.valid(now)
        rotation.error = error
        if certificate is None:
            rotation.due = now + delay
            return Renewal(error, rotation.due, None, overdue=False)
        rotation.due = min(now + delay, certificate.not_after)
        life = certificate.not_after - certificate.not_before
        overdue = certificate.not_after - now < life / 4
        return Renewal(error, rotation.due, certificate.not_after, overdue)

    def _finish(self, identity: Identity) -> Rotation:
        rotation = self._all[identity]
        if rotation.phase is not RotationPhase.FETCHING:
            raise ValueError(f"no fetch for {identity} is under way")
        self._fetching -= 1
        rotation.phase = RotationPhase.WAITING
        rotation.priority = Priority.BACKGROUND
        return rotation


def backoff(
    failures: int, failing_for: float, random: float, bounds: ControlBounds = DEFAULTS.control
) -> float:
    """Returns seconds to wait after a failure.

    ``failures`` others came before it without a success between, the first ``failing_for`` seconds ago.
    """
    longest, jitter = bounds.ca_longest_backoff, bounds.ca_jitter
    if failing_for >= bounds.ca_patience:
        return longest
    # The exponent is bounded so that no float overflows; the cap is reached long before.
    base = min(bounds.ca_first_backoff * 2.0 ** min(failures, 32), longest)
    return min(base * (1 - jitter + 2 * jitter * random), longest)
