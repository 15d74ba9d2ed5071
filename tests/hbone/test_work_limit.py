"""Taking only so much of what a peer says at a time: the rest is kept, and nothing is lost or changed."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.support.hbone_conversation import (
    CONNECT,
    Peer,
    accepted,
    data,
    frame,
    ping,
    reset,
    settings,
    window_update,
)
from ztunnel.hbone import (
    ConnectionFailed,
    ConnectReceived,
    DataReceived,
    ErrorCode,
    Event,
    HboneSettings,
    work,
)


def taken(connection: Any, wire: bytes, work_limit: int) -> list[list[Event]]:
    """The events of each turn until all has been taken."""
    turns = [connection.receive(wire, work_limit)]
    connection.take_work()
    while connection.unread:
        turns.append(connection.receive(b"", work_limit))
        connection.take_work()
    return turns


def shown(events: list[Event]) -> list[object]:
    """In a form that compares; payload that came in pieces is one."""
    found: list[object] = []
    for event in events:
        if isinstance(event, DataReceived):
            last = found[-1] if found else None
            if isinstance(last, tuple) and last[0] == event.stream_id:
                found[-1] = (event.stream_id, last[1] + bytes(event.data))
            else:
                found.append((event.stream_id, bytes(event.data)))
        else:
            found.append(event)
    return found


def requests(peer: Peer, numbers: range) -> bytes:
    return b"".join(peer.headers(number, CONNECT) for number in numbers)


def test_requests_without_end_are_taken_a_few_at_a_time() -> None:
    """What is over the limit costs too: a read of 16 KiB would be 600 of them, and forty milliseconds."""
    connection, peer = accepted(HboneSettings(max_concurrent_streams=20))
    connection.take_work()
    turns = taken(connection, requests(peer, range(3, 603, 2)), 500)
    assert max(map(len, turns)) <= 500 // (work.REQUEST + work.FRAME) + 1
    assert sum(isinstance(event, ConnectReceived) for turn in turns for event in turn) == 19
    assert len(turns) >= 19 * work.REQUEST // 500 + 281 * work.REFUSED // 500
    assert peer.hear()[-1] == "RSTSTREAM 601 7"


def test_small_pieces_of_payload_are_taken_some_at_a_time_and_cost_nothing() -> None:
    connection, _ = accepted()
    connection.take_work()
    first = connection.receive(data(1, b"x") * 300 + data(1, bytes(1_000)) * 1_000, 500)
    at_once = 500 // work.SMALL + 1
    assert len(first) == at_once
    assert connection.take_work() == 0
    for _ in range(300 // at_once - 1):
        assert len(connection.receive(b"", 500)) == at_once
    # The large ones come all at once.
    assert len(connection.receive(b"", 500)) == 300 % at_once + 1_000
    assert not connection.unread


def test_payload_that_nobody_wants_is_taken_some_at_a_time() -> None:
    connection, peer = accepted()
    peer.say(peer.headers(3, CONNECT))
    connection.reset(1, 8)
    connection.take_work()
    turns = taken(connection, data(1, bytes(1_000)) * 1_000 + data(3, b"last"), 500)
    assert len(turns) >= 1_000 * work.LATE // 500
    assert shown([event for turn in turns for event in turn]) == [(3, b"last")]


def test_what_is_left_comes_before_what_is_new() -> None:
    connection, peer = accepted()
    first = connection.receive(requests(peer, range(3, 43, 2)), 500)
    assert connection.unread
    events = [*first, *connection.receive(data(1, b"new"))]
    assert [event.stream_id for event in events] == [*range(3, 43, 2), 1]
    assert not connection.unread


def test_payload_costs_nothing() -> None:
    connection, _ = accepted()
    assert len(connection.receive(data(1, bytes(1_000)) * 100, 0)) == 100
    assert not connection.unread


def test_a_violation_ends_it_with_what_is_left() -> None:
    connection, peer = accepted()
    wire = frame(4, 1) + requests(peer, range(3, 43, 2))
    [event] = connection.receive(wire, 0)
    assert isinstance(event, ConnectionFailed)
    assert not connection.unread
    assert connection.receive(b"") == []


def test_resets_of_one_read_are_counted_together_however_it_is_taken() -> None:
    """Rapid reset: the caller had no time to serve those of one read."""
    connection, peer = accepted()
    numbers = range(3, 63, 2)
    turns = taken(connection, b"".join(peer.headers(n, CONNECT) + reset(n, 8) for n in numbers), 100)
    assert isinstance(turns[-1][-1], ConnectionFailed)
    assert turns[-1][-1].code == ErrorCode.ENHANCE_YOUR_CALM
    assert len(turns) > 2


_FRAMES = st.one_of(
    st.binary(max_size=200).map(lambda body: data(1, body, end=False)),
    st.integers(0, 30).map(lambda size: data(1, b"x", padding=size)),
    st.just(ping(b"12345678")),
    st.just(settings({4: 70_000})),
    st.just(window_update(0, 5)),
    st.binary(max_size=50).map(lambda body: frame(77, 1, body)),
    st.just(frame(2, 3, bytes(5))),
)


@given(wire=st.lists(_FRAMES, max_size=40), work_limit=st.integers(0, 12), cut=st.integers(1, 400))
def test_it_makes_no_difference_in_what_comes_out(wire: list[bytes], work_limit: int, cut: int) -> None:
    whole, whole_peer = accepted()
    slowly, slow_peer = accepted()
    joined = b"".join(wire)
    at_once = whole.receive(joined)
    events = [
        event
        for at in range(0, len(joined), cut)
        for turn in taken(slowly, joined[at : at + cut], work_limit)
        for event in turn
    ]
    assert shown(events) == shown(at_once)
    assert slow_peer.hear() == whole_peer.hear()
    assert slowly.held == whole.held
