"""What one end of a tunnel announces and allows."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class HboneSettings:
    """HTTP/2 settings and abuse limits of one connection. The defaults are those of Istio's ambient mesh.

    The same value serves both ends: a client does not announce ``max_concurrent_streams``, a server does
    not announce ENABLE_PUSH, and each announces its own header list limit. Windows and sizes are in bytes.
    Raises ValueError for values that HTTP/2 forbids (RFC 9113 section 6.5.2).
    """

    stream_window: int = 4 * MIB
    connection_window: int = 16 * MIB
    # What the peer gets back of the connection's window although it is still held (`WindowBook`).
    lent_window: int = 24 * MIB
    frame_size: int = 1 * MIB
    max_concurrent_streams: int = 200
    client_max_header_list_size: int = 16_384
    server_max_header_list_size: int = 65_536

    # A peer may cancel this many requests inside one batch of bytes, before the caller could see them.
    max_pending_resets: int = 20
    # A peer may have this many more requests cancelled unanswered than it let us answer.
    max_unanswered_resets: int = 1024
    # Streams that we had to reset because of what the peer did on them, in the life of the connection.
    max_local_errors: int = 1024
    # As how many of these a request counts whose header list is too large: it may take a tenth of a second to
    # decode, where another malformed request takes microseconds.
    large_request_weight: int = 32
    # Frames in a row of DATA for streams that we have reset. A stream's window of small frames has far fewer.
    max_late_frames: int = 10_000
    # Frames in a row that carry nothing: empty DATA, 1xx answers.
    max_empty_frames: int = 100
    # Acknowledgements of PING and SETTINGS that wait in the output between two take_output().
    max_queued_replies: int = 1000
    # HEADERS and CONTINUATION frames that one header block may be cut into.
    max_header_frames: int = 64
    # Header blocks over the announced limit cost their stream; those of so many times the limit, coded or
    # decoded, the connection.
    header_flood_factor: int = 4

    def header_list_size(self, *, client: bool) -> int:
        """The limit for a header list that this end announces (RFC 9113 section 6.5.2)."""
        return self.client_max_header_list_size if client else self.server_max_header_list_size

    def __post_init__(self) -> None:
        if not 0 <= self.stream_window < 1 << 31:
            raise ValueError(f"stream_window must be between 0 and 2147483647, not {self.stream_window}")
        if not 65_535 <= self.connection_window < 1 << 31:
            raise ValueError(
                f"connection_window must be between 65535 and 2147483647, not {self.connection_window}"
            )
        if not 1 << 14 <= self.frame_size < 1 << 24:
            raise ValueError(f"frame_size must be between 16384 and 16777215, not {self.frame_size}")
