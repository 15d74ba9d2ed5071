"""The load of the benchmark: a server and clients on blocking sockets, each in a process of its own.

usage: python -m tests.bench.load serve PORT
       python -m tests.bench.load upload|download HOST PORT BYTES
       python -m tests.bench.load roundtrips HOST PORT COUNT
       python -m tests.bench.load connects HOST PORT COUNT CLIENTS

Clients print one JSON object. A connection begins with a letter that tells the server what to do: e(cho),
s(ink), d(ownload, followed by the number of bytes).
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import socket
import statistics
import struct
import sys
import time

CHUNK = 256 * 1024
MESSAGE = 64
WORKERS = 8
WARM_UP = 40


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = connection.recv(count, socket.MSG_WAITALL)
    if len(data) != count:
        raise ConnectionError(f"{len(data)} of {count} bytes")
    return data


def _answer(connection: socket.socket) -> None:
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        order = connection.recv(1)
        if order == b"e":
            while count := connection.recv_into(buffer):
                connection.sendall(view[:count])
        elif order == b"s":
            total = 0
            while count := connection.recv_into(buffer):
                total += count
            connection.sendall(struct.pack("!Q", total))
        elif order == b"d":
            (left,) = struct.unpack("!Q", _exactly(connection, 8))
            while left:
                left -= connection.send(view[: min(left, CHUNK)])


def serve(port: int) -> None:
    """Answer for ever, in several processes with one connection at a time each: threads share the GIL."""
    with socket.create_server(
        ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
    ) as server:
        workers = [multiprocessing.Process(target=_work, args=(server,), daemon=True) for _ in range(WORKERS)]
        for worker in workers:
            worker.start()
        print("listening", flush=True)
        for worker in workers:
            worker.join()


def _work(server: socket.socket) -> None:
    while True:
        connection, _ = server.accept()
        try:
            _answer(connection)
        except ConnectionError:
            pass


def _connect(host: str, port: int) -> socket.socket:
    connection = socket.create_connection((host, port), timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def upload(host: str, port: int, total: int) -> dict[str, float]:
    """Seconds until the server has all bytes."""
    data = memoryview(bytes(CHUNK))
    with _connect(host, port) as connection:
        connection.sendall(b"s")
        started = time.perf_counter()
        left = total
        while left:
            left -= connection.send(data[: min(left, CHUNK)])
        connection.shutdown(socket.SHUT_WR)
        (received,) = struct.unpack("!Q", _exactly(connection, 8))
        seconds = time.perf_counter() - started
    if received != total:
        raise ConnectionError(f"{received} of {total} bytes arrived")
    return {"seconds": seconds}


def download(host: str, port: int, total: int) -> dict[str, float]:
    """Seconds until all bytes are here."""
    buffer = bytearray(CHUNK)
    with _connect(host, port) as connection:
        started = time.perf_counter()
        connection.sendall(b"d" + struct.pack("!Q", total))
        received = 0
        while count := connection.recv_into(buffer):
            received += count
        seconds = time.perf_counter() - started
    if received != total:
        raise ConnectionError(f"{received} of {total} bytes arrived")
    return {"seconds": seconds}


def roundtrips(host: str, port: int, count: int) -> dict[str, float]:
    """Seconds of a 64-byte message there and back on an open connection."""
    message = bytes(MESSAGE)
    times = []
    with _connect(host, port) as connection:
        connection.sendall(b"e")
        for _ in range(count + 100):
            started = time.perf_counter()
            connection.sendall(message)
            _exactly(connection, MESSAGE)
            times.append(time.perf_counter() - started)
    times = sorted(times[100:])
    return {"p50": statistics.median(times), "p99": times[int(len(times) * 0.99)]}


def connects(host: str, port: int, count: int, clients: int) -> dict[str, float]:
    """Seconds from connect to the first answer, and how many a second, with some clients at once."""
    with multiprocessing.Pool(clients) as pool:
        # All processes are there, and tunnels are open, before the clock starts.
        pool.starmap(_connect_often, [(host, port, WARM_UP // clients)] * clients, chunksize=1)
        started = time.perf_counter()
        lists = pool.starmap(_connect_often, [(host, port, count // clients)] * clients, chunksize=1)
        seconds = time.perf_counter() - started
    times = [each for times in lists for each in times]
    return {"p50": statistics.median(times), "per_second": len(times) / seconds}


def _connect_often(host: str, port: int, count: int) -> list[float]:
    times = []
    for _ in range(count):
        started = time.perf_counter()
        with _connect(host, port) as connection:
            connection.sendall(b"ex")
            _exactly(connection, 1)
            times.append(time.perf_counter() - started)
    return times


def run(command: str, host: str, port: int, count: int, clients: int = 1) -> dict[str, float]:
    """One measurement."""
    match command:
        case "upload":
            return upload(host, port, count)
        case "download":
            return download(host, port, count)
        case "roundtrips":
            return roundtrips(host, port, count)
        case _:
            return connects(host, port, count, clients)


def main(arguments: list[str]) -> None:
    if arguments[0] == "serve":
        serve(int(arguments[1]))
        return
    result = run(arguments[0], arguments[1], *[int(argument) for argument in arguments[2:]])
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps(result | {"cpu": usage.ru_utime + usage.ru_stime}))


if __name__ == "__main__":
    main(sys.argv[1:])
