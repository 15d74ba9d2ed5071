"""What the HBONE layer costs, without sockets or TLS: ``python -m tests.bench.hbone_micro``.

Prints microseconds for one of each thing, ours beside stock h2: for DATA the best of several rounds, for
opening a tunnel the median. Nothing is asserted, since machines differ. Figures: docs/measurements/hbone.md.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived as H2DataReceived

from ztunnel.hbone import DataReceived, HboneClient, HboneServer
from ztunnel.hbone.frames import connect_block, data_header

AUTHORITY = "10.88.0.5:8080"
BAGGAGE = (
    "k8s.cluster.name=Kubernetes,k8s.namespace.name=default,k8s.deployment.name=client,"
    "service.name=client,service.version=v1,cloud.region=r1,cloud.availability_zone=z1"
)


def fields(number: int) -> list[tuple[str, str]]:
    return [
        ("baggage", BAGGAGE),
        ("forwarded", 'for="10.88.0.3:60620";host=fsvc.default.svc.cluster.local'),
        ("traceparent", f"00-{number:032x}-9f63b335552e33e9-00"),
    ]


def report(name: str, run: Callable[[], object], *, per: int = 1, number: int = 1, rounds: int = 7) -> None:
    best = min(timeit.repeat(run, number=number, repeat=rounds)) / number / per * 1e6
    print(f"{name:<66} {best:9.2f} µs")


def exchange(client: HboneClient, server: HboneServer) -> None:
    for _ in range(2):
        server.receive(b"".join(client.take_output()))
        client.receive(b"".join(server.take_output()))


def opened() -> tuple[HboneClient, HboneServer, int]:
    client, server = HboneClient(), HboneServer()
    stream_id = client.connect(AUTHORITY, fields(0))
    exchange(client, server)
    server.accept(stream_id)
    exchange(client, server)
    return client, server, stream_id


def stock_pair() -> tuple[H2Connection, H2Connection]:
    client = H2Connection(H2Configuration(client_side=True))
    server = H2Connection(H2Configuration(client_side=False))
    for connection in (client, server):
        connection.local_settings.initial_window_size = 4 << 20
        connection.local_settings.max_frame_size = 1 << 20
        connection.initiate_connection()
        connection.increment_flow_control_window((16 << 20) - 65_535)
    for _ in range(2):
        server.receive_data(client.data_to_send())
        client.receive_data(server.data_to_send())
    return client, server


def stock_headers(number: int) -> list[tuple[str, str]]:
    return [(":method", "CONNECT"), (":authority", AUTHORITY), *fields(number)]


def receiving(frame: int, chunk: int, total: int = 2 << 20) -> None:
    """DATA frames of ``frame`` bytes that come in pieces of ``chunk`` bytes, acknowledged at once."""
    _, server, stream_id = opened()
    block = data_header(stream_id, frame) + bytes(frame)
    wire = block * (total // frame)
    chunks = [wire[at : at + chunk] for at in range(0, len(wire), chunk)]

    def ours() -> None:
        for piece in chunks:
            taken = 0
            for event in server.receive(piece):
                if isinstance(event, DataReceived):
                    taken += len(event.data)
            server.acknowledge(stream_id, taken)
        server.take_output()

    report(f"receive a {frame}-byte frame, chunks of {chunk}", ours, per=total // frame)

    client, stock = stock_pair()
    client.send_headers(1, stock_headers(0))
    stock.receive_data(client.data_to_send())

    def theirs() -> None:
        for piece in chunks:
            for event in stock.receive_data(piece):
                if isinstance(event, H2DataReceived):
                    stock.acknowledge_received_data(event.flow_controlled_length, 1)
        stock.data_to_send()

    report("    stock h2", theirs, per=total // frame, rounds=3)


def sending(size: int) -> None:
    client, _, stream_id = opened()
    data = memoryview(bytes(size))
    windows = client._windows
    stream = client.stream(stream_id)

    def ours() -> None:
        client.send_data(stream_id, data)
        client.take_output()
        windows.send_window += size
        stream.send_window += size

    report(f"send {size} bytes", ours, number=1000)


def opening() -> None:
    """One CONNECT, its 200, and both ends of the stream; each step on its own."""
    rounds = 300
    steps: dict[str, list[float]] = {}

    def step(name: str, run: Callable[..., object], *arguments: object) -> None:
        steps.setdefault(name, []).append(timeit.timeit(lambda: run(*arguments), number=1))

    client, server = HboneClient(), HboneServer()
    exchange(client, server)
    for number in range(rounds):
        prepared = fields(number)
        step("connect: write the CONNECT", client.connect, AUTHORITY, prepared)
        wire = b"".join(client.take_output())
        step("server: read the CONNECT", server.receive, wire)
        stream_id = 2 * number + 1
        step("server: write the 200", server.accept, stream_id, [("baggage", BAGGAGE)])
        wire = b"".join(server.take_output())
        step("client: read the 200", client.receive, wire)

        def end(stream_id: int = stream_id) -> None:
            client.end_stream(stream_id)
            server.receive(b"".join(client.take_output()))
            server.end_stream(stream_id)
            client.receive(b"".join(server.take_output()))

        step("both: end the stream", end)
    for name, times in steps.items():
        print(f"{name:<66} {sorted(times)[rounds // 2] * 1e6:9.2f} µs")

    steps.clear()
    stock_client, stock_server = stock_pair()
    for number in range(rounds):
        stream_id = 2 * number + 1
        headers = stock_headers(number)
        step("connect: write the CONNECT", stock_client.send_headers, stream_id, headers)
        wire = stock_client.data_to_send()
        step("server: read the CONNECT", stock_server.receive_data, wire)
        answer = [(":status", "200"), ("baggage", BAGGAGE)]
        step("server: write the 200", stock_server.send_headers, stream_id, answer)
        wire = stock_server.data_to_send()
        step("client: read the 200", stock_client.receive_data, wire)

        def stock_end(stream_id: int = stream_id) -> None:
            stock_client.end_stream(stream_id)
            stock_server.receive_data(stock_client.data_to_send())
            stock_server.end_stream(stream_id)
            stock_client.receive_data(stock_server.data_to_send())

        step("both: end the stream", stock_end)
    for name, times in steps.items():
        print(f"{'    stock h2, ' + name:<66} {sorted(times)[rounds // 2] * 1e6:9.2f} µs")


def main() -> None:
    receiving(16_384, 262_144)
    receiving(16_384, 16_384)
    receiving(16_384, 4_096)
    receiving(1 << 20, 262_144)
    receiving(1 << 20, 16_384)
    receiving(64, 16_384, total=1 << 18)
    sending(64)
    sending(262_144)
    sending(1 << 20)
    prepared = fields(1)
    report("header block of a CONNECT", lambda: connect_block(AUTHORITY, prepared), number=1000)
    opening()


if __name__ == "__main__":
    main()
