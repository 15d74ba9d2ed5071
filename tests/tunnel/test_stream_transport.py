"""A tunnel's stream as a Trio stream passes Trio's own checks."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.support.tunnels import tunnel_pair
from ztunnel.hbone import ErrorCode, HboneSettings
from ztunnel.tunnel.stream_transport import StreamTransport


async def test_it_is_a_half_closeable_stream():
    async with tunnel_pair() as pair:

        async def make():
            ours, theirs = await pair.open()
            return StreamTransport(ours), StreamTransport(theirs)

        await trio.testing.check_half_closeable_stream(make, None)


async def test_it_blocks_when_nobody_reads():
    settings = HboneSettings(stream_window=65_535)
    async with tunnel_pair(settings) as pair:

        async def make():
            ours, theirs = await pair.open()
            return StreamTransport(ours), StreamTransport(theirs)

        async def make_clogged():
            left, right = await make()
            await left.send_all(bytes(65_535))
            await right.send_all(bytes(65_535))
            return left, right

        await trio.testing.check_half_closeable_stream(make, make_clogged)


async def test_a_reset_comes_after_what_was_sent_before_it():
    async with tunnel_pair() as pair:
        ours, theirs = await pair.open()
        sender, receiver = StreamTransport(ours), StreamTransport(theirs)
        await sender.send_all(b"before")
        ours.reset(ErrorCode.CANCEL)
        assert await receiver.receive_some() == b"before"
        with pytest.raises(trio.BrokenResourceError):
            await receiver.receive_some()
        await sender.aclose()
        await receiver.aclose()


async def test_a_lost_tunnel_breaks_the_stream():
    async with tunnel_pair() as pair:
        ours, theirs = await pair.open()
        receiver = StreamTransport(theirs)
        pair.cut()
        with pytest.raises(trio.BrokenResourceError):
            await receiver.receive_some()
        await receiver.aclose()
        ours.close()
