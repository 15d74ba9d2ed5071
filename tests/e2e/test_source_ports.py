"""Plaintext from clients that use any port: none is lost, however many there are.

An application is shown its client's address, by a connection that ztunnel makes in the pod. The client's own
connection to that application arrives in the same namespace, and to connection tracking the two must never be
the same: `ztunnel.sockets.source`.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from tests.e2e.conftest import StandardMesh
from tests.support.pod import MeshPod
from tests.support.traffic import read_exactly, serve
from ztunnel.demo.network import set_kernel_setting

AT_ONCE = 1500
PORT = 8094
"""One for all: the kernel may lose a client that comes to *another* port of the same pod from the same source
port within two minutes (docs/measurements/source-ports.md, "What is left").
"""
_choices = random.Random(7)

PORTS: dict[str, Callable[[], Iterable[int]]] = {
    "even": lambda: range(32768, 32768 + 2 * AT_ONCE, 2),
    "odd": lambda: range(32769, 32769 + 2 * AT_ONCE, 2),
    "random": lambda: _choices.sample([port for port in range(1024, 65536) if port != 15008], AT_ONCE),
    "below the range": lambda: _choices.sample(range(16384, 32768), AT_ONCE),
}


async def converse(pod: MeshPod, target: tuple[str, int], port: int, word: bytes) -> trio.SocketStream:
    """Connect from a port and have a word echoed; the connection stays open."""
    sock = pod.socket(socket.AF_INET6 if ":" in target[0] else socket.AF_INET)
    sock.setblocking(False)
    wrapped = trio.socket.from_stdlib_socket(sock)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if port:
            sock.bind(("::" if ":" in target[0] else "0.0.0.0", port))
        await wrapped.connect(target)
        stream = trio.SocketStream(wrapped)
        await stream.send_all(word)
        assert await read_exactly(stream, len(word), timeout=60) == word
    except BaseException:
        wrapped.close()
        raise
    return stream


async def all_at_once(pod: MeshPod, target: tuple[str, int], ports: Iterable[int]) -> None:
    """Connections from all these ports, open together, each of which is used twice."""
    streams: list[trio.SocketStream] = []
    limit = trio.CapacityLimiter(200)  # how many of them are being established at a time

    async def one(port: int) -> None:
        async with limit:
            streams.append(await converse(pod, target, port, b"%d first" % port))

    with trio.fail_after(120):
        try:
            async with trio.open_nursery() as nursery:
                for port in ports:
                    nursery.start_soon(one, port)
            for stream in streams:
                await stream.send_all(b"again")
            for stream in streams:
                assert await read_exactly(stream, 5, timeout=60) == b"again"
        finally:
            for stream in streams:
                stream.socket.close()


@contextmanager
def port_range(pod: MeshPod, text: str) -> Iterator[None]:
    with pod.pod.namespace.entered():
        before = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().strip()
    set_kernel_setting(pod.pod.namespace, "net/ipv4/ip_local_port_range", text)
    try:
        yield
    finally:
        set_kernel_setting(pod.pod.namespace, "net/ipv4/ip_local_port_range", before)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("ports", PORTS)
async def test_many_at_once_from_any_port(standard: StandardMesh, ports: str, version: int) -> None:
    server = standard.server
    lines = len(server.ztunnel.log_lines("ZT-NET-015"))
    target = (server.ipv4 if version == 4 else server.ipv6, PORT)
    async with serve(server, target[1]) as application:
        await all_at_once(standard.crowd, target, PORTS[ports]())
    assert len(application.peers) == AT_ONCE
    own = standard.crowd.ipv4 if version == 4 else standard.crowd.ipv6
    assert set(application.peer_addresses) == {own}
    assert len(server.ztunnel.log_lines("ZT-NET-015")) == lines


async def test_many_at_once_where_both_have_few_ports(standard: StandardMesh) -> None:
    """The client's range and the pod's are the same thousand ports; a kernel would run out of them."""
    server, crowd = standard.server, standard.crowd
    with port_range(server, "32768 33767"), port_range(crowd, "32768 33767"):
        async with serve(server, PORT) as application:
            await all_at_once(crowd, (server.ipv4, PORT), range(32768, 32768 + AT_ONCE))
    assert len(application.peers) == AT_ONCE


async def test_many_one_after_another(standard: StandardMesh) -> None:
    """20,000 within the minute of TIME-WAIT, after which the pod has ports for connections of its own.

    The kernel gives such a connection no port that is bound, whatever the address and also in TIME-WAIT.
    """
    server, outside = standard.server, standard.legacy
    numbers = iter(range(20_000))

    async def some() -> None:
        for number in numbers:
            stream = await converse(outside, (server.ipv4, PORT), 0, b"%d" % number)
            await stream.aclose()

    with port_range(outside, "1024 65535"), port_range(server, "60500 60999"):
        async with serve(server, PORT) as application:
            with trio.fail_after(400):
                async with trio.open_nursery() as nursery:
                    for _ in range(8):
                        nursery.start_soon(some)
            own = [await converse(server, ("127.0.0.1", PORT), 0, b"own") for _ in range(10)]
            for stream in own:
                await stream.aclose()
    assert len(application.peers) == 20_010
