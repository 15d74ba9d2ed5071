"""The client's task against a scripted stream, in simulated time: order, waiting, logs, counters, demands."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.support.logs import capture_logs
from tests.support.xds_conversation import requests, resource, response
from ztunnel.bounds import DEFAULTS, ControlBounds
from ztunnel.errors import ZtunnelError
from ztunnel.messages import MeshDelta, Rejected
from ztunnel.pb.envoy.service.discovery.v3 import DeltaDiscoveryRequest
from ztunnel.xds.xds_client import StatusError, XdsClient
from ztunnel.xds.xds_session import ADDRESS_TYPE, AUTHORIZATION_TYPE, XdsSession

ADDRESS = "https://istiod:15012"


class ScriptedStream:
    """A stream whose server is the test."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.headers = trio.Event()
        self.closed = False
        self.to_client, self._incoming = trio.open_memory_channel[bytes | Exception](100)

    @property
    def established(self) -> bool:
        return self.headers.is_set()

    async def wait_established(self) -> None:
        await self.headers.wait()

    async def send(self, message: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.sent.append(message)

    async def receive(self) -> bytes:
        item = await self._incoming.receive()
        if isinstance(item, Exception):
            raise item
        return item

    def say(self, message: bytes | Exception) -> None:
        if isinstance(message, bytes):
            self.headers.set()
        self.to_client.send_nowait(message)

    def heard(self) -> list[DeltaDiscoveryRequest]:
        return requests(self.sent)


class Server:
    """Opens a stream for each attempt, or raises what the test wants."""

    def __init__(self) -> None:
        self.streams: list[ScriptedStream] = []
        self.attempts: list[float] = []
        self.refusal: Exception | None = None
        self.deltas: list[MeshDelta] = []
        self.reject: list[Rejected] = []
        self.applying: Callable[[], object] | None = None
        self.terminations: list[str] = []
        self.messages: list[tuple[str, int]] = []

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[ScriptedStream]:
        self.attempts.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self.refusal is not None:
            raise self.refusal
        stream = ScriptedStream()
        self.streams.append(stream)
        try:
            yield stream
        finally:
            stream.closed = True

    async def apply(self, delta: MeshDelta) -> list[Rejected]:
        await trio.sleep(0.01)
        self.deltas.append(delta)
        return self.reject

    def terminated(self, reason: str) -> None:
        self.terminations.append(reason)

    def message(self, url: str, size: int) -> None:
        self.messages.append((url, size))

    def client(self, *, on_demand: bool = False, bounds: ControlBounds = DEFAULTS.control) -> XdsClient:
        session = XdsSession(b"", on_demand=on_demand)
        return XdsClient(session, self.connect, self.apply, address=ADDRESS, metrics=self, bounds=bounds)


def texts(records) -> list[str]:
    return [record.message for record in records]


async def test_both_requests_are_written_before_anything_is_heard(autojump_clock):
    server = Server()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.client().run)
        await wait_all_tasks_blocked()
        (stream,) = server.streams
        assert [r.type_url for r in stream.heard()] == [ADDRESS_TYPE, AUTHORIZATION_TYPE]
        assert not stream.established
        nursery.cancel_scope.cancel()
    assert stream.closed


async def test_a_response_is_applied_then_acknowledged_then_the_next_is_read(autojump_clock):
    server = Server()
    client = server.client()
    with capture_logs() as records:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            await wait_all_tasks_blocked()
            stream = server.streams[0]
            stream.say(response(resource("a", body=b"12345"), nonce="1", removed=["b"]))
            stream.say(response(type_url=AUTHORIZATION_TYPE, nonce="2"))
            await client.ready.wait()
            await wait_all_tasks_blocked()
            assert client.connected
            assert client.waiting_for is None
            nursery.cancel_scope.cancel()
    assert [r.response_nonce for r in stream.heard()[2:]] == ["1", "2"]
    assert [len(delta.resources) for delta in server.deltas] == [1, 0]
    assert server.messages == [(ADDRESS_TYPE, 5), (AUTHORIZATION_TYPE, 0)]
    shown = [(r.message, r.fields) for r in records if r.message == "received response"]
    assert shown[0][1] == {"type_url": ADDRESS_TYPE, "size": 1, "removes": 1}
    assert "Stream established" in texts(records)
    assert {(span.name, dict(span.fields)["id"]) for r in records for span in r.spans} == {("xds", "1")}


