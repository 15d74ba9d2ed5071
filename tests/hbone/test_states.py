"""The tables of states: complete, and true to what they say of themselves."""

from __future__ import annotations

from collections import deque

import pytest

from tests.support.hbone_conversation import CONNECT, accepted, connected, data, goaway, server, settings
from ztunnel.hbone import HboneClient
from ztunnel.hbone.stream_state import (
    CLOSED,
    FORGOTTEN,
    IDLE,
    LOST,
    LOST_ENDED,
    REQUEST_RECEIVED,
    REQUEST_SENT,
    RESET,
    RESET_BY_PEER,
    RESET_BY_PEER_ENDED,
    STREAM_TABLE,
    Effect,
    StreamInput,
    StreamState,
)
from ztunnel.hbone.tunnel_state import TUNNEL_TABLE, TunnelInput

LIVE = [state for state in STREAM_TABLE if not state.closed and state is not IDLE]
SENT_BY_PEER = [
    StreamInput.RECV_HEADERS,
    StreamInput.RECV_INFORMATIONAL,
    StreamInput.RECV_DATA,
    StreamInput.RECV_RESET,
]


def reachable(start: StreamState) -> set[StreamState]:
    found, todo = {start}, deque([start])
    while todo:
        for state, _ in STREAM_TABLE.get(todo.popleft(), {}).values():
            if state not in found:
                found.add(state)
                todo.append(state)
    return found


def test_each_state_is_reached_from_the_two_beginnings():
    endings = {CLOSED, RESET, RESET_BY_PEER, RESET_BY_PEER_ENDED, LOST, LOST_ENDED}
    reached = reachable(REQUEST_SENT) | reachable(REQUEST_RECEIVED)
    assert reached == {*LIVE, *endings}
    assert set(STREAM_TABLE) == {*LIVE, *endings, IDLE, FORGOTTEN} - {LOST, LOST_ENDED}


@pytest.mark.parametrize("state", [state for state in STREAM_TABLE if state is not IDLE], ids=repr)
def test_whatever_a_peer_sends_has_its_place(state):
    missing = {input_ for input_ in SENT_BY_PEER if input_ not in STREAM_TABLE[state]}
    # A server never takes a header block for an interim answer.
    servers = state in reachable(REQUEST_RECEIVED) - reachable(REQUEST_SENT)
    assert missing <= ({StreamInput.RECV_INFORMATIONAL} if servers else set())
    if not state.closed:
        assert {StreamInput.SEND_RESET, StreamInput.TUNNEL_LOST} <= STREAM_TABLE[state].keys()
        assert (StreamInput.SEND_END in STREAM_TABLE[state]) == state.sends
        assert (StreamInput.RECV_END in STREAM_TABLE[state]) == state.receives


@pytest.mark.parametrize("state", LIVE, ids=repr)
def test_what_a_state_says_of_itself_follows_from_how_it_is_left(state):
    row = STREAM_TABLE[state]
    assert (row[StreamInput.RECV_DATA][1] is Effect.DELIVER) == state.receives
    for input_, (after, effect) in row.items():
        assert after.answered >= state.answered
        assert after.dead or (after.end_sent >= state.end_sent and after.end_received >= state.end_received)
        assert (input_ is StreamInput.RECV_END) == (effect is Effect.END)
        if effect in {Effect.RESET_STREAM_CLOSED, Effect.RESET_PROTOCOL_ERROR}:
            assert after is RESET
    assert row[StreamInput.TUNNEL_LOST][0].end_received == state.end_received
    assert row[StreamInput.RECV_RESET][0].end_received == state.end_received


@pytest.mark.parametrize("state", [state for state in STREAM_TABLE if state.closed], ids=repr)
def test_what_is_closed_stays_as_it_is(state):
    assert {after for after, _ in STREAM_TABLE[state].values()} == {state}
    assert not state.sends
    assert not state.receives


def test_a_streams_books_tell_how_it_ended_when_it_is_gone():
    connection, peer = accepted()
    stream = connection.stream(1)
    assert (stream.end_sent, stream.end_received, stream.dead) == (False, False, False)
    peer.say(data(1, end=True))
    assert stream.end_received
    connection.reset(1, 8)
    assert (stream.dead, stream.lost, stream.reset_by_peer, stream.reset_code) == (True, False, False, 8)
    peer.say(peer.headers(3, CONNECT))
    stream = connection.stream(3)
    peer.say(data(3, end=True))
    connection.close(0)
    assert (stream.dead, stream.lost, stream.end_received, stream.reset_code) == (True, True, True, None)


def test_a_tunnels_states():
    client = HboneClient()
    assert repr(client.state) == "OPENING"
    client.receive(settings())
    assert repr(client.state) == "OPEN"
    client.receive(goaway(0))
    assert repr(client.state) == "DRAINING"
    client.take_output()
    client.silence()
    assert repr(client.state) == "SILENT"
    client.ping(b"12345678")
    assert client.take_output() == []
    client.receive_eof()
    assert repr(client.state) == "CLOSED"
    assert client.closed


def test_what_a_silent_tunnel_has_to_say_is_dropped_and_what_comes_is_read():
    connection, peer = connected()
    connection.silence()
    assert not connection.can_open
    assert len(peer.say(data(1, b"last words"))) == 1
    connection.acknowledge(1, 10)
    connection.reset(1, 8)
    connection.close(0)
    assert connection.take_output() == []


def test_a_tunnel_never_goes_back():
    order = list(TUNNEL_TABLE)
    for state, row in TUNNEL_TABLE.items():
        assert set(row) == set(TunnelInput)
        assert all(order.index(after) >= order.index(state) for after in row.values())


def test_a_server_drains_in_the_same_states():
    connection, peer = server()
    assert repr(connection.state) == "OPEN"
    connection.start_drain()
    assert repr(connection.state) == "DRAINING"
    peer.say(settings())
    assert repr(connection.state) == "DRAINING"
