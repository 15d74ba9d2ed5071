"""Conversations with the end that is connected to."""

from __future__ import annotations

import pytest

from tests.support.hbone_conversation import (
    CONNECT,
    PREFACE,
    Peer,
    accepted,
    data,
    frame,
    goaway,
    ping,
    reset,
    server,
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
    PeerDraining,
    StreamEnded,
    StreamReset,
    WindowOpened,
)


def test_the_opening_is_the_references():
    (first, _), (second, _) = split(b"".join(HboneServer().take_output()))
    assert list(first.settings.items()) == [(3, 200), (4, 4_194_304), (5, 1_048_576), (6, 65_536)]
    assert (second.stream_id, second.window_increment) == (0, 16_711_681)


def test_the_default_connection_window_needs_no_update():
    [(only, _)] = split(b"".join(HboneServer(HboneSettings(connection_window=65_535)).take_output()))
    assert only.settings[4] == 4_194_304


def test_a_connect_is_accepted_with_baggage():
    connection, peer = server()
    fields = [*CONNECT, ("baggage", "a=b"), ("traceparent", "00-1")]
    assert peer.say(peer.headers(1, fields)) == [
        ConnectReceived(1, "CONNECT", "10.88.0.5:8080", ((b"baggage", b"a=b"), (b"traceparent", b"00-1")))
    ]
    assert connection.open_streams == 1
    assert not connection.can_send(1)
    assert connection.can_receive(1)
    assert connection.accept(1, [("baggage", "c=d")])
    assert peer.hear() == ["HEADERS 1 :status=200 baggage=c=d"]
    assert connection.can_send(1)
    assert not connection.accept(1)
    assert not connection.refuse(1, 503)
    assert not connection.refuse_stream(1)
    assert peer.hear() == []


def test_data_may_come_before_the_answer_but_not_go():
    connection, peer = server()
    peer.say(peer.headers(1, CONNECT))
    assert peer.say(data(1, b"early")) == [DataReceived(1, memoryview(b"early"))]
    assert connection.send_window(1) == 0
    assert connection.send_data(1, b"x") == 0
    connection.end_stream(1)
    assert peer.hear() == []


@pytest.mark.parametrize("status", [400, 401, 503])
def test_a_refusal_ends_the_stream_and_resets_it(status):
    connection, peer = server()
    peer.say(peer.headers(1, CONNECT))
    assert connection.refuse(1, status)
    assert peer.hear() == [f"HEADERS 1 :status={status} END_STREAM", "RSTSTREAM 1 0"]
    assert not connection.is_open(1)
    assert isinstance(peer.say(peer.headers(3, CONNECT))[0], ConnectReceived)


def test_a_refusal_after_the_peers_end_needs_no_reset():
    connection, peer = server()
    peer.say(peer.headers(1, CONNECT, end=True))
    assert connection.refuse(1, 400)
    assert peer.hear() == ["HEADERS 1 :status=400 END_STREAM"]
    assert connection.open_streams == 0


def test_a_stream_can_be_refused_unprocessed():
    connection, peer = server()
    peer.say(peer.headers(1, CONNECT))
    assert connection.refuse_stream(1)
    assert peer.hear() == ["RSTSTREAM 1 7"]


def test_answers_to_streams_that_are_gone_do_nothing():
    connection, peer = server()
    peer.say(peer.headers(1, CONNECT), reset(1, 8))
    assert not connection.accept(1)
    assert not connection.refuse(1, 503)
    assert not connection.refuse_stream(1)
    connection.reset(1, 8)
    connection.end_stream(1)
    connection.discard(1)
    assert peer.hear() == []


def test_a_get_is_delivered_for_the_caller_to_answer():
    _, peer = server()
    fields = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "h:80")]
    assert peer.say(peer.headers(1, fields)) == [ConnectReceived(1, "GET", "h:80", ())]


