"""Relays bytes between an application's socket and a tunnel's stream, or between two sockets.

Each direction ends by itself, and its end is passed on as it came: a half-close as a half-close (FIN,
END_STREAM), a reset as a reset (RST, RST_STREAM). The connection has ended when both directions have ended or
one was reset. A relay that ends in any other way (cancelled, lost, failed) resets both sides, since an end
before both ends were seen would make what was cut off look complete.
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
from ztunnel.loop.bulk import make_room, piece
from ztunnel.loop.watch import Watch
from ztunnel.sockets.hangup import Hangup
from ztunnel.sockets.reset import set_end_on_close, set_reset_on_close
from ztunnel.sockets.splice import PipePool, splice_direction
from ztunnel.tunnel.carrier import StreamClosedError
from ztunnel.tunnel.tunnel_stream import TunnelStream

FIRST_READ = 16 * 1024
LARGEST_READ = 256 * 1024
"""Bytes of one read.

Reads start small, because most messages are small, and grow when they are filled: bulk data is
four times faster with large reads.
"""
TURN = 4
"""Full reads in a row before other tasks may run: at most 1 MiB, if nobody but other bulk streams waits.

With one, eight streams cost a third more CPU (docs/performance.md).
"""

RESETS = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN})
"""The errors of a socket whose application is gone. They are no error of ztunnel."""


class RelayEnd(NamedTuple):
    """How a relay ended.

    ``error``: the text for the access log; None for a normal end or an application's reset.
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
    """Relay between ``sock`` and ``stream`` until both directions have ended.

    ``sock`` is non-blocking, and the caller closes it; ``stream`` is closed here. Closing ``sock`` resets it,
    unless both ends were seen.

    sent_to_stream, received_from_stream: called with the number of bytes after each write.
    outbound: whether we are the client's end of the tunnel, for the text of an error.
    hangup: the watch of ``sock``, which sees a reset while nothing reads ``sock``.
    """
    try:
        with Watch(sock) as watch:
            if hangup is not None:
                hangup.gone = stream.interrupt
            try:
                # The fast path has no nursery: this task uploads, and the tunnel's reader writes downloads
                # into the socket. The stream interrupts this task when that is not enough.
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
            await _wait_sent(sock, stream.bounds.reset_grace)
        return RelayEnd(_stream_error(stream, outbound=outbound))
    finally:
        if stream.whole:
            set_end_on_close(sock)
        else:
            set_reset_on_close(sock)
        stream.close()


async def _relay_with_tasks(
    watch: Watch,
    stream: TunnelStream,
    sent_to_stream: Callable[[int], None] | None,
    hangup: Hangup | None,
) -> None:
    """Continue a relay that was interrupted: the socket is full or was reset, or the stream is dead.

    Most connections never come here, so they need no nursery.

    sent_to_stream: None when the upload has ended.
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
                nursery.start_soon(
                    _drop_input, watch, stream, dropping, name=f"dropping what stream {stream.id} missed"
                )
            await stream.wait_download()
            dropping.cancel()
        finally:
            # The nursery is about to close, so the stream must start no more tasks in it.
            stream.detach()


async def _drop_input(watch: Watch, stream: TunnelStream, scope: trio.CancelScope) -> None:
    """Read and drop what an application sends to a dead stream: it may read only after it has written."""
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
                stream.bound_stall()
                await trio.lowlevel.checkpoint()
        except OSError:
            # The task that writes to this socket gets the error too, and handles it.
            return


def _after_grace(scope: trio.CancelScope, grace: float) -> Callable[[], None]:
    """Returns a function that ends the relay in ``grace`` seconds. It is called when the socket is reset."""

    def gone() -> None:
        scope.deadline = trio.current_time() + grace

    return gone


async def _wait_sent(sock: socket.socket, grace: float) -> None:
    """Wait, at most ``grace`` seconds, until the kernel has sent all that was written to ``sock``.

    A reset, which discards what it has not sent yet, comes after that. With TCP_NOTSENT_LOWAT at 1 the socket
    is writable then (tcp(7)).
    """
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 1)
        with trio.move_on_after(grace):
            await trio.lowlevel.wait_writable(sock)
    except OSError:
        return


def _small_upload(watch: Watch, stream: TunnelStream, sent: Callable[[int], None]) -> Callable[[], bool]:
    """Returns the handler of `Watch.readable` that uploads a small message without a step of the task."""
    sock = watch.sock

    def upload() -> bool:
        if watch.bulk or stream.room() < FIRST_READ:
            return False
        try:
            data = sock.recv(FIRST_READ)
        except BlockingIOError:
            watch.emptied()
            return True
        if not data:
            return False  # the task reads the end once more
        stream.send(data)
        sent(len(data))
        if len(data) == FIRST_READ:
            return False
        watch.emptied()
        return True

    return upload


async def _upload(watch: Watch, stream: TunnelStream, sent: Callable[[int], None]) -> bool:
    """Read the application and send to the stream, until it half-closes or either side is gone.

    Returns whether the upload is over; False when the relay is interrupted.
    """
    sock = watch.sock
    size = FIRST_READ
    full = 0
    handler = _small_upload(watch, stream, sent)
    try:
        while not stream.interrupted:
            if watch.bulk:
                await make_room()
            room = await stream.wait_room()
            if not room:
                return False
            wanted = min(room, piece(size) if watch.bulk else size)
            try:
                data = sock.recv(wanted)
            except BlockingIOError:
                watch.emptied()
                await watch.readable(handler)
                continue
            if not data:
                stream.send_end()
                return True
            stream.send(data)
            count = len(data)
            sent(count)
            if count == wanted:
                size = min(size * 2, LARGEST_READ)
                full += 1
                watch.bulk = size == LARGEST_READ
                if full == TURN:
                    full = 0
                    await trio.lowlevel.checkpoint()
            else:
                full = 0
                if count < FIRST_READ:
                    watch.bulk = False
                # A short read: the socket is empty. Waiting now saves a read that would only say EAGAIN.
                watch.emptied()
                await watch.readable(handler)
    except StreamClosedError:
        return True
    except OSError as error:
        stream.sink_error = error.with_traceback(None)
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
"""Codes of a reset by the other side's application: it stopped reading, or reset its connection.

No errors.
"""


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
    """Relay between two plain sockets with splice(2), so no byte enters Python. The caller closes both.

    Closing them resets them, unless both ends were seen.

    received, sent: called with the number of bytes from client to server, and from server to client.
    hangups: the watches of the sockets. They see a reset of a socket that nothing reads, because its
        direction waits for the other socket to become writable.
    """
    outcome: dict[str, OSError | None] = {}

    async def direction(
        name: str, source: socket.socket, sink: socket.socket, count: Callable[[int], None]
    ) -> None:
        try:
            await splice_direction(source, sink, count, pipes)
            outcome.setdefault(name, None)
        except OSError as error:
            # One side was reset, so the other one is reset too, even if its direction has not ended.
            # Without its traceback, whose frames refer to ``outcome``.
            outcome.setdefault(name, error.with_traceback(None))
            nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for hangup in hangups:
                hangup.gone = _after_grace(nursery.cancel_scope, hangup_grace)
            nursery.start_soon(direction, "send", client, server, received, name="client to server")
            nursery.start_soon(direction, "receive", server, client, sent, name="server to client")
    finally:
        whole = list(outcome.values()) == [None, None]
        ends = set_end_on_close if whole else set_reset_on_close
        ends(client)
        ends(server)
    for name, error in outcome.items():
        if error is not None and error.errno not in RESETS:
            return RelayEnd(f"{name}: io error: {error.strerror}")
    return RelayEnd(None)
