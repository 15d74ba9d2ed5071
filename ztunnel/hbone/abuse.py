"""Counting what no honest peer does often (the counterparts of CVE-2019-9511 and its siblings)."""

from __future__ import annotations

from ztunnel.hbone.hbone_errors import ErrorCode, Violation
from ztunnel.hbone.settings import HboneSettings


class AbuseCounter:
    """Raises Violation when a peer has used up our patience. The limits are in HboneSettings.

    dull: frames came that carry nothing, or nothing for anybody; whatever is `useful` ends the row.
    """

    __slots__ = ("_empty", "_late", "_local_errors", "_settings", "dull")

    def __init__(self, settings: HboneSettings) -> None:
        self._settings = settings
        self._local_errors = 0
        self._empty = 0
        self._late = 0
        self.dull = False

    def local_error(self, weight: int = 1) -> None:
        """We had to refuse or reset a stream because of what the peer did on it."""
        self._local_errors += weight
        if self._local_errors > self._settings.max_local_errors:
            raise Violation(ErrorCode.ENHANCE_YOUR_CALM, "the peer caused too many stream errors")

    def empty_frame(self) -> None:
        """A frame came that carries nothing."""
        self.dull = True
        self._empty += 1
        if self._empty > self._settings.max_empty_frames:
            raise Violation(ErrorCode.ENHANCE_YOUR_CALM, "the peer sent too many frames that carry nothing")

    def late_frame(self) -> None:
        """DATA came for a stream that we had reset; the peer may not have seen that yet."""
        self.dull = True
        self._late += 1
        if self._late > self._settings.max_late_frames:
            raise Violation(ErrorCode.ENHANCE_YOUR_CALM, "the peer goes on sending on streams that are reset")

    def useful(self) -> None:
        """Something came that somebody wants."""
        self._empty = self._late = 0
        self.dull = False
