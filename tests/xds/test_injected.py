"""The control plane's stream fails at any of its operations; the client is cancelled at any of its steps."""

from __future__ import annotations

from contextlib import asynccontextmanager

import trio

from tests.support.injection import Turn, at_step
from tests.support.xds_conversation import resource, response
from ztunnel.bounds import DEFAULTS
from ztunnel.messages import MeshDelta, Rejected
from ztunnel.xds.xds_client import StatusError, XdsClient
from ztunnel.xds.xds_session import AUTHORIZATION_TYPE, XdsSession

MOST = 100


class Server:
    """A control plane of two responses, whose operations fail when the turn comes."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.open = 0
        self.streams = 0
        self.applied: list[MeshDelta] = []

    def operation(self, name: str) -> None:
        if self.turn.now(name):
            raise StatusError("Unavailable", name)

    @asynccontextmanager
    async def connect(self):
        await trio.lowlevel.checkpoint()
        self.operation("connect")
        self.open += 1
        self.streams += 1
        try:
            yield Stream(self)
        finally:
            self.open -= 1

    async def apply(self, delta: MeshDelta) -> list[Rejected]:
        await trio.lowlevel.checkpoint()
        self.applied.append(delta)
        return []

    def terminated(self, reason: str) -> None:
        del reason

    def message(self, url: str, size: int) -> None:
        del url, size

    def client(self) -> XdsClient:
        session = XdsSession(b"", on_demand=False)
        return XdsClient(
            session, self.connect, self.apply, address="https://istiod", metrics=self, bounds=DEFAULTS.control
        )


class Stream:
    """Answers with both types' resources, and then is silent."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._ended = trio.Event()
        self._answers = [
            response(resource("a", body=b"1"), nonce="1"),
            response(type_url=AUTHORIZATION_TYPE, nonce="2"),
        ]

    @property
    def established(self) -> bool:
        return True

    async def wait_established(self) -> None:
        await trio.lowlevel.checkpoint()

    async def send(self, message: bytes) -> None:
        del message
        await trio.lowlevel.checkpoint()
        try:
            self._server.operation("send")
        except StatusError:
            # A call ends as a whole: who reads is told as well.
            self._ended.set()
            raise

    async def receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        self._server.operation("receive")
        if not self._answers:
            await self._ended.wait()
        if self._ended.is_set():
            raise StatusError("Unavailable", "the call has ended")
        return self._answers.pop(0)


async def test_whatever_operation_of_the_stream_fails_the_state_is_had_in_the_end(autojump_clock):
    places = 0
    for number in range(1, MOST):
        server = Server(Turn(number))
        client = server.client()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            with trio.fail_after(120):
                await client.ready.wait()
            await trio.sleep(30)
            assert server.open == 1, server.turn.place
            assert {one.name for delta in server.applied for one in delta.resources} == {"a"}
            nursery.cancel_scope.cancel()
        assert server.open == 0, server.turn.place
        if not server.turn.reached:
            break
        places += 1
        assert server.streams == (1 if server.turn.place == "connect" else 2), server.turn.place
    assert places > 5


async def test_cancelled_at_any_step_no_stream_stays_open(autojump_clock):
    steps = 0
    for number in range(1, MOST):
        turn = Turn(number)
        server = Server(Turn(10_000))
        client = server.client()
        async with trio.open_nursery() as nursery:
            with at_step(turn, lambda name: "xds" in name.lower(), nursery.cancel_scope.cancel):
                nursery.start_soon(client.run)
                await trio.sleep(10)
            nursery.cancel_scope.cancel()
        assert server.open == 0, turn.place
        if not turn.reached:
            break
        steps += 1
    assert steps > 5
