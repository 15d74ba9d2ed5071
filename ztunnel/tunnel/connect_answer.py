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
from ztunnel.tunnel.tunnel_stream import StreamClosedError


async def accepted(stream: ClientStream) -> ClientStream:
    """Wait for the answer to a CONNECT; the stream is closed unless it is 200.

    Raises RefusedByPeerError for another status, StreamRefusedError when the peer has not looked at the
    request, TunnelLostError (also for a tunnel that gives no sign of life), Http2Error for any other reset,
    ConnectTimeoutError.
    """
    try:
        response = await _answer(stream)
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
    tunnel = stream.tunnel
    bounds = tunnel.bounds
    asked = trio.current_time()
    until = asked + bounds.answer_timeout
    with trio.move_on_at(min(asked + bounds.probe_after, until)):
        return await stream.wait_response()
    asked = trio.current_time()
    tunnel.probe()
    with trio.move_on_at(min(asked + bounds.probe_timeout, until)):
        return await stream.wait_response()
    if tunnel.heard < asked and trio.current_time() < until:
        raise TunnelLostError(f"no sign of life within {bounds.probe_timeout:g} s")
    with trio.move_on_at(until):
        return await stream.wait_response()
    raise ConnectTimeoutError(bounds.answer_timeout)
