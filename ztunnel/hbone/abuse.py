"""Counting what no honest peer does often (the counterparts of CVE-2019-9511 and its siblings)."""

from __future__ import annotations

from ztunnel.hbone.hbone_errors import ErrorCode, Violation
from ztunnel.hbone.settings import HboneSettings


class AbuseCounter:
    """Raises Violation when a peer has used up our patience. The limits are in HboneSettings."""

    __slots__ = ("_max_empty_frames", "_max_local_errors", "empty_frames", "local_errors")

    def __init__(self, settings: HboneSettings) -> None:
        self._max_local_errors = settings.max_local_errors
        self._max_empty_frames = settings.max_empty_frames
        self.local_errors = 0
        self.empty_frames = 0

    def local_error(self) -> None:
        """We had to refuse or reset a stream because of what the peer did on it."""
        self.local_errors += 1
        if self.local_errors > self._max_local_errors:
            raise Violation(ErrorCode.ENHANCE_YOUR_CALM, "the peer caused too many stream errors")

    def empty_frame(self) -> None:
        """A frame came that carries nothing. Whatever is useful sets ``empty_frames`` back to 0."""
        self.empty_frames += 1
        if self.empty_frames > self._max_empty_frames:
            raise Violation(ErrorCode.ENHANCE_YOUR_CALM, "the peer sent too many frames that carry nothing")