async def test_a_nack_is_logged_with_names_and_reasons(autojump_clock):
    server = Server()
    server.reject = [Rejected("a", "too odd"), Rejected("b", "worse")]
    with capture_logs() as records:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.client().run)
            await wait_all_tasks_blocked()
            server.streams[0].say(response(resource("a"), resource("b"), nonce="77"))
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
    (record,) = [r for r in records if r.level.name.lower() == "error"]
    assert record.message == "sending response"
    assert {k: str(v) for k, v in record.fields.items()} == {
        "type_url": ADDRESS_TYPE,
        "nonce": "77",
        "type": "Nack",
        "error": "a: too odd; b: worse",
    }
    assert server.streams[0].heard()[2].error_detail is not None


async def test_an_unknown_type_is_an_error_line_and_an_ordinary_ack(autojump_clock):
    server = Server()
    with capture_logs() as records:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.client().run)
            await wait_all_tasks_blocked()
            server.streams[0].say(response(resource("a"), type_url="odd", nonce="3"))
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
    assert "unknown type" in texts(records)
    ack = server.streams[0].heard()[2]
    assert (ack.type_url, ack.response_nonce, ack.error_detail) == ("odd", "3", None)
    assert server.messages == [("odd", 1)]
    assert server.deltas == []


async def test_connection_failures_back_off_up_to_three_seconds_and_say_why(autojump_clock):
    server = Server()
    server.refusal = StatusError("Unavailable", "connection refused")
    client = server.client()
    with capture_logs() as records:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
    gaps = [b - a for a, b in zip(server.attempts, server.attempts[1:], strict=False)]
    assert gaps[:4] == pytest.approx([0.02, 0.04, 0.08, 0.16])
    assert gaps[-1] == pytest.approx(3.0)
    assert set(server.terminations) == {"ConnectionError"}
    first = (
        f"XDS client connection error: gRPC connection error connecting to {ADDRESS}: "
        'status: Unavailable, message: "connection refused", retrying in 20ms'
    )
    assert texts(records)[0] == first
    assert client.waiting_for is not None
    assert "connection refused" in client.waiting_for


async def test_a_refusal_before_headers_is_a_connection_error_and_after_them_is_not(autojump_clock):
    server = Server()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.client().run)
        await wait_all_tasks_blocked()
        server.streams[0].say(StatusError("Unauthenticated", "authentication failure"))
        await trio.sleep(1)
        server.streams[1].say(response())
        server.streams[1].say(StatusError("Internal", "oh"))
        await trio.sleep(1)
        server.streams[2].say(response())
        server.streams[2].say(StatusError("Unavailable", "the transport is closing"))
        await trio.sleep(1)
        server.streams[3].say(response())
        server.streams[3].say(trio.EndOfChannel())
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert server.terminations == ["ConnectionError", "Error", "Reconnect", "Complete"]
    assert all(stream.closed for stream in server.streams)


async def test_trouble_of_our_own_waits_too(autojump_clock):
    class RootError(ZtunnelError):
        code = "ZT-TEST-001"

    server = Server()
    server.refusal = RootError("TLS Error: No such file")
    with capture_logs() as records:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.client().run)
            await trio.sleep(10)
            nursery.cancel_scope.cancel()
    assert len(server.attempts) < 12
    assert set(server.terminations) == {"Error"}
    assert texts(records)[0] == "XDS client error: TLS Error: No such file, retrying in 20ms"


async def test_garbage_ends_the_stream_changes_nothing_and_is_retried(autojump_clock):
    server = Server()
    client = server.client()
    with capture_logs() as records:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            await wait_all_tasks_blocked()
            server.streams[0].say(b"\x12\x7fnonsense")
            await trio.sleep(1)
            assert server.streams[0].closed
            server.streams[1].say(response(resource("a")))
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
    assert server.terminations == ["Error"]
    assert len(server.deltas) == 1
    (line,) = [text for text in texts(records) if text.startswith("XDS client error")]
    assert line.startswith(
        'XDS client error: gRPC error status: Internal, message: "failed to decode Protobuf'
    )


