"""The states of a CONNECT stream, and what each thing that happens does to it, as one table.

How to read it. The states are those of RFC 9113 section 5.1, seen from this side, with one thing more:
whether the CONNECT has been answered, since a server sends no byte before its answer and a client takes none.
A client's stream begins in REQUEST_SENT, a server's in REQUEST_RECEIVED:

    REQUEST_SENT ──── the answer comes ──▶ OPEN ──▶ HALF_CLOSED_LOCAL ──▶ CLOSED
    REQUEST_RECEIVED ── we answer ───────▶ OPEN ──▶ HALF_CLOSED_REMOTE ──▶ CLOSED
    any of them ── RST_STREAM ──▶ RESET (ours) or RESET_BY_PEER;  ── the tunnel is lost ──▶ LOST

Each may be ended by the requester before the answer (REQUEST_SENT_ENDED, REQUEST_RECEIVED_ENDED). A row of
`TABLE` is a state; in it stands for each `Input` the state that follows and the `Effect`: what the receiver
has to do besides. Inputs that this side makes (SEND_...) have no effect but the state; they are only given in
states that allow them, which ``State.sends`` and ``State.answered`` tell.

What others ask of a stream (may it send, has the peer ended, was it reset) is an attribute of the state, so
there is nothing to be kept in step with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """One state. Compared by identity.

    sends: this side may send DATA. receives: DATA may come.
    answered: the final answer to the CONNECT was sent (server) or came (client).
    end_sent, end_received: the direction was ended with END_STREAM.
    closed: nothing can happen any more in either direction.
    dead: closed by a reset or with the tunnel, not by both ends.
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


class Input(IntEnum):
    """What can happen to a stream."""

    SEND_ANSWER = 0
    SEND_END = 1
    SEND_RESET = 2
    RECV_HEADERS = 3
    """A header block that is not a 1xx answer: the answer, or trailers."""
    RECV_INFORMATIONAL = 4
    RECV_DATA = 5
    RECV_END = 6
    """END_STREAM, after what the frame that carries it has done."""
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
    GONE = "tell the caller that the peer has reset the stream"
    SAY_CLOSED = "answer with RST_STREAM(STREAM_CLOSED)"
    SAY_WRONG = "answer with RST_STREAM(PROTOCOL_ERROR)"
    FAIL_CLOSED = "end the connection with STREAM_CLOSED"
    FAIL_WRONG = "end the connection with PROTOCOL_ERROR"


REQUEST_SENT: Final = State("REQUEST_SENT", sends=True)
REQUEST_SENT_ENDED: Final = State("REQUEST_SENT_ENDED", end_sent=True)
REQUEST_RECEIVED: Final = State("REQUEST_RECEIVED", receives=True)
REQUEST_RECEIVED_ENDED: Final = State("REQUEST_RECEIVED_ENDED", end_received=True)
OPEN: Final = State("OPEN", sends=True, receives=True, answered=True)
HALF_CLOSED_LOCAL: Final = State("HALF_CLOSED_LOCAL", receives=True, answered=True, end_sent=True)
HALF_CLOSED_REMOTE: Final = State("HALF_CLOSED_REMOTE", sends=True, answered=True, end_received=True)
CLOSED: Final = State("CLOSED", answered=True, end_sent=True, end_received=True, closed=True)
RESET: Final = State("RESET", answered=True, closed=True, dead=True)
RESET_BY_PEER: Final = State("RESET_BY_PEER", answered=True, closed=True, dead=True)
LOST: Final = State("LOST", answered=True, closed=True, dead=True)

# The peer's direction had come to its own end before: a reader sees that end, and no reset.
RESET_BY_PEER_ENDED: Final = State(
    "RESET_BY_PEER_ENDED", answered=True, end_received=True, closed=True, dead=True
)
LOST_ENDED: Final = State("LOST_ENDED", answered=True, end_received=True, closed=True, dead=True)

# Of streams that nothing is kept for: never opened, and closed so long ago that nobody knows how.
IDLE: Final = State("IDLE")
FORGOTTEN: Final = State("FORGOTTEN", answered=True, closed=True)

SEND_ANSWER: Final = Input.SEND_ANSWER
SEND_END: Final = Input.SEND_END
SEND_RESET: Final = Input.SEND_RESET
RECV_HEADERS: Final = Input.RECV_HEADERS
RECV_INFORMATIONAL: Final = Input.RECV_INFORMATIONAL
RECV_DATA: Final = Input.RECV_DATA
RECV_END: Final = Input.RECV_END
RECV_RESET: Final = Input.RECV_RESET
TUNNEL_LOST: Final = Input.TUNNEL_LOST

_E = Effect

