"""A fault at every await and every system call of a connection: nothing is left, and the next one works."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import replace

import pytest
import trio

from tests.support.data_plane import CONFIG, echo, running_plane, server, via_socks
from tests.support.injection import Census, Turn, at_call, at_step, settled, steady
from tests.support.logs import capture_logs
from ztunnel.bounds import DEFAULTS
from ztunnel.messages import Topic
from ztunnel.proxy.closing import Closing
from ztunnel.tunnel.failures import PolicyChangedError

MOST = 2000
"""Places of a fault; a scenario with more is not what it is meant to be."""

DATA_PATH = ("ztunnel.proxy", "ztunnel.tunnel", "ztunnel.sockets", "ztunnel.tls", "ztunnel.dataplane")
QUICK = replace(
    DEFAULTS,
    connection=replace(DEFAULTS.connection, dial_timeout=5.0, handshake_timeout=5.0, ejection_time=0.01),
    tunnel=replace(DEFAULTS.tunnel, linger=0.2, linger_closed=0.05),
)


async def converse(port: int, ip: str) -> str:
    """A whole connection, with its end; how it went."""
    try:
        with trio.fail_after(20):
            async with await via_socks(port, ip) as stream:
                await stream.send_all(b"x" * 70_000)
                await stream.send_eof()
                received = b""
                while data := await stream.receive_some():
                    received += data
    except trio.TooSlowError:
        return "stuck"
    except (trio.BrokenResourceError, trio.ClosedResourceError, OSError, AssertionError):
        return "failed"
    return "complete" if received == b"x" * 70_000 else "cut"


class Ground:
    """A data plane, an application, and what it all holds while no connection is open."""

    def __init__(self, control, port: int, ip: str, base: Census) -> None:
        self.control, self.port, self.ip, self.base = control, port, ip, base

    async def after(self, turn: Turn) -> None:
        """Another connection works, and then nothing is left of both."""
        for _ in range(5):
            if (how := await converse(self.port, self.ip)) == "complete":
                break
            await trio.sleep(0.1)  # an endpoint that failed is avoided for a moment
        assert how == "complete", turn.place
        left = await settled(self.base)
        assert left == self.base, f"{turn.place}: {left - self.base} too much, {self.base - left} too little"
        for tunnel in await self.control.ask(Topic.POOL):
            assert tunnel["streams"] == 0, turn.place


@asynccontextmanager
async def ground(ip: str) -> AsyncIterator[Ground]:
    async with running_plane(CONFIG, QUICK) as control, server(echo, ip) as port:
        assert await converse(port, ip) == "complete"
        assert await converse(port, ip) == "complete"
        yield Ground(control, port, ip, await steady())


TASKS = ("outbound", "inbound", "socks", "drain", "client", "server")
PATHS = {"HBONE": "127.0.0.1", "plaintext": "127.0.0.2"}


async def every_place(path: str, inject: Callable[[Turn], AbstractContextManager[None]]) -> int:
    """Run the scenario with the fault at each place; gives how many there were."""
    async with ground(PATHS[path]) as it:
        for number in range(1, MOST):
            turn = Turn(number)
            with capture_logs("error") as records, inject(turn):
                # Nor "cut": an end in order before the last byte, in either direction.
                assert await converse(it.port, it.ip) in {"complete", "failed"}, turn.place
            await it.after(turn)
            bugs = [record for record in records if "exc_info" in record.fields]
            assert not bugs, f"{turn.place}: {bugs}"
            if not turn.reached:
                return number - 1
    raise AssertionError("the scenario has no end")


@pytest.mark.parametrize("path", PATHS)
async def test_a_connection_is_closed_at_any_step(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed from outside, as policy does it, after each step of each of its tasks."""
    entries = []
    made = Closing.__init__

    def noted(self, report, entry):
        entries.append(entry)
        made(self, report, entry)

    monkeypatch.setattr(Closing, "__init__", noted)

    def close() -> None:
        for entry in entries:
            entry.close(PolicyChangedError())

    def inject(turn: Turn):
        entries.clear()
        return at_step(
            turn, lambda name: name.startswith(("outbound", "inbound", "socks", "drain", "client")), close
        )

    assert await every_place(path, inject) > 4


@pytest.mark.parametrize("number", [errno.ECONNRESET, errno.EMFILE])
@pytest.mark.parametrize("path", PATHS)
async def test_any_system_call_may_fail(path: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def inject(turn: Turn):
        return at_call(turn, number, monkeypatch, DATA_PATH)

    assert await every_place(path, inject) > 20


@pytest.mark.parametrize("path", PATHS)
async def test_the_whole_data_plane_is_cancelled_at_any_step(path: str) -> None:
    """Everything is closed, whatever was under way. Every seventh step: there are hundreds."""
    before = await steady()
    for number in range(1, MOST, 7):
        turn = Turn(number)
        with trio.CancelScope() as scope, at_step(turn, lambda name: name != "<init>", scope.cancel):
            async with running_plane(CONFIG, QUICK), server(echo, PATHS[path]) as port:
                await converse(port, PATHS[path])
        left = await settled(before)
        assert left == before, f"{turn.place}: {left - before}"
        if not turn.reached:
            break
    assert not turn.reached, "the scenario has no end"
    assert number > 50
