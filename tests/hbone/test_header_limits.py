"""The limit for a header list is one request's own: neighbours notice nothing. Floods end the connection."""

from __future__ import annotations

import pytest

from tests.support.hbone_conversation import (
    CONNECT,
    Peer,
    accepted,
    client,
    connected,
    data,
    frame,
    ping,
    server,
)
from ztunnel.hbone import (
    ConnectionFailed,
    ConnectReceived,
    DataReceived,
    ErrorCode,
    HboneSettings,
    Responded,
    StreamReset,
)

CALM = ErrorCode.ENHANCE_YOUR_CALM
LARGE = [*CONNECT, ("baggage", "x" * 80_000)]
BOMB = [*CONNECT, ("a", "x" * 4_000), *[("a", "x" * 4_000)] * 29]
"""120 KB in some 3 KB of HPACK."""


def calmed(events) -> bool:
    return bool(events) and isinstance(events[-1], ConnectionFailed) and events[-1].code == CALM


def works(connection, peer: Peer, stream_id: int) -> None:
    """A new request, with fields from the dynamic table, is understood as it was meant."""
    fields = [*CONNECT, ("baggage", "a=b"), ("x-kept", "in the table")]
    expected = ((b"baggage", b"a=b"), (b"x-kept", b"in the table"))
    for number in (stream_id, stream_id + 2):
        [event] = peer.say(peer.headers(number, fields))
        assert event == ConnectReceived(number, "CONNECT", "10.88.0.5:8080", expected)
        assert connection.accept(number)


@pytest.mark.parametrize("fields", [LARGE, BOMB], ids=["large", "bomb"])
@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("cut", [0, 16_000])
def test_a_request_that_is_too_large_is_refused_alone(fields, end, cut):
    connection, peer = accepted()
    assert peer.say(peer.headers(3, fields, end=end, cut=cut)) == []
    refused = ["HEADERS 3 :status=431 END_STREAM"]
    assert peer.hear() == (refused if end else [*refused, "RSTSTREAM 3 0"])
    assert connection.stream_ids == [1]
    assert connection._reader.held == 0
    # Its neighbour goes on, the table is in step, and what still comes for it is passed over.
    assert peer.say(data(1, b"x")) == [DataReceived(1, memoryview(b"x"))]
    if not end:
        assert peer.say(data(3, b"late")) == []
    works(connection, peer, 5)


def test_what_a_request_that_is_too_large_put_into_the_table_counts():
    connection, peer = accepted()
    name, value = "x-new", "only in the table from now on"
    peer.say(peer.headers(3, [*LARGE, (name, value)]))
    connection.take_output()
    block = peer.headers(5, [*CONNECT, (name, value)])
    # Neither name nor value travels, only an index.
    assert len(block) < 40
    [event] = peer.say(block)
    assert event.headers == ((name.encode(), value.encode()),)


def test_the_limit_is_the_one_that_was_announced():
    connection, peer = server(HboneSettings(server_max_header_list_size=1_000))
    overhead = sum(len(n) + len(v) + 32 for n, v in CONNECT) + 1 + 32
    [event] = peer.say(peer.headers(1, [*CONNECT, ("a", "x" * (1_000 - overhead))]))
    assert isinstance(event, ConnectReceived)
    assert peer.say(peer.headers(3, [*CONNECT, ("a", "x" * (1_001 - overhead))])) == []
    assert peer.hear() == ["HEADERS 3 :status=431 END_STREAM", "RSTSTREAM 3 0"]
    connection.close(0)
    assert peer.hear() == ["GOAWAY 0 last=3 code=0"]


