"""The load of the benchmark: a server and clients on blocking sockets, each in a process of its own.

usage: python -m tests.bench.load serve PORT
       python -m tests.bench.load upload|download HOST PORT BYTES STREAMS
       python -m tests.bench.load roundtrips HOST PORT COUNT
       python -m tests.bench.load connects|requests|storm HOST PORT COUNT CLIENTS
       python -m tests.bench.load idle HOST PORT COUNT

Clients print one JSON object. A connection begins with a letter that tells the server what to do: e(cho),
s(ink), d(ownload, followed by the number of bytes), i(dle), and G(ET), which is HTTP. ``idle`` prints its
object when all connections are open, and keeps them until its standard input ends.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import socket
import statistics
import struct
import sys
import time
from collections.abc import Callable

CHUNK = 256 * 1024
MESSAGE = 64
WORKERS = 20
WARM_UP = 40
THOUSAND = 1000
_REQUEST = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
_RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\n" + bytes(1024)


def exactly(connection: socket.socket, count: int) -> bytes:
    """So many bytes. Raises ConnectionError when the connection ends before."""
    data = connection.recv(count)
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise ConnectionError(f"{len(data)} of {count} bytes")
        data += more
    return data


def _answer(connection: socket.socket, kept: list[socket.socket]) -> None:
    buffer = bytearray(CHUNK)
    view = memoryview(buffer)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    order = connection.recv(1)
    if order == b"i":
        connection.sendall(b"i")
        kept.append(connection)
        return
    with connection:
        if order == b"e":
            while count := connection.recv_into(buffer):
                connection.sendall(view[:count])
        elif order == b"s":
            total = 0
            while count := connection.recv_into(buffer):
                total += count
            connection.sendall(struct.pack("!Q", total))
        elif order == b"d":
            (left,) = struct.unpack("!Q", exactly(connection, 8))
            while left:
                left -= connection.send(view[: min(left, CHUNK)])
            # The client closes first: an Envoy that sees both ends of a CONNECT at once resets.
            connection.recv(1)
        elif order == b"G":
            waiting = order
            while data := connection.recv(4096):
                waiting += data
                while b"\r\n\r\n" in waiting:
                    _, _, waiting = waiting.partition(b"\r\n\r\n")
                    connection.sendall(_RESPONSE)


def _ended(connection: socket.socket) -> bool:
    """Whether the client of an idle connection has closed it."""
    try:
        return connection.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def serve(port: int) -> None:
    """Answer for ever, in several processes with one connection at a time each: threads share the GIL."""
    _allow_many_descriptors()
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
    kept: list[socket.socket] = []
    while True:
        connection, _ = server.accept()
        try:
            _answer(connection, kept)
        except ConnectionError:
            pass
        # The end of an idle round: looked at only by what comes after it.
        if kept and _ended(kept[0]):
            for one in kept:
                one.close()
            kept.clear()


def _allow_many_descriptors() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _connect(host: str, port: int) -> socket.socket:
    connection = socket.create_connection((host, port), timeout=60)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def streams(
    transfer: Callable[[str, int, int], float], host: str, port: int, total: int, count: int
) -> dict[str, float]:
    """Seconds until all of ``count`` equal transfers, which together are ``total`` bytes, are done."""
    if count == 1:
        return {"seconds": transfer(host, port, total)}
    with multiprocessing.Pool(count) as pool:
        pool.map(abs, range(count))
        started = time.perf_counter()
        pool.starmap(transfer, [(host, port, total // count)] * count, chunksize=1)
        return {"seconds": time.perf_counter() - started}


def upload(host: str, port: int, total: int) -> float:
    """Seconds until the server has all bytes."""
    data = memoryview(bytes(CHUNK))
    with _connect(host, port) as connection:
        connection.sendall(b"s")
        started = time.perf_counter()
        left = total
        while left:
            left -= connection.send(data[: min(left, CHUNK)])
        connection.shutdown(socket.SHUT_WR)
        (received,) = struct.unpack("!Q", exactly(connection, 8))
        seconds = time.perf_counter() - started
    if received != total:
        raise ConnectionError(f"{received} of {total} bytes arrived")
    return seconds


def download(host: str, port: int, total: int) -> float:
    """Seconds until all bytes are here."""
    buffer = bytearray(CHUNK)
    with _connect(host, port) as connection:
        started = time.perf_counter()
        connection.sendall(b"d" + struct.pack("!Q", total))
        received = 0
        while received < total and (count := connection.recv_into(buffer)):
            received += count
        seconds = time.perf_counter() - started
    if received != total:
        raise ConnectionError(f"{received} of {total} bytes arrived")
    return seconds


def roundtrips(host: str, port: int, count: int) -> dict[str, float]:
    """Seconds of a 64-byte message there and back on an open connection."""
    message = bytes(MESSAGE)
    times = []
    with _connect(host, port) as connection:
        connection.sendall(b"e")
        for _ in range(count + 100):
            started = time.perf_counter()
            connection.sendall(message)
            exactly(connection, MESSAGE)
            times.append(time.perf_counter() - started)
    times = sorted(times[100:])
    return {"p50": statistics.median(times), "p99": _p99(times)}


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
            exactly(connection, 1)
            times.append(time.perf_counter() - started)
    return times


def requests(host: str, port: int, count: int, clients: int) -> dict[str, float]:
    """HTTP requests a second, each client with one connection that is kept alive."""
    with multiprocessing.Pool(clients) as pool:
        pool.starmap(_request_often, [(host, port, 10)] * clients, chunksize=1)
        started = time.perf_counter()
        lists = pool.starmap(_request_often, [(host, port, count // clients)] * clients, chunksize=1)
        seconds = time.perf_counter() - started
    times = sorted(each for times in lists for each in times)
    return {"per_second": len(times) / seconds, "p50": statistics.median(times), "p99": _p99(times)}


def _request_often(host: str, port: int, count: int) -> list[float]:
    times = []
    with _connect(host, port) as connection:
        for _ in range(count):
            started = time.perf_counter()
            connection.sendall(_REQUEST)
            exactly(connection, len(_RESPONSE))
            times.append(time.perf_counter() - started)
    return times


def storm(host: str, port: int, count: int, clients: int) -> dict[str, float]:
    """Connections from one address as fast as they go: seconds of the first thousand and of the last."""
    with multiprocessing.Pool(clients) as pool:
        pool.starmap(_connect_often, [(host, port, WARM_UP // clients)] * clients, chunksize=1)
        started = time.perf_counter()
        batch = 50
        jobs = [(host, port, batch)] * (count // batch)
        ends = [time.perf_counter() - started for _ in pool.imap_unordered(_connect_batch, jobs, chunksize=1)]
    per_thousand = THOUSAND // batch
    first = ends[per_thousand - 1]
    last = ends[-1] - ends[-1 - per_thousand]
    return {"first": first, "last": last, "per_second": count / ends[-1]}


def _connect_batch(job: tuple[str, int, int]) -> int:
    return len(_connect_often(*job))


def idle(host: str, port: int, count: int) -> dict[str, float]:
    """Open connections that exchange one byte and then nothing; keep them until standard input ends."""
    _allow_many_descriptors()
    held = []
    started = time.perf_counter()
    for _ in range(count):
        connection = _connect(host, port)
        connection.sendall(b"i")
        exactly(connection, 1)
        held.append(connection)
    print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)
    os.read(0, 1)
    for connection in held:
        connection.close()
    return {}


def _p99(times: list[float]) -> float:
    return times[int(len(times) * 0.99)]


def run(command: str, host: str, port: int, count: int, clients: int = 1) -> dict[str, float]:
    """One measurement."""
    match command:
        case "upload":
            return streams(upload, host, port, count, clients)
        case "download":
            return streams(download, host, port, count, clients)
        case "roundtrips":
            return roundtrips(host, port, count)
        case "requests":
            return requests(host, port, count, clients)
        case "storm":
            return storm(host, port, count, clients)
        case "idle":
            return idle(host, port, count)
        case "connects":
            return connects(host, port, count, clients)
    raise SystemExit(f"unknown command: {command}")


def main(arguments: list[str]) -> None:
    if arguments[0] == "serve":
        serve(int(arguments[1]))
        return
    result = run(arguments[0], arguments[1], *[int(argument) for argument in arguments[2:]])
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps(result | {"cpu": usage.ru_utime + usage.ru_stime}))


if __name__ == "__main__":
    main(sys.argv[1:])
