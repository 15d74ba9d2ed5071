"""Lingering: ending a tunnel without losing what its streams sent before.

When a socket is closed and its peer still sends something (a WINDOW_UPDATE, an answer to a PING), the kernel
answers with a reset, and the reset discards data that is still on its way: the last bytes of streams that
ended well. So after close_notify the socket stays open until the peer has closed its end. A peer that has
acknowledged everything is not waited for longer than a moment, because a reset can no longer discard
anything.
"""

from __future__ import annotations

import trio

from ztunnel.tls.tls_connection import TlsConnection
from ztunnel.tls.tls_errors import TlsError


async def wait_received(tls: TlsConnection, closing: float, interval: float) -> None:
    """Wait until the peer has received everything and has closed its end. What it sends is dropped.

    Call it after close_notify. The caller limits the whole wait and closes ``tls`` afterwards.

    closing: seconds for which a peer that has received everything is waited for. interval: seconds between
    two checks of how many bytes the peer has not acknowledged.
    """
    left = closing
    while left > 0:
        if not tls.unacknowledged:
            left -= interval
        with trio.move_on_after(interval):
            await _read_away(tls)
            return


async def _read_away(tls: TlsConnection) -> None:
    try:
        while (data := tls.try_receive()) != b"":
            if data:
                await trio.lowlevel.checkpoint()
            else:
                await tls.wait_receivable()
    except (OSError, TlsError):
        return
