"""What a connection keeps for each open stream."""

from __future__ import annotations

from ztunnel.hbone.stream_state import (
    LOST,
    LOST_ENDED,
    RESET_BY_PEER,
    RESET_BY_PEER_ENDED,
    TABLE,
    Effect,
    Input,
    State,
)
from ztunnel.hbone.windows import ReceiveWindow


class Stream:
    """One stream: its state, its windows, and what it holds. For users of the package it is read-only.

    It outlives its removal from the connection: ``state`` then says how it ended.

    send_window: bytes that the peer takes on this stream; below zero after it has made its windows smaller.
    unacknowledged: bytes taken from the receive windows (payload and padding) and not given back yet.
    overdrawn: it is dead, and what was received on it may not be held any longer.
    reset_code: the code of the RST_STREAM that ended it, whoever sent it; None when none did.
    """

    __slots__ = ("overdrawn", "reset_code", "send_window", "state", "stream_id", "unacknowledged", "window")

    def __init__(self, stream_id: int, state: State, window: ReceiveWindow, send_window: int) -> None:
        self.stream_id = stream_id
        self.state = state
        self.window = window
        self.send_window = send_window
        self.unacknowledged = 0
        self.overdrawn = False
        self.reset_code: int | None = None

    def step(self, input_: Input) -> Effect:
        """Something happened: move on, and return what has to be done about it."""
        self.state, effect = TABLE[self.state][input_]
        return effect

    @property
    def end_sent(self) -> bool:
        """Whether this side has ended its direction."""
        return self.state.end_sent

    @property
    def end_received(self) -> bool:
        """Whether the peer ended its direction, and not by a reset."""
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
