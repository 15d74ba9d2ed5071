"""What a connection knows about each open stream."""

from __future__ import annotations

from ztunnel.hbone.stream_state import (
    LOST,
    LOST_ENDED,
    RESET_BY_PEER,
    RESET_BY_PEER_ENDED,
    STREAM_TABLE,
    Effect,
    StreamInput,
    StreamState,
)
from ztunnel.hbone.windows import ReceiveWindow


class Stream:
    """One stream: its state, its windows, and the bytes that it holds. Users of the package only read it.

    After its end the connection drops it, but the object stays valid: ``state`` says how it ended.

    send_window: bytes that the peer takes on this stream; negative after the peer made its windows smaller.
    unacknowledged: bytes (payload and padding) taken from the receive windows and not given back yet.
    overdrawn: the stream is dead, and the holder of its received bytes has to drop them now.
    reset_code: the code of the RST_STREAM that ended it, whichever side sent it; None without one.
    """

    __slots__ = ("overdrawn", "reset_code", "send_window", "state", "stream_id", "unacknowledged", "window")

    def __init__(self, stream_id: int, state: StreamState, window: ReceiveWindow, send_window: int) -> None:
        self.stream_id = stream_id
        self.state = state
        self.window = window
        self.send_window = send_window
        self.unacknowledged = 0
        self.overdrawn = False
        self.reset_code: int | None = None

    def step(self, input_: StreamInput) -> Effect:
        """Move to the next state for this input. Returns what the receiver has to do."""
        self.state, effect = STREAM_TABLE[self.state][input_]
        return effect

    @property
    def end_sent(self) -> bool:
        """Whether this side has ended its direction."""
        return self.state.end_sent

    @property
    def end_received(self) -> bool:
        """Whether the peer ended its direction with END_STREAM."""
        return self.state.end_received

    @property
    def dead(self) -> bool:
        """Whether a reset or the end of the tunnel has closed it."""
        return self.state.dead

    @property
    def lost(self) -> bool:
        """Whether the end of the tunnel has closed it."""
        return self.state is LOST or self.state is LOST_ENDED

    @property
    def reset_by_peer(self) -> bool:
        """Whether the peer has reset it."""
        return self.state is RESET_BY_PEER or self.state is RESET_BY_PEER_ENDED
