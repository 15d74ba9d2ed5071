"""The state machine of a tunnel, as one table.

    OPENING ──the peer's SETTINGS──▶ OPEN ──GOAWAY, of either side──▶ DRAINING ──▶ SILENT ──▶ CLOSED

- OPENING: the peer's SETTINGS have not come. Streams may be opened, but it is not known how many the peer
  takes.
- DRAINING: existing streams continue, new ones are not opened.
- SILENT: nothing is written any more, because the transport is broken or we have sent close_notify. What the
  peer has sent is still read.
- CLOSED: the end.

States may be skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final


@dataclass(frozen=True, slots=True, eq=False)
class TunnelState:
    """One state. Compared by identity.

    opens: new streams may be opened. writes: frames are still sent. closed: the tunnel has ended.
    """

    name: str
    opens: bool = False
    writes: bool = True
    closed: bool = False

    def __repr__(self) -> str:
        return self.name


class TunnelInput(IntEnum):
    """What can happen to a tunnel."""

    SETTINGS = 0
    DRAIN = 1
    SILENCE = 2
    END = 3


TUNNEL_OPENING: Final = TunnelState("OPENING", opens=True)
TUNNEL_OPEN: Final = TunnelState("OPEN", opens=True)
TUNNEL_DRAINING: Final = TunnelState("DRAINING")
TUNNEL_SILENT: Final = TunnelState("SILENT", writes=False)
TUNNEL_CLOSED: Final = TunnelState("CLOSED", closed=True)

SETTINGS: Final = TunnelInput.SETTINGS
DRAIN: Final = TunnelInput.DRAIN
SILENCE: Final = TunnelInput.SILENCE
END: Final = TunnelInput.END

TUNNEL_TABLE: Final[dict[TunnelState, dict[TunnelInput, TunnelState]]] = {
    TUNNEL_OPENING: {
        SETTINGS: TUNNEL_OPEN,
        DRAIN: TUNNEL_DRAINING,
        SILENCE: TUNNEL_SILENT,
        END: TUNNEL_CLOSED,
    },
    TUNNEL_OPEN: {SETTINGS: TUNNEL_OPEN, DRAIN: TUNNEL_DRAINING, SILENCE: TUNNEL_SILENT, END: TUNNEL_CLOSED},
    TUNNEL_DRAINING: {
        SETTINGS: TUNNEL_DRAINING,
        DRAIN: TUNNEL_DRAINING,
        SILENCE: TUNNEL_SILENT,
        END: TUNNEL_CLOSED,
    },
    TUNNEL_SILENT: {
        SETTINGS: TUNNEL_SILENT,
        DRAIN: TUNNEL_SILENT,
        SILENCE: TUNNEL_SILENT,
        END: TUNNEL_CLOSED,
    },
    TUNNEL_CLOSED: {
        SETTINGS: TUNNEL_CLOSED,
        DRAIN: TUNNEL_CLOSED,
        SILENCE: TUNNEL_CLOSED,
        END: TUNNEL_CLOSED,
    },
}
