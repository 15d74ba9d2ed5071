"""Moving bytes between an application's socket and a tunnel's stream, or between two sockets.

Each direction ends by itself. The end of one is passed on as what it was: an end as an end (FIN, END_STREAM),
a reset as a reset (RST, RST_STREAM). Only when both directions are over, or one of them was reset, the
connection is over.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

import trio

from ztunnel.bounds import DEFAULTS
from ztunnel.hbone import ErrorCode, error_text
from ztunnel.loop.watch import Watch
from ztunnel.sockets.hangup import Hangup
from ztunnel.sockets.reset import set_reset_on_close
from ztunnel.sockets.splice import PipePool, splice_direction
from ztunnel.tunnel.tunnel_stream import StreamClosedError, TunnelStream

FIRST_READ = 16 * 1024
LARGEST_READ = 256 * 1024
"""Reads start small, since most messages are, and grow with what arrives: bulk data moves four times faster
in large ones.
"""

TURN = 4
"""Reads in a row before another task gets its turn: at most 1 MiB."""

RESETS = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN})
"""What a socket says when its application is gone; not an error of ours."""


class RelayEnd(NamedTuple):
    """How a relay ended.

    ``error`` is the text for the access log, None for a normal end (an application's reset is one).
    """

    error: str | None


async def relay_stream(
    sock: socket.socket,
    stream: TunnelStream,
    *,
    sent_to_stream: Callable[[int], None],
    received_from_stream: Callable[[int], None],
    outbound: bool,
    hangup: Hangup | None = None,
) -> RelayEnd:
    """Relay between ``sock`` (non-blocking, stays the caller's to close) and ``stream`` (closed here).

    The callbacks get counts of bytes as they are written. ``outbound`` says on which side of the tunnel we
    are, for the text of an error. ``hangup``: the watch of ``sock``, for when nobody reads it.
    """
    try:
        with Watch(sock) as watch:
            if hangup is not None:
                hangup.gone = stream.interrupt
            try:
                stream.attach(watch, received_from_stream)
                uploaded = await _upload(watch, stream, sent_to_stream)
                if uploaded:
                    await stream.wait_download()
                if not (stream.download_done and (uploaded or stream.dead)):
                    upload = None if uploaded else sent_to_stream
                    await _relay_with_tasks(watch, stream, upload, hangup)
            finally:
                stream.detach()
        if hangup is not None and hangup.happened and not stream.download_done:
            stream.sink_error = OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            stream.reset(ErrorCode.CONNECT_ERROR)
        if stream.dead:
            await _reset_after_sending(sock, stream.bounds.reset_grace)
        return RelayEnd(_stream_error(stream, outbound=outbound))
    finally:
        stream.close()


async def _relay_with_tasks(
    watch: Watch,
    stream: TunnelStream,
    sent_to_stream: Callable[[int], None] | None,
    hangup: Hangup | None,
) -> None:
    """The rest of a relay that was interrupted: the socket is full, was reset, or the stream died under it.

    Most connections never come here, and so need no nursery. sent_to_stream: None when the upload is over.
    """
    async with trio.open_nursery() as nursery:
        if hangup is not None:
            hangup.gone = _after_grace(nursery.cancel_scope, stream.bounds.hangup_grace)
            if hangup.happened:
                hangup.gone()
        try:
            stream.wait_in(nursery)
            if sent_to_stream is not None and not stream.dead:
                await _upload(watch, stream, sent_to_stream)
            dropping = trio.CancelScope()
            if stream.dead and not stream.download_done:
                nursery.start_soon(_drop, watch, dropping, name=f"dropping what stream {stream.id} missed")
            await stream.wait_download()
            dropping.cancel()
        finally:
            # No task may be started any more: the nursery is about to close.
            stream.detach()


async def _drop(watch: Watch, scope: trio.CancelScope) -> None:
    """Take what an application still sends to a dead stream: it may read only when it has written."""
    with scope:
        try:
            while True:
                try:
                    data = watch.sock.recv(LARGEST_READ)
                except BlockingIOError:
                    watch.emptied()
                    await watch.readable()
                    continue
                if not data:
                    return
                await trio.lowlevel.checkpoint()
        except OSError:
            # The one who writes to it finds out as well.
            return


def _after_grace(scope: trio.CancelScope, grace: float) -> Callable[[], None]:
    """Returns what ends a relay whose socket was reset, unless it ends by itself soon."""

    def gone() -> None:
        scope.deadline = trio.current_time() + grace

    return gone


async def _reset_after_sending(sock: socket.socket, grace: float) -> None:
    """Have the application see a reset, after what the peer had sent before it.

    A reset throws away what the kernel has not sent yet, so that is waited for, as long as the application
    reads: with TCP_NOTSENT_LOWAT at 1 a socket is writable when nothing is left to send (tcp(7)).
    """
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 1)
        with trio.move_on_after(grace):
            await trio.lowlevel.wait_writable(sock)
    except OSError:
        return
    set_reset_on_close(sock)


async def _upload(watch: Watch, stream: TunnelStream, sent: Callable[[int], None]) -> bool:
    """Read the application and send to the stream, until it half-closes or either side is gone.

    Returns whether the upload is over; False when the relay is interrupted.
    """
    sock = watch.sock
    size = FIRST_READ
    turn = 0
    try:
        while not stream.interrupted:
            room = await stream.wait_room()
            if not room:
                return False
            wanted = min(size, room)
            try:
                data = sock.recv(wanted)
            except BlockingIOError:
                turn = 0
                watch.emptied()
                await watch.readable()
                continue
            if not data:
                stream.send_end()
                return True
            stream.send(data)
            count = len(data)
            sent(count)
            if count == wanted:
                size = min(size * 2, LARGEST_READ)
                turn += 1
                if turn == TURN:
                    turn = 0
                    await trio.lowlevel.checkpoint()
            else:
                turn = 0
                watch.emptied()
                await watch.readable()
    except StreamClosedError:
        return True
    except OSError as error:
        stream.sink_error = error
        stream.reset(ErrorCode.CONNECT_ERROR)
        stream.end_download()
        return True
    return False


def _stream_error(stream: TunnelStream, *, outbound: bool) -> str | None:
    if stream.sink_error is not None and stream.sink_error.errno not in RESETS:
        return f"{'receive' if outbound else 'send'}: io error: {stream.sink_error.strerror}"
    if stream.lost:
        if outbound:
            return "send: destination disconnected before all data was written"
        return "receive: client disconnected before all data was written"
    code = stream.reset_code
    if stream.sink_error is not None or code is None or code in _QUIET_CODES:
        return None
    return f"{'receive' if outbound else 'send'}: io error: {error_text('stream', 'received', code)}"


_QUIET_CODES = frozenset({ErrorCode.NO_ERROR, ErrorCode.CANCEL, ErrorCode.CONNECT_ERROR})
"""How the other side's application ends a connection: it stopped reading, or was reset."""


async def relay_plain(
    client: socket.socket,
    server: socket.socket,
    *,
    pipes: PipePool,
    received: Callable[[int], None],
    sent: Callable[[int], None],
    hangups: Sequence[Hangup] = (),
    hangup_grace: float = DEFAULTS.tunnel.hangup_grace,
) -> RelayEnd:
    """Relay between two plain sockets without bringing a byte into Python; both stay the caller's to close.

    ``received`` counts client to server, ``sent`` server to client. ``hangups``: the watches of the
    sockets, for when a direction does not read its own because it waits for the other to take bytes.
    """
    outcome: dict[str, OSError] = {}

    async def direction(
        name: str, source: socket.socket, sink: socket.socket, count: Callable[[int], None]
    ) -> None:
        try:
            await splice_direction(source, sink, count, pipes)
        except OSError as error:
            # One side was reset, so the other is too, whatever its own direction still had to say.
            outcome.setdefault(name, error)
            set_reset_on_close(client)
            set_reset_on_close(server)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for hangup in hangups:
            hangup.gone = _after_grace(nursery.cancel_scope, hangup_grace)
        nursery.start_soon(direction, "send", client, server, received, name="client to server")
        nursery.start_soon(direction, "receive", server, client, sent, name="server to client")
    if nursery.cancel_scope.cancelled_caught and any(hangup.happened for hangup in hangups):
        set_reset_on_close(client)
        set_reset_on_close(server)
    for name, error in outcome.items():
        if error.errno not in RESETS:
            return RelayEnd(f"{name}: io error: {error.strerror}")
    return RelayEnd(None)
