"""Streams that do not move, and those beside them: window that is lent for what is held, and repaid."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.support.hbone_conversation import CONNECT, Peer, data, exchange, reset, settings
from tests.support.hbone_conversation import PREFACE as HELLO
from ztunnel.hbone import (
    ConnectReceived,
    DataReceived,
    ErrorCode,
    HboneClient,
    HboneServer,
    HboneSettings,
    StreamReset,
    WindowBudget,
)

KIB = 1 << 10
OWN = HboneSettings(
    stream_window=16 * KIB, connection_window=64 * KIB, lent_window=192 * KIB, max_concurrent_streams=1_000
)
"""The defaults' proportions, in KiB instead of MiB."""


def accepted(count: int, budget: WindowBudget | None = None, own: HboneSettings = OWN) -> tuple[Any, Peer]:
    """A server with so many accepted streams (1, 3, 5 …)."""
    connection = HboneServer(own, budget)
    peer = Peer(connection)
    peer.say(HELLO, settings(), settings(ack=True))
    for number in range(1, 2 * count, 2):
        peer.say(peer.headers(number, CONNECT))
        connection.accept(number)
    connection.take_output()
    return connection, peer


def fill(peer: Peer, *streams: int) -> None:
    """Use up the windows of these streams."""
    for number in streams:
        assert len(peer.say(data(number, bytes(16 * KIB)))) == 1


def test_what_is_held_is_lent_when_the_window_is_low():
    budget = WindowBudget(256 * KIB)
    connection, peer = accepted(8, budget)
    fill(peer, 1, 3, 5)
    assert (connection.held, budget.lent) == (48 * KIB, 0)
    assert peer.hear() == []
    fill(peer, 7)
    assert (connection.held, budget.lent) == (64 * KIB, 64 * KIB)
    assert peer.hear() == [f"WINDOWUPDATE 0 +{64 * KIB}"]
    assert not connection.congested
    fill(peer, 9, 11, 13, 15)
    assert (connection.held, budget.lent) == (128 * KIB, 128 * KIB)
    # The streams themselves get nothing back.
    assert peer.hear() == [f"WINDOWUPDATE 0 +{64 * KIB}"]


def test_what_was_lent_is_repaid_first_as_it_is_consumed():
    budget = WindowBudget(256 * KIB)
    connection, peer = accepted(4, budget)
    fill(peer, 1, 3, 5, 7)
    connection.take_output()
    connection.acknowledge(1, 16 * KIB)
    assert peer.hear() == [f"WINDOWUPDATE 1 +{16 * KIB}"]
    assert (connection.held, budget.lent) == (48 * KIB, 48 * KIB)
    for number in (3, 5, 7):
        connection.acknowledge(number, 16 * KIB)
    assert (connection.held, budget.lent) == (0, 0)
    window = connection._windows.connection
    assert (window.current, window.consumed) == (64 * KIB, 0)


def test_a_connection_lends_no_more_than_its_share_and_is_congested_then():
    budget = WindowBudget(1 << 30)
    connection, peer = accepted(20, budget)
    fill(peer, *range(1, 32, 2))
    assert (connection.held, budget.lent) == (256 * KIB, 192 * KIB)
    assert connection.congested
    events = peer.say(data(33, b"x"))
    assert events[-1].code == ErrorCode.FLOW_CONTROL_ERROR


def test_what_is_consumed_when_nothing_more_may_be_lent_opens_the_window():
    connection, peer = accepted(20, WindowBudget(0))
    fill(peer, 1, 3, 5, 7)
    assert connection.congested
    connection.acknowledge(1, 16 * KIB)
    assert f"WINDOWUPDATE 0 +{16 * KIB}" in peer.hear()


def test_a_budget_is_shared_and_bounds_all_of_its_connections():
    budget = WindowBudget(100 * KIB)
    one, first = accepted(5, budget)
    other, second = accepted(5, budget)
    fill(first, 1, 3, 5, 7)
    fill(second, 1, 3, 5, 7)
    assert budget.lent == 100 * KIB
    assert not one.congested
    assert other._windows.connection.current == 36 * KIB
    one.receive_eof()
    for number in (1, 3, 5, 7):
        one.discard(number)
    assert budget.lent == 36 * KIB
    for number in (1, 3, 5, 7):
        other.discard(number)
    assert budget.lent == 0


def test_a_stream_that_the_peer_reset_holds_no_window():
    budget = WindowBudget(256 * KIB)
    connection, peer = accepted(2, budget)
    stream = connection.stream(1)
    fill(peer, 1)
    assert peer.say(reset(1, 8)) == [StreamReset(1, 8)]
    window = connection._windows.connection
    assert window.current + window.consumed == window.size
    assert (connection.held, budget.lent, stream.overdrawn) == (16 * KIB, 16 * KIB, False)
    connection.acknowledge(1, 6 * KIB)
    assert (connection.held, budget.lent) == (10 * KIB, 10 * KIB)
    connection.discard(1)
    assert (connection.held, budget.lent) == (0, 0)
    assert window.current + window.consumed == window.size


