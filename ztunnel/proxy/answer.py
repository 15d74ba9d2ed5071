"""Waiting for the answer to a CONNECT of ours, and what each answer but 200 means for the connection."""

from __future__ import annotations

import trio

from ztunnel.hbone import ErrorCode, error_text
from ztunnel.proxy.errors import (
    ConnectTimeoutError,
    Http2Error,
    RefusedByPeerError,
    StreamRefusedError,
    TunnelLostError,
)
from ztunnel.proxy.stream import StreamClosedError, TunnelStream

ANSWER_TIMEOUT = 20.0
"""Seconds for the answer to CONNECT: the other end may itself wait ten for its application."""


async def accepted(stream: TunnelStream) -> TunnelStream:
    """Wait for the answer to a CONNECT; the stream is closed unless it is 200.

    Raises RefusedByPeerError for another status, StreamRefusedError when the peer has not looked at the
    request, TunnelLostError, Http2Error for any other reset, ConnectTimeoutError.
    """
    try:
        with trio.fail_after(ANSWER_TIMEOUT):
            response = await stream.wait_response()
    except trio.TooSlowError:
        stream.close()
        raise ConnectTimeoutError(ANSWER_TIMEOUT) from None
    except StreamClosedError as error:
        stream.close()
        if error.code is None:
            raise TunnelLostError(str(error)) from error
        text = error_text("stream", "received", error.code)
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
