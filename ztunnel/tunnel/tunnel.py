"""One HBONE tunnel: a TLS connection with HTTP/2 CONNECT streams on it, driven by Trio tasks.

Tasks. A tunnel has three tasks in one nursery: the reader (`Tunnel.run` itself), the writer and the pinger.

Receiving. Only the reader takes bytes from TLS (`ztunnel.tunnel.tunnel_reader`). It puts each stream's data
into that stream's inbox. At the end of a turn it delivers each inbox. If the stream has an application's
socket, delivering is one ``sendmsg`` in the reader itself: no queue, no other task, no wake-up. Only if that
socket would block does the rest stay in the inbox, and a drain task waits for that socket (in the nursery of
the connection, not of the tunnel). Window is given back only for bytes that the socket took. So a stalled
application makes us hold at most its stream's window. Slow streams block others only when together they have
filled the connection's window.

Sending needs no task: the sender frames its data and calls `flush`, which writes to TLS at once. If TLS would
block, the rest waits in the backlog, the writer task waits until the socket is writable, and `blocked` tells
the streams to read no more from their applications. So the backlog holds only what was framed before
`blocked` was set.

There is no await between reading the state of the HTTP/2 connection and changing it, so there is no lock.

Ending. When we end a tunnel, we send GOAWAY and linger until the last bytes of its streams have arrived
(`ztunnel.tunnel.linger`). When the transport takes nothing any more, we still read it to its end.

This module is what `ClientTunnel` and `ServerTunnel` have in common.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Generic, TypeVar

import trio

from ztunnel.bounds import DEFAULTS, TunnelBounds
from ztunnel.hbone import (
    ConnectionFailed,
    DataReceived,
    ErrorCode,
    Event,
    PeerDraining,
    Pong,
    StreamEnded,
    StreamReset,
    WindowOpened,
    error_text,
)
from ztunnel.tls.tls_connection import TlsConnection
from ztunnel.tls.tls_errors import TlsError
from ztunnel.tunnel.backlog import Backlog
from ztunnel.tunnel.linger import wait_received
from ztunnel.tunnel.rest import give_way
from ztunnel.tunnel.tunnel_reader import HboneT, TunnelReader
from ztunnel.tunnel.tunnel_stream import TunnelStream

BULK = 64 * 1024
"""Bytes. Who sends so many at once need not be woken before others."""

PING_OPAQUE = bytes.fromhex("3b7cdb7a0b8716b4")

StreamT = TypeVar("StreamT", bound=TunnelStream)


class Tunnel(TunnelReader[HboneT], Generic[HboneT, StreamT]):
    """Drives one TLS connection with HTTP/2 on it until either side ends it.

    tls: a TLS connection after its handshake; `run` closes it.
    hbone: the sans-IO client or server; its ``state`` is the state of the tunnel.

    blocked: TLS would block, or takes nothing any more. failure: why the tunnel ended, for a log line.
    abused: we ended it because the peer broke the rules of HTTP/2. many: its peer has sent more frames than
    one turn takes (`ztunnel.tunnel.rest`), and they are not all read.
    heard: when the last byte came; opened: when the tunnel was made; both on Trio's clock. round_trip:
    seconds of the last PING, None before the first. ended: set when `run` has returned.
    """

    def __init__(self, tls: TlsConnection, hbone: HboneT, bounds: TunnelBounds = DEFAULTS.tunnel) -> None:
        super().__init__(tls, hbone, bounds)
        self.streams: dict[int, StreamT] = {}
        self.blocked = False
        self.abused = False
        self.opened: float = self.heard
        self.round_trip: float | None = None
        self.ended = trio.Event()
        self._backlog = Backlog(tls)
        self._writer = trio.lowlevel.ParkingLot()
        self._written = trio.lowlevel.ParkingLot()
        self._dirty: list[StreamT] = []
        self._pong = trio.Event()
        self._tasks: trio.Nursery | None = None
        self._scope = trio.CancelScope()
        self._reading = trio.CancelScope()
        self._finishing = trio.Lock()

    # -- called by streams and the pool; nothing here waits, but for `finish` ---------------------------

    def forget(self, stream: TunnelStream) -> None:
        """Remove a stream, because its connection has ended. The stream itself has reset what was open."""
        if self.streams.pop(stream.id, None) is None:
            return
        self._stream_forgotten()
        if not self.streams and (self.hbone.drained or self.hbone.peer_is_draining):
            self.stop()

    def flush(self) -> None:
        """Write the output of the HTTP/2 connection. The writer task gets what TLS does not take now.

        While TLS is blocked, the output stays in the HTTP/2 connection. That counts the replies that wait
        there for a peer which sends and does not read.
        """
        if self.blocked:
            return
        output = self.hbone.take_output()
        if not output:
            return
        if len(output[-1]) >= BULK:
            self._sent_bulk = True
            if not self._bulk:
                self._bulk = self.tls.bulk = True
        try:
            written = self._backlog.send(output)
        except (OSError, TlsError) as error:
            self._fall_silent(f"io error: {error}")
            return
        if not written:
            self.blocked = True
            self._writer.unpark_all()

    def start_drain(self) -> None:
        """Start a graceful shutdown: GOAWAY. Existing streams continue."""
        self.hbone.start_drain()
        self.flush()

    def stop(self) -> None:
        """End the tunnel.

        Streams that are still open are lost at once; `run` lingers before it closes TLS.
        """
        self.hbone.close(ErrorCode.NO_ERROR)
        self.flush()
        self._reading.cancel()

    async def finish(self) -> bool:
        """Write all that waits, then close_notify. Afterwards we send nothing more but continue to read.

        Returns whether everything was written. The caller limits the wait and opens no more streams.
        """
        while self._backlog and not self.ended.is_set():
            await self._written.park()
        silenced = not self.hbone.state.writes
        self.hbone.silence()
        async with self._finishing:
            try:
                while not self.ended.is_set() and not self.tls.close_notify():
                    await self.tls.wait_sendable()
            except (OSError, trio.ClosedResourceError):
                return False
        return not (silenced or self.ended.is_set())

    # -- the tasks ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Read until the tunnel ends, then close TLS. All streams know of the end when it returns.

        Nothing that a peer does raises an exception.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._tasks = nursery
                    self.flush()
                    nursery.start_soon(self._write_blocked, name="tunnel writer")
                    nursery.start_soon(self._ping, name="tunnel pings")
                    with self._reading:
                        await self._read()
                        if self._broken:
                            self._scope.cancel()
                        self._read_to_its_end()
                    # Also when the transport broke, which has cancelled all the rest.
                    with trio.CancelScope(shield=True):
                        await self._lose_streams_in_turns()
                    self._lose_streams()
                    with trio.move_on_after(self.bounds.linger):
                        if not self._end_received and await self.finish():
                            await wait_received(
                                self.tls, self.bounds.linger_closed, self.bounds.linger_interval
                            )
                    self._tasks = None
                    nursery.cancel_scope.cancel()
        finally:
            self._tasks = None
            self.hbone.receive_eof()
            self.hbone.silence()
            self.ended.set()
            self._backlog.clear()
            self._written.unpark_all()
            self._lose_streams()
            self.tls.close_notify()
            self.tls.close()

    async def _lose_streams_in_turns(self) -> None:
        """Each lost stream wakes a connection, which ends now; other tunnels get their turn between them."""
        each = self.bounds.turn_losses
        for number, stream in enumerate(list(self.streams.values()), 1):
            stream.tunnel_lost()
            if not number % each:
                await give_way()

    def _lose_streams(self) -> None:
        for stream in list(self.streams.values()):
            stream.tunnel_lost()

    def _read_to_its_end(self) -> None:
        for event in self.hbone.receive_eof():
            self._dispatch(event)
        self._deliver()

    def _finished(self) -> bool:
        hbone = self.hbone
        if hbone.closed:
            return True
        return not self.streams and (hbone.drained or (hbone.peer_is_draining and not hbone.open_streams))

    async def _write_blocked(self) -> None:
        while True:
            while not self.blocked:
                await self._writer.park()
            await self.tls.wait_sendable()
            try:
                self._backlog.write()
            except (OSError, TlsError) as error:
                self._fall_silent(f"io error: {error}")
                return
            if not self._backlog:
                self.blocked = False
                self._written.unpark_all()
                self.flush()
                for stream in list(self.streams.values()):
                    stream.writable()

    async def _ping(self) -> None:
        while True:
            await trio.sleep(self.bounds.ping_interval)
            self._pong = trio.Event()
            asked = trio.current_time()
            self.hbone.ping(PING_OPAQUE)
            self.flush()
            with trio.move_on_after(self.bounds.ping_timeout):
                await self._pong.wait()
                self.round_trip = trio.current_time() - asked
                continue
            self.failure = self.failure or "HBONE ping timeout"
            self._ping_unanswered()
            self.stop()
            return

    # -- events -----------------------------------------------------------------------------------------

    def _dispatch(self, event: Event) -> None:
        match event:
            case DataReceived():
                stream = self.streams.get(event.stream_id)
                if stream is None:
                    self.hbone.acknowledge(event.stream_id, len(event.data))
                elif stream.data_received(event):
                    self._dirty.append(stream)
            case StreamEnded() | StreamReset():
                stream = self.streams.get(event.stream_id)
                if stream is not None and stream.ended(event):
                    self._dirty.append(stream)
            case WindowOpened():
                self._window_opened(event.stream_id)
            case Pong():
                if event.opaque == PING_OPAQUE:
                    self._pong.set()
            case PeerDraining():
                if event.code and self.failure is None:
                    self.failure = error_text("connection", "received", event.code)
            case ConnectionFailed():
                # The reader does not end here: `flush` first writes the GOAWAY, then `_finished` ends the
                # loop.
                self.failure = self.failure or event.reason
                self.abused = event.code != ErrorCode.NO_ERROR
            case _:
                self._own_event(event)

    @abstractmethod
    def _own_event(self, event: Event) -> None:
        """Process an event that only a client or only a server gets."""

    def _stream_forgotten(self) -> None:
        """A stream was removed from ``streams``."""

    def _ping_unanswered(self) -> None:
        """The peer did not answer a PING; the tunnel ends."""

    def _window_opened(self, stream_id: int | None) -> None:
        if self.blocked:
            return
        if stream_id is None:
            for stream in list(self.streams.values()):
                stream.writable()
        else:
            found = self.streams.get(stream_id)
            if found is not None:
                found.writable()

    def _deliver(self) -> None:
        dirty = self._dirty
        if dirty:
            self._dirty = []
            # Once for each stream, however many pieces have come for it.
            for stream in dirty if len(dirty) == 1 else dict.fromkeys(dirty):
                stream.deliver()

    def _fall_silent(self, why: str) -> None:
        """Stop writing after an error. What the peer has sent before is still read."""
        if self.failure is None:
            self.failure = why
        self.hbone.silence()
        self.tls.cut_off()
        self.blocked = True
        self._backlog.clear()
        self._written.unpark_all()
