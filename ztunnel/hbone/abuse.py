"""Counters for what an honest peer does rarely (CVE-2019-9511 to CVE-2019-9518 are attacks of this kind)."""

from __future__ import annotations

from ztunnel.hbone.hbone_errors import ErrorCode, Violation
from ztunnel.hbone.settings import HboneSettings


class AbuseCounter:
    """Counts a peer's useless frames and stream errors. The limits are in HboneSettings.

    Each method that counts raises Violation (ENHANCE_YOUR_CALM) when its limit is passed.

    unproductive: the last frames carried nothing, or nothing that anybody wants. `useful` resets it.
    """

    __slots__ = ("_empty", "_late", "_local_errors", "_settings", "unproductive")

    def __init__(self, settings: HboneSettings) -> None:
        self._settings = settings
        self._local_errors = 0
        self._empty = 0
        self._late = 0
        self.unproductive = False

    def local_error(self, weight: int = 1) -> None:
        """Count a stream that this side refused or reset because of what the peer did on it."""
        self._local_errors += weight
        if self._local_errors > self._settings.max_local_errors:
            raise Violation(ErrorCode.ENHANCE_YOUR_CALM, "the peer caused too many stream errors")

    def empty_frame(self) -> None:
        """Count a frame that carries nothing."""
        self.unproductive = True
        self._empty += 1
        if self._empty > self._settings.max_empty_frames:
            raise Violation(ErrorCode.ENHANCE_YOUR_CALM, "the peer sent too many frames that carry nothing")

    def late_frame(self) -> None:
        """Count DATA for a stream that we had reset; the peer may not have seen the reset yet."""
        self.unproductive = True
        self._late += 1
        if self._late > self._settings.max_late_frames:
            raise Violation(ErrorCode.ENHANCE_YOUR_CALM, "the peer goes on sending on streams that are reset")

    def useful(self) -> None:
        """A frame came that a stream needs: the counts of useless frames in a row start again at 0."""
        self._empty = self._late = 0
        self.unproductive = False
