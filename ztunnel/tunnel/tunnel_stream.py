"""One CONNECT stream of a tunnel, between the tunnel's reader and the connection that uses it.

A stream has two faces. The tunnel's reader calls `data_received`, `ended`, `writable` and `tunnel_lost`; none
of them waits. The connection uses the rest: it attaches an application's socket
(then the reader writes to that socket directly, see `ztunnel.tunnel.tunnel`), or it reads with
`receive_some` (TLS inside a tunnel, for double HBONE).

How a stream ends is kept apart, because applications can tell: END_STREAM is the half-close of a TCP
connection, RST_STREAM its reset, and a lost tunnel a reset that nobody asked for. What had arrived before is
delivered first in all cases. Whether and how it has ended is not kept here: `TunnelStream` asks the sans-IO
stream, whose states are a table (`ztunnel.hbone.stream_state`).
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Protocol

import trio

from ztunnel.bounds import TunnelBounds
from ztunnel.hbone import DataReceived, ErrorCode, HboneConnection, StreamEnded, StreamReset, code_text
from ztunnel.loop.watch import Watch

_VECTOR = 64
"""Pieces for one ``sendmsg``; far below the kernel's limit of 1024, and 1 MiB at full records."""


class StreamClosedError(Exception):
    """The peer reset the stream, or the tunnel was lost.

    ``code`` is the HTTP/2 error code, None for a lost tunnel.
    """

    def __init__(self, code: int | None, text: str) -> None:
        super().__init__(text)
        self.code = code


class Carrier(Protocol):
    """What a stream needs of the tunnel that it is on."""

    @property
    def bounds(self) -> TunnelBounds:
        """How long is waited for whom."""

    @property
    def hbone(self) -> HboneConnection:
        """The sans-IO connection."""

    @property
    def blocked(self) -> bool:
        """Whether nothing should be sent now, since the wire is full."""

    @property
    def failure(self) -> str | None:
        """Why the tunnel ended, for a log line."""

    def flush(self) -> None:
        """Write what the sans-IO connection has to say."""

    def forget(self, stream: TunnelStream) -> None:
        """Whoever used the stream is done with it."""


