"""The settings that one end of a tunnel announces, and the limits that it sets for its peer."""

from __future__ import annotations

from dataclasses import dataclass

from ztunnel.bounds import MIB


@dataclass(frozen=True, slots=True)
class HboneSettings:
    """HTTP/2 settings and abuse limits of one connection. The defaults are those of Istio's ambient mesh.

    Both ends use the same value. A client does not announce ``max_concurrent_streams``, a server does not
    announce ENABLE_PUSH, and each announces its own header list limit. Windows and sizes are in bytes.
    Raises ValueError for values that HTTP/2 forbids (RFC 9113 section 6.5.2).
    """

    stream_window: int = 4 * MIB
    connection_window: int = 16 * MIB
    # Bytes of the connection's window that the peer may get back before they are consumed
    # (`ConnectionWindows` explains lending).
    lent_window: int = 24 * MIB
    frame_size: int = 1 * MIB
    max_concurrent_streams: int = 200
    client_max_header_list_size: int = 16_384
    server_max_header_list_size: int = 65_536

    # Requests that a peer may open and reset within the bytes of one receive().
    max_pending_resets: int = 20
    # By how many the requests that a peer reset before the answer may outnumber the answered ones.
    max_unanswered_resets: int = 1024
    # Streams that we reset because of what the peer did on them, in the life of the connection.
    max_local_errors: int = 1024
    # What a request with a too large header list counts for among these: to decode it may take a tenth of a
    # second, where any other malformed request takes microseconds.
    large_request_weight: int = 32
    # DATA frames in a row for streams that we have reset. A whole stream window of small frames has far
    # fewer.
    max_late_frames: int = 10_000
    # Frames in a row that carry nothing: empty DATA, 1xx responses.
    max_empty_frames: int = 100
    # Acknowledgements of PING and SETTINGS that wait in the output between two take_output().
    max_queued_replies: int = 1000
    # HEADERS and CONTINUATION frames of one header block.
    max_header_frames: int = 64
    # A header block over the announced limit ends its stream. A block over this many times the limit, encoded
    # or decoded, ends the connection.
    header_flood_factor: int = 4

    def header_list_size(self, *, client: bool) -> int:
        """Returns the limit of a header list in bytes that this end announces (RFC 9113 section 6.5.2)."""
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
