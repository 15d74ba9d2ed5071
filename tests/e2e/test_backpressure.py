"""A reader that stalls holds up its own connection, and makes nobody keep more than the windows."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.e2e.conftest import StandardMesh, settle
from tests.e2e.test_endings import PATHS, path
from tests.support.pod import MeshPod, eventually
from tests.support.traffic import pattern, read_exactly, receive_pattern, reset, serve
from ztunnel.demo.network import set_kernel_setting

MEBIBYTE = 1024**2
STREAM_WINDOW = 4 * MEBIBYTE
CONNECTION_WINDOW = 16 * MEBIBYTE


def resident(pod: MeshPod) -> int:
    """The resident memory of a pod's ztunnel in bytes."""
    for line in Path(f"/proc/{pod.ztunnel.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


# Two sockets that send and two that receive hold this much of one direction by themselves; with what the
# kernel counts for a buffer being about twice what fits in.
KERNEL_BUFFERS = 8 * MEBIBYTE


@pytest.fixture
async def small(standard: StandardMesh) -> AsyncIterator[StandardMesh]:
    """The standard mesh, with at most a mebibyte a socket for new sockets, on whatever machine."""
    names = ("net/ipv4/tcp_rmem", "net/ipv4/tcp_wmem")
    before = {name: await trio.Path("/proc/sys", name).read_text() for name in names}
    pods = [pod.pod.namespace for pod in (standard.client, standard.server, standard.outside)]
    for namespace in pods:
        for name in names:
            set_kernel_setting(namespace, name, f"4096 131072 {MEBIBYTE}")
    yield standard
    for namespace in pods:
        for name, value in before.items():
            set_kernel_setting(namespace, name, value)


class Flood:
    """An application that sends the pattern for ever and counts what it could get rid of."""

    def __init__(self) -> None:
        self.sent = 0
        self.last_progress = trio.current_time()

    async def __call__(self, stream: trio.SocketStream) -> None:
        offset = 0
        while True:
            sent = await stream.socket.send(pattern(offset, 65_536))
            offset += sent
            self.sent += sent
            self.last_progress = trio.current_time()

    async def stalled(self) -> None:
        """Wait until nothing has been sent for a second."""
        await eventually(lambda: trio.current_time() - self.last_progress > 1, "stalled", timeout=30)


async def test_a_stalled_reader_stalls_the_sender_and_costs_little(small: StandardMesh) -> None:
    client, server = small.client, small.server
    flood = Flood()
    async with serve(server, 8080, flood), serve(server, 8081):
        # Both have their buffers already before the comparison.
        async with await client.connect(server.ipv4, 8080) as warm:
            await receive_pattern(warm, 20 * MEBIBYTE)
        before = resident(client), resident(server)
        flood.sent = 0
        async with (
            await client.connect(server.ipv4, 8080) as stalled,
            await client.connect(server.ipv4, 8081) as neighbour,
        ):
            await flood.stalled()
            assert flood.sent < STREAM_WINDOW + KERNEL_BUFFERS + MEBIBYTE
            for pod, resident_before in zip((client, server), before, strict=True):
                assert resident(pod) - resident_before < 3 * STREAM_WINDOW, pod.name
            await neighbour.send_all(b"not held up")
            assert await read_exactly(neighbour, 11) == b"not held up"
            # It goes on where it stopped, byte for byte.
            assert await receive_pattern(stalled, flood.sent + 30 * MEBIBYTE) > 30 * MEBIBYTE


async def test_twenty_stalled_readers_are_bounded_together(small: StandardMesh) -> None:
    client, server = small.client, small.server
    flood = Flood()
    async with serve(server, 8080, flood):
        before = resident(client), resident(server)
        streams = [await client.connect(server.ipv4, 8080) for _ in range(20)]
        await flood.stalled()
        for pod, resident_before in zip((client, server), before, strict=True):
            assert resident(pod) - resident_before < 3 * CONNECTION_WINDOW, pod.name
        for stream in streams:
            await stream.aclose()


@pytest.mark.parametrize("way", ["in", "out"])
async def test_plaintext_stalls_too(small: StandardMesh, way: str) -> None:
    client, server = (small.outside, small.server) if way == "in" else (small.client, small.outside)
    served = small.server if way == "in" else small.client
    flood = Flood()
    async with serve(server, 8080, flood):
        before = resident(served)
        async with await client.connect(server.ipv4, 8080) as stream:
            await flood.stalled()
            # A pipe of at most a mebibyte is all that ztunnel keeps itself.
            assert flood.sent < KERNEL_BUFFERS + 2 * MEBIBYTE
            assert resident(served) - before < 5 * MEBIBYTE
            wanted = flood.sent + MEBIBYTE
            assert await receive_pattern(stream, wanted) == wanted


async def test_a_stalled_upload_is_bounded_and_exact_as_well(small: StandardMesh) -> None:
    client, server = small.client, small.server
    go_on, finished = trio.Event(), trio.Event()
    total = 60 * MEBIBYTE
    received: list[int] = []

    async def stall_then_read(stream: trio.SocketStream) -> None:
        await go_on.wait()
        received.append(await receive_pattern(stream, total))
        await stream.send_all(b"done")
        # Closing with data unread would reset the connection.
        await finished.wait()

    flood = Flood()
    async with serve(server, 8080, stall_then_read) as application:
        before = resident(client), resident(server)
        async with await client.connect(server.ipv4, 8080) as stream, trio.open_nursery() as nursery:
            nursery.start_soon(flood, stream)
            await flood.stalled()
            assert flood.sent < STREAM_WINDOW + KERNEL_BUFFERS + MEBIBYTE
            for pod, resident_before in zip((client, server), before, strict=True):
                assert resident(pod) - resident_before < 3 * STREAM_WINDOW, pod.name
            go_on.set()
            assert await read_exactly(stream, 4, timeout=30) == b"done"
            nursery.cancel_scope.cancel()
        finished.set()
    assert received == [total]
    assert application.failures == []


async def test_slow_and_fast_readers_of_one_tunnel_both_get_everything(small: StandardMesh) -> None:
    total = 30 * MEBIBYTE
    chunks = random.Random(5)

    async def send(stream: trio.SocketStream) -> None:
        offset = 0
        while offset < total:
            size = min(total - offset, chunks.randint(1, 200_000))
            await stream.send_all(pattern(offset, size))
            offset += size

    async def read_slowly() -> None:
        async with await small.client.connect(small.server.ipv4, 8080) as stream:
            received = 0
            with trio.fail_after(60):
                while received < total:
                    data = await stream.receive_some(1_000_000)
                    assert pattern(received, len(data)) == data
                    received += len(data)
                    await trio.sleep(0.01)

    async def read_fast() -> None:
        async with await small.client.connect(small.server.ipv4, 8080) as stream:
            with trio.fail_after(60):
                assert await receive_pattern(stream) == total

    async with serve(small.server, 8080, send) as application, trio.open_nursery() as nursery:
        nursery.start_soon(read_slowly)
        for _ in range(4):
            nursery.start_soon(read_fast)
    assert application.failures == []


class Reluctant:
    """An application that takes connections and reads nothing from them."""

    async def __call__(self, stream: trio.SocketStream) -> None:
        await trio.sleep_forever()


async def upload(stream: trio.SocketStream, flood: Flood) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
        await flood(stream)


async def passes(client: MeshPod, address: str, port: int) -> None:
    """A new connection carries two mebibytes there and back."""
    async with await client.connect(address, port) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, pattern(0, 2 * MEBIBYTE))
        with trio.fail_after(30):
            assert await receive_pattern(stream, 2 * MEBIBYTE) == 2 * MEBIBYTE


