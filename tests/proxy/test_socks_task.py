"""SOCKS5 clients of a data plane that do not get on."""

from __future__ import annotations

from dataclasses import replace

import trio

from tests.support.data_plane import running_plane
from tests.support.logs import capture_logs
from ztunnel.bounds import DEFAULTS

HASTY = replace(DEFAULTS, connection=replace(DEFAULTS.connection, socks_timeout=0.2))
GREETING = b"\x05\x01\x00"


async def greeted() -> trio.SocketStream:
    """A client that has chosen its method and has not asked for anything."""
    stream = await trio.open_tcp_stream("127.0.0.1", 15080)
    await stream.send_all(GREETING)
    with trio.fail_after(30):
        assert await stream.receive_some(2) == b"\x05\x00"
    return stream


async def rest(stream: trio.SocketStream) -> bytes:
    """What comes until the connection ends, or is reset."""
    got = b""
    with trio.fail_after(30):
        try:
            async for data in stream:
                got += data
        except trio.BrokenResourceError:
            pass
    return got


async def test_a_client_that_stays_silent_is_given_up_at_the_deadline() -> None:
    async with running_plane(bounds=HASTY):
        with capture_logs() as records:
            async with await greeted() as stream:
                assert await rest(stream) == b""
        [said] = [record.message for record in records if "socks" in record.message]
        assert said == "failed to negotiate socks connection: deadline has elapsed"


async def test_a_client_that_leaves_before_it_has_asked_is_no_matter_for_the_log() -> None:
    async with running_plane():
        with capture_logs() as records:
            async with await greeted() as stream:
                await stream.send_eof()
                assert await rest(stream) == b""
        assert [record.message for record in records if "socks" in record.message] == []


async def test_an_empty_name_is_refused_with_an_answer() -> None:
    async with running_plane():
        with capture_logs() as records:
            async with await greeted() as stream:
                await stream.send_all(b"\x05\x01\x00\x03\x00\x00\x50")
                told = await rest(stream)
        assert told[0] == 5
        assert told[1] != 0
        [said] = [record.message for record in records if "socks" in record.message]
        assert said.endswith("the host name is empty")
