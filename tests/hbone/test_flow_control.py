"""Windows: what is taken, what is given back and when, and what goes out without being copied."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.hbone_conversation import (
    CONNECT,
    accepted,
    client,
    connected,
    data,
    frame,
    reset,
    server,
    settings,
    window_update,
)
from ztunnel.hbone import ConnectionFailed, DataReceived, ErrorCode, HboneSettings, StreamEnded

# What is held is lent in test_lending.
SMALL = HboneSettings(stream_window=40_000, connection_window=100_000, lent_window=0, frame_size=16_384)


def taken(connection: Any) -> Any:
    """How far the connection's window is from full, given back or not."""
    window = connection._windows.connection
    return window.size - window.current - window.consumed


def test_payload_is_a_view_into_what_was_received():
    _, peer = accepted()
    wire = bytearray(data(1, b"payload"))
    received: Any = peer.connection.receive(wire)
    [event] = received
    assert event.data.obj is wire
    assert bytes(event.data) == b"payload"


def test_a_frame_is_delivered_as_it_comes():
    _, peer = accepted()
    wire = data(1, bytes(range(100)), end=True, padding=10)
    pieces = [peer.connection.receive(wire[at : at + 30]) for at in range(0, len(wire), 30)]
    assert [[len(e.data) for e in piece if isinstance(e, DataReceived)] for piece in pieces] == [
        [20],
        [30],
        [30],
        [20],
    ]
    assert pieces[-1][-1] == StreamEnded(1)
    joined = b"".join(e.data for piece in pieces for e in piece if isinstance(e, DataReceived))
    assert joined == bytes(range(100))


def test_window_is_given_back_at_half_and_only_for_what_was_acknowledged():
    connection, peer = accepted(SMALL)
    peer.say(data(1, bytes(16_384)), data(1, bytes(16_384)))
    connection.acknowledge(1, 19_999)
    assert peer.hear() == []
    connection.acknowledge(1, 1)
    assert peer.hear() == ["WINDOWUPDATE 1 +20000"]
    connection.acknowledge(1, 1_000_000)
    assert peer.hear() == []
    assert taken(connection) == 0
    connection.acknowledge(1, -5)
    connection.acknowledge(1, 0)
    assert taken(connection) == 0


def test_the_connections_window_is_given_back_at_half_too():
    connection, peer = server(SMALL)
    for stream_id in (1, 3):
        peer.say(peer.headers(stream_id, CONNECT))
        connection.accept(stream_id)
        peer.say(*[data(stream_id, bytes(13_000))] * 2)
    connection.take_output()
    connection.acknowledge(1, 26_000)
    assert peer.hear() == ["WINDOWUPDATE 1 +26000"]
    connection.acknowledge(3, 24_000)
    assert peer.hear() == ["WINDOWUPDATE 0 +50000", "WINDOWUPDATE 3 +24000"]


def test_padding_is_given_back_without_the_caller():
    connection, peer = accepted(SMALL)
    for _ in range(80):
        peer.say(data(1, b"x", padding=255))
    assert taken(connection) == 80
    assert peer.hear() == ["WINDOWUPDATE 1 +20224"]


def test_all_padding_is_an_empty_frame():
    connection, peer = accepted()
    assert peer.say(data(1, b"", padding=20), data(1, b"", padding=0)) == []
    assert taken(connection) == 0
    assert peer.say(data(1, b"", padding=20, end=True)) == [StreamEnded(1)]


@pytest.mark.parametrize("count", [3, 7])
def test_an_overrun_ends_the_connection(count):
    own = HboneSettings(
        stream_window=40_000 if count == 3 else 200_000, connection_window=100_000, lent_window=0
    )
    connection, peer = accepted(own)
    events = peer.say(*[data(1, bytes(16_384))] * count)
    assert isinstance(events[-1], ConnectionFailed)
    assert events[-1].code == ErrorCode.FLOW_CONTROL_ERROR
    assert connection.closed


def test_data_for_closed_streams_is_given_back_to_the_connection():
    connection, peer = accepted(SMALL)
    connection.reset(1, ErrorCode.CANCEL)
    connection.take_output()
    for _ in range(20):
        assert peer.say(data(1, bytes(10_000), padding=5)) == []
    assert taken(connection) == 0
    assert set(peer.hear()) == {"WINDOWUPDATE 0 +50030"}