@pytest.mark.parametrize("bound", ["connection", "process"])
def test_what_the_dead_hold_is_dropped_when_it_is_too_much(bound):
    budget = WindowBudget(40 * KIB if bound == "process" else 1 << 30)
    own = HboneSettings(
        stream_window=16 * KIB,
        connection_window=64 * KIB,
        lent_window=40 * KIB if bound == "connection" else 1 << 20,
    )
    connection, peer = accepted(100, budget, own)
    overdrawn = 0
    for number in range(1, 200, 2):
        stream = connection.stream(number)
        fill(peer, number)
        connection.take_output()
        peer.say(reset(number, 8))
        if stream.overdrawn:
            overdrawn += 1
            connection.discard(number)
        assert connection.held <= 40 * KIB
        assert budget.lent == connection.held
    # Two streams' bytes fit into the budget.
    assert overdrawn == 98


def test_what_a_lost_tunnel_leaves_counts_until_it_is_dropped():
    budget = WindowBudget(100 * KIB)
    connections = []
    for _ in range(3):
        connection, peer = accepted(3, budget)
        streams = [connection.stream(number) for number in (1, 3, 5)]
        fill(peer, 1, 3, 5)
        connection.receive_eof()
        connections.append((connection, [stream.overdrawn for stream in streams]))
    assert [overdrawn for _, overdrawn in connections] == [[False] * 3, [False] * 3, [True] * 3]
    assert budget.lent == 96 * KIB
    for connection, _ in connections:
        for number in (1, 3, 5):
            connection.discard(number)
    assert budget.lent == 0


@dataclass
class Consumer:
    """Takes what comes on a stream, ``pace`` bytes a round; the sender resets it after ``life`` rounds."""

    pace: int
    life: int | None
    wanted: int
    sent: int = 0
    taken: int = 0
    inbox: list[int] = field(default_factory=list)
    dead: bool = False


FAST = st.builds(Consumer, st.just(1 << 30), st.none(), st.integers(1, 200_000))
SLOW = st.builds(Consumer, st.integers(1, 3_000), st.none(), st.integers(1, 40_000))
STALLED = st.builds(Consumer, st.just(0), st.none(), st.integers(1, 100_000))
DYING = st.builds(Consumer, st.sampled_from([0, 500]), st.integers(0, 6), st.integers(1, 100_000))


@hypothesis_settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 5), FAST | SLOW | STALLED | DYING), min_size=1, max_size=30),
    st.sampled_from([0, 40 * KIB, 512 * KIB]),
)
def test_whoever_reads_gets_everything_whatever_the_others_do(streams, limit):
    """As long as those that hold something are so few that their windows fit into what may be held."""
    budget = WindowBudget(limit)
    client, server = HboneClient(OWN), HboneServer(OWN, budget)
    exchange(client, server)
    all_: dict[int, Consumer] = {}
    waiting = list(reversed(streams))
    idle = 0
    room = 64 * KIB - 16 * KIB + min(limit, OWN.lent_window)
    while idle < 3:
        moved = False
        if waiting and (not all_ or waiting[-1][0] == 0 or idle):
            _, consumer = waiting.pop()
            # A stream that may stand still takes a stream's window of what may be held.
            standing = sum(one.pace < 1 << 30 for one in all_.values())
            if consumer.pace == 1 << 30 or (standing + 1) * 16 * KIB <= room:
                number = client.connect("h:1", [])
                all_[number] = consumer
            moved = True
        elif waiting:
            when, consumer = waiting[-1]
            waiting[-1] = (when - 1, consumer)
            moved = True
        for number, consumer in all_.items():
            if consumer.dead:
                continue
            if consumer.life == 0:
                client.reset(number, ErrorCode.CANCEL)
                consumer.dead = moved = True
                continue
            if consumer.life is not None:
                consumer.life -= 1
                moved = True
            consumer.sent += client.send_data(number, bytes(min(9_000, consumer.wanted - consumer.sent)))
        _, events = exchange(client, server)
        moved |= _take(server, events, all_)
        exchange(client, server)
        assert server.held <= 64 * KIB + OWN.lent_window
        assert budget.lent <= limit
        assert not server.closed
        idle = 0 if moved else idle + 1
    for consumer in all_.values():
        if consumer.pace == 1 << 30:
            assert consumer.taken == consumer.wanted
    for number in all_:
        server.discard(number)
    window = server._windows.connection
    assert (server.held, budget.lent) == (0, 0)
    assert window.current + window.consumed == window.size


def _take(server: HboneServer, events: list[Any], all_: dict[int, Consumer]) -> bool:
    """The consumers' side of a round. Returns whether anything moved."""
    moved = False
    for event in events:
        match event:
            case ConnectReceived():
                server.accept(event.stream_id)
                moved = True
            case DataReceived():
                all_[event.stream_id].inbox.append(len(event.data))
                moved = True
    for number, consumer in all_.items():
        count = min(consumer.pace, sum(consumer.inbox))
        if count:
            server.acknowledge(number, count)
            consumer.taken += count
            consumer.inbox = [sum(consumer.inbox) - count]
            moved = True
    return moved
