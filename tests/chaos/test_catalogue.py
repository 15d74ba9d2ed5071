"""What decides a run of chaos, and the checks that it consists of. The runs themselves are `make chaos`."""

from __future__ import annotations

from random import Random

import dns.exception
import dns.message
import pytest
import trio
import trio.testing

from tests.chaos.__main__ import again, plan, random_of, tracebacks
from tests.chaos.catalogue import CATALOGUE
from tests.chaos.scene import Names, address_of
from tests.support.conversations import Violation, exchange
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
    assert plan(3, [], pairs_only=True) == rounds[names:]


def test_a_round_is_repeated_by_itself():
    """It depends on the seed and its own faults, and the command that a failure shows runs no other."""
    names = ("partition", "ztunnel killed")
    assert random_of(3, names).random() == random_of(3, names).random()
    assert random_of(3, names).random() != random_of(4, names).random()
    assert random_of(3, names).random() != random_of(3, names[:1]).random()
    assert again(3, names) == (
        "python -m tests.chaos --seed 3 --pairs --only partition --only 'ztunnel killed'"
    )
    assert plan(3, list(names), pairs_only=True) == [names]
    assert again(3, ("partition",)) == "python -m tests.chaos --seed 3 --only partition"


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
        (b"", Violation),
        (bytes(3), Violation),
        ((100).to_bytes(8, "big") + bytes(pattern(0, 99)), Violation),
        ((100).to_bytes(8, "big") + bytes(pattern(0, 101)), Violation),
        ((100).to_bytes(8, "big") + bytes(pattern(1, 100)), AssertionError),
        ((100).to_bytes(8, "big") + bytes(pattern(0, 50)) + bytes(pattern(51, 50)), AssertionError),
    ],
)
async def test_what_may_never_happen_is_seen(pair: Sockets, data: bytes, error: type[AssertionError]):
    """A lost byte, one too many, a wrong order, an end that is none."""
    await say(pair.near, data)
    with pytest.raises(error):
        await exchange(pair.far, answering=True)


def test_a_traceback_is_a_bug_but_for_lack_of_memory_that_was_caused():
    line = '{"level":"info","message":"x"}\n'
    written = "Traceback (most recent call last):\n  File a\n{}\n"
    logged = '{{"level":"error","backtrace":"Traceback (most recent call last): | Traceback {}"}}\n'
    assert tracebacks(line) == []
    for form in (written, logged):
        bug, lack = line + form.format("KeyError: 1"), line + form.format("MemoryError")
        assert len(tracebacks(bug + lack + bug + line)) == 2
        assert tracebacks(lack + line) == []


def test_lines_of_other_processes_do_not_take_a_traceback_apart():
    line = '{"level":"info","message":"x"}\n'
    first, rest = "Traceback (most recent call last):\n  File a\n", "MemoryError\n"
    assert tracebacks(first + line + rest) == []
    group = (
        "  + Exception Group Traceback (most recent call last):\n    | Traceback (most recent call last):\n"
    )
    assert tracebacks(group + line + "    | MemoryError\n") == []
    chained = "\nDuring handling of the above exception, another exception occurred:\n\n"
    assert tracebacks(first + rest + chained + first + line + "OSError\n") == []
    assert len(tracebacks(first + rest + first + line + "OSError\n")) == 1


@pytest.mark.parametrize("seed", range(20))
def test_a_lying_resolver_tells_nothing_that_is_to_be_believed(seed: int):
    """Each of its answers is for another question or id, cannot be read, or is the right one."""
    names = Names(None)  # type: ignore[arg-type]  # no pod is asked for anything
    behave = names.lying(Random(seed))
    for _ in range(20):
        query = dns.message.make_query("n7.elsewhere.example.", "A")
        for reply in behave(query.to_wire(), False):
            try:
                told = dns.message.from_wire(reply)
            except dns.exception.DNSException:
                continue
            if told.id == query.id and told.question == query.question and told.answer:
                assert [str(item) for item in told.answer[0]] == [address_of(7)]
