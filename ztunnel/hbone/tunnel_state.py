"""The states of a tunnel, and what moves it from one to the next, as one table.

    OPENING ──the peer's SETTINGS──▶ OPEN ──GOAWAY, either side's──▶ DRAINING ──▶ SILENT ──▶ CLOSED

OPENING lasts until the peer's limits are known; streams may be opened all the same, but how many are welcome
is not known. DRAINING: the streams that exist go on, new ones are not opened. SILENT: nothing is written any
more, because the wire takes nothing or because our end of it has been said (close_notify); what the peer had
sent is still read. CLOSED is the end. Any state may be skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final


@dataclass(frozen=True, slots=True, eq=False)
class TunnelState:
    """One state. Compared by identity.

    opens: new streams may be opened. writes: frames still go out. closed: the end.
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


OPENING: Final = TunnelState("OPENING", opens=True)
OPEN: Final = TunnelState("OPEN", opens=True)
DRAINING: Final = TunnelState("DRAINING")
SILENT: Final = TunnelState("SILENT", writes=False)
CLOSED: Final = TunnelState("CLOSED", closed=True)

SETTINGS: Final = TunnelInput.SETTINGS
DRAIN: Final = TunnelInput.DRAIN
SILENCE: Final = TunnelInput.SILENCE
END: Final = TunnelInput.END

TUNNEL_TABLE: Final[dict[TunnelState, dict[TunnelInput, TunnelState]]] = {
    OPENING: {SETTINGS: OPEN, DRAIN: DRAINING, SILENCE: SILENT, END: CLOSED},
    OPEN: {SETTINGS: OPEN, DRAIN: DRAINING, SILENCE: SILENT, END: CLOSED},
    DRAINING: {SETTINGS: DRAINING, DRAIN: DRAINING, SILENCE: SILENT, END: CLOSED},
    SILENT: {SETTINGS: SILENT, DRAIN: SILENT, SILENCE: SILENT, END: CLOSED},
    CLOSED: {SETTINGS: CLOSED, DRAIN: CLOSED, SILENCE: CLOSED, END: CLOSED},
}
