"""What a peer cannot make us do or keep."""

from __future__ import annotations

from typing import Any

import pytest

from tests.hbone.conversation import (
    CONNECT,
    accepted,
    client,
    data,
    frame,
    ping,
    reset,
    server,
    settings,
)
from ztunnel.hbone import ConnectionFailed, ConnectReceived, ErrorCode, HboneSettings, Responded

CALM = ErrorCode.ENHANCE_YOUR_CALM


def calmed(events) -> bool:
    return bool(events) and isinstance(events[-1], ConnectionFailed) and events[-1].code == CALM


def test_a_header_list_that_is_too_large_when_decoded():
    _, peer = server()
    assert not calmed(peer.say(peer.headers(1, [*CONNECT, ("a", "x" * 60_000)])))
    bomb = [*CONNECT, ("a", "x" * 4_000), *[("a", "x" * 4_000)] * 20]
    assert len(peer.headers(3, bomb)) < 10_000
    assert calmed(peer.say(peer.headers(5, bomb)))
    assert peer.hear()[-1] == "GOAWAY 0 last=1 code=11"


def test_a_client_announces_less_and_holds_to_it():
    connection, peer = client()
    connection.connect("h:1", [])
    fields = [(":status", "200"), *[("a", "x" * 4_000)] * 5]
    assert calmed(peer.say(peer.headers(1, fields)))


def test_a_header_frame_that_is_too_large_is_refused_unread():
    connection, peer = server()
    head = frame(1, 1, bytes(70_000), flags=4)[:9]
    assert calmed(peer.say(head))
    assert not connection._held


def test_a_header_block_in_too_many_frames():
    _, peer = server()
    wire = [frame(1, 1, b"", 0), *[frame(9, 1, b"", 0)] * 63]
    assert peer.say(*wire) == []
    assert calmed(peer.say(frame(9, 1, b"", 0)))


def test_a_header_block_of_many_frames_that_is_too_large():
    _, peer = server()
    events = peer.say(frame(1, 1, bytes(16_000), 0), *[frame(9, 1, bytes(16_000), 0)] * 5)
    assert calmed(events)


@pytest.mark.parametrize(("kind", "size"), [(4, 6_000), (7, 20_000)])
def test_control_frames_that_are_too_large_are_refused_unread(kind, size):
    connection, peer = accepted()
    assert calmed(peer.say(frame(kind, 0, bytes(size))[:9]))
    assert not connection._held


def test_frames_of_unknown_types_are_not_kept():
    connection, peer = accepted()
    assert peer.say(frame(77, 0, bytes(1 << 20))[: 1 << 19]) == []
    assert not connection._held


def test_rapid_resets_in_one_batch():
    _, peer = server()
    wire = [part for n in range(21) for part in (peer.headers(2 * n + 1, CONNECT), reset(2 * n + 1, 8))]
    events = peer.say(*wire)
    assert calmed(events)
    assert sum(isinstance(event, ConnectReceived) for event in events) == 21


def test_twenty_resets_in_one_batch_are_let_pass_again_and_again():
    _, peer = server()
    for batch in range(5):
        ids = [2 * (batch * 20 + n) + 1 for n in range(20)]
        wire = [part for n in ids for part in (peer.headers(n, CONNECT), reset(n, 8))]
        assert not calmed(peer.say(*wire))


def test_resets_that_outnumber_the_answers():
    connection, peer = server(HboneSettings(max_unanswered_resets=3))
    ids = iter(range(1, 1_000, 2))

    def cancelled() -> Any:
        stream_id = next(ids)
        peer.say(peer.headers(stream_id, CONNECT))
        return peer.say(reset(stream_id, 8))

    def answered() -> None:
        stream_id = next(ids)
        peer.say(peer.headers(stream_id, CONNECT))
        connection.accept(stream_id)
        peer.say(reset(stream_id, 8))

    for _ in range(20):
        assert not calmed(cancelled())
        answered()
    for _ in range(3):
        assert not calmed(cancelled())
    assert calmed(cancelled())


def test_errors_that_we_have_to_reset():
    _, peer = server(HboneSettings(max_local_errors=5))
    for n in range(5):
        assert not calmed(peer.say(peer.headers(2 * n + 1, [(":path", "/")])))
    assert calmed(peer.say(peer.headers(11, [(":path", "/")])))


def test_streams_over_the_limit_are_refused_one_by_one():
    connection, peer = server(HboneSettings(max_concurrent_streams=2, max_local_errors=3))
    assert len(peer.say(peer.headers(1, CONNECT), peer.headers(3, CONNECT))) == 2
    connection.take_output()
    assert peer.say(peer.headers(5, CONNECT)) == []
    assert peer.hear() == ["RSTSTREAM 5 7"]
    connection.reset(1, 8)
    [seventh] = peer.say(peer.headers(7, CONNECT))
    assert seventh.stream_id == 7
    for n in (9, 11):
        peer.say(peer.headers(n, CONNECT))
    assert calmed(peer.say(peer.headers(13, CONNECT)))


def test_data_on_ended_streams_is_counted():
    connection, peer = accepted(HboneSettings(max_local_errors=3))
    peer.say(data(1, end=True))
    connection.end_stream(1)
    for _ in range(3):
        assert peer.say(data(1, b"x")) == []
    assert calmed(peer.say(data(1, b"x")))


@pytest.mark.parametrize("wire", [ping(b"12345678"), settings({3: 7})])
def test_a_flood_of_what_wants_an_answer(wire):
    _, peer = accepted()
    for _ in range(3):
        assert peer.say(wire * 900) == []
        assert len(peer.hear()) == 900
    assert peer.say(wire * 900) == []
    assert calmed(peer.say(wire * 101))


@pytest.mark.parametrize("wire", [data(1), data(1, padding=9)])
def test_a_flood_of_empty_data(wire):
    _, peer = accepted()
    for _ in range(3):
        assert peer.say(wire * 100) == []
        assert len(peer.say(data(1, b"x"))) == 1
    assert calmed(peer.say(wire * 101))


def test_requests_between_empty_frames_are_useful_too():
    _, peer = accepted()
    assert peer.say(data(1) * 100) == []
    assert len(peer.say(peer.headers(3, CONNECT))) == 1
    assert peer.say(data(1) * 100) == []


def test_a_flood_of_informational_answers():
    connection, peer = client()
    for _ in range(2):
        stream_id = connection.connect("h:1", [])
        assert peer.say(*[peer.headers(stream_id, [(":status", "103")]) for _ in range(100)]) == []
        assert peer.say(peer.headers(stream_id, [(":status", "200")])) == [Responded(stream_id, 200, ())]
    stream_id = connection.connect("h:1", [])
    assert calmed(peer.say(*[peer.headers(stream_id, [(":status", "103")]) for _ in range(101)]))


def test_what_is_remembered_of_closed_streams_is_bounded():
    connection, peer = server()
    for n in range(1, 4_001, 2):
        peer.say(peer.headers(n, CONNECT))
        connection.refuse(n, 503)
        connection.take_output()
    assert len(connection._engine._closed_streams) == 1024
    assert not connection._engine.streams
    # DATA for one that is forgotten is dropped, its window given back.
    window = connection._engine.window
    assert peer.say(data(1, b"late")) == []
    assert window.current_window_size + window._bytes_processed == window.max_window_size
    assert peer.hear() == []


def test_padded_payload_is_useful():
    _, peer = accepted()
    for _ in range(3):
        assert peer.say(data(1) * 100) == []
        assert len(peer.say(data(1, b"x", padding=2))) == 1