def test_a_reset_gives_back_what_was_not_acknowledged():
    connection, peer = accepted(SMALL)
    peer.say(data(1, bytes(16_000)))
    connection.acknowledge(1, 1_000)
    connection.reset(1, ErrorCode.CANCEL)
    assert taken(connection) == 0
    connection.acknowledge(1, 15_000)
    assert taken(connection) == 0


def test_a_reset_in_the_middle_of_a_frame_drops_the_rest_of_it():
    connection, peer = accepted(SMALL)
    wire = data(1, bytes(16_000), padding=9, end=True)
    [event] = peer.say(wire[:1_000])
    connection.reset(1, ErrorCode.CANCEL)
    assert taken(connection) == 0
    assert peer.say(wire[1_000:2_000]) == []
    assert peer.say(wire[2_000:], peer.headers(3, CONNECT))[0].stream_id == 3
    assert taken(connection) == 0
    assert len(event.data) == 1_000 - 10


def test_what_outlives_its_stream_is_outstanding_until_acknowledged():
    connection, peer = accepted(SMALL)
    peer.say(data(1, bytes(16_000)), reset(1, 8))
    assert taken(connection) == 16_000
    connection.acknowledge(1, 6_000)
    assert taken(connection) == 10_000
    connection.acknowledge(1, 99_999)
    assert taken(connection) == 0
    connection.acknowledge(1, 1)
    assert taken(connection) == 0
    assert connection._windows.outstanding == {}


def test_what_a_consumer_drops_is_discarded():
    connection, peer = accepted(SMALL)
    peer.say(data(1, bytes(10_000)))
    connection.discard(1)
    assert taken(connection) == 0
    peer.say(data(1, bytes(5_000), end=True))
    connection.end_stream(1)
    assert taken(connection) == 5_000
    connection.discard(1)
    assert taken(connection) == 0


def test_what_is_sent_is_not_copied_and_cut_to_frames():
    connection, peer = client()
    peer.say(settings({5: 16_384}))
    connection.connect("h:1", [])
    connection.take_output()
    payload = bytearray(40_000)
    assert connection.send_data(1, payload) == 40_000
    output = connection.take_output()
    views = [part for part in output if isinstance(part, memoryview)]
    assert [len(view) for view in views] == [16_384, 16_384, 7_232]
    assert all(view.obj is payload for view in views)
    assert connection.take_output() == []


def test_frames_are_no_larger_than_our_own_size_for_them():
    connection, peer = client(HboneSettings(frame_size=16_384))
    peer.say(settings({5: (1 << 24) - 1}))
    connection.connect("h:1", [])
    connection.take_output()
    connection.send_data(1, bytes(20_000))
    assert peer.hear() == ["DATA 1 16384", "DATA 1 3616"]


def test_nothing_is_framed_beyond_the_windows():
    connection, peer = client()
    connection.connect("h:1", [])
    connection.connect("h:1", [])
    connection.take_output()
    assert connection.send_window(1) == 4 << 20
    assert connection.send_data(1, bytes(5 << 20)) == 4 << 20
    assert connection.send_data(1, b"x") == 0
    assert connection.send_data(3, b"") == 0
    assert connection.send_window(3) == 4 << 20
    connection.take_output()
    peer.say(window_update(1, 3))
    assert connection.send_data(1, b"12345") == 3
    assert peer.hear() == ["DATA 1 3"]
    assert connection.send_window(99) == 0


def test_a_frame_may_fill_the_largest_size():
    connection, peer = connected()
    size = 1 << 20
    [event] = peer.say(frame(0, 1, bytes(size)))
    assert len(event.data) == size
    connection.acknowledge(1, size)
    assert taken(connection) == 0


def test_an_empty_frame_in_pieces():
    connection, peer = accepted()
    wire = data(1) + data(1, end=True)
    events = [event for at in range(len(wire)) for event in peer.say(wire[at : at + 1])]
    assert events == [StreamEnded(1)]
    assert not connection.can_receive(1)
