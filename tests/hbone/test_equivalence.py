"""Our reader and stock h2 see the same, and keep the same books.

A peer's frames are made up: requests, DATA of all sizes with and without padding, window updates, settings,
pings, ends and resets, on open and on closed streams; and in between our side acknowledges, answers, sends,
ends and resets.
The same bytes go to a stock ``H2Connection`` whole, frame by frame, and to ours in pieces of arbitrary sizes.
After each step both must have told the same events and hold the same windows, and must have sent the same
WINDOW_UPDATEs. Where ours is meant to differ is in ``_note_stock``.
"""

from __future__ import annotations

from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived as H2DataReceived
from h2.events import Event as H2Event
from h2.events import RequestReceived
from h2.events import StreamEnded as H2StreamEnded
from h2.events import StreamReset as H2StreamReset
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from hyperframe.frame import WindowUpdateFrame
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.support.hbone_conversation import (
    CONNECT,
    PREFACE,
    Peer,
    data,
    frame,
    ping,
    reset,
    settings,
    split,
    window_update,
)
from ztunnel.hbone import (
    ConnectionFailed,
    ConnectReceived,
    DataReceived,
    ErrorCode,
    HboneServer,
    HboneSettings,
    StreamEnded,
    StreamReset,
)

OWN = HboneSettings(stream_window=70_000, connection_window=160_000, lent_window=0, frame_size=16_384)
# Stock h2 does not tell whether a request has been answered.
STOCK_NAMES = {"REQUEST_RECEIVED": "OPEN", "REQUEST_RECEIVED_ENDED": "HALF_CLOSED_REMOTE"}
STREAMS = st.sampled_from([1, 3, 5])
SIZES = st.sampled_from([0, 1, 9, 100, 1_023, 1_024, 16_000, 16_384 - 256]) | st.integers(0, 16_000)

STEP = st.one_of(
    st.tuples(st.just("data"), STREAMS, SIZES, st.none() | st.integers(0, 255), st.booleans()),
    st.tuples(st.just("data"), STREAMS, st.just(16_000), st.none(), st.just(False)),
    st.tuples(st.just("data"), STREAMS, st.just(16_000), st.none(), st.just(False)),
    st.tuples(st.just("window"), STREAMS | st.just(0), st.integers(1, 100_000)),
    st.tuples(st.just("settings"), st.integers(0, 200_000)),
    st.tuples(st.just("ping")),
    st.tuples(st.just("unknown"), st.integers(0, 300)),
    st.tuples(st.just("trailers"), STREAMS),
    st.tuples(st.just("peer resets"), STREAMS),
    st.tuples(st.just("acknowledge"), STREAMS, st.integers(1, 60_000)),
    st.tuples(st.just("acknowledge"), STREAMS, st.integers(1, 60_000)),
    st.tuples(st.just("accept"), STREAMS),
    st.tuples(st.just("send"), STREAMS, st.integers(1, 30_000)),
    st.tuples(st.just("end"), STREAMS),
    st.tuples(st.just("reset"), STREAMS),
)


