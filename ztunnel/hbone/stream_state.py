"""The state machine of a CONNECT stream, as one table.

How to read it. The states are those of RFC 9113 section 5.1, seen from this side. In addition they say
whether the CONNECT was answered, because before the answer a server sends no DATA and a client accepts none.
A client's stream begins in REQUEST_SENT, a server's in REQUEST_RECEIVED:

    REQUEST_SENT ──── the answer comes ──▶ OPEN ──▶ HALF_CLOSED_LOCAL ──▶ CLOSED
    REQUEST_RECEIVED ── we answer ───────▶ OPEN ──▶ HALF_CLOSED_REMOTE ──▶ CLOSED
    any of them ── RST_STREAM ──▶ RESET (ours) or RESET_BY_PEER;  ── the tunnel is lost ──▶ LOST

The client may end its direction before the answer (REQUEST_SENT_ENDED, REQUEST_RECEIVED_ENDED).

`STREAM_TABLE` has one row for each state. A row maps each `StreamInput` to the next state and the `Effect`,
which is what the receiver has to do in addition. Inputs of this side (SEND_...) only change the state. The
caller gives them only in states that allow them (``StreamState.sends``, ``StreamState.answered``).

Other questions about a stream (may it send, has the peer ended, was it reset) are answered by attributes of
its state, so no second record has to agree with the state.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final


@dataclass(frozen=True, slots=True, eq=False)
class StreamState:
    """One state. Compared by identity.

    sends: this side may send DATA. receives: the peer may send DATA.
    answered: the final response to the CONNECT was sent (server) or came (client).
    end_sent, end_received: END_STREAM was sent, or came.
    closed: both directions are closed.
    dead: closed by a reset or by the loss of the tunnel, not by END_STREAM of both ends.
    """

    name: str
    sends: bool = False
    receives: bool = False
    answered: bool = False
    end_sent: bool = False
    end_received: bool = False
    closed: bool = False
    dead: bool = False

    def __repr__(self) -> str:
        return self.name


class StreamInput(IntEnum):
    """What can happen to a stream."""

    SEND_ANSWER = 0
    SEND_END = 1
    SEND_RESET = 2
    RECV_HEADERS = 3
    """A header block that is not a 1xx response: a request, the final response, or trailers."""
    RECV_INFORMATIONAL = 4
    RECV_DATA = 5
    RECV_END = 6
    """END_STREAM. The frame that carries it was processed before."""
    RECV_RESET = 7
    TUNNEL_LOST = 8


class Effect(Enum):
    """What the receiver has to do."""

    NOTHING = "nothing"
    REQUEST = "read the fields as a request, and tell the caller"
    ANSWER = "read the fields as the answer, and tell the caller"
    TRAILERS = "read the fields as trailers; END_STREAM has to come with them"
    DELIVER = "give the payload to the caller"
    END = "tell the caller that the peer has ended its direction"
    PEER_RESET = "tell the caller that the peer has reset the stream"
    RESET_STREAM_CLOSED = "answer with RST_STREAM(STREAM_CLOSED)"
    RESET_PROTOCOL_ERROR = "answer with RST_STREAM(PROTOCOL_ERROR)"
    GOAWAY_STREAM_CLOSED = "end the connection with STREAM_CLOSED"
    GOAWAY_PROTOCOL_ERROR = "end the connection with PROTOCOL_ERROR"


REQUEST_SENT: Final = StreamState("REQUEST_SENT", sends=True)
REQUEST_SENT_ENDED: Final = StreamState("REQUEST_SENT_ENDED", end_sent=True)
REQUEST_RECEIVED: Final = StreamState("REQUEST_RECEIVED", receives=True)
REQUEST_RECEIVED_ENDED: Final = StreamState("REQUEST_RECEIVED_ENDED", end_received=True)
OPEN: Final = StreamState("OPEN", sends=True, receives=True, answered=True)
HALF_CLOSED_LOCAL: Final = StreamState("HALF_CLOSED_LOCAL", receives=True, answered=True, end_sent=True)
HALF_CLOSED_REMOTE: Final = StreamState("HALF_CLOSED_REMOTE", sends=True, answered=True, end_received=True)
CLOSED: Final = StreamState("CLOSED", answered=True, end_sent=True, end_received=True, closed=True)
RESET: Final = StreamState("RESET", answered=True, closed=True, dead=True)
RESET_BY_PEER: Final = StreamState("RESET_BY_PEER", answered=True, closed=True, dead=True)
LOST: Final = StreamState("LOST", answered=True, closed=True, dead=True)

# The peer had sent END_STREAM before: its reader sees that end and not the reset.
RESET_BY_PEER_ENDED: Final = StreamState(
    "RESET_BY_PEER_ENDED", answered=True, end_received=True, closed=True, dead=True
)
LOST_ENDED: Final = StreamState("LOST_ENDED", answered=True, end_received=True, closed=True, dead=True)

# Streams that nothing is stored for: never opened, or closed so long ago that it is not known how.
IDLE: Final = StreamState("IDLE")
FORGOTTEN: Final = StreamState("FORGOTTEN", answered=True, closed=True)

SEND_ANSWER: Final = StreamInput.SEND_ANSWER
SEND_END: Final = StreamInput.SEND_END
SEND_RESET: Final = StreamInput.SEND_RESET
RECV_HEADERS: Final = StreamInput.RECV_HEADERS
RECV_INFORMATIONAL: Final = StreamInput.RECV_INFORMATIONAL
RECV_DATA: Final = StreamInput.RECV_DATA
RECV_END: Final = StreamInput.RECV_END
RECV_RESET: Final = StreamInput.RECV_RESET
TUNNEL_LOST: Final = StreamInput.TUNNEL_LOST

_E = Effect

STREAM_TABLE: Final[dict[StreamState, dict[StreamInput, tuple[StreamState, Effect]]]] = {
    REQUEST_SENT: {
        SEND_END: (REQUEST_SENT_ENDED, _E.NOTHING),
        SEND_RESET: (RESET, _E.NOTHING),
        RECV_HEADERS: (OPEN, _E.ANSWER),
        RECV_INFORMATIONAL: (REQUEST_SENT, _E.NOTHING),
        RECV_DATA: (REQUEST_SENT, _E.GOAWAY_PROTOCOL_ERROR),
        RECV_RESET: (RESET_BY_PEER, _E.PEER_RESET),
        TUNNEL_LOST: (LOST, _E.NOTHING),
    },
    REQUEST_SENT_ENDED: {
        SEND_RESET: (RESET, _E.NOTHING),
        RECV_HEADERS: (HALF_CLOSED_LOCAL, _E.ANSWER),
        RECV_INFORMATIONAL: (REQUEST_SENT_ENDED, _E.NOTHING),
        RECV_DATA: (REQUEST_SENT_ENDED, _E.GOAWAY_PROTOCOL_ERROR),
        RECV_RESET: (RESET_BY_PEER, _E.PEER_RESET),
        TUNNEL_LOST: (LOST, _E.NOTHING),
    },
    REQUEST_RECEIVED: {
        SEND_ANSWER: (OPEN, _E.NOTHING),
        SEND_RESET: (RESET, _E.NOTHING),
        RECV_HEADERS: (REQUEST_RECEIVED, _E.TRAILERS),
        RECV_DATA: (REQUEST_RECEIVED, _E.DELIVER),
        RECV_END: (REQUEST_RECEIVED_ENDED, _E.END),
        RECV_RESET: (RESET_BY_PEER, _E.PEER_RESET),
        TUNNEL_LOST: (LOST, _E.NOTHING),
    },
    REQUEST_RECEIVED_ENDED: {
        SEND_ANSWER: (HALF_CLOSED_REMOTE, _E.NOTHING),
        SEND_RESET: (RESET, _E.NOTHING),
        RECV_HEADERS: (RESET, _E.RESET_STREAM_CLOSED),
        RECV_DATA: (RESET, _E.RESET_STREAM_CLOSED),
        RECV_RESET: (RESET_BY_PEER_ENDED, _E.PEER_RESET),
        TUNNEL_LOST: (LOST_ENDED, _E.NOTHING),
    },
    OPEN: {
        SEND_END: (HALF_CLOSED_LOCAL, _E.NOTHING),
        SEND_RESET: (RESET, _E.NOTHING),
        RECV_HEADERS: (OPEN, _E.TRAILERS),
        RECV_INFORMATIONAL: (RESET, _E.RESET_PROTOCOL_ERROR),
        RECV_DATA: (OPEN, _E.DELIVER),
        RECV_END: (HALF_CLOSED_REMOTE, _E.END),
        RECV_RESET: (RESET_BY_PEER, _E.PEER_RESET),
        TUNNEL_LOST: (LOST, _E.NOTHING),
    },
    HALF_CLOSED_LOCAL: {
        SEND_RESET: (RESET, _E.NOTHING),
        RECV_HEADERS: (HALF_CLOSED_LOCAL, _E.TRAILERS),
        RECV_INFORMATIONAL: (RESET, _E.RESET_PROTOCOL_ERROR),
        RECV_DATA: (HALF_CLOSED_LOCAL, _E.DELIVER),
        RECV_END: (CLOSED, _E.END),
        RECV_RESET: (RESET_BY_PEER, _E.PEER_RESET),
        TUNNEL_LOST: (LOST, _E.NOTHING),
    },
    HALF_CLOSED_REMOTE: {
        SEND_END: (CLOSED, _E.NOTHING),
        SEND_RESET: (RESET, _E.NOTHING),
        RECV_HEADERS: (RESET, _E.RESET_STREAM_CLOSED),
        RECV_INFORMATIONAL: (RESET, _E.RESET_STREAM_CLOSED),
        RECV_DATA: (RESET, _E.RESET_STREAM_CLOSED),
        RECV_RESET: (RESET_BY_PEER_ENDED, _E.PEER_RESET),
        TUNNEL_LOST: (LOST_ENDED, _E.NOTHING),
    },
    # Closed streams: only their state is kept (`StreamRegistry.closed_state`). A frame that crossed our own
    # reset is no error of the peer; a frame after the peer's own end or reset is one.
    CLOSED: {
        RECV_HEADERS: (CLOSED, _E.GOAWAY_STREAM_CLOSED),
        RECV_INFORMATIONAL: (CLOSED, _E.GOAWAY_STREAM_CLOSED),
        RECV_DATA: (CLOSED, _E.RESET_STREAM_CLOSED),
        RECV_RESET: (CLOSED, _E.NOTHING),
    },
    RESET: {
        RECV_HEADERS: (RESET, _E.NOTHING),
        RECV_INFORMATIONAL: (RESET, _E.NOTHING),
        RECV_DATA: (RESET, _E.NOTHING),
        RECV_RESET: (RESET, _E.NOTHING),
    },
    RESET_BY_PEER: {
        RECV_HEADERS: (RESET_BY_PEER, _E.RESET_STREAM_CLOSED),
        RECV_INFORMATIONAL: (RESET_BY_PEER, _E.RESET_STREAM_CLOSED),
        RECV_DATA: (RESET_BY_PEER, _E.RESET_STREAM_CLOSED),
        RECV_RESET: (RESET_BY_PEER, _E.NOTHING),
    },
    RESET_BY_PEER_ENDED: {
        RECV_HEADERS: (RESET_BY_PEER_ENDED, _E.RESET_STREAM_CLOSED),
        RECV_INFORMATIONAL: (RESET_BY_PEER_ENDED, _E.RESET_STREAM_CLOSED),
        RECV_DATA: (RESET_BY_PEER_ENDED, _E.RESET_STREAM_CLOSED),
        RECV_RESET: (RESET_BY_PEER_ENDED, _E.NOTHING),
    },
    FORGOTTEN: {
        RECV_HEADERS: (FORGOTTEN, _E.GOAWAY_STREAM_CLOSED),
        RECV_INFORMATIONAL: (FORGOTTEN, _E.GOAWAY_STREAM_CLOSED),
        RECV_DATA: (FORGOTTEN, _E.NOTHING),
        RECV_RESET: (FORGOTTEN, _E.NOTHING),
    },
    # Only clients open streams: for a client `Receiver.block_received` makes a request here an error.
    IDLE: {
        RECV_HEADERS: (REQUEST_RECEIVED, _E.REQUEST),
        RECV_INFORMATIONAL: (IDLE, _E.GOAWAY_PROTOCOL_ERROR),
        RECV_DATA: (IDLE, _E.GOAWAY_PROTOCOL_ERROR),
        RECV_RESET: (IDLE, _E.GOAWAY_PROTOCOL_ERROR),
    },
}
