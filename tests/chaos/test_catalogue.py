"""What decides a run of chaos, and the checks that it consists of. The runs themselves are `make chaos`."""

from __future__ import annotations

from random import Random

import pytest
import trio
import trio.testing

from tests.chaos.__main__ import plan
from tests.chaos.catalogue import CATALOGUE
from tests.support.conversations import EarlyEnd, exchange
from tests.support.traffic import pattern


def test_a_seed_is_a_plan():
    """The same one gives the same rounds: each fault alone, and then each pair, once."""
    assert plan(3, []) == plan(3, [])
    assert plan(3, []) != plan(4, [])
    rounds = plan(3, [])
    names = len(CATALOGUE)
    assert {one for (one,) in rounds[:names]} == set(CATALOGUE)
    assert len({frozenset(pair) for pair in rounds[names:]}) == names * (names - 1) // 2
    assert plan(1, ["partition"]) == [("partition",)]


class Sockets:
    """Both ends of a TCP connection on loopback."""

    def __init__(self) -> None:
        self.near: trio.SocketStream
        self.far: trio.SocketStream


@pytest.fixture
async def pair():
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    sockets = Sockets()
    sockets.near = await trio.open_tcp_stream("127.0.0.1", listeners[0].socket.getsockname()[1])
    sockets.far = await listeners[0].accept()
    yield sockets
    for stream in (sockets.near, sockets.far, *listeners):
        await stream.aclose()


async def test_a_conversation_that_is_whole_is_content(pair: Sockets):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: exchange(pair.near, answering=False, random=Random(1)))
        nursery.start_soon(lambda: exchange(pair.far, answering=True))


async def say(stream: trio.SocketStream, data: bytes) -> None:
    await stream.send_all(data)
    await stream.send_eof()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", EarlyEnd),
        (bytes(3), EarlyEnd),
        ((100).to_bytes(8, "big") + bytes(pattern(0, 99)), EarlyEnd),
        ((100).to_bytes(8, "big") + bytes(pattern(0, 101)), EarlyEnd),
        ((100).to_bytes(8, "big") + bytes(pattern(1, 100)), AssertionError),
        ((100).to_bytes(8, "big") + bytes(pattern(0, 50)) + bytes(pattern(51, 50)), AssertionError),
    ],
)
async def test_what_may_never_happen_is_seen(pair: Sockets, data: bytes, error: type[AssertionError]):
    """A lost byte, one too many, a wrong order, an end that is none."""
    await say(pair.near, data)
    with pytest.raises(error):
        await exchange(pair.far, answering=True)