class Pair:
    """The same connection twice: ``ours``, and ``stock`` behind the few lines that make it comparable."""

    def __init__(self) -> None:
        self.ours = HboneServer(OWN)
        self.stock = H2Connection(
            H2Configuration(client_side=False, validate_inbound_headers=False, header_encoding=None)
        )
        self.stock.local_settings[SettingCodes.INITIAL_WINDOW_SIZE] = OWN.stream_window
        self.stock.initiate_connection()
        self.stock.increment_flow_control_window(OWN.connection_window - 65_535)
        self.peer = Peer(self.ours)
        self.unacknowledged = {1: 0, 3: 0, 5: 0}
        self.answered: set[int] = set()
        self.reset_by_us: set[int] = set()
        opening = [PREFACE, settings(), settings(ack=True)]
        opening += [self.peer.headers(stream_id, CONNECT) for stream_id in self.unacknowledged]
        assert len(self.ours.receive(b"".join(opening))) == 3
        self.stock.receive_data(b"".join(opening))
        self.ours.take_output()
        self.stock.data_to_send()

    def stock_state(self, stream_id: int) -> str:
        stream = self.stock.streams.get(stream_id)
        return "CLOSED" if stream is None else stream.state_machine.state.name

    def receive(self, wire: bytes, cuts: list[int]) -> None:
        stock = self._stock_receive(wire)
        at = 0
        ours: list[tuple[Any, ...]] = []
        for cut in [*cuts, len(wire)]:
            piece = wire[at : at + cut]
            at += cut
            for event in self.ours.receive(piece):
                self._note(ours, event)
        assert ours == stock

    def _note(self, seen: list[tuple[Any, ...]], event: object) -> None:
        match event:
            case DataReceived(stream_id, payload):
                assert payload
                if seen and seen[-1][:2] == ("data", stream_id):
                    seen[-1] = ("data", stream_id, seen[-1][2] + bytes(payload))
                else:
                    seen.append(("data", stream_id, bytes(payload)))
            case StreamEnded(stream_id):
                seen.append(("ended", stream_id))
            case StreamReset(stream_id, code, remote):
                seen.append(("reset", stream_id, code, remote))
            case ConnectionFailed(code):
                seen.append(("failed", code))
            case ConnectReceived(stream_id):
                seen.append(("connect", stream_id))

    def _stock_receive(self, wire: bytes) -> list[tuple[Any, ...]]:
        [(parsed, _)] = split(wire)
        before = self.stock_state(parsed.stream_id) if parsed.stream_id else ""
        try:
            events = self.stock.receive_data(wire)
        except ProtocolError as error:
            return [("failed", int(error.error_code))]
        seen: list[tuple[Any, ...]] = []
        for event in events:
            self._note_stock(seen, event, closed_before=before == "CLOSED")
        return seen

    def _note_stock(self, seen: list[tuple[Any, ...]], event: H2Event, *, closed_before: bool) -> None:
        match event:
            case H2DataReceived():
                # Ours gives padding back by itself, and tells of no empty payload.
                padding = event.flow_controlled_length - len(event.data)
                if padding:
                    self.stock.acknowledge_received_data(padding, event.stream_id)
                if event.data:
                    self.unacknowledged[event.stream_id] += len(event.data)
                    seen.append(("data", event.stream_id, event.data))
            case H2StreamEnded():
                seen.append(("ended", event.stream_id))
            case H2StreamReset():
                assert not closed_before
                seen.append(("reset", event.stream_id, int(event.error_code), event.remote_reset))
                if not event.remote_reset:
                    self.give_back_all(event.stream_id)
            case RequestReceived():
                seen.append(("connect", event.stream_id))

    def give_back_all(self, stream_id: int) -> None:
        """Ours does this by itself when it resets a stream."""
        count, self.unacknowledged[stream_id] = self.unacknowledged[stream_id], 0
        if count:
            self.stock.acknowledge_received_data(count, stream_id)

    def compare(self) -> None:
        stock, windows = self.stock, self.ours._windows
        assert windows.send_window == stock.outbound_flow_control_window
        manager = stock._inbound_flow_control_window_manager
        assert (windows.connection.current, windows.connection.consumed) == (
            manager.current_window_size,
            manager._bytes_processed,
        )
        for stream_id in self.unacknowledged:
            state = self.stock_state(stream_id)
            assert self.ours.is_open(stream_id) == (state != "CLOSED")
            if state == "CLOSED":
                continue
            stream = stock.streams[stream_id]
            mine = self.ours.stream(stream_id)
            assert STOCK_NAMES.get(mine.state.name, mine.state.name) == state
            assert mine.send_window == stream.outbound_flow_control_window
            theirs = stream._inbound_window_manager
            assert (mine.window.current, mine.window.consumed) == (
                theirs.current_window_size,
                theirs._bytes_processed,
            )
            window = max(0, stock.local_flow_control_window(stream_id)) if mine.state.sends else 0
            assert self.ours.send_window(stream_id) == window
        assert self.updates(b"".join(self.ours.take_output())) == self.updates(stock.data_to_send())

    def updates(self, output: bytes) -> list[tuple[int, int]]:
        return [
            (parsed.stream_id, parsed.window_increment)
            for parsed, _ in split(output)
            if isinstance(parsed, WindowUpdateFrame)
        ]

    def act(self, name: str, stream_id: int, size: int) -> None:
        """Something that our side does, when the stream's state allows it."""
        ours, stock = self.ours, self.stock
        state = self.stock_state(stream_id)
        sending = state in {"OPEN", "HALF_CLOSED_REMOTE"}
        if name == "acknowledge":
            count = min(size, self.unacknowledged[stream_id])
            self.unacknowledged[stream_id] -= count
            if count:
                stock.acknowledge_received_data(count, stream_id)
            ours.acknowledge(stream_id, count)
        elif name == "accept" and sending and stream_id not in self.answered:
            self.answered.add(stream_id)
            stock.send_headers(stream_id, [(":status", "200")])
            assert ours.accept(stream_id)
        elif name == "send" and sending and stream_id in self.answered:
            count = min(size, max(0, stock.local_flow_control_window(stream_id)))
            for start in range(0, count, 16_384):
                stock.send_data(stream_id, bytes(min(16_384, count - start)))
            assert ours.send_data(stream_id, bytes(size)) == count
        elif name == "end" and sending and stream_id in self.answered:
            stock.end_stream(stream_id)
            ours.end_stream(stream_id)
        elif name == "reset" and state != "CLOSED":
            stock.reset_stream(stream_id, ErrorCode.CANCEL)
            self.give_back_all(stream_id)
            ours.reset(stream_id, ErrorCode.CANCEL)
            self.reset_by_us.add(stream_id)


@hypothesis_settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(STEP, st.lists(st.integers(0, 5_000), max_size=6)), min_size=1, max_size=40))
def test_ours_and_stock_h2_agree(steps):
    pair = Pair()
    for step, cuts in steps:
        match step:
            case ("data", stream_id, size, padding, end):
                pair.receive(data(stream_id, bytes([size % 256]) * size, padding=padding, end=end), cuts)
            case ("window", stream_id, increment):
                pair.receive(window_update(stream_id, increment), cuts)
            case ("settings", value):
                pair.receive(settings({4: value}), cuts)
            case ("ping",):
                pair.receive(ping(b"12345678"), cuts)
            case ("unknown", size):
                pair.receive(frame(77, 3, bytes(size)), cuts)
            case ("trailers", stream_id):
                state = pair.stock_state(stream_id)
                if state in {"OPEN", "HALF_CLOSED_LOCAL", "HALF_CLOSED_REMOTE"}:
                    pair.receive(pair.peer.headers(stream_id, [("x", "y")], end=True), cuts)
            case ("peer resets", stream_id):
                pair.receive(reset(stream_id, 8), cuts)
            case (name, stream_id, *size):
                pair.act(name, stream_id, size[0] if size else 0)
        if pair.ours.closed:
            break
        pair.compare()
