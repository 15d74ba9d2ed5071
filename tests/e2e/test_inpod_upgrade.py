"""A second ztunnel takes over on a node under traffic, again and again, and no connection fails.

Applications open connections without pause, in every direction that a ztunnel carries, while one node after
the other is upgraded.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import dns.entropy
import dns.message
import dns.rdatatype
import trio

from tests.support.pod import MeshPod, eventually
from tests.support.traffic import read_exactly, serve
from tests.support.two_nodes import TwoNodes, ended
from ztunnel.demo.redirection import RedirectionOptions

ROUNDS = 5
AT_ONCE = 8
DEADLINE = 2


@dataclass
class Traffic:
    """What came of connections that were opened, by the way they took."""

    good: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    stop: trio.Event = field(default_factory=trio.Event)

    async def open_without_pause(self, name: str, source: MeshPod, address: str, port: int) -> None:
        number = 0
        while not self.stop.is_set():
            number += 1
            asked = f"{name} {number}".encode()
            began = time.monotonic()
            try:
                async with await source.connect(address, port, timeout=10) as stream:
                    await stream.send_all(asked)
                    assert await read_exactly(stream, len(asked), timeout=10) == asked
                    await stream.send_eof()
                    assert await stream.receive_some(1) == b""
            except (OSError, trio.BrokenResourceError, trio.TooSlowError, AssertionError) as error:
                self.failures.append(f"{name} after {time.monotonic() - began:.3f} s: {error!r}")
            else:
                self.good[name] += 1

    async def look_up_without_pause(self, name: str, source: MeshPod, hostname: str, address: str) -> None:
        """Ask over UDP, without the second try that resolvers make."""
        query = dns.message.make_query(hostname, dns.rdatatype.A)
        with trio.socket.from_stdlib_socket(source.socket(kind=socket.SOCK_DGRAM)) as sock:
            await sock.connect(("10.96.0.53", 53))
            while not self.stop.is_set():
                query.id = dns.entropy.random_16()
                await sock.send(query.to_wire())
                try:
                    with trio.fail_after(5):
                        answer = dns.message.from_wire(await sock.recv(65_535))
                    assert answer.id == query.id
                    assert [str(item) for rrset in answer.answer for item in rrset] == [address]
                except (OSError, trio.TooSlowError, AssertionError) as error:
                    self.failures.append(f"{name}: {error!r}")
                else:
                    self.good[name] += 1

    async def goes_on(self, ways: Iterable[str]) -> None:
        """Wait until each of the ways has worked once more."""
        before = self.good.copy()
        await eventually(lambda: all(self.good[way] > before[way] for way in ways), "carrying traffic")


async def test_nodes_are_upgraded_one_after_the_other_and_no_connection_fails() -> None:
    environment = {
        "CONNECTION_TERMINATION_DEADLINE": f"{DEADLINE}s",
        "ISTIO_META_DNS_CAPTURE": "true",
    }
    with TwoNodes.open(environment, redirection=RedirectionOptions(dns=True)) as nodes:
        client, server, outside = nodes.client, nodes.server, nodes.outside
        traffic = Traffic()
        ways = {
            "tunnel": (client, server.ipv4, 8080),
            "tunnel over IPv6": (client, server.ipv6, 8080),
            "service": (client, nodes.vip, 80),
            "same node": (client, nodes.neighbour.ipv4, 8080),
            "into the mesh": (outside, server.ipv4, 8080),
            "out of the mesh": (client, outside.ipv4, 8080),
        }
        async with (
            serve(server, 8080) as application,
            serve(nodes.neighbour, 8080) as near,
            serve(outside, 8080) as far,
            trio.open_nursery() as nursery,
        ):
            for name, (source, address, port) in ways.items():
                for _ in range(AT_ONCE):
                    nursery.start_soon(traffic.open_without_pause, name, source, address, port)
            for source in (client, server):
                name = "web.default.svc.cluster.local"
                nursery.start_soon(
                    traffic.look_up_without_pause, f"lookup at {source.name}", source, name, nodes.vip
                )
            everything = [*ways, "lookup at client", "lookup at server"]
            await traffic.goes_on(everything)
            for number in range(ROUNDS):
                old, _ = await nodes.node((client, server)[number % 2]).upgrade()
                await ended(old, DEADLINE + 5)
                await traffic.goes_on(everything)
            traffic.stop.set()
        assert traffic.failures == []
        assert application.failures + near.failures + far.failures == []
        print(f"{sum(traffic.good.values())} connections during {ROUNDS} upgrades: {dict(traffic.good)}")