async def test_a_server_that_hangs_is_told_of_and_given_up(autojump_clock):
    server = Server()
    client = server.client()
    with capture_logs() as records:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            await trio.sleep(16)
            assert [r.level.name.lower() for r in records if "no response from" in r.message] == ["warn"]
            assert client.waiting_for is not None
            assert "has sent no response" in client.waiting_for
            assert len(server.streams) == 1
            await trio.sleep(105)
            assert len(server.streams) == 2
            assert server.streams[0].closed
            nursery.cancel_scope.cancel()
    assert server.terminations == ["Error"]


async def test_a_server_that_has_answered_may_be_silent_for_good(autojump_clock):
    server = Server()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.client().run)
        await wait_all_tasks_blocked()
        server.streams[0].say(response())
        await trio.sleep(86_400)
        assert len(server.streams) == 1
        nursery.cancel_scope.cancel()


async def test_what_is_known_is_told_to_the_next_stream(autojump_clock):
    server = Server()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.client().run)
        await wait_all_tasks_blocked()
        server.streams[0].say(response(resource("a", "7")))
        server.streams[0].say(StatusError("Cancelled", ""))
        await trio.sleep(1)
        assert server.streams[1].heard()[0].initial_resource_versions == {"a": "7"}
        nursery.cancel_scope.cancel()


class _GoneError(ZtunnelError):
    code = "ZT-TEST-002"


@pytest.mark.parametrize("error", [ZeroDivisionError, _GoneError])
async def test_what_applying_raises_is_not_taken_for_the_streams_end(autojump_clock, monkeypatch, error):
    server = Server()

    async def broken(_: MeshDelta) -> list[Rejected]:
        await trio.lowlevel.checkpoint()
        raise error

    monkeypatch.setattr(server, "apply", broken)
    with pytest.RaisesGroup(pytest.RaisesGroup(error)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.client().run)
            await wait_all_tasks_blocked()
            server.streams[0].say(response())


class TestDemand:
    async def test_a_demand_waits_for_its_answer(self, autojump_clock):
        server = Server()
        client = server.client(on_demand=True)
        answers: list[bool] = []

        async def look_up() -> None:
            answers.append(await client.demand("net/10.0.0.9"))

        with capture_logs() as records:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.run)
                await wait_all_tasks_blocked()
                async with trio.open_nursery() as lookups:
                    lookups.start_soon(look_up)
                    lookups.start_soon(look_up)
                    await wait_all_tasks_blocked()
                    stream = server.streams[0]
                    assert [r.resource_names_subscribe for r in stream.heard()[2:]] == [["net/10.0.0.9"]]
                    stream.say(response(resource("uid", aliases=["net/10.0.0.9"])))
                nursery.cancel_scope.cancel()
        assert answers == [True, True]
        assert texts(records).count(f"received on demand request {ADDRESS_TYPE}/net/10.0.0.9") == 1

    async def test_a_demand_is_given_up_after_a_while_and_may_be_made_again(self, autojump_clock):
        server = Server()
        client = server.client(on_demand=True, bounds=ControlBounds(xds_demand=2))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            await wait_all_tasks_blocked()
            start = trio.current_time()
            assert not await client.demand("key")
            assert trio.current_time() - start == pytest.approx(2)
            assert not await client.demand("key")
            stream = server.streams[0]
            asked = [(r.resource_names_subscribe, r.resource_names_unsubscribe) for r in stream.heard()[2:]]
            assert asked == [(["key"], []), (["key", "*"], ["*"])]
            nursery.cancel_scope.cancel()

    async def test_a_demand_survives_the_loss_of_the_stream(self, autojump_clock):
        server = Server()
        client = server.client(on_demand=True)
        answers: list[bool] = []

        async def look_up() -> None:
            answers.append(await client.demand("key"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            await wait_all_tasks_blocked()
            async with trio.open_nursery() as lookups:
                lookups.start_soon(look_up)
                await wait_all_tasks_blocked()
                server.streams[0].say(StatusError("Unavailable", "gone"))
                await trio.sleep(1)
                assert server.streams[1].heard()[0].initial_resource_versions == {"key": ""}
                server.streams[1].say(response(removed=["key"]))
            nursery.cancel_scope.cancel()
        assert answers == [True]

    async def test_a_cancelled_demand_leaves_nothing_behind(self, autojump_clock):
        server = Server()
        client = server.client(on_demand=True)
        with trio.move_on_after(0.1):
            await client.demand("key")
        assert client._session.pending == frozenset()
        assert client._waiting == {}