TABLE: Final[dict[State, dict[Input, tuple[State, Effect]]]] = {
    REQUEST_SENT: {
        SEND_END: (REQUEST_SENT_ENDED, _E.NOTHING),
        SEND_RESET: (RESET, _E.NOTHING),
        RECV_HEADERS: (OPEN, _E.ANSWER),
        RECV_INFORMATIONAL: (REQUEST_SENT, _E.NOTHING),
        RECV_DATA: (REQUEST_SENT, _E.FAIL_WRONG),
        RECV_RESET: (RESET_BY_PEER, _E.GONE),
        TUNNEL_LOST: (LOST, _E.NOTHING),
    },
    REQUEST_SENT_ENDED: {
        SEND_RESET: (RESET, _E.NOTHING),
        RECV_HEADERS: (HALF_CLOSED_LOCAL, _E.ANSWER),
        RECV_INFORMATIONAL: (REQUEST_SENT_ENDED, _E.NOTHING),
        RECV_DATA: (REQUEST_SENT_ENDED, _E.FAIL_WRONG),
        RECV_RESET: (RESET_BY_PEER, _E.GONE),
        TUNNEL_LOST: (LOST, _E.NOTHING),
    },
    REQUEST_RECEIVED: {
        SEND_ANSWER: (OPEN, _E.NOTHING),
        SEND_RESET: (RESET, _E.NOTHING),
        RECV_HEADERS: (REQUEST_RECEIVED, _E.TRAILERS),
        RECV_DATA: (REQUEST_RECEIVED, _E.DELIVER),
        RECV_END: (REQUEST_RECEIVED_ENDED, _E.END),
        RECV_RESET: (RESET_BY_PEER, _E.GONE),
        TUNNEL_LOST: (LOST, _E.NOTHING),
    },
    REQUEST_RECEIVED_ENDED: {
        SEND_ANSWER: (HALF_CLOSED_REMOTE, _E.NOTHING),
        SEND_RESET: (RESET, _E.NOTHING),
        RECV_HEADERS: (RESET, _E.SAY_CLOSED),
        RECV_DATA: (RESET, _E.SAY_CLOSED),
        RECV_RESET: (RESET_BY_PEER_ENDED, _E.GONE),
        TUNNEL_LOST: (LOST_ENDED, _E.NOTHING),
    },
    OPEN: {
        SEND_END: (HALF_CLOSED_LOCAL, _E.NOTHING),
        SEND_RESET: (RESET, _E.NOTHING),
        RECV_HEADERS: (OPEN, _E.TRAILERS),
        RECV_INFORMATIONAL: (RESET, _E.SAY_WRONG),
        RECV_DATA: (OPEN, _E.DELIVER),
        RECV_END: (HALF_CLOSED_REMOTE, _E.END),
        RECV_RESET: (RESET_BY_PEER, _E.GONE),
        TUNNEL_LOST: (LOST, _E.NOTHING),
    },
    HALF_CLOSED_LOCAL: {
        SEND_RESET: (RESET, _E.NOTHING),
        RECV_HEADERS: (HALF_CLOSED_LOCAL, _E.TRAILERS),
        RECV_INFORMATIONAL: (RESET, _E.SAY_WRONG),
        RECV_DATA: (HALF_CLOSED_LOCAL, _E.DELIVER),
        RECV_END: (CLOSED, _E.END),
        RECV_RESET: (RESET_BY_PEER, _E.GONE),
        TUNNEL_LOST: (LOST, _E.NOTHING),
    },
    HALF_CLOSED_REMOTE: {
        SEND_END: (CLOSED, _E.NOTHING),
        SEND_RESET: (RESET, _E.NOTHING),
        RECV_HEADERS: (RESET, _E.SAY_CLOSED),
        RECV_INFORMATIONAL: (RESET, _E.SAY_CLOSED),
        RECV_DATA: (RESET, _E.SAY_CLOSED),
        RECV_RESET: (RESET_BY_PEER_ENDED, _E.GONE),
        TUNNEL_LOST: (LOST_ENDED, _E.NOTHING),
    },
    # From here on nothing is kept but the state itself (`StreamBook.closed_state`). What crossed a reset of
    # ours is nobody's mistake; what comes after the peer's own end or reset is one.
    CLOSED: {
        RECV_HEADERS: (CLOSED, _E.FAIL_CLOSED),
        RECV_INFORMATIONAL: (CLOSED, _E.FAIL_CLOSED),
        RECV_DATA: (CLOSED, _E.SAY_CLOSED),
        RECV_RESET: (CLOSED, _E.NOTHING),
    },
    RESET: {
        RECV_HEADERS: (RESET, _E.NOTHING),
        RECV_INFORMATIONAL: (RESET, _E.NOTHING),
        RECV_DATA: (RESET, _E.NOTHING),
        RECV_RESET: (RESET, _E.NOTHING),
    },
    RESET_BY_PEER: {
        RECV_HEADERS: (RESET_BY_PEER, _E.SAY_CLOSED),
        RECV_INFORMATIONAL: (RESET_BY_PEER, _E.SAY_CLOSED),
        RECV_DATA: (RESET_BY_PEER, _E.SAY_CLOSED),
        RECV_RESET: (RESET_BY_PEER, _E.NOTHING),
    },
    RESET_BY_PEER_ENDED: {
        RECV_HEADERS: (RESET_BY_PEER_ENDED, _E.SAY_CLOSED),
        RECV_INFORMATIONAL: (RESET_BY_PEER_ENDED, _E.SAY_CLOSED),
        RECV_DATA: (RESET_BY_PEER_ENDED, _E.SAY_CLOSED),
        RECV_RESET: (RESET_BY_PEER_ENDED, _E.NOTHING),
    },
    FORGOTTEN: {
        RECV_HEADERS: (FORGOTTEN, _E.FAIL_CLOSED),
        RECV_INFORMATIONAL: (FORGOTTEN, _E.FAIL_CLOSED),
        RECV_DATA: (FORGOTTEN, _E.NOTHING),
        RECV_RESET: (FORGOTTEN, _E.NOTHING),
    },
    # A client's IDLE has no request to wait for: only clients open streams (`Receiver.block_received`).
    IDLE: {
        RECV_HEADERS: (REQUEST_RECEIVED, _E.REQUEST),
        RECV_INFORMATIONAL: (IDLE, _E.FAIL_WRONG),
        RECV_DATA: (IDLE, _E.FAIL_WRONG),
        RECV_RESET: (IDLE, _E.FAIL_WRONG),
    },
}
