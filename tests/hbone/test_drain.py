"""The graceful end."""

from __future__ import annotations

import pytest

from tests.support.hbone_conversation import CONNECT, accepted, client, connected, data, ping, server
from ztunnel.hbone import CannotOpenStreamError, ConnectReceived, DataReceived, Pong

OPAQUE = bytes.fromhex("0b7ba2f08b9bfe54")


def test_a_server_drains_in_two_steps():
    connection, peer = accepted()
    connection.start_drain()
    connection.start_drain()
    assert connection.draining
    assert peer.hear() == ["GOAWAY 0 last=2147483647 code=0", "PING 0 0b7ba2f08b9bfe54"]
    # A request on its way is delivered; the caller decides.
    [late] = peer.say(peer.headers(3, CONNECT))
    assert isinstance(late, ConnectReceived)
    assert connection.refuse_stream(3)
    assert peer.hear() == ["RSTSTREAM 3 7"]
    assert peer.say(ping(OPAQUE, ack=True)) == []
    assert peer.hear() == ["GOAWAY 0 last=3 code=0"]
    assert not connection.drained
    # After the last GOAWAY requests are refused here.
    assert peer.say(peer.headers(5, CONNECT), peer.headers(7, CONNECT, end=True)) == []
    assert peer.hear() == ["RSTSTREAM 5 7", "RSTSTREAM 7 7"]
    # The stream from before goes on to its own end.
    assert peer.say(data(1, b"x", end=True))[0] == DataReceived(1, memoryview(b"x"))
    assert connection.send_data(1, b"y") == 1
    connection.end_stream(1)
    assert connection.drained
    assert not connection.closed
    connection.close(0)
    assert peer.hear()[-1] == "GOAWAY 0 last=3 code=0"


def test_an_answer_to_no_ping_of_a_drain_is_an_ordinary_one_or_nothing():
    connection, peer = server()
    assert peer.say(ping(OPAQUE, ack=True)) == []
    assert peer.hear() == []
    connection.start_drain()
    connection.take_output()
    peer.say(ping(OPAQUE, ack=True), ping(OPAQUE, ack=True))
    assert peer.hear() == ["GOAWAY 0 last=0 code=0"]
    assert connection.drained


def test_a_client_drains_at_once():
    connection, peer = connected()
    connection.start_drain()
    assert peer.hear() == ["GOAWAY 0 last=0 code=0"]
    assert not connection.can_open
    with pytest.raises(CannotOpenStreamError, match="it is draining"):
        connection.connect("h:1", [])
    assert not connection.drained
    connection.reset(1, 8)
    assert connection.drained


def test_pings_go_both_ways():
    connection, peer = client()
    connection.ping(b"12345678")
    assert peer.hear() == ["PING 0 3132333435363738"]
    assert peer.say(ping(b"12345678", ack=True)) == [Pong(b"12345678")]
    assert peer.say(ping(b"abcdefgh")) == []
    assert peer.hear() == ["PING 0 6162636465666768 ACK"]