@pytest.mark.parametrize(
    "fields",
    [
        [*CONNECT, (":path", "/")],
        [*CONNECT, (":scheme", "https")],
        [*CONNECT, (":scheme", "https"), (":path", "/"), (":protocol", "websocket")],
        [(":authority", "h:80")],
        [(":method", "CONNECT"), (":authority", "h:80/")],
    ],
)
@pytest.mark.parametrize("end", [False, True])
def test_a_malformed_request_costs_one_stream_only(fields, end):
    connection, peer = server()
    peer.say(peer.headers(1, CONNECT))
    assert peer.say(peer.headers(3, fields, end=end)) == []
    assert peer.hear() == ["RSTSTREAM 3 1"]
    assert connection.stream_ids == [1]
    assert connection.accept(1)
    assert isinstance(peer.say(peer.headers(5, CONNECT))[0], ConnectReceived)
    assert peer.say(data(3, b"late")) == []


def test_header_blocks_may_be_continued_padded_and_prioritised():
    _, peer = server()
    [first] = peer.say(peer.headers(1, CONNECT, cut=5))
    assert first.authority == "10.88.0.5:8080"
    block = peer.encoder.encode(CONNECT)
    body = bytes([3]) + b"\0\0\0\3\x10" + block + b"\0\0\0"
    [second] = peer.say(frame(1, 3, body, flags=0x4 | 0x8 | 0x20))
    assert second == ConnectReceived(3, "CONNECT", "10.88.0.5:8080", ())


def test_both_ends_of_a_stream_close_it():
    connection, peer = accepted()
    assert peer.say(data(1, b"bye", end=True)) == [DataReceived(1, memoryview(b"bye")), StreamEnded(1)]
    assert connection.is_open(1)
    assert not connection.can_receive(1)
    assert connection.send_data(1, b"later") == 5
    connection.end_stream(1)
    assert peer.hear() == ["DATA 1 5", "DATA 1 0 END_STREAM"]
    assert not connection.is_open(1)


def test_our_end_first():
    connection, peer = accepted()
    connection.end_stream(1)
    connection.end_stream(1)
    assert connection.send_data(1, b"x") == 0
    assert not connection.can_send(1)
    assert connection.can_receive(1)
    assert peer.hear() == ["DATA 1 0 END_STREAM"]
    assert peer.say(data(1, end=True)) == [StreamEnded(1)]
    assert connection.open_streams == 0


def test_trailers_end_a_stream():
    connection, peer = accepted()
    assert peer.say(peer.headers(1, [("x", "y")], end=True)) == [StreamEnded(1)]
    assert connection.can_send(1)


@pytest.mark.parametrize(
    ("fields", "end"), [([("x", "y")], False), ([(":path", "/")], True), ([("Bad", "")], True)]
)
def test_unsound_trailers_reset_the_stream(fields, end):
    connection, peer = accepted()
    assert peer.say(peer.headers(1, fields, end=end)) == [
        StreamReset(1, ErrorCode.PROTOCOL_ERROR, remote=False)
    ]
    assert peer.hear() == ["RSTSTREAM 1 1"]
    assert connection.open_streams == 0


def test_unsound_trailers_of_a_stream_that_we_ended_reset_it_too():
    connection, peer = accepted()
    connection.end_stream(1)
    assert peer.say(peer.headers(1, [("Bad", "")], end=True)) == [
        StreamReset(1, ErrorCode.PROTOCOL_ERROR, remote=False)
    ]
    assert connection.open_streams == 0


def test_frames_after_the_peers_end_reset_the_stream():
    connection, peer = accepted()
    peer.say(data(1, end=True))
    assert peer.say(data(1, b"more")) == [StreamReset(1, ErrorCode.STREAM_CLOSED, remote=False)]
    assert peer.hear() == ["RSTSTREAM 1 5"]
    peer.say(peer.headers(3, CONNECT, end=True))
    assert peer.say(peer.headers(3, [("x", "y")], end=True)) == [
        StreamReset(3, ErrorCode.STREAM_CLOSED, remote=False)
    ]
    assert connection.open_streams == 0
    assert not connection.closed