@pytest.mark.parametrize("stalled", [6, 8, 25])
@pytest.mark.parametrize("way", ["downloads", "uploads"])
async def test_whoever_comes_gets_through_beside_connections_that_do_not_move(
    small: StandardMesh, way: str, stalled: int
) -> None:
    client, server = small.client, small.server
    flood = Flood()
    handler = flood if way == "downloads" else Reluctant()
    async with serve(server, 8080, handler), serve(server, 8081), trio.open_nursery() as nursery:
        async with await client.connect(server.ipv4, 8081) as earlier:
            await earlier.send_all(b"before")
            assert await read_exactly(earlier, 6) == b"before"
            streams = [await client.connect(server.ipv4, 8080) for _ in range(stalled)]
            if way == "uploads":
                for stream in streams:
                    nursery.start_soon(upload, stream, flood)
            await flood.stalled()
            await passes(client, server.ipv4, 8081)
            await passes(client, server.ipv4, 8081)
            if stalled <= 8:
                # What they hold is lent, so those on their tunnel go on too.
                await earlier.send_all(b"after")
                assert await read_exactly(earlier, 5) == b"after"
            for stream in streams:
                reset(stream)
            await passes(client, server.ipv4, 8081)
        nursery.cancel_scope.cancel()


def was_reset(sock: socket.socket) -> bool:
    """Whether the peer has reset it; reads nothing."""
    poll = select.poll()
    poll.register(sock.fileno(), 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


@pytest.mark.parametrize("way", PATHS)
async def test_a_client_that_resets_while_its_upload_is_held_is_noticed(
    small: StandardMesh, way: str
) -> None:
    """SO_LINGER 0, and an application that does not read: it is told, and nothing of it is left."""
    client, server = path(small, way)
    taken: list[socket.socket] = []

    async def take(stream: trio.SocketStream) -> None:
        taken.append(socket.socket(fileno=os.dup(stream.socket.fileno())))
        await trio.sleep_forever()

    flood = Flood()
    async with serve(server, 8080, take), trio.open_nursery() as nursery:
        stream = await client.connect(server.ipv4, 8080)
        nursery.start_soon(upload, stream, flood)
        await flood.stalled()
        [sock] = taken
        with sock:
            assert not was_reset(sock)
            reset(stream)
            await eventually(lambda: was_reset(sock), "the application's socket to be reset", timeout=30)
        await settle([pod for pod in (client, server) if pod is not small.outside])
        nursery.cancel_scope.cancel()
