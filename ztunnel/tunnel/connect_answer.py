"""Waits for the response to our CONNECT, and turns every response but 200 into an exception.

A response may take long for two reasons. The application at the other end is slow to accept connections; or
the other end does not exist any more (a node lost its power, a pod's interface is gone) and nobody can
answer. A PING tells the two apart within seconds, long before the tunnel's regular pings would notice.
"""

from __future__ import annotations

import trio

from ztunnel.hbone import ErrorCode, Responded, error_text
from ztunnel.tunnel.carrier import StreamClosedError
from ztunnel.tunnel.client_tunnel import ClientStream
from ztunnel.tunnel.failures import (
    ConnectTimeoutError,
    Http2Error,
    RefusedByPeerError,
    StreamRefusedError,
    TunnelLostError,
)


async def accepted(stream: ClientStream) -> ClientStream:
    """Wait for the response to a CONNECT. Returns the stream if the status is 200; otherwise closes it.

    Raises RefusedByPeerError for another status, StreamRefusedError when the peer refused the stream unseen
    (REFUSED_STREAM), Http2Error for any other reset, TunnelLostError when the tunnel ended or the peer did
    not answer a PING either, ConnectTimeoutError after ``TunnelBounds.answer_timeout``.
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
