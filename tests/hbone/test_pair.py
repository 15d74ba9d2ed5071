"""Our client and our server, with each other and with stock h2."""

from __future__ import annotations

from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    RequestReceived,
    ResponseReceived,
)
from h2.events import (
    DataReceived as H2DataReceived,
)
from h2.events import (
    StreamEnded as H2StreamEnded,
)
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.support.hbone_conversation import exchange
from ztunnel.hbone import (
    ConnectReceived,
    DataReceived,
    HboneClient,
    HboneServer,
    HboneSettings,
    PeerDraining,
    Responded,
    StreamEnded,
    StreamReset,
)

FIELDS = [("baggage", "a=b"), ("forwarded", 'for="10.0.0.1:1"'), ("traceparent", "00-1")]


def test_a_tunnel_from_the_first_byte_to_the_last():
    client, server = HboneClient(), HboneServer()
    stream_id = client.connect("10.88.0.5:8080", FIELDS)
    _, seen = exchange(client, server)
    headers = tuple((name.encode(), value.encode()) for name, value in FIELDS)
    assert seen == [ConnectReceived(1, "CONNECT", "10.88.0.5:8080", headers)]
    server.accept(stream_id, [("baggage", "c=d")])
    seen, _ = exchange(client, server)
    assert Responded(1, 200, ((b"baggage", b"c=d"),)) in seen
    client.send_data(stream_id, b"ping")
    client.end_stream(stream_id)
    _, seen = exchange(client, server)
    assert seen == [DataReceived(1, memoryview(b"ping")), StreamEnded(1)]
    server.send_data(stream_id, b"pong")
    server.end_stream(stream_id)
    seen, _ = exchange(client, server)
    assert seen == [DataReceived(1, memoryview(b"pong")), StreamEnded(1)]
    assert client.open_streams == server.open_streams == 0


def test_a_drain_lets_streams_finish_and_refuses_new_ones():
    client, server = HboneClient(), HboneServer()
    client.connect("h:1", [])
    exchange(client, server)
    server.accept(1)
    server.start_drain()
    seen, _ = exchange(client, server)
    assert [event for event in seen if isinstance(event, PeerDraining)] == [
        PeerDraining((1 << 31) - 1, 0, b""),
        PeerDraining(1, 0, b""),
    ]
    assert not client.can_open
    client.send_data(1, b"still")
    _, seen = exchange(client, server)
    assert seen == [DataReceived(1, memoryview(b"still"))]
    client.reset(1, 8)
    _, seen = exchange(client, server)
    assert seen == [StreamReset(1, 8)]
    assert server.drained


@hypothesis_settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(1, 200_000), min_size=1, max_size=4),
    st.integers(2_000, 60_000),
    st.integers(0, 200_000),
    st.integers(16_384, 80_000),
)
def test_any_amount_flows_through_any_windows(sizes, stream_window, connection_window, frame_size):
    own = HboneSettings(
        stream_window=stream_window, connection_window=65_535 + connection_window, frame_size=frame_size
    )
    client, server = HboneClient(own), HboneServer(own)
    client.connect("h:1", [])
    exchange(client, server)
    server.accept(1)
    exchange(client, server)
    payload = bytes(n % 251 for n in range(max(sizes)))
    for size in sizes:
        left = memoryview(payload)[:size]
        received = bytearray()
        rounds = 0
        while left or len(received) < size:
            left = left[client.send_data(1, left) :]
            _, seen = exchange(client, server)
            for event in seen:
                assert isinstance(event, DataReceived)
                received += event.data
                server.acknowledge(1, len(event.data))
            exchange(client, server)
            rounds += 1
            assert rounds < 1_000
        assert received == payload[:size]
    window = server._windows.connection
    assert window.current + window.consumed == window.size


def test_stock_h2_as_the_server():
    client = HboneClient()
    stock = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
    stock.initiate_connection()
    client.connect("10.88.0.5:8080", FIELDS)
    events = stock.receive_data(b"".join(client.take_output()))
    headers: Any = next(event.headers for event in events if isinstance(event, RequestReceived))
    assert headers == [
        (":method", "CONNECT"),
        (":authority", "10.88.0.5:8080"),
        *FIELDS,
    ]
    stock.send_headers(1, [(":status", "200")])
    stock.send_data(1, b"hello", pad_length=3)
    stock.end_stream(1)
    seen = client.receive(stock.data_to_send())
    assert seen[-3:] == [Responded(1, 200, ()), DataReceived(1, memoryview(b"hello")), StreamEnded(1)]
    client.send_data(1, bytes(20_000))
    client.end_stream(1)
    events = stock.receive_data(b"".join(client.take_output()))
    assert sum(len(event.data) for event in events if isinstance(event, H2DataReceived)) == 20_000
    assert any(isinstance(event, H2StreamEnded) for event in events)
    client.close(0)
    [closed] = stock.receive_data(b"".join(client.take_output()))
    assert isinstance(closed, ConnectionTerminated)


def test_stock_h2_as_the_client():
    server = HboneServer()
    stock = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    stock.initiate_connection()
    stock.send_headers(1, [(":method", "CONNECT"), (":authority", "h:1"), *FIELDS])
    [request] = server.receive(stock.data_to_send())
    assert isinstance(request, ConnectReceived)
    server.accept(1, [("baggage", "x" * 30_000)])
    events = stock.receive_data(b"".join(server.take_output()))
    headers: Any = next(event.headers for event in events if isinstance(event, ResponseReceived))
    assert headers == [(":status", "200"), ("baggage", "x" * 30_000)]
