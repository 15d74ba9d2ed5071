"""What a peer cannot make us do or keep. Header blocks have their own: test_header_limits."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.hbone_conversation import (
    CONNECT,
    accepted,
    client,
    data,
    frame,
    goaway,
    ping,
    reset,
    server,
    settings,
    window_update,
)
from ztunnel.hbone import ConnectionFailed, ConnectReceived, ErrorCode, HboneSettings, Responded, work

CALM = ErrorCode.ENHANCE_YOUR_CALM


def calmed(events) -> bool:
    return bool(events) and isinstance(events[-1], ConnectionFailed) and events[-1].code == CALM


@pytest.mark.parametrize(("kind", "size"), [(4, 6_000), (7, 20_000)])
def test_control_frames_that_are_too_large_are_refused_unread(kind, size):
    connection, peer = accepted()
    assert calmed(peer.say(frame(kind, 0, bytes(size))[:9]))
    assert not connection._reader.held


def test_frames_of_unknown_types_are_not_kept():
    connection, peer = accepted()
    assert peer.say(frame(77, 0, bytes(1 << 20))[: 1 << 19]) == []
    assert not connection._reader.held


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
    assert len(connection._streams._closed) == 1024
    assert not connection._streams.open
    # DATA for one that is forgotten is dropped, its window given back.
    window = connection._windows.connection
    assert peer.say(data(1, b"late")) == []
    assert window.current + window.consumed == window.size
    assert peer.hear() == []


def test_padded_payload_is_useful():
    _, peer = accepted()
    for _ in range(3):
        assert peer.say(data(1) * 100) == []
        assert len(peer.say(data(1, b"x", padding=2))) == 1


def test_data_without_end_on_a_stream_that_we_reset():
    connection, peer = accepted(HboneSettings(max_late_frames=50))
    peer.say(peer.headers(3, CONNECT))
    connection.reset(1, 8)
    for _ in range(3):
        assert peer.say(data(1, b"late") * 50) == []
        assert len(peer.say(data(3, b"useful"))) == 1
    assert calmed(peer.say(data(1, b"late") * 51))


def test_what_a_peer_costs_is_told():
    connection, peer = accepted()
    connection.take_work()
    peer.say(data(1, bytes(1_000)) * 100)
    assert connection.take_work() == 0
    peer.say(peer.headers(3, [*CONNECT, ("baggage", "x" * 100)]))
    assert connection.take_work() == work.FRAME + work.REQUEST
    block = peer.headers(5, [*CONNECT, ("baggage", "x" * 50_000)])
    peer.say(block)
    assert connection.take_work() == work.FRAME + work.REQUEST + (len(block) - 9) // work.HEADER_BYTES
    for number in (7, 9):
        peer.say(peer.headers(number, CONNECT))
    connection.take_work()
    peer.say(settings({4: 100}) * 10)
    assert connection.take_work() == 10 * (work.FRAME + work.SETTINGS + 5 * work.RESIZED)
    assert connection.take_work() == 0


@pytest.mark.parametrize(
    "wire",
    [
        ping(b"12345678"),
        window_update(0, 1_000_000),
        window_update(1, 1_000_000),
        window_update(1, 1),
        frame(2, 1, bytes(5)),
        frame(77, 1, bytes(100)),
        data(1),
        data(1, b"", padding=100),
        goaway(0, 0, b"bye"),
    ],
    ids=[
        "PING",
        "the connection's window opened further than ever",
        "a stream's window opened further than ever",
        "a stream's window opened by a byte",
        "PRIORITY",
        "an unknown frame",
        "empty DATA",
        "padding only",
        "GOAWAY",
    ],
)
def test_what_no_stream_needs_counts_several_times(wire: bytes) -> None:
    connection, peer = accepted()
    peer.say(peer.headers(3, CONNECT) + reset(3, 8))
    connection.take_work()
    peer.say(wire * 10)
    assert connection.take_work() >= 10 * work.USELESS


def test_what_comes_late_counts_less_than_what_no_stream_needs() -> None:
    connection, peer = accepted()
    peer.say(peer.headers(3, CONNECT) + reset(3, 8))
    connection.take_work()
    peer.say((reset(3, 8) + window_update(3, 1_000)) * 10)
    assert 20 * work.LATE <= connection.take_work() < 20 * work.USELESS


def test_a_window_that_is_given_back_counts_once() -> None:
    connection, peer = accepted()
    connection.take_work()
    assert connection.send_data(1, bytes(4_000)) == 4_000
    peer.say((window_update(0, 1_000) + window_update(1, 1_000)) * 4)
    assert connection.take_work() == 8 * work.FRAME
