"""One HTTP/2 connection of CONNECT tunnels: what client and server offer to their driver."""

from __future__ import annotations

from h2.exceptions import ProtocolError
from h2.stream import StreamInputs

from ztunnel.hbone import wire
from ztunnel.hbone.errors import ErrorCode, Violation
from ztunnel.hbone.events import ConnectionFailed, Event
from ztunnel.hbone.inbound import Inbound


class HboneConnection(Inbound):
    """One HTTP/2 connection that carries CONNECT tunnels, without I/O: bytes in, events and bytes out.

    After any call, ``take_output`` may have something to write. No method but ``HboneClient.connect`` raises
    for what a peer did or for a stream that is gone meanwhile: such calls do nothing.

    A driver that cannot write goes on calling ``receive`` (two ends that each wait for the other to read
    would wait for ever) but leaves the output here: answers that wait are counted, and too many end the
    connection.
    """

    # -- bytes ------------------------------------------------------------------------------------------

    def receive(self, data: bytes | bytearray | memoryview) -> list[Event]:
        """Take bytes from the transport, in any pieces. DATA payload comes out as views into ``data``."""
        if self._closed:
            return []
        events = self._events
        try:
            self._cut(data)
        except Violation as violation:
            self._fail(violation.code, str(violation))
        except ProtocolError as error:
            self._engine.clear_outbound_data_buffer()
            self._fail(error.error_code, str(error))
        # A new list, so that nothing here keeps the caller's buffer alive.
        self._events = []
        return events

    def receive_eof(self) -> list[Event]:
        """The transport ended. Gives ConnectionFailed unless the connection was closed already."""
        if self._closed:
            return []
        inside = self._inside_frame
        self._finish()
        reason = "the transport ended inside a frame" if inside else "the transport ended"
        return [ConnectionFailed(ErrorCode.NO_ERROR, reason)]

    def take_output(self) -> list[bytes | memoryview]:
        """What to write next, in order. The list is the caller's; payload in it is not copied."""
        output, self._output = self._output, []
        self._replies = 0
        return output

    # -- streams ----------------------------------------------------------------------------------------

    @property
    def open_streams(self) -> int:
        """How many streams are not closed in both directions."""
        return len(self._streams)

    @property
    def stream_ids(self) -> list[int]:
        """The ids of the open streams."""
        return list(self._streams)

    def is_open(self, stream_id: int) -> bool:
        """Whether at least one direction of the stream is open."""
        return stream_id in self._streams

    def can_send(self, stream_id: int) -> bool:
        """Whether this side may still send on the stream (a server: only after ``accept``)."""
        stream = self._streams.get(stream_id)
        return stream is not None and stream.sendable

    def can_receive(self, stream_id: int) -> bool:
        """Whether the peer may still send on the stream."""
        stream = self._streams.get(stream_id)
        return stream is not None and not stream.ended

    def send_window(self, stream_id: int) -> int:
        """Bytes that ``send_data`` would take now: the smaller window, 0 when the stream cannot send."""
        stream = self._streams.get(stream_id)
        if stream is None or not stream.sendable:
            return 0
        return max(0, min(self._engine.outbound_flow_control_window, stream.h2.outbound_flow_control_window))

    def send_data(self, stream_id: int, data: bytes | bytearray | memoryview) -> int:
        """Frame as much of ``data`` as the windows allow; returns how many bytes were taken.

        The output holds views of ``data``: it must stay unchanged until the output is written.
        """
        size = min(len(data), self.send_window(stream_id))
        if not size:
            return 0
        engine, output = self._engine, self._output
        view = memoryview(data)
        largest = min(engine.max_outbound_frame_size, self.settings.frame_size)
        for start in range(0, size, largest):
            part = view[start : min(start + largest, size)]
            output.append(wire.data_header(stream_id, len(part)))
            output.append(part)
        engine.outbound_flow_control_window -= size
        self._streams[stream_id].h2.outbound_flow_control_window -= size
        return size

    def end_stream(self, stream_id: int) -> None:
        """Send END_STREAM. The other direction goes on."""
        stream = self._streams.get(stream_id)
        if stream is None or not stream.sendable:
            return
        stream.sendable = False
        stream.machine.process_input(StreamInputs.SEND_END_STREAM)
        self._output.append(wire.data_header(stream_id, 0, wire.END_STREAM))
        if stream.h2.closed:
            self._remove(stream)

    def reset(self, stream_id: int, code: int) -> None:
        """Send RST_STREAM. What was received and not acknowledged is given back to the connection window."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._reset(stream, code)

    def acknowledge(self, stream_id: int, count: int) -> None:
        """The consumer took ``count`` payload bytes. Also due for data that outlived its stream."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._acknowledge(stream, count)
            return
        outstanding = self._outstanding.get(stream_id, 0)
        count = min(count, outstanding)
        if count > 0:
            if count == outstanding:
                del self._outstanding[stream_id]
            else:
                self._outstanding[stream_id] = outstanding - count
            self._give_back(count)

    def discard(self, stream_id: int) -> None:
        """Acknowledge all that is outstanding: whoever held what came on the stream has dropped it."""
        stream = self._streams.get(stream_id)
        self.acknowledge(stream_id, stream.unacknowledged if stream else self._outstanding.get(stream_id, 0))

    # -- connection -------------------------------------------------------------------------------------

    def ping(self, opaque: bytes) -> None:
        """Send PING with eight bytes. Pong brings them back. Raises ValueError for another length."""
        if len(opaque) != 8:
            raise ValueError(f"a PING carries 8 bytes, not {len(opaque)}")
        if not self._closed:
            self._output.append(wire.ping(opaque))

    def start_drain(self) -> None:
        """Begin a graceful end: GOAWAY(2^31-1) and a PING, on its answer GOAWAY(last processed id).

        Streams that come after the second GOAWAY are refused without the caller; those between the two are
        delivered, and the caller may ``accept`` them or call ``HboneServer.refuse_stream``.
        """
        if not self._closed and not self._draining:
            self._draining = True
            self._begin_drain()

    def close(self, code: int) -> None:
        """Send GOAWAY with the last processed id and end the connection; only ``take_output`` is left."""
        if not self._closed:
            self._output.append(wire.goaway(self._last_processed, code))
            self._finish()

    @property
    def draining(self) -> bool:
        """Whether ``start_drain`` was called."""
        return self._draining

    @property
    def drained(self) -> bool:
        """Whether the drain is complete: the last GOAWAY is out, and no stream is open."""
        return self._refusing and not self._streams

    @property
    def peer_is_draining(self) -> bool:
        """Whether a GOAWAY came."""
        return self._peer_is_draining

    @property
    def closed(self) -> bool:
        """Whether the connection is over: ``close`` was called, or ConnectionFailed was given."""
        return self._closed
