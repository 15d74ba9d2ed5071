"""A relay at each end of a tunnel, and the two applications."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager

import trio

from tests.support.tunnels import plain_pair, tunnel_pair
from ztunnel.hbone import HboneSettings
from ztunnel.proxy.relay import relay_stream


class Relay:
    """Two applications with everything between them.

    results: the error of each end, once it is over. counted: the bytes that each end has sent and received.
    """

    def __init__(self) -> None:
        self.results: dict[str, str | None] = {}
        self.over = trio.Event()
        self.counted: Counter[str] = Counter()

    def counter(self, name: str):
        return lambda count: self.counted.update({name: count})


@asynccontextmanager
async def through_a_tunnel(settings: HboneSettings | None = None):
    """Gives the client's and the server's application sockets, the tunnels, and the relays' results."""
    async with tunnel_pair(settings) as pair, trio.open_nursery() as nursery:
        ours, theirs = await pair.open()
        client_side, client = plain_pair()
        server_side, server = plain_pair()
        relay = Relay()

        async def run(name, sock, stream, outbound):
            with sock:
                end = await relay_stream(
                    sock,
                    stream,
                    sent_to_stream=relay.counter(f"{name} sent"),
                    received_from_stream=relay.counter(f"{name} received"),
                    outbound=outbound,
                )
                relay.results[name] = end.error
                if len(relay.results) == 2:
                    relay.over.set()

        nursery.start_soon(run, "client", client_side, ours, True)
        nursery.start_soon(run, "server", server_side, theirs, False)
        yield client, server, pair, relay
        await client.aclose()
        await server.aclose()
        with trio.fail_after(10):
            await relay.over.wait()
        assert not pair.client.streams
        assert not pair.server.streams
