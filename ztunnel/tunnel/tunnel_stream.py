"""One CONNECT stream of a tunnel, between the tunnel's reader and the connection that uses it.

A stream has two users. The tunnel's reader calls `data_received`, `ended`, `writable` and `tunnel_lost`, none
of which waits. The connection calls the rest. It attaches an application's socket, and then the reader writes
to that socket directly (see `ztunnel.tunnel.tunnel`); or it reads with `receive_some`, for TLS inside the
stream (double HBONE).

A stream can end in three ways, which applications can tell apart: END_STREAM is the half-close of a TCP
connection, RST_STREAM is its reset, and the loss of the tunnel is a reset that nobody asked for. What arrived
before is delivered first in every case. The state of the stream is not stored here: `TunnelStream` asks the
sans-IO stream, whose states are a table (`ztunnel.hbone.stream_state`).
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from itertools import islice

import trio

from ztunnel.bounds import TunnelBounds
from ztunnel.hbone import DataReceived, ErrorCode, StreamEnded, StreamReset, code_text
from ztunnel.loop.waiter import Waiter
from ztunnel.loop.watch import Watch
from ztunnel.tunnel.carrier import Carrier, StreamClosedError

_VECTOR = 64
"""Pieces for one ``sendmsg``: far below the kernel's limit of 1024, and 1 MiB of full TLS records."""


