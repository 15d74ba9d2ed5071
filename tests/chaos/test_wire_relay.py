"""The relay on a node's wire: what it does to packets, and that TCP with large segments passes it whole."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import pytest
import trio

from tests.support.namespaces import needs_namespaces
from tests.support.traffic import receive_pattern, send_pattern
from tests.support.wire_relay import WireRelay
from ztunnel.demo.machine import Machine
from ztunnel.demo.network import Network, Pod

pytestmark = needs_namespaces

DATAGRAMS = 200
VOLUME = 5_000_000


@dataclass
class Ground:
    """Two pods of two nodes."""

    network: Network
    here: Pod
    there: Pod

    def socket(self, pod: Pod, kind: int) -> trio.socket.SocketType:
        with pod.namespace.entered():
            sock = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
        return trio.socket.from_stdlib_socket(sock)

    async def datagrams(self, relay: WireRelay) -> list[int]:
        """Numbered datagrams from one pod to the other, as they arrive until there are no more."""
        arrived: list[int] = []
        with (
            self.socket(self.there, socket.SOCK_DGRAM) as to,
            self.socket(self.here, socket.SOCK_DGRAM) as by,
        ):
            to.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            await to.bind((self.there.ipv4, 7000))
            for number in range(DATAGRAMS):
                await by.sendto(number.to_bytes(4, "big"), (self.there.ipv4, 7000))
            while True:
                complete = len(set(arrived)) == DATAGRAMS
                with trio.move_on_after(0.2 if complete else 3) as waiting:
                    arrived.append(int.from_bytes(await to.recv(100), "big"))
                if waiting.cancelled_caught and not (complete and relay.under_way):
                    return arrived

    async def transfer(self) -> int:
        """Bytes that came of a TCP connection, each compared by its place."""
        received = 0
        with self.socket(self.there, socket.SOCK_STREAM) as listener:
            await listener.bind((self.there.ipv4, 7000))
            listener.listen()

            async def take() -> None:
                nonlocal received
                accepted, _ = await listener.accept()
                async with trio.SocketStream(accepted) as stream:
                    received = await receive_pattern(stream)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(take)
                sock = self.socket(self.here, socket.SOCK_STREAM)
                async with trio.SocketStream(sock) as stream:
                    await sock.connect((self.there.ipv4, 7000))
                    await send_pattern(stream, VOLUME, Random(1))
                    await stream.send_eof()
        return received


@pytest.fixture
def ground() -> Iterator[Ground]:
    with Machine.open() as machine:
        network = Network(machine)
        yield Ground(network, network.node("a").pod("here"), network.node("b").pod("there"))


async def test_packets_pass_late_in_another_order_and_twice(ground: Ground) -> None:
    everything = list(range(DATAGRAMS))
    random = Random(1)
    with WireRelay.between(ground.network, ground.network.node("b"), random) as relay:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.run)
            assert await ground.datagrams(relay) == everything
            assert relay.carried >= DATAGRAMS
            relay.delay = lambda: random.choice([0, 0.05])
            reordered = await ground.datagrams(relay)
            assert reordered != everything
            assert sorted(reordered) == everything
            relay.delay = lambda: 0.0
            relay.twice = 0.5
            assert set(doubled := await ground.datagrams(relay)) == set(everything)
            assert DATAGRAMS * 1.2 < len(doubled) < DATAGRAMS * 1.8
            nursery.cancel_scope.cancel()
    carried = relay.carried
    assert await ground.datagrams(relay) == everything, "without it the wire is as before"
    assert relay.carried == carried


async def test_what_is_under_way_when_it_ends_is_lost(ground: Ground) -> None:
    with WireRelay.between(ground.network, ground.network.node("b"), Random(1)) as relay:
        relay.delay = lambda: 3600.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.run)
            with ground.socket(ground.here, socket.SOCK_DGRAM) as by, trio.fail_after(60):
                while not relay.under_way:
                    await by.sendto(b"lost", (ground.there.ipv4, 7000))
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert relay.under_way == 0


async def test_tcp_passes_whole(ground: Ground) -> None:
    """Also while packets come late and twice: the kernel's large segments and unfinished checksums pass."""
    random = Random(2)
    with WireRelay.between(ground.network, ground.network.node("a"), random) as relay:
        relay.delay = lambda: random.choice([0, 0, 0.01])
        relay.twice = 0.1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.run)
            with trio.fail_after(120):
                assert await ground.transfer() == VOLUME
            nursery.cancel_scope.cancel()
