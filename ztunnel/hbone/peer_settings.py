"""What the peer announced in its SETTINGS (RFC 9113 section 6.5.2)."""

from __future__ import annotations

from collections.abc import Iterable

from ztunnel.hbone import frames as wire
from ztunnel.hbone.hbone_errors import ErrorCode, Violation

UNLIMITED = 1 << 32
"""As many streams as anybody may want: what a peer allows that names no number."""


class PeerSettings:
    """The values in force. Those that a peer does not name keep the protocol's defaults.

    max_concurrent_streams: streams of ours that it takes at a time.
    known: SETTINGS came.
    """

    __slots__ = ("header_table_size", "initial_window", "known", "max_concurrent_streams", "max_frame_size")

    def __init__(self) -> None:
        self.known = False
        self.header_table_size = wire.DEFAULT_TABLE_SIZE
        self.max_concurrent_streams = UNLIMITED
        self.initial_window = wire.DEFAULT_WINDOW
        self.max_frame_size = wire.DEFAULT_FRAME_SIZE

    def apply(self, values: Iterable[tuple[int, int]]) -> None:
        """Take over the values of one SETTINGS frame; unknown ones are passed over.

        Raises Violation for a value that the protocol forbids.
        """
        self.known = True
        for identifier, value in values:
            if identifier == wire.INITIAL_WINDOW_SIZE:
                if value > wire.LARGEST_WINDOW:
                    raise Violation(ErrorCode.FLOW_CONTROL_ERROR, f"SETTINGS name a window of {value} bytes")
                self.initial_window = value
            elif identifier == wire.MAX_CONCURRENT_STREAMS:
                self.max_concurrent_streams = value
            elif identifier == wire.MAX_FRAME_SIZE:
                if not wire.DEFAULT_FRAME_SIZE <= value < 1 << 24:
                    raise Violation(ErrorCode.PROTOCOL_ERROR, f"SETTINGS name frames of {value} bytes")
                self.max_frame_size = value
            elif identifier == wire.HEADER_TABLE_SIZE:
                self.header_table_size = value
            elif identifier == wire.ENABLE_PUSH and value > 1:
                raise Violation(ErrorCode.PROTOCOL_ERROR, f"SETTINGS say {value} of ENABLE_PUSH")
