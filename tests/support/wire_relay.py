"""A relay in user space between a node and the wire, which delays packets, reorders them, or doubles them.

    with WireRelay.between(network, node, random) as relay:
        nursery.start_soon(relay.run)
        relay.delay = lambda: random.uniform(0, 0.03)

The node's end of the wire leaves the bridge, and a veth pair takes its place there. Two packet sockets carry
frames between them. Both have the kernel's offload header in front of each frame (PACKET_VNET_HDR), so that
large segments and checksums that a network card would have made pass as they are.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from heapq import heappop, heappush
from itertools import count
from random import Random

import trio

from ztunnel.demo.network import Network, Node, netlink

SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23  # linux/if_packet.h
ETH_P_ALL = 0x0003
LARGEST = 70_000
QUEUED = 4096
"""Frames under way in one direction; as in a router's queue, further ones are lost."""

_numbers = count()


class WireRelay:
    """Made by `between`. ``delay``: returns the seconds that a frame takes. ``twice``: its probability.

    ``carried``: frames that went on. ``under_way``: frames that it still has.
    """

    def __init__(self, ends: tuple[socket.socket, socket.socket], random: Random) -> None:
        self._ends = tuple(map(trio.socket.from_stdlib_socket, ends))
        self._random = random
        self.delay: Callable[[], float] = lambda: 0.0
        self.twice = 0.0
        self.carried = 0
        self.under_way = 0

    @classmethod
    @contextmanager
    def between(cls, network: Network, node: Node, random: Random) -> Iterator[WireRelay]:
        """Takes the place of the bridge's port of a node. After the block it is as before."""
        port = network.wire_port(node)
        number = next(_numbers)
        near, far = f"relay{number}", f"relay{number}-far"
        with netlink(network.wire) as wire:
            index = {name: one for name in ("wire", port) for one in wire.link_lookup(ifname=name)}
            wire.link("add", ifname=near, kind="veth", peer=far)
            for name in (near, far):
                (index[name],) = wire.link_lookup(ifname=name)
            with network.wire.entered():
                ends = (_packet_socket(port), _packet_socket(near))
            try:
                wire.link("set", index=index[port], master=0)
                wire.link("set", index=index[far], master=index["wire"], state="up")
                wire.link("set", index=index[near], state="up")
                yield cls(ends, random)
            finally:
                for end in ends:
                    end.close()
                wire.link("del", index=index[near])
                wire.link("set", index=index[port], master=index["wire"])

    async def run(self) -> None:
        """Carry frames until cancelled. Those that are still under way then are lost."""
        one, other = self._ends
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._carry, one, other)
                nursery.start_soon(self._carry, other, one)
        finally:
            self.under_way = 0

    async def _carry(self, source: trio.socket.SocketType, target: trio.socket.SocketType) -> None:
        waiting: list[tuple[float, int, bytes]] = []
        arrived = trio.Event()

        async def deliver() -> None:
            nonlocal arrived
            while True:
                if not waiting:
                    arrived = trio.Event()
                    await arrived.wait()
                left = waiting[0][0] - trio.current_time()
                if left > 0:
                    arrived = trio.Event()
                    with trio.move_on_after(left):
                        await arrived.wait()
                    continue
                _, _, frame = heappop(waiting)
                try:
                    await target.send(frame)
                    self.carried += 1
                except OSError:
                    continue  # the end of an interface loses what is under way
                finally:
                    self.under_way -= 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(deliver)
            while True:
                try:
                    frame = await source.recv(LARGEST)
                except OSError:
                    continue  # an interface that has just gone down says so once
                for _ in range(1 + (self._random.random() < self.twice)):
                    if len(waiting) < QUEUED:
                        due = trio.current_time() + self.delay()
                        heappush(waiting, (due, next(_numbers), frame))
                        self.under_way += 1
                        arrived.set()


def _packet_socket(interface: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(ETH_P_ALL))
    sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind((interface, 0))
    return sock