class TunnelStream:
    """A stream and where its incoming bytes go.

    Made by a tunnel; whoever uses it calls `close` at the end. on_death: called when the peer resets it or
    its tunnel is lost, for who waits for something else on its behalf. download_done: the socket has all
    that came, or nothing more can be brought to it. interrupted: the one task that relays has to look after
    more than its upload: the stream died, the socket is full and nobody can wait for it yet (`wait_in`), or
    the socket was reset.
    """

    __slots__ = (
        "_book",
        "_carrier",
        "_discards",
        "_drain_scope",
        "_hbone",
        "_inbox",
        "_nursery",
        "_sock",
        "_taken",
        "_wake_reader",
        "_wake_relay",
        "_wake_writer",
        "_watch",
        "download_done",
        "id",
        "interrupted",
        "on_death",
        "sink_error",
    )

    def __init__(self, carrier: Carrier, stream_id: int) -> None:
        self.id = stream_id
        self.sink_error: OSError | None = None
        self.on_death: Callable[[], None] | None = None
        self.download_done = False
        self.interrupted = False
        self._carrier = carrier
        self._hbone = carrier.hbone
        self._book = self._hbone.stream(stream_id)
        self._inbox: deque[bytes | memoryview] = deque()
        # Nobody takes what arrives: it is dropped, and its window given back.
        self._discards = False
        self._sock: socket.socket | None = None
        self._watch: Watch | None = None
        self._nursery: trio.Nursery | None = None
        self._taken: Callable[[int], None] | None = None
        self._drain_scope: trio.CancelScope | None = None
        self._wake_reader = trio.lowlevel.ParkingLot()
        self._wake_writer = trio.lowlevel.ParkingLot()
        self._wake_relay = trio.lowlevel.ParkingLot()

    # -- for the connection -------------------------------------------------------------------------------

    @property
    def bounds(self) -> TunnelBounds:
        """The tunnel's."""
        return self._carrier.bounds

    @property
    def end_sent(self) -> bool:
        """Whether we have half-closed."""
        return self._book.end_sent

    @property
    def end_received(self) -> bool:
        """Whether the peer has half-closed."""
        return self._book.end_received

    @property
    def dead(self) -> bool:
        """Whether the stream was reset or the tunnel is lost: nothing can be sent any more."""
        return self._book.dead

    @property
    def lost(self) -> bool:
        """Whether the tunnel was closed under the stream."""
        return self._book.lost

    @property
    def reset_code(self) -> int | None:
        """The code with which either side reset the stream; None if none did."""
        return self._book.reset_code

    @property
    def reset_by_peer(self) -> bool:
        """Whether it was the peer that reset the stream."""
        return self._book.reset_by_peer

    @property
    def held(self) -> int:
        """Bytes that arrived and that the application has not taken."""
        return sum(map(len, self._inbox))

    @property
    def send_window(self) -> int:
        """Bytes that the peer permits us to send now."""
        return self._hbone.send_window(self.id)

    @property
    def blocked(self) -> bool:
        """Whether the tunnel's wire is full."""
        return self._carrier.blocked

    def attach(self, watch: Watch, taken: Callable[[int], None]) -> None:
        """From now on write what arrives to the socket that is watched (non-blocking, owned by the caller).

        taken: told the count of bytes written.
        """
        self._sock = watch.sock
        self._watch = watch
        self._taken = taken
        self.deliver()
        self._carrier.flush()

    def wait_in(self, nursery: trio.Nursery) -> None:
        """From now on a task in this nursery waits for the socket when it is full.

        That ends an interruption.
        """
        self._nursery = nursery
        self.interrupted = False
        self.deliver()
        self._carrier.flush()

    def detach(self) -> None:
        """Write nothing more to the socket, and start no task."""
        self._nursery = self._watch = None

    def interrupt(self) -> None:
        """Have the task that relays come back from what it waits for; see ``interrupted``."""
        self.interrupted = True
        self._wake_writer.unpark_all()
        self._wake_relay.unpark_all()
        if self._watch is not None:
            self._watch.interrupt()

    async def wait_download(self) -> None:
        """Wait until the download is done; before `wait_in`, until the relay is interrupted too."""
        while not (self.download_done or (self.interrupted and self._nursery is None)):
            await self._wake_relay.park()

    def end_download(self) -> None:
        """Nothing more can be brought to the socket."""
        self.download_done = True
        self._wake_relay.unpark_all()

    async def wait_room(self) -> int:
        """Wait until something may be sent. Returns how many bytes; 0 when the relay is interrupted.

        Raises StreamClosedError when it never may.
        """
        carrier = self._carrier
        while True:
            self._raise_if_dead()
            if not carrier.blocked:
                window = self._hbone.send_window(self.id)
                if window:
                    return window
            if self.interrupted:
                return 0
            await self._wake_writer.park()

    def send(self, data: bytes | memoryview) -> None:
        """Frame and write data that `wait_room` said there is room for."""
        self._hbone.send_data(self.id, data)
        self._carrier.flush()

    def send_end(self) -> None:
        """Half-close: nothing more will be sent. Harmless on a dead stream."""
        if self._book.state.sends:
            self._hbone.end_stream(self.id)
            self._carrier.flush()

    def reset(self, code: int) -> None:
        """Abort the stream in both directions. Harmless on a closed stream."""
        self._discards = True
        if not self._book.state.closed:
            self._hbone.reset(self.id, code)
            self._carrier.flush()
        self._give_back_inbox()

    def close(self) -> None:
        """The connection is done; a stream that is still open in a direction is reset with CANCEL."""
        if self._drain_scope is not None:
            self._drain_scope.cancel()
        self._sock = self._watch = None
        self.reset(ErrorCode.CANCEL)
        self._carrier.forget(self)

    async def receive_some(self, max_bytes: int) -> bytes | memoryview:
        """Take what has arrived, ``b""`` after END_STREAM. For a stream without a socket.

        Raises StreamClosedError after a reset, once everything before it has been taken.
        """
        while not self._inbox:
            if self.end_received:
                return b""
            self._raise_if_dead()
            await self._wake_reader.park()
        data = self._inbox[0]
        if len(data) > max_bytes:
            data = memoryview(data)[:max_bytes]
        self._took(len(data))
        self._carrier.flush()
        return data

    def _raise_if_dead(self) -> None:
        if self._book.dead:
            code = self._book.reset_code
            text = code_text(code) if code is not None else self._carrier.failure or "the tunnel was closed"
            raise StreamClosedError(code, text)

    # -- for the tunnel's reader ------------------------------------------------------------------------

    def data_received(self, event: DataReceived) -> bool:
        """Keep data until the end of the batch. Returns whether the stream has to be delivered then."""
        if self._discards:
            self._hbone.acknowledge(self.id, len(event.data))
            return False
        inbox = self._inbox
        inbox.append(event.data)
        return len(inbox) == 1 or self._drain_scope is None

    def ended(self, event: StreamEnded | StreamReset) -> bool:
        """The peer half-closed or reset the stream. Returns whether the stream has to be delivered."""
        if isinstance(event, StreamReset):
            self._died()
        return True

    def writable(self) -> None:
        """Windows or the wire have room again."""
        self._wake_writer.unpark_all()

    def tunnel_lost(self) -> None:
        """The tunnel is closed under the stream."""
        self._died()
        self.deliver()

    def _died(self) -> None:
        """Nothing can be sent any more: whoever waits for this stream, or on behalf of it, is told."""
        if self._book.overdrawn:
            # The dead hold too much together: what it had received goes at once.
            self._discards = True
            if self._drain_scope is not None:
                self._drain_scope.cancel()
            self._give_back_inbox()
        self.interrupt()
        self._bound_stall()
        if self.on_death is not None:
            self.on_death()

    def deliver(self) -> None:
        """Hand the inbox to its consumer."""
        if self._sock is None:
            self._wake_reader.unpark_all()
        elif self._watch is not None and self._drain_scope is None and not self.download_done:
            self._push()

    # -- writing to the application's socket -------------------------------------------------------------

    def _push(self) -> None:
        """Write the inbox now, or leave the rest of it to a drain task."""
        if self._write_inbox():
            return
        if self._nursery is None:
            # Whoever relays has to open one.
            self.interrupt()
            return
        self._drain_scope = trio.CancelScope()
        self._bound_stall()
        self._nursery.start_soon(self._drain, self._drain_scope, name=f"drain of stream {self.id}")

    async def _drain(self, scope: trio.CancelScope) -> None:
        """Wait for the one socket that is full, until the inbox is empty again."""
        watch = self._watch
        with scope:
            while watch is not None:
                await watch.writable()
                written = self._write_inbox()
                self._carrier.flush()
                if written:
                    break
                self._bound_stall()
        self._drain_scope = None
        if scope.cancelled_caught:
            self._give_back_inbox()
            self.end_download()

    def _bound_stall(self) -> None:
        if self._drain_scope is not None and self.dead:
            self._drain_scope.deadline = trio.current_time() + self._carrier.bounds.stalled_application

    def _write_inbox(self) -> bool:
        """Write until the inbox is empty, and half-close after the end.

        Returns False when the socket is full.
        """
        sock, inbox = self._sock, self._inbox
        assert sock is not None
        try:
            while inbox:
                one = len(inbox) == 1
                self._took(sock.send(inbox[0]) if one else sock.sendmsg(list(islice(inbox, _VECTOR))))
            if self.end_received and not self.dead:
                sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return False
        except OSError as error:
            self._sink_failed(error)
            return True
        if self.end_received or self.dead:
            self.end_download()
        return True

    def _sink_failed(self, error: OSError) -> None:
        """The application is gone.

        An application that had closed first only stopped reading (RFC 9113 8.5).
        """
        self.sink_error = error
        self.reset(ErrorCode.NO_ERROR if self.end_sent else ErrorCode.CONNECT_ERROR)
        self.interrupt()
        self.end_download()

    def _took(self, count: int) -> None:
        inbox = self._inbox
        left = count
        while left:
            piece = inbox[0]
            size = len(piece)
            if size <= left:
                inbox.popleft()
                left -= size
            else:
                inbox[0] = memoryview(piece)[left:]
                left = 0
        self._hbone.acknowledge(self.id, count)
        if self._taken is not None:
            self._taken(count)

    def _give_back_inbox(self) -> None:
        if self._inbox:
            self._inbox.clear()
            self._hbone.discard(self.id)
            self._carrier.flush()

    def wake(self) -> None:
        """Let whoever waits look again: the stream has been closed under it."""
        self._wake_reader.unpark_all()
        self._wake_writer.unpark_all()
