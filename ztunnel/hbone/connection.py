"""One HTTP/2 connection that carries CONNECT streams: what its client and server ends have in common.

It is made of parts with one task each:

    bytes in ─▶ FrameReader ─▶ Receiver ─▶ StreamRegistry (stream_state) ─▶ events out
                                  └──────▶ ConnectionWindows ─┐
    calls of the driver ─▶ HboneConnection ───────────────────┴─▶ FrameWriter ─▶ bytes out
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod

from ztunnel.hbone.abuse import AbuseCounter
from ztunnel.hbone.engine import Engine
from ztunnel.hbone.events import ConnectionFailed, Event, PeerDraining, Pong
from ztunnel.hbone.hbone_errors import ErrorCode, Violation
from ztunnel.hbone.header_block import HeaderBlock
from ztunnel.hbone.reader import FrameReader
from ztunnel.hbone.receiver import Receiver
from ztunnel.hbone.settings import HboneSettings
from ztunnel.hbone.stream import Stream
from ztunnel.hbone.stream_registry import StreamRegistry
from ztunnel.hbone.stream_state import SEND_END, StreamState
from ztunnel.hbone.tunnel_state import (
    DRAIN,
    END,
    SETTINGS,
    SILENCE,
    TUNNEL_OPENING,
    TUNNEL_TABLE,
    TunnelInput,
    TunnelState,
)
from ztunnel.hbone.windows import ConnectionWindows, WindowBudget
from ztunnel.hbone.writer import FrameWriter

DRAIN_OPAQUE = bytes.fromhex("0b7ba2f08b9bfe54")
"""The payload of the PING between the two GOAWAYs of a graceful shutdown (Rust ztunnel sends the same)."""


class HboneConnection(ABC):
    """One HTTP/2 connection that carries CONNECT streams, without I/O: bytes in, events and bytes out.

    After any call, ``take_output`` may have something to write. Calls for a stream that is already gone do
    nothing. What a peer does raises no exception; only ``HboneClient.connect`` may raise.

    A driver that cannot write must still call ``receive``: two ends that both stop reading would wait
    forever. It leaves the output here meanwhile. Replies that wait here are counted, and too many end the
    connection.
    """

    def __init__(self, settings: HboneSettings, budget: WindowBudget | None, *, client: bool) -> None:
        self.settings = settings
        self._state = TUNNEL_OPENING
        self._events: list[Event] = []
        self._engine = Engine(settings, client=client)
        self._abuse = AbuseCounter(settings)
        self._writer = FrameWriter(settings)
        self._windows = ConnectionWindows(settings, self._writer, budget or WindowBudget())
        self._streams = StreamRegistry(settings, self._writer, self._windows, self._abuse, self._events)
        self._receiver = Receiver(
            settings,
            self,
            client=client,
            streams=self._streams,
            windows=self._windows,
            writer=self._writer,
            abuse=self._abuse,
            engine=self._engine,
            events=self._events,
        )
        self._reader = FrameReader(settings, self._receiver, self._events, client=client)
        # The steps of a graceful shutdown: it was asked for, our last GOAWAY is out, the peer's GOAWAY came.
        self._draining = False
        self._last_goaway_sent = False
        self._peer_is_draining = False
        self._last_processed = 0
        self._unread: memoryview | None = None
        self._writer.opening(settings, client=client)

    # -- bytes ------------------------------------------------------------------------------------------

    def receive(self, data: bytes | bytearray | memoryview, work_limit: int = sys.maxsize) -> list[Event]:
        """Process bytes from the transport, in pieces of any size. Returns what they mean, in wire order.

        DATA payload in the events is a view into ``data``, not a copy.

        Stops when they have cost more than ``work_limit``, in the units of `take_work` since its last call;
        here each small DATA frame counts too.
        The rest is kept (``unread``) for the next call, for which ``data`` may be empty.
        """
        if self._state.closed:
            return []
        if self._unread is not None:
            data = b"".join((self._unread, data)) if data else self._unread
        try:
            self._unread = self._reader.cut(data, work_limit)
        except Violation as violation:
            self._writer.goaway(self._last_processed, violation.code)
            self._events.append(ConnectionFailed(int(violation.code), str(violation)))
            self._finish()
        # A copy for the caller, since the events hold views of its buffer: nothing here may keep that alive.
        events = self._events.copy()
        self._events.clear()
        return events

    def receive_eof(self) -> list[Event]:
        """The transport has ended.

        Returns ConnectionFailed, or nothing if the connection was closed before.
        """
        if self._state.closed:
            return []
        inside = self._reader.inside_frame
        self._finish()
        reason = "the transport ended inside a frame" if inside else "the transport ended"
        return [ConnectionFailed(ErrorCode.NO_ERROR, reason)]

    @property
    def unread(self) -> bool:
        """Whether `receive` stopped at its limit, and keeps bytes for the next call."""
        return self._unread is not None

    def take_output(self) -> list[bytes | memoryview]:
        """Returns what to write next, in order. The list belongs to the caller; its payload is not copied."""
        return self._writer.take()

    def take_work(self) -> int:
        """Returns what the peer's frames since the last call count for, without payload.

        The units are those of `ztunnel.hbone.work`.
        """
        work = self._reader.work + self._receiver.work
        self._reader.work = self._receiver.work = 0
        return work

    # -- streams ----------------------------------------------------------------------------------------

    @property
    def open_streams(self) -> int:
        """How many streams are not closed in both directions."""
        return len(self._streams.open)

    @property
    def stream_ids(self) -> list[int]:
        """The ids of the open streams."""
        return list(self._streams.open)

    def stream(self, stream_id: int) -> Stream:
        """Returns an open stream, to be read only. It stays valid after the end and then says how it ended.

        Raises KeyError for a stream that is not open.
        """
        return self._streams.open[stream_id]

    def is_open(self, stream_id: int) -> bool:
        """Returns whether at least one direction of the stream is open."""
        return stream_id in self._streams.open

    def can_send(self, stream_id: int) -> bool:
        """Returns whether this side may still send on the stream (a server: only after ``accept``)."""
        stream = self._streams.open.get(stream_id)
        return stream is not None and stream.state.sends

    def can_receive(self, stream_id: int) -> bool:
        """Returns whether the peer may still send on the stream."""
        stream = self._streams.open.get(stream_id)
        return stream is not None and not stream.state.end_received

    def send_window(self, stream_id: int) -> int:
        """Returns how many bytes ``send_data`` would take now: the smaller of both windows, 0 if none."""
        stream = self._streams.open.get(stream_id)
        if stream is None or not stream.state.sends:
            return 0
        return max(0, min(self._windows.send_window, stream.send_window))

    def send_data(self, stream_id: int, data: bytes | bytearray | memoryview) -> int:
        """Frame as much of ``data`` as the windows allow. Returns how many bytes were taken.

        The output holds views of ``data``, which must not change until the output is written.
        """
        size = min(len(data), self.send_window(stream_id))
        if not size:
            return 0
        view = memoryview(data)
        self._writer.data(stream_id, view if size == len(data) else view[:size])
        self._windows.send_window -= size
        self._streams.open[stream_id].send_window -= size
        return size

    def end_stream(self, stream_id: int) -> None:
        """Send END_STREAM. The other direction goes on."""
        stream = self._streams.open.get(stream_id)
        if stream is None or not stream.state.sends:
            return
        stream.step(SEND_END)
        self._writer.end(stream_id)
        if stream.state.closed:
            self._streams.remove(stream)

    def reset(self, stream_id: int, code: int) -> None:
        """Send RST_STREAM. Data that was not acknowledged yet is given back to the connection's window."""
        stream = self._streams.open.get(stream_id)
        if stream is not None:
            self._streams.reset(stream, code)

    def acknowledge(self, stream_id: int, count: int) -> None:
        """The consumer took ``count`` payload bytes. Call it for data of a closed stream too."""
        stream = self._streams.open.get(stream_id)
        if stream is not None:
            self._windows.acknowledge(stream, count)
        else:
            self._windows.acknowledge_closed(stream_id, count)

    def discard(self, stream_id: int) -> None:
        """Acknowledge everything that is outstanding, because the consumer has dropped the stream's data."""
        stream = self._streams.open.get(stream_id)
        if stream is not None:
            self._windows.acknowledge(stream, stream.unacknowledged)
        else:
            self._windows.acknowledge_closed(stream_id, self._windows.outstanding.get(stream_id, 0))

    @property
    def congested(self) -> bool:
        """Whether streams have used up most of the connection's window, in either direction.

        At full speed this is normal for a moment. If it lasts, stalled streams are blocking all others.
        """
        return self._windows.congested

    @property
    def held(self) -> int:
        """Bytes that were received and not yet acknowledged or discarded."""
        return self._windows.held

    # -- connection -------------------------------------------------------------------------------------

    def ping(self, opaque: bytes) -> None:
        """Send PING with eight bytes; the event Pong returns them. Raises ValueError for another length."""
        if len(opaque) != 8:
            raise ValueError(f"a PING carries 8 bytes, not {len(opaque)}")
        if not self._state.closed:
            self._writer.ping(opaque)

    def start_drain(self) -> None:
        """Start a graceful shutdown (RFC 9113 section 6.8).

        Sends GOAWAY(2^31-1) and a PING; when the PING is answered, GOAWAY(last processed id). Streams that
        arrive between the two GOAWAYs are delivered; the caller answers them with ``accept`` or
        ``HboneServer.refuse_stream``. Later ones are refused here.
        """
        if not self._state.closed and not self._draining:
            self._draining = True
            self._move(DRAIN)
            self._begin_drain()

    def silence(self) -> None:
        """Stop writing: the transport takes nothing any more.

        What the peer has sent can still be received.
        """
        self._writer.mute()
        self._move(SILENCE)

    def close(self, code: int) -> None:
        """Send GOAWAY(last processed id) and end the connection.

        Afterwards only ``take_output`` is useful.
        """
        if not self._state.closed:
            self._writer.goaway(self._last_processed, code)
            self._finish()

    @property
    def state(self) -> TunnelState:
        """The state of the tunnel."""
        return self._state

    @property
    def draining(self) -> bool:
        """Whether ``start_drain`` was called."""
        return self._draining

    @property
    def drained(self) -> bool:
        """Whether the drain is complete: the last GOAWAY is in the output, and no stream is open."""
        return self._last_goaway_sent and not self._streams.open

    @property
    def peer_is_draining(self) -> bool:
        """Whether a GOAWAY came."""
        return self._peer_is_draining

    @property
    def closed(self) -> bool:
        """Whether the connection is over: ``close`` was called, or ConnectionFailed was given."""
        return self._state.closed

    # -- what both ends do as the Receiver's Role ---------------------------------------------------------

    def settings_received(self) -> None:
        """See Role."""
        self._move(SETTINGS)

    def pong_received(self, opaque: bytes) -> None:
        """See Role."""
        if opaque != DRAIN_OPAQUE:
            self._events.append(Pong(opaque))
        elif self._draining and not self._last_goaway_sent:
            self._send_last_goaway()

    def goaway_received(self, last_stream_id: int, code: int, debug: bytes) -> None:
        """See Role."""
        self._peer_is_draining = True
        self._move(DRAIN)
        self._events.append(PeerDraining(last_stream_id, code, debug))

    @abstractmethod
    def request_received(self, stream_id: int, block: HeaderBlock, *, end_stream: bool) -> None:
        """See Role."""

    @abstractmethod
    def answer_received(self, stream: Stream, block: HeaderBlock, *, end_stream: bool) -> None:
        """See Role."""

    @abstractmethod
    def reset_received(self, stream: Stream, state: StreamState) -> None:
        """See Role."""

    @abstractmethod
    def _begin_drain(self) -> None:
        """Send the first frames of a drain."""

    # -- inside -----------------------------------------------------------------------------------------

    def _move(self, input_: TunnelInput) -> None:
        self._state = TUNNEL_TABLE[self._state][input_]

    def _send_last_goaway(self) -> None:
        self._last_goaway_sent = True
        self._writer.goaway(self._last_processed, ErrorCode.NO_ERROR)

    def _finish(self) -> None:
        self._move(END)
        self._unread = None
        self._streams.lose_all()
