"""What a peer's frames count for in `HboneConnection.take_work`.

A tunnel's turn ends after so many units (`TunnelBounds.turn_work`), and after some turns in a row the tunnel
pauses (`ztunnel.tunnel.rest`). A unit is about two microseconds of CPU for what a stream needs: so many
requests at once are served like those of any peer. What no stream needs counts several times its cost
(`USELESS`). So a turn of a flood is short, for others have to wait while it lasts, and the pause is long.
"""

from __future__ import annotations

from typing import Final

FRAME: Final = 1
"""Any frame that is not plain DATA."""

USELESS: Final = 9
"""More, for a frame that no stream needs: PING, PRIORITY, empty DATA, CONTINUATION and such."""

LATE: Final = 4
"""More, for a frame on a stream that has ended. An honest peer sends some, before it knows of the end."""

REQUEST: Final = 50
"""More, for a request: a part of what it costs to serve it."""

REFUSED: Final = 25
"""More, for a request that is refused before the caller sees it."""

SETTINGS: Final = 60
"""More, for SETTINGS, which the h2 library reads; and for each `SETTINGS_BYTES` bytes of them `FRAME`."""

SETTINGS_BYTES: Final = 8

RESIZED: Final = 5
"""For each stream whose window SETTINGS change."""

GOAWAY: Final = 16
"""More, for GOAWAY, which is told to the caller."""

HEADER_BYTES: Final = 8
"""So many bytes of a large header block, which hpack decodes, count as `FRAME`."""

SMALL_DATA: Final = 128
"""Bytes. A smaller DATA frame is as dear as a large one, and more of them fit into one read."""

SMALL: Final = 8
"""For such a frame, but only in the limit of a turn: it is payload, so the tunnel does not pause for it."""

WINDOW_BYTES: Final = 256
"""A WINDOW_UPDATE that opens less, or more than was used, is one that no stream needs."""