class TunnelStream:
    """A stream and the place where its incoming bytes go.

    A tunnel makes it; its user must call `close`.

    on_death: called when the peer resets the stream or its tunnel is lost, for a task that waits for
        something else meanwhile (a dial).
    download_done: all incoming bytes were written to the socket, or cannot be.
    interrupted: the task that relays must do more than its upload, because the stream is dead, the socket was
        reset, or the socket is full and there is no nursery yet for a drain task (`wait_in`).
    sink_error: the error with which writing to the socket failed, None without one. It has no traceback,
        whose frames would refer to this stream: only the garbage collector could free the connection.
    """

    __slots__ = (
        "_carrier",
        "_discards",
        "_drain_scope",
        "_h2_stream",
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
        self._h2_stream = self._hbone.stream(stream_id)
        self._inbox: deque[bytes | memoryview] = deque()
        # Data that arrives is dropped and its window given back: the user has ended the stream.
        self._discards = False
        self._sock: socket.socket | None = None
        self._watch: Watch | None = None
        self._nursery: trio.Nursery | None = None
        self._taken: Callable[[int], None] | None = None
        self._drain_scope: trio.CancelScope | None = None
        self._wake_reader = Waiter()
        self._wake_writer = Waiter()
        self._wake_relay = Waiter()

    # -- for the connection that uses the stream -----------------------------------------------------------

    @property
    def bounds(self) -> TunnelBounds:
        """The limits of waiting, those of the tunnel."""
        return self._carrier.bounds

    @property
    def end_sent(self) -> bool:
        """Whether we have half-closed."""
        return self._h2_stream.end_sent

    @property
    def end_received(self) -> bool:
        """Whether the peer has half-closed."""
        return self._h2_stream.state.end_received

    @property
    def dead(self) -> bool:
        """Whether the stream was reset or the tunnel is lost: nothing can be sent any more."""
        return self._h2_stream.state.dead

    @property
    def lost(self) -> bool:
        """Whether the tunnel ended before the stream."""
        return self._h2_stream.lost

    @property
    def whole(self) -> bool:
        """Whether both ends were seen and passed on: ours is sent, and the socket has all that arrived."""
        return self.end_sent and self.download_done and not (self.sink_error or self.dead)

    @property
    def reset_code(self) -> int | None:
        """The code with which either side reset the stream; None without a reset."""
        return self._h2_stream.reset_code

    @property
    def reset_by_peer(self) -> bool:
        """Whether it was the peer that reset the stream."""
        return self._h2_stream.reset_by_peer

    @property
    def held(self) -> int:
        """How many bytes arrived that the application has not taken."""
        return sum(map(len, self._inbox))

    @property
    def send_window(self) -> int:
        """How many bytes the peer's windows permit us to send now."""
        return self._hbone.send_window(self.id)

    @property
    def blocked(self) -> bool:
        """Whether the tunnel's TLS connection would block."""
        return self._carrier.blocked

    def attach(self, watch: Watch, taken: Callable[[int], None]) -> None:
        """From now on write what arrives to the socket of ``watch``.

        The socket is non-blocking and belongs to the caller, who closes it after `close`.
        taken: called with the number of bytes after each write.
        """
        self._sock = watch.sock
        self._watch = watch
        self._taken = taken
        self.deliver()
        self._carrier.flush()

    def wait_in(self, nursery: trio.Nursery) -> None:
        """From now on a task in this nursery waits when the socket is full, which ends an interruption."""
        self._nursery = nursery
        self.interrupted = False
        self.deliver()
        self._carrier.flush()

    def detach(self) -> None:
        """Write nothing more to the socket, and start no task."""
        self._nursery = self._watch = None

    def interrupt(self) -> None:
        """Wake the task that relays from its wait (see ``interrupted``)."""
        self.interrupted = True
        self._wake_writer.wake()
        self._wake_relay.wake()
        if self._watch is not None:
            self._watch.interrupt()

    async def wait_download(self) -> None:
        """Wait until the download is done. Before `wait_in` it also returns when the relay is interrupted."""
        while not (self.download_done or (self.interrupted and self._nursery is None)):
            await self._wake_relay.park()

    def end_download(self) -> None:
        """Nothing more can be written to the socket."""
        self.download_done = True
        self._wake_relay.wake()

    def room(self) -> int:
        """Returns how many bytes may be sent now; 0 also when the relay is interrupted."""
        if self.interrupted or self._carrier.blocked or self._h2_stream.state.dead:
            return 0
        return self._hbone.send_window(self.id)

    async def wait_room(self) -> int:
        """Wait until something may be sent. Returns how many bytes; 0 when the relay is interrupted.

        Raises StreamClosedError after a reset or the loss of the tunnel.
        """
        while True:
            self._raise_if_dead()
            room = self.room()
            if room or self.interrupted:
                return room
            await self._wake_writer.park()

    def send(self, data: bytes | memoryview) -> None:
        """Frame and write ``data``, which is not longer than `wait_room` returned."""
        self._hbone.send_data(self.id, data)
        self._carrier.flush()

    def send_end(self) -> None:
        """Half-close: nothing more will be sent. Does nothing on a dead stream."""
        if self._h2_stream.state.sends:
            self._hbone.end_stream(self.id)
            self._carrier.flush()

    def reset(self, code: int) -> None:
        """Abort the stream in both directions and drop what was received. Does nothing on a closed stream."""
        self._discards = True
        if not self._h2_stream.state.closed:
            self._hbone.reset(self.id, code)
            self._carrier.flush()
        self._give_back_inbox()

    def close(self) -> None:
        """End the use of the stream. If a direction is still open, the stream is reset with CANCEL."""
        if self._drain_scope is not None:
            self._drain_scope.cancel()
        self._sock = self._watch = None
        self.reset(ErrorCode.CANCEL)
        self._carrier.forget(self)

    async def receive_some(self, max_bytes: int) -> bytes | memoryview:
        """Wait for bytes and return up to ``max_bytes`` of them, ``b""`` after END_STREAM.

        For a stream without an attached socket. Raises StreamClosedError after a reset or the loss of the
        tunnel, once everything before was taken.
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
        if self.dead:
            code = self.reset_code
            text = code_text(code) if code is not None else self._carrier.failure or "the tunnel was closed"
            raise StreamClosedError(code, text)

    # -- for the tunnel's reader ------------------------------------------------------------------------

    def data_received(self, event: DataReceived) -> bool:
        """Put data into the inbox. Returns whether `deliver` must be called at the end of the batch."""
        if self._discards:
            self._hbone.acknowledge(self.id, len(event.data))
            return False
        inbox = self._inbox
        inbox.append(event.data)
        return len(inbox) == 1 or self._drain_scope is None

    def ended(self, event: StreamEnded | StreamReset) -> bool:
        """The peer half-closed or reset the stream. Returns whether `deliver` must be called."""
        if isinstance(event, StreamReset):
            self._died()
        return True

    def writable(self) -> None:
        """Windows or the wire have room again."""
        self._wake_writer.wake()

    def tunnel_lost(self) -> None:
        """The tunnel has ended, and with it the stream."""
        self._died()
        self.deliver()

    def _died(self) -> None:
        """Nothing can be sent any more: wake all tasks that wait for this stream."""
        if self._h2_stream.overdrawn:
            # The budget of the process is used up, so a dead stream may not hold its received bytes.
            self._discards = True
            if self._drain_scope is not None:
                self._drain_scope.cancel()
            self._give_back_inbox()
        self.interrupt()
        self.bound_stall()
        if self.on_death is not None:
            self.on_death()

    def deliver(self) -> None:
        """Write the inbox to the socket, or wake the task in `receive_some`."""
        if self._sock is None:
            self._wake_reader.wake()
        elif self._watch is not None and self._drain_scope is None and not self.download_done:
            self._push()

    # -- writing to the application's socket -------------------------------------------------------------

    def _push(self) -> None:
        """Write the inbox now. A drain task gets what the socket does not take."""
        if self._write_inbox():
            return
        if self._nursery is None:
            # Most relays never need a nursery. They start without one, and open it when they are interrupted.
            self.interrupt()
            return
        self._drain_scope = trio.CancelScope()
        self.bound_stall()
        self._nursery.start_soon(self._drain, self._drain_scope, name=f"drain of stream {self.id}")

    async def _drain(self, scope: trio.CancelScope) -> None:
        """Write to the full socket whenever it has room, until the inbox is empty."""
        watch = self._watch
        with scope:
            while watch is not None:
                await watch.writable()
                written = self._write_inbox()
                self._carrier.flush()
                if written:
                    break
                self.bound_stall()
        self._drain_scope = None
        if scope.cancelled_caught:
            self._give_back_inbox()
            self.end_download()

    def bound_stall(self) -> None:
        """The application has done something. If the stream is dead, its time to take the rest begins anew.

        What is whole may wait for longer than what was cut off, of which a reset would leave little anyway.
        """
        if self._drain_scope is not None and self.dead:
            bounds = self._carrier.bounds
            left = bounds.stalled_application if self.end_received else bounds.stalled_after_reset
            self._drain_scope.deadline = trio.current_time() + left

    def _write_inbox(self) -> bool:
        """Write until the inbox is empty, then half-close the socket if the peer has half-closed.

        Returns False when the socket is full.
        """
        sock, inbox = self._sock, self._inbox
        assert sock is not None
        try:
            while inbox:
                # One piece is the common case, and ``send`` is cheaper than ``sendmsg``.
                one = len(inbox) == 1
                self._took(sock.send(inbox[0]) if one else sock.sendmsg(list(islice(inbox, _VECTOR))))
            state = self._h2_stream.state
            if state.end_received and not state.dead:
                sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return False
        except OSError as error:
            self._sink_failed(error)
            return True
        if state.end_received or state.dead:
            self.end_download()
        return True

    def _sink_failed(self, error: OSError) -> None:
        """Writing to the application failed: reset the stream.

        If the application had half-closed before, it only stopped reading, which is no error (RFC 9113
        section 8.5).
        """
        self.sink_error = error.with_traceback(None)
        self.reset(ErrorCode.NO_ERROR if self.end_sent else ErrorCode.CONNECT_ERROR)
        self.interrupt()
        self.end_download()

    def _took(self, count: int) -> None:
        inbox = self._inbox
        left = count
        while left:
            size = len(inbox[0])
            if size > left:
                inbox[0] = memoryview(inbox[0])[left:]
                break
            inbox.popleft()
            left -= size
        self._hbone.acknowledge(self.id, count)
        if self._taken is not None:
            self._taken(count)

    def _give_back_inbox(self) -> None:
        if self._inbox:
            self._inbox.clear()
            self._hbone.discard(self.id)
            self._carrier.flush()

    def wake(self) -> None:
        """Wake the tasks that wait for the stream, after another task has closed it."""
        self._wake_reader.wake()
        self._wake_writer.wake()