def test_the_peers_reset_is_told_with_its_code():
    connection, peer = accepted()
    assert peer.say(reset(1, 8)) == [StreamReset(1, 8)]
    assert peer.say(reset(1, 8), window_update(1, 5)) == []
    assert connection.open_streams == 0
    peer.say(peer.headers(3, CONNECT))
    assert peer.say(reset(3, 0xDEAD)) == [StreamReset(3, 0xDEAD)]


def test_frames_after_the_peers_own_reset_are_answered_with_stream_closed():
    connection, peer = accepted()
    peer.say(reset(1, 8))
    assert peer.say(data(1, b"late"), peer.headers(1, [("x", "y")], end=True)) == []
    assert peer.hear() == ["RSTSTREAM 1 5", "RSTSTREAM 1 5"]
    assert not connection.closed


def test_frames_that_cross_our_reset_are_passed_over():
    connection, peer = accepted()
    connection.reset(1, ErrorCode.CANCEL)
    connection.reset(1, ErrorCode.CANCEL)
    assert peer.hear() == ["RSTSTREAM 1 8"]
    late = [data(1, b"late"), peer.headers(1, [("x", "y")], end=True), reset(1, 8), window_update(1, 5)]
    assert peer.say(*late) == []
    assert peer.hear() == []
    assert peer.say(peer.headers(3, [*CONNECT, ("x", "y")]))[0].headers == ((b"x", b"y"),)


def test_a_header_block_for_an_ended_stream_ends_the_connection():
    connection, peer = accepted()
    peer.say(data(1, end=True))
    connection.end_stream(1)
    connection.take_output()
    [failed] = peer.say(peer.headers(1, [("x", "y")], end=True))
    assert failed.code == ErrorCode.STREAM_CLOSED
    assert peer.hear() == ["GOAWAY 0 last=1 code=5"]