@pytest.mark.parametrize("status", ["200", "503", "103"])
def test_an_answer_that_is_too_large_resets_its_stream(status):
    connection, peer = connected()
    connection.connect("h:1", [])
    connection.take_output()
    fields = [(":status", status), *[("a", "x" * 4_000)] * 7]
    assert peer.say(peer.headers(3, fields)) == [StreamReset(3, ErrorCode.PROTOCOL_ERROR, remote=False)]
    assert peer.hear() == ["RSTSTREAM 3 1"]
    assert peer.say(data(1, b"x")) == [DataReceived(1, memoryview(b"x"))]
    connection.connect("h:1", [])
    assert peer.say(peer.headers(5, [(":status", "200"), ("a", "x" * 4_000)])) == [
        Responded(5, 200, ((b"a", b"x" * 4_000),))
    ]


@pytest.mark.parametrize("end", ["server", "client"])
def test_trailers_that_are_too_large_reset_their_stream(end):
    connection, peer = accepted() if end == "server" else connected()
    trailers = peer.headers(1, [("a", "x" * 70_000 if end == "server" else "x" * 17_000)], end=True)
    assert peer.say(trailers) == [StreamReset(1, ErrorCode.PROTOCOL_ERROR, remote=False)]
    assert peer.hear() == ["RSTSTREAM 1 1"]
    assert not connection.closed


def test_a_block_that_is_too_large_for_a_closed_stream_is_read_and_dropped():
    connection, peer = accepted()
    connection.reset(1, ErrorCode.CANCEL)
    connection.take_output()
    assert peer.say(peer.headers(1, [("a", "x" * 70_000)], end=True)) == []
    assert peer.hear() == []
    works(connection, peer, 3)


def test_a_peer_that_goes_on_with_requests_that_are_too_large_is_sent_away():
    _, peer = server(HboneSettings(max_local_errors=5 * 32))
    for n in range(5):
        assert not calmed(peer.say(peer.headers(2 * n + 1, LARGE)))
    assert calmed(peer.say(peer.headers(11, LARGE)))


def test_a_list_of_several_times_the_limit_ends_the_connection():
    _, peer = server()
    fields = [*CONNECT, ("a", "x" * 4_000), *[("a", "x" * 4_000)] * 65]
    assert len(peer.headers(1, fields)) < 10_000
    assert calmed(peer.say(peer.headers(3, fields)))
    assert peer.hear()[-1] == "GOAWAY 0 last=0 code=11"


def test_a_clients_limit_is_lower_and_so_is_its_flood():
    connection, peer = client()
    connection.connect("h:1", [])
    fields = [(":status", "200"), *[("a", "x" * 4_000)] * 17]
    assert calmed(peer.say(peer.headers(1, fields)))


def test_a_header_frame_that_is_far_too_large_is_refused_unread():
    connection, peer = server()
    assert calmed(peer.say(frame(1, 1, bytes(300_000), flags=4)[:9]))
    assert connection._reader.held == 0


def test_a_header_block_in_too_many_frames():
    _, peer = server()
    wire = [frame(1, 1, b"", 0), *[frame(9, 1, b"", 0)] * 63]
    assert peer.say(*wire) == []
    assert calmed(peer.say(frame(9, 1, b"", 0)))


def test_a_block_without_end_is_cut_off_at_four_times_the_limit():
    connection, peer = server()
    wire = [frame(1, 1, bytes(16_000), 0), *[frame(9, 1, bytes(16_000), 0)] * 15]
    assert peer.say(*wire) == []
    assert connection._reader.held == 256_000
    assert calmed(peer.say(frame(9, 1, bytes(16_000), 0)))
    assert connection._reader.held == 256_000


@pytest.mark.parametrize("block", [b"\xff\xff\xff\xff", b"\x00\x05abc", b"\x40", b"\xbf\xff\x7f"])
def test_a_block_that_cannot_be_decoded_ends_the_connection(block):
    _, peer = accepted()
    [failed] = peer.say(frame(1, 3, block, 4) + ping(b"12345678"))
    assert failed.code == ErrorCode.COMPRESSION_ERROR
    assert peer.hear() == ["GOAWAY 0 last=1 code=9"]
