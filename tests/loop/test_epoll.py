"""While handlers carry all that comes, Trio's loop takes no turn; whatever else has to happen is not late."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio
import trio.testing

from ztunnel.loop.watch import Watch

LAST = 100_000
"""Messages after which the chatter ends in any case."""


class Turns(trio.abc.Instrument):
    """Counts the turns of Trio's loop."""

    def __init__(self) -> None:
        self.count = 0

    def before_io_wait(self, timeout: float) -> None:
        del timeout
        self.count += 1


class Chatter:
    """Two ends of a connection, each of which answers every message with one. `start` sends the first.

    at: called before message ``at[0]`` is answered. answers: cleared, messages are read and not answered.
    stopped: set, the next message wakes the task that waits for it, which ends `listen`.
    """

    def __init__(self) -> None:
        self.count = 0
        self.stopped = False
        self.answers = True
        self.at: tuple[int, Callable[[], object]] | None = None
        self._ends = [Watch(end) for end in socket.socketpair()]
        for watch in self._ends:
            watch.sock.setblocking(False)

    def close(self) -> None:
        for watch in self._ends:
            watch.close()
            watch.sock.close()

    def start(self) -> None:
        self._ends[0].sock.send(b"0")

    async def listen(self) -> None:
        """Wait at both ends, until one of them is woken."""
        async with trio.open_nursery() as nursery:
            for watch in self._ends:

                async def wait(watch: Watch = watch) -> None:
                    await watch.readable(lambda: self._answer(watch))
                    nursery.cancel_scope.cancel()

                nursery.start_soon(wait)

    def _answer(self, watch: Watch) -> bool:
        if self.stopped or self.count == LAST:
            return False
        watch.sock.recv(10)
        watch.emptied()
        self.count += 1
        if self.at is not None and self.count == self.at[0]:
            self.at[1]()
        if self.answers:
            watch.sock.send(b"0")
        return True


@pytest.fixture
async def chatter() -> AsyncIterator[Chatter]:
    chatter = Chatter()
    yield chatter
    chatter.close()


async def run(chatter: Chatter, other: Callable[[], Awaitable[object]] | None = None) -> int:
    """Let it chatter until it stops, and ``other`` return. Returns the turns of Trio's loop meanwhile."""
    turns = Turns()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(chatter.listen)
        if other is not None:
            nursery.start_soon(other)
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(turns)
        chatter.start()
    trio.lowlevel.remove_instrument(turns)
    return turns.count


async def test_messages_that_handlers_carry_take_no_turn_of_trios_loop(chatter):
    chatter.at = (5000, lambda: setattr(chatter, "stopped", True))
    assert await run(chatter) < 10
    assert chatter.count == 5000


Wait = tuple[Callable[[], object], Callable[[], Awaitable[object]]]
"""Something that happens, and the wait for it."""


def an_event() -> Wait:
    event = trio.Event()
    return event.set, event.wait


async def sleep_in(scope: trio.CancelScope) -> None:
    with scope:
        await trio.sleep_forever()


def a_cancelled_scope() -> Wait:
    scope = trio.CancelScope()
    return scope.cancel, lambda: sleep_in(scope)


def a_deadline_that_is_set() -> Wait:
    scope = trio.CancelScope()

    def now() -> None:
        scope.deadline = trio.current_time()

    return now, lambda: sleep_in(scope)


def a_thread() -> Wait:
    event = trio.Event()
    token = trio.lowlevel.current_trio_token()
    return lambda: token.run_sync_soon(event.set), event.wait


def a_socket_of_trios() -> Wait:
    near, far = socket.socketpair()

    async def wait() -> None:
        with near, far:
            await trio.lowlevel.wait_readable(near)

    return lambda: far.send(b"word"), wait


@pytest.mark.parametrize(
    "case", [an_event, a_cancelled_scope, a_deadline_that_is_set, a_thread, a_socket_of_trios]
)
async def test_what_a_task_waits_for_is_not_late(chatter, case: Callable[[], Wait]):
    happens, wait = case()

    async def other() -> None:
        await wait()
        chatter.stopped = True

    chatter.at = (100, happens)
    await run(chatter, other)
    assert 100 <= chatter.count <= 102


async def test_a_deadline_that_passes_is_not_late(chatter, mock_clock):
    async def other() -> None:
        await sleep_in(trio.CancelScope(relative_deadline=10))
        chatter.stopped = True

    chatter.at = (100, lambda: mock_clock.jump(11))
    await run(chatter, other)
    assert 100 <= chatter.count <= 102


async def test_a_clock_that_jumps_when_all_is_quiet_does_so(chatter, mock_clock):
    mock_clock.autojump_threshold = 0.01
    quiet: list[int] = []

    async def other() -> None:
        await sleep_in(trio.CancelScope(relative_deadline=3600))
        quiet.append(chatter.count)
        chatter.stopped = True
        chatter.start()

    chatter.at = (100, lambda: setattr(chatter, "answers", False))
    await run(chatter, other)
    assert quiet == [100]
