"""What a connection keeps for each open stream."""

from __future__ import annotations

from h2.stream import H2Stream


class Stream:
    """One open stream: h2's books for it, and what decides the common cases without asking h2."""

    __slots__ = (
        "answered",
        "deliverable",
        "ended",
        "h2",
        "machine",
        "sendable",
        "stream_id",
        "unacknowledged",
        "window",
    )

    def __init__(self, stream: H2Stream) -> None:
        self.stream_id = stream.stream_id
        self.h2 = stream
        self.machine = stream.state_machine
        self.window = stream._inbound_window_manager  # noqa: SLF001  # the book that has to stay exact
        # Whether the final answer was sent (server) or came (client).
        self.answered = False
        # Whether this side may send DATA.
        self.sendable = False
        # Whether DATA may come now, and whether the peer has ended its direction.
        self.deliverable = False
        self.ended = False
        # Bytes taken from the receive windows (payload and padding) and not given back yet.
        self.unacknowledged = 0
