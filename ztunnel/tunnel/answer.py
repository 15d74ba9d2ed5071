"""Waiting for the answer to a CONNECT of ours, and what each answer but 200 means for the connection.

An answer may take long because the application at the other end is slow to take connections, or because
there is no other end any more: a node that lost its power, a pod whose interface is gone, say nothing. A PING
tells the two apart within seconds, long before the tunnel's own pings would notice.
"""

from __future__ import annotations

import trio

from ztunnel.hbone import ErrorCode, Responded, error_text
from ztunnel.tunnel.client_tunnel import ClientStream
from ztunnel.tunnel.failures import (
    ConnectTimeoutError,
    Http2Error,
    RefusedByPeerError,
    StreamRefusedError,
    TunnelLostError,
)
from ztunnel.tunnel.stream import StreamClosedError

ANSWER_TIMEOUT = 20.0
"""Seconds for the answer to CONNECT: the other end may itself wait ten for its application."""

PROBE_AFTER = 1.0
"""Seconds without an answer after which the peer is asked for a sign of life."""

PROBE_TIMEOUT = 2.0
"""Seconds for that sign: any byte will do."""


async def accepted(stream: ClientStream) -> ClientStream:
    """Wait for the answer to a CONNECT; the stream is closed unless it is 200.

    Raises RefusedByPeerError for another status, StreamRefusedError when the peer has not looked at the
    request, TunnelLostError (also for a tunnel that gives no sign of life), Http2Error for any other reset,
    ConnectTimeoutError.
    """
    try:
        with trio.fail_after(ANSWER_TIMEOUT):
            response = await _answer(stream)
    except trio.TooSlowError:
        stream.close()
        raise ConnectTimeoutError(ANSWER_TIMEOUT) from None
    except StreamClosedError as error:
        stream.close()
        if error.code is None:
            raise TunnelLostError(str(error)) from error
        text = error_text("stream", "received" if stream.reset_by_peer else "detected", error.code)
        if error.code == ErrorCode.REFUSED_STREAM:
            raise StreamRefusedError(text) from error
        raise Http2Error(text) from error
    except BaseException:
        stream.close()
        raise
    if response.status != 200:
        stream.close()
        raise RefusedByPeerError(response.status)
    return stream


async def _answer(stream: ClientStream) -> Responded:
    with trio.move_on_after(PROBE_AFTER):
        return await stream.wait_response()
    tunnel = stream.tunnel
    asked = trio.current_time()
    tunnel.probe()
    with trio.move_on_after(PROBE_TIMEOUT):
        return await stream.wait_response()
    if tunnel.heard < asked:
        stream.close()
        raise TunnelLostError(f"no sign of life within {PROBE_TIMEOUT:g} s")
    return await stream.wait_response()