def test_a_goaway_of_the_peer_leaves_streams_alone():
    connection, peer = accepted()
    assert peer.say(goaway(0, 0, b"bye")) == [PeerDraining(0, 0, b"bye")]
    assert connection.peer_is_draining
    assert peer.say(data(1, b"still")) == [DataReceived(1, memoryview(b"still"))]
    assert connection.send_data(1, b"alive") == 5
    assert connection.accept(3) is False


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (window_update(0, 5)[:9] + b"\0\0\0\0", ErrorCode.PROTOCOL_ERROR),
        (window_update(7, 5), ErrorCode.PROTOCOL_ERROR),
        (window_update(2, 5), ErrorCode.PROTOCOL_ERROR),
        (window_update(0, (1 << 31) - 1), ErrorCode.FLOW_CONTROL_ERROR),
        (frame(8, 0, b"\0\0\1"), ErrorCode.FRAME_SIZE_ERROR),
        (data(3, b"x"), ErrorCode.PROTOCOL_ERROR),
        (frame(0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
        (frame(0, 1, b"", 8), ErrorCode.FRAME_SIZE_ERROR),
        (frame(0, 1, b"\5abcd", 8), ErrorCode.PROTOCOL_ERROR),
        (frame(0, 1, bytes((1 << 20) + 1)), ErrorCode.FRAME_SIZE_ERROR),
        (frame(1, 0, b"\x88", 4), ErrorCode.PROTOCOL_ERROR),
        (frame(1, 2, b"\x88", 4), ErrorCode.PROTOCOL_ERROR),
        (frame(1, 3, b"\xff\xff\xff\xff", 4), ErrorCode.COMPRESSION_ERROR),
        (frame(1, 3, b"\x05", 4 | 8), ErrorCode.PROTOCOL_ERROR),
        (frame(1, 3, b"", 4 | 8 | 0x20), ErrorCode.PROTOCOL_ERROR),
        (frame(1, 3, b"\x82", 0) + ping(b"12345678"), ErrorCode.PROTOCOL_ERROR),
        (frame(1, 3, b"\x82", 0) + frame(9, 5, b"\x82", 4), ErrorCode.PROTOCOL_ERROR),
        (frame(1, 3, b"\x82", 0) + data(1, b"x"), ErrorCode.PROTOCOL_ERROR),
        (frame(1, 3, b"\x82", 0) + frame(77, 3, b"x"), ErrorCode.PROTOCOL_ERROR),
        (frame(9, 1, b"\x82", 4), ErrorCode.PROTOCOL_ERROR),
        (frame(5, 1, b"\0\0\0\2\x82", 4), ErrorCode.PROTOCOL_ERROR),
        (frame(2, 1, b"1234"), ErrorCode.FRAME_SIZE_ERROR),
        (frame(2, 0, b"12345"), ErrorCode.PROTOCOL_ERROR),
        (frame(3, 1, b"123"), ErrorCode.FRAME_SIZE_ERROR),
        (reset(3, 8), ErrorCode.PROTOCOL_ERROR),
        (frame(3, 0, b"1234"), ErrorCode.PROTOCOL_ERROR),
        (frame(4, 0, b"12345"), ErrorCode.FRAME_SIZE_ERROR),
        (frame(4, 0, b"123456", 1), ErrorCode.FRAME_SIZE_ERROR),
        (frame(4, 1), ErrorCode.PROTOCOL_ERROR),
        (settings({4: 1 << 31}), ErrorCode.FLOW_CONTROL_ERROR),
        (settings({5: 5}), ErrorCode.PROTOCOL_ERROR),
        (settings({2: 2}), ErrorCode.PROTOCOL_ERROR),
        (frame(6, 0, b"1234567"), ErrorCode.FRAME_SIZE_ERROR),
        (frame(6, 1, b"12345678"), ErrorCode.PROTOCOL_ERROR),
        (frame(7, 0, b"1234567"), ErrorCode.FRAME_SIZE_ERROR),
        (frame(7, 1, b"12345678"), ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_what_breaks_the_connection(wire, code):
    connection, peer = accepted()
    events = peer.say(wire)
    assert isinstance(events[-1], ConnectionFailed)
    assert events[-1].code == code
    assert events[-1].reason
    assert peer.hear()[-1] == f"GOAWAY 0 last=1 code={int(code)}"
    assert connection.closed
    assert connection.open_streams == 0
    # Nothing works on it any more, and nothing raises.
    assert peer.say(data(1, b"x")) == []
    assert connection.receive_eof() == []
    assert connection.send_data(1, b"x") == 0
    connection.acknowledge(1, 1)
    connection.reset(1, 8)
    connection.ping(b"12345678")
    connection.start_drain()
    connection.close(0)
    assert peer.hear() == []


def test_a_lower_stream_id_ends_the_connection():
    _, peer = server()
    peer.say(peer.headers(5, CONNECT))
    [failed] = peer.say(peer.headers(3, CONNECT))
    assert failed.code == ErrorCode.STREAM_CLOSED


@pytest.mark.parametrize("wire", [b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nXX", b"\x16\x03\x01"])
def test_another_protocol_is_told_at_once(wire):
    peer = Peer(HboneServer())
    [failed] = peer.say(wire)
    assert failed.code == ErrorCode.PROTOCOL_ERROR


@pytest.mark.parametrize("first", [settings(ack=True), ping(b"12345678"), data(1, b"x"), frame(77, 0)])
def test_the_first_frame_is_settings(first):
    peer = Peer(HboneServer())
    [failed] = peer.say(PREFACE + first)
    assert failed.code == ErrorCode.PROTOCOL_ERROR


def test_settings_are_acknowledged_and_unknown_ones_dropped():
    connection, peer = server()
    assert peer.say(frame(4, 0, b"".join(bytes([1, n, 0, 0, 0, 1]) for n in range(200)))) == []
    assert peer.hear() == ["SETTINGS 0 ACK"]
    assert not hasattr(connection._engine, "__dict__")


def test_unknown_frames_and_priority_are_skipped_in_pieces():
    _, peer = accepted()
    wire = frame(77, 5, b"x" * 50) + frame(10, 0, b"") + frame(2, 1, b"12345") + data(1, b"ok")
    events = [event for at in range(0, len(wire), 7) for event in peer.say(wire[at : at + 7])]
    assert b"".join(bytes(e.data) for e in events) == b"ok"


def test_a_smaller_header_table_is_acknowledged_in_the_next_block():
    connection, peer = accepted()
    peer.say(settings({1: 0}))
    peer.decoder.header_table_size = 4096
    peer.decoder.max_allowed_table_size = 0
    peer.say(peer.headers(3, CONNECT), peer.headers(5, CONNECT))
    connection.accept(3)
    connection.accept(5)
    assert peer.hear() == ["SETTINGS 0 ACK", "HEADERS 3 :status=200", "HEADERS 5 :status=200"]
    assert peer.decoder.header_table_size == 0


def test_a_long_answer_is_cut_to_the_peers_frame_size():
    connection, peer = server()
    peer.say(peer.headers(1, CONNECT))
    connection.accept(1, [("baggage", "x" * 20_000)])
    made = split(b"".join(connection.take_output()))
    assert [type(parsed).__name__ for parsed, _ in made] == ["HeadersFrame", "ContinuationFrame"]
    fields = peer.decoder.decode(b"".join(body for _, body in made))
    assert fields == [(":status", "200"), ("baggage", "x" * 20_000)]


def test_eof_is_told_once():
    connection, peer = accepted()
    assert connection.receive_eof() == [ConnectionFailed(0, "the transport ended")]
    assert connection.receive_eof() == []
    assert connection.closed
    connection, peer = accepted()
    peer.say(b"\0\0")
    assert connection.receive_eof() == [ConnectionFailed(0, "the transport ended inside a frame")]


def test_close_names_the_last_processed_stream():
    connection, peer = accepted()
    peer.say(peer.headers(3, [(":method", "CONNECT"), (":path", "/")]))
    connection.take_output()
    connection.close(ErrorCode.NO_ERROR)
    assert peer.hear() == ["GOAWAY 0 last=1 code=0"]
    assert connection.closed
    assert connection.receive_eof() == []


def test_windows_open_with_settings_and_updates():
    connection, peer = accepted()
    assert connection.send_window(1) == 65_535
    assert connection.send_data(1, bytes(70_000)) == 65_535
    assert connection.send_window(1) == 0
    assert peer.say(settings({4: 100_000})) == [WindowOpened(None)]
    assert connection.send_window(1) == 0
    assert peer.say(window_update(0, 10)) == [WindowOpened(None)]
    assert connection.send_window(1) == 10
    assert peer.say(window_update(0, 100_000)) == []
    assert connection.send_data(1, bytes(70_000)) == 34_465
    assert peer.say(window_update(1, 1)) == [WindowOpened(1)]
    assert peer.say(window_update(1, 1)) == []
    assert connection.send_window(1) == 2
    assert peer.say(settings({4: 0})) == []
    assert connection.send_window(1) == 0
    assert peer.say(window_update(1, 5)) == []
    assert peer.say(window_update(1, 100_000)) == [WindowOpened(1)]


def test_a_stream_window_opened_too_far_costs_the_stream():
    connection, peer = accepted()
    assert peer.say(window_update(1, (1 << 31) - 1)) == [
        StreamReset(1, ErrorCode.FLOW_CONTROL_ERROR, remote=False)
    ]
    assert peer.hear() == ["RSTSTREAM 1 3"]
    assert not connection.closed


def test_a_peer_without_stream_is_no_obstacle_to_its_settings():
    _, peer = server()
    assert peer.say(settings({4: 1 << 20})) == []


def test_the_peer_class_tells_what_it_hears():
    connection = HboneServer()
    peer = Peer(connection)
    connection.ping(b"12345678")
    assert peer.hear()[-1] == "PING 0 3132333435363738"
    with pytest.raises(ValueError, match="8 bytes"):
        connection.ping(b"short")
