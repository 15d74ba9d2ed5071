"""The end of a tunnel that we choose, without losing what its streams had sent before.

A socket that is closed while its peer still sends (a WINDOW_UPDATE, an answer to a PING) answers with a
reset, and a reset throws away what is still on its way: the last bytes of streams that had ended well. So
after the last record, which says close_notify, the socket is kept until the peer has closed its end too. A
peer that has got everything and does not close is not waited for: a reset can take nothing from it any more.
"""

from __future__ import annotations

import trio

from ztunnel.tls.tls_connection import TlsConnection
from ztunnel.tls.tls_errors import TlsError


async def wait_received(tls: TlsConnection, closing: float, interval: float) -> None:
    """After close_notify: wait until the peer has everything. What it sends is dropped.

    closing: seconds for a peer that has everything to close its end. interval: seconds between
    two looks at how much has not arrived yet. The caller bounds the whole wait, and
    closes.
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
