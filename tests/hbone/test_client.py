"""Conversations with the end that opens tunnels."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.hbone_conversation import (
    PREFACE,
    Peer,
    client,
    connected,
    data,
    goaway,
    reset,
    settings,
    split,
    window_update,
)
from ztunnel.hbone import (
    CannotOpenStreamError,
    ConnectionFailed,
    DataReceived,
    ErrorCode,
    HboneClient,
    HboneSettings,
    PeerDraining,
    PeerSettingsReceived,
    Responded,
    StreamEnded,
    StreamReset,
)

REQUEST = [("baggage", "a=b"), ("forwarded", 'for="10.0.0.1:1"'), ("traceparent", "00-1")]


def test_the_opening_is_the_references_and_the_connect_follows_at_once():
    connection = HboneClient()
    assert connection.connect("10.88.0.5:8080", REQUEST) == 1
    output = b"".join(connection.take_output())
    assert output.startswith(PREFACE)
    (first, _), (second, _), (third, block) = split(output[len(PREFACE) :])
    assert list(first.settings.items()) == [(2, 0), (4, 4_194_304), (5, 1_048_576), (6, 16_384)]
    assert (second.stream_id, second.window_increment) == (0, 16_711_681)
    assert sorted(third.flags) == ["END_HEADERS"]
    assert Peer(connection).decoder.decode(block) == [
        (":method", "CONNECT"),
        (":authority", "10.88.0.5:8080"),
        *REQUEST,
    ]


def test_settings_of_ours_are_announced():
    own = HboneSettings(stream_window=1 << 17, connection_window=1 << 18, frame_size=1 << 15)
    [(first, _), (second, _)] = split(b"".join(HboneClient(own).take_output())[len(PREFACE) :])
    assert (first.settings[4], first.settings[5], second.window_increment) == (
        1 << 17,
        1 << 15,
        (1 << 18) - 65_535,
    )


def test_fields_may_be_bytes():
    connection, peer = client()
    connection.connect(b"h:1".decode(), [(b"baggage", b"x")])
    assert peer.hear() == ["HEADERS 1 :method=CONNECT :authority=h:1 baggage=x"]


def test_stream_ids_are_odd_and_rise():
    connection, _ = client()
    assert [connection.connect("h:1", []) for _ in range(3)] == [1, 3, 5]
    assert connection.open_streams == 3
    assert connection.stream_ids == [1, 3, 5]


def test_an_answer_is_told():
    connection, peer = client()
    connection.connect("h:1", [])
    assert connection.can_send(1)
    assert peer.say(peer.headers(1, [(":status", "200"), ("baggage", "x")])) == [
        Responded(1, 200, ((b"baggage", b"x"),))
    ]
    assert peer.say(data(1, b"hello")) == [DataReceived(1, memoryview(b"hello"))]
    assert peer.say(peer.headers(1, [("x", "y")], end=True)) == [StreamEnded(1)]


def test_a_refusal_with_its_reset_is_told_in_order():
    connection, peer = client()
    connection.connect("h:1", [])
    events = peer.say(peer.headers(1, [(":status", "503")], end=True), reset(1, 0))
    assert events == [Responded(1, 503, ()), StreamEnded(1), StreamReset(1, 0)]
    assert connection.open_streams == 0


def test_a_late_answer_to_a_stream_that_we_reset_is_passed_over():
    connection, peer = client()
    connection.connect("h:1", [])
    connection.reset(1, ErrorCode.CANCEL)
    connection.take_output()
    assert peer.say(peer.headers(1, [(":status", "200"), ("x", "y")]), data(1, b"late")) == []
    assert peer.hear() == []
    connection.connect("h:1", [])
    assert peer.say(peer.headers(3, [(":status", "200"), ("x", "y")])) == [Responded(3, 200, ((b"x", b"y"),))]


def test_informational_answers_are_passed_over():
    connection, peer = client()
    connection.connect("h:1", [])
    assert peer.say(peer.headers(1, [(":status", "103")]), peer.headers(1, [(":status", "100")])) == []
    assert peer.say(peer.headers(1, [(":status", "200")])) == [Responded(1, 200, ())]


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ([("x", "y")], False),
        ([(":status", "xyz")], True),
        ([(":status", "200"), (":path", "/")], False),
        ([(":status", "103")], True),
        ([(":status", "103"), ("Bad", "")], False),
    ],
)
def test_malformed_answers_reset_the_stream(fields, end):
    connection, peer = client()
    connection.connect("h:1", [])
    connection.take_output()
    assert peer.say(peer.headers(1, fields, end=end)) == [
        StreamReset(1, ErrorCode.PROTOCOL_ERROR, remote=False)
    ]
    assert peer.hear() == ["RSTSTREAM 1 1"]
    assert connection.can_open


def test_an_informational_answer_after_the_final_one_resets_the_stream():
    connection, peer = connected()
    assert peer.say(peer.headers(1, [(":status", "103")])) == [
        StreamReset(1, ErrorCode.PROTOCOL_ERROR, remote=False)
    ]
    assert peer.hear() == ["RSTSTREAM 1 1"]
    assert peer.say(data(1, b"late")) == []
    assert connection.open_streams == 0


@pytest.mark.parametrize("stream_id", [2, 3])
def test_a_server_opens_no_streams(stream_id):
    _, peer = connected()
    [failed] = peer.say(peer.headers(stream_id, [(":status", "200")]))
    assert failed.code == ErrorCode.PROTOCOL_ERROR


def test_data_before_the_answer_breaks_the_connection():
    connection, peer = client()
    connection.connect("h:1", [])
    [failed] = peer.say(data(1, b"x"))
    assert failed == ConnectionFailed(ErrorCode.PROTOCOL_ERROR, "DATA came on stream 1 before its HEADERS")


def test_the_peers_stream_limit_counts_when_it_is_known():
    connection: Any = HboneClient()
    for _ in range(3):
        connection.connect("h:1", [])
    assert connection.can_open
    peer = Peer(connection)
    peer.say(settings({3: 2}))
    assert not connection.can_open
    with pytest.raises(CannotOpenStreamError, match="as many streams are open as the peer allows"):
        connection.connect("h:1", [])
    connection.reset(1, 8)
    assert not connection.can_open
    connection.reset(3, 8)
    assert connection.can_open
    peer.say(settings({3: 0}))
    assert not connection.can_open


def test_stream_ids_run_out():
    connection, _ = client()
    connection._next_stream_id = (1 << 31) - 1
    connection.connect("h:1", [])
    assert not connection.can_open
    with pytest.raises(CannotOpenStreamError, match="used up"):
        connection.connect("h:1", [])


def test_goaway_refuses_the_streams_above_its_last_id():
    connection, peer = client()
    for _ in range(3):
        connection.connect("h:1", [])
    connection.take_output()
    peer.say(peer.headers(1, [(":status", "200")]))
    assert peer.say(goaway(1)) == [
        PeerDraining(1, 0, b""),
        StreamReset(3, ErrorCode.REFUSED_STREAM),
        StreamReset(5, ErrorCode.REFUSED_STREAM),
    ]
    assert connection.peer_is_draining
    assert not connection.can_open
    with pytest.raises(CannotOpenStreamError, match="peer is draining"):
        connection.connect("h:1", [])
    assert peer.hear() == []
    # The one below lives on, in both directions.
    assert peer.say(data(1, b"still")) == [DataReceived(1, memoryview(b"still"))]
    assert connection.send_data(1, b"alive") == 5
    assert peer.say(window_update(1, 10), goaway(1, 11, b"x")) == [PeerDraining(1, 11, b"x")]
    assert peer.say(data(1, end=True)) == [StreamEnded(1)]
    connection.end_stream(1)
    assert connection.open_streams == 0


def test_the_first_goaway_of_a_graceful_end_refuses_none():
    connection, peer = connected()
    assert peer.say(goaway((1 << 31) - 1)) == [PeerDraining((1 << 31) - 1, 0, b"")]
    assert connection.stream_ids == [1]


def test_no_streams_on_a_closed_connection():
    connection, peer = client()
    connection.close(0)
    assert peer.hear() == ["GOAWAY 0 last=0 code=0"]
    assert not connection.can_open
    with pytest.raises(CannotOpenStreamError, match="it is closed"):
        connection.connect("h:1", [])


def test_there_is_room_for_one_stream_until_the_limit_is_known():
    connection: Any = HboneClient()
    assert (connection.room, connection.limit) == (1, None)
    connection.connect("h:1", [])
    assert (connection.room, connection.can_open) == (0, True)
    connection.reset(1, 8)
    assert connection.room == 0
    peer = Peer(connection)
    assert peer.say(settings({3: 2})) == [PeerSettingsReceived(2)]
    assert (connection.room, connection.limit) == (2, 2)
    connection.connect("h:1", [])
    assert connection.room == 1
    peer.say(settings({3: 1}))
    assert connection.room == 0
    peer.say(settings({3: 7}))
    assert connection.room == 6
    peer.say(goaway(100))
    assert connection.room == 0


def test_a_peer_that_names_no_limit_has_none():
    connection, _ = client()
    assert connection.room == connection.limit == 1 << 32


def test_a_stream_refused_beside_others_tells_where_the_limit_is():
    connection, peer = client()
    for _ in range(3):
        connection.connect("h:1", [])
    peer.say(peer.headers(1, [(":status", "200")]), reset(5, ErrorCode.REFUSED_STREAM))
    assert connection.room == 0
    # One that was answered was not refused for its number.
    peer.say(reset(1, ErrorCode.REFUSED_STREAM))
    assert connection.room == 1
    connection.connect("h:1", [])
    assert connection.room == 0
    peer.say(settings({4: 70_000}))
    assert connection.room > 1_000
