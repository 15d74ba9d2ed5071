"""Many streams on one real tunnel, each with its own fault, at the same time: nobody pays for another.

As `tests.hbone.test_lending` without I/O, here with both ends, TLS, relays and applications' sockets.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from enum import Enum
from functools import partial
from random import Random

import pytest
import trio

from tests.support.traffic import pattern, receive_pattern, reset
from tests.support.tunnels import TunnelPair, plain_pair, tunnel_pair
from ztunnel.hbone import HboneSettings
from ztunnel.proxy.relay import relay_stream
from ztunnel.sockets.hangup import Hangups
from ztunnel.tunnel.client_tunnel import ClientTunnel
from ztunnel.tunnel.server_tunnel import ServerTunnel
from ztunnel.tunnel.tunnel_stream import TunnelStream

KIB = 1 << 10
SETTINGS = HboneSettings(
    stream_window=16 * KIB, connection_window=64 * KIB, lent_window=96 * KIB, frame_size=16 * KIB
)
"""The defaults' proportions, in KiB instead of MiB."""

HELD = 64 * KIB + 96 * KIB
"""What one end may hold of its peer's bytes."""

STANDING = 8
"""Streams that may stand still beside others: their windows are less than what may be held."""


class Kind(Enum):
    FAST = "reads as fast as it can"
    SLOW = "reads a little now and then"
    STALLED = "reads nothing"
    DYING = "reads nothing, and its client is killed in between"


class Mixture:
    """The streams of one test, and when their transfers are over."""

    def __init__(self, pair: TunnelPair, nursery: trio.Nursery, hangups: Hangups, random: Random) -> None:
        self._pair = pair
        self._nursery = nursery
        self._hangups = hangups
        self._random = random
        self.unfinished = 0
        self.applications: list[trio.SocketStream] = []
        self.finished = trio.lowlevel.ParkingLot()

    async def begin(self, kind: Kind, *, upload: bool) -> None:
        """Open a stream between two applications, one of which sends to the other."""
        ours, theirs = await self._pair.open()
        client = self._relay(ours, outbound=True)
        server = self._relay(theirs, outbound=False)
        sender, receiver = (client, server) if upload else (server, client)
        total = self._random.randint(1, 120) * KIB
        if kind in {Kind.FAST, Kind.SLOW}:
            self.unfinished += 1
            self._nursery.start_soon(self._receive, receiver, total, kind)
        self._nursery.start_soon(self._send, sender, total if kind in {Kind.FAST, Kind.SLOW} else 1 << 22)
        if kind is Kind.DYING:
            self._nursery.start_soon(self._kill, client, self._random.random() / 2)

    def _relay(self, stream: TunnelStream, *, outbound: bool) -> trio.SocketStream:
        ours, application = plain_pair()
        self.applications.append(application)
        for sock in (ours, application.socket):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * KIB)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)

        async def run() -> None:
            with ours, self._hangups.watch(ours) as hangup:
                relay = partial(relay_stream, sent_to_stream=_ignore, received_from_stream=_ignore)
                await relay(ours, stream, outbound=outbound, hangup=hangup)

        self._nursery.start_soon(run)
        return application

    async def _send(self, stream: trio.SocketStream, total: int) -> None:
        sent = 0
        try:
            while sent < total:
                piece = pattern(sent, min(total - sent, 9_000))
                await stream.send_all(piece)
                sent += len(piece)
            await stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def _receive(self, stream: trio.SocketStream, total: int, kind: Kind) -> None:
        received = 0
        if kind is Kind.SLOW:
            while received < total // 4:
                data = await stream.receive_some(3_000)
                assert pattern(received, len(data)) == data
                received += len(data)
                await trio.sleep(0.005)
            while received < total:
                data = await stream.receive_some()
                assert pattern(received, len(data)) == data
                received += len(data)
            assert await stream.receive_some() == b""
        else:
            received = await receive_pattern(stream)
        assert received == total
        self.unfinished -= 1
        self.finished.unpark_all()

    async def _kill(self, stream: trio.SocketStream, after: float) -> None:
        await trio.sleep(after)
        reset(stream)


def _ignore(count: int) -> None:
    del count


async def watch_held(pair: TunnelPair, over: Callable[[], bool]) -> None:
    while not over():
        for end in (pair.client, pair.server):
            assert end.hbone.held <= HELD
            assert not end.hbone.closed
        await trio.sleep(0.005)


async def stood_still(end: ClientTunnel | ServerTunnel) -> None:
    """Wait until nothing more is held than a while before. How much depends on what sockets have taken."""
    before = -1
    while end.hbone.held > before:
        before = end.hbone.held
        for _ in range(20):
            await trio.sleep(0.005)


@pytest.mark.parametrize("seed", range(6))
async def test_whoever_reads_gets_everything_on_a_real_tunnel(seed: int) -> None:
    """Byte for byte, whatever the others do, and each end holds no more than it may."""
    random = Random(seed)
    with Hangups(0.02) as hangups:
        async with tunnel_pair(SETTINGS) as pair, trio.open_nursery() as nursery:
            nursery.start_soon(hangups.run)
            mixture = Mixture(pair, nursery, hangups, random)
            kinds = [Kind.STALLED] * random.randint(5, STANDING - 1)
            kinds += random.choices([Kind.SLOW, Kind.DYING], k=STANDING - len(kinds))
            kinds += [Kind.FAST] * random.randint(1, 12)
            random.shuffle(kinds)
            # All that stand still hold the same end's window.
            upload = random.random() < 0.5
            with trio.fail_after(120):
                for kind in kinds:
                    await mixture.begin(
                        kind, upload=upload if kind is not Kind.FAST else random.random() < 0.5
                    )
                    for _ in range(random.choice([0, 0, 30])):
                        await trio.lowlevel.checkpoint()
                # Those that stand hold what they can, mostly the whole window; who comes now gets through.
                await stood_still(pair.server if upload else pair.client)
                await mixture.begin(Kind.FAST, upload=True)
                await mixture.begin(Kind.FAST, upload=False)
                nursery.start_soon(watch_held, pair, lambda: not mixture.unfinished)
                while mixture.unfinished:
                    await mixture.finished.park()
            nursery.cancel_scope.cancel()
        for application in mixture.applications:
            application.socket.close()
        assert (pair.client.hbone.held, pair.server.hbone.held) == (0, 0)
