"""The gRPC bridge against a real grpcio server over TLS: answers, ends, names, cancellation, threads."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from functools import partial

import grpc
import pytest
import trio
import trio.testing

from tests.support.logs import capture_logs
from tests.support.tls_peers import CA, SERVER, certificate
from ztunnel.bounds import ControlBounds
from ztunnel.certs.fake_ca import IssuingCa
from ztunnel.grpc.bridge import GrpcChannel
from ztunnel.grpc.status import GrpcChannelError, GrpcStatusError

UNARY = "/test.Service/Unary"
STREAM = "/test.Service/Stream"


class Service(grpc.GenericRpcHandler):
    """Echoes; some messages are orders."""

    def __init__(self) -> None:
        self.metadata: list[tuple[str, str | bytes]] = []
        self.began = threading.Event()
        self.ended = threading.Event()
        self.sent = 0

    def service(self, details):
        self.metadata = list(details.invocation_metadata)
        if details.method == UNARY:
            return grpc.unary_unary_rpc_method_handler(self.unary)
        if details.method == STREAM:
            return grpc.stream_stream_rpc_method_handler(self.stream)
        return None

    def unary(self, request: bytes, context) -> bytes:
        if request == b"refuse":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "who are you?")
        if request == b"hang":
            # The end of a call before may set `ended` late.
            over = threading.Event()
            context.add_callback(over.set)
            context.add_callback(self.ended.set)
            self.began.set()
            over.wait(30)
        return request[::-1]

    def stream(self, requests: Iterator[bytes], context) -> Iterator[bytes]:
        context.add_callback(self.ended.set)
        for request in requests:
            if request == b"refuse":
                context.abort(grpc.StatusCode.ABORTED, "enough")
            if request == b"end":
                return
            if request == b"done":
                break
            if request == b"flood":
                for _ in range(1000):
                    self.sent += 1
                    yield bytes(100_000)
            yield request
        yield b"you are done"


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[Service, int, int]]:
    """A service, its port under the name localhost, and one under another name only."""
    handler = Service()
    with futures.ThreadPoolExecutor(8) as executor:
        server = grpc.server(executor, handlers=[handler], options=[("grpc.max_receive_message_length", -1)])
        ports = []
        for names in (["localhost"], ["istiod.test"]):
            own = certificate(SERVER, dns_names=names)
            credentials = grpc.ssl_server_credentials([(own.private_key, b"".join(own.chain))])
            ports.append(server.add_secure_port("localhost:0", credentials))
        server.start()
        yield handler, ports[0], ports[1]
        server.stop(None).wait()


@pytest.fixture
async def channel(service) -> AsyncIterator[GrpcChannel]:
    handler, port, _ = service
    handler.began.clear()
    handler.ended.clear()
    async with GrpcChannel(f"localhost:{port}", roots=CA.pem) as channel:
        yield channel


async def test_a_unary_call_brings_an_answer(channel, service):
    answer = await channel.unary(UNARY, b"abc", metadata=[("key", "value")], deadline_seconds=10)
    assert answer == b"cba"
    assert ("key", "value") in [(key, value) for key, value in service[0].metadata]


async def test_a_refusal_has_its_status_words_and_meaning(channel):
    with pytest.raises(GrpcStatusError) as caught:
        await channel.unary(UNARY, b"refuse", deadline_seconds=10)
    assert (caught.value.status, caught.value.details) == ("UNAUTHENTICATED", "who are you?")
    assert caught.value.meaning == "The request does not have valid authentication credentials"


async def test_an_unknown_method_is_a_status(channel):
    with pytest.raises(GrpcStatusError) as caught:
        await channel.unary("/no/such", b"", deadline_seconds=10)
    assert caught.value.status == "UNIMPLEMENTED"


async def test_a_call_is_over_at_its_deadline(channel):
    with pytest.raises(GrpcStatusError) as caught:
        await channel.unary(UNARY, b"hang", deadline_seconds=0.05)
    assert caught.value.status == "DEADLINE_EXCEEDED"


async def test_cancelling_the_task_cancels_the_call_at_the_server(channel, service):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(channel.unary, UNARY, b"hang", deadline_seconds=120))
        assert await trio.to_thread.run_sync(service[0].began.wait, 60)
        nursery.cancel_scope.cancel()
    assert await trio.to_thread.run_sync(service[0].ended.wait, 60)


async def test_many_calls_at_once(channel):
    answers = []

    async def call(number: int) -> None:
        answers.append(await channel.unary(UNARY, str(number).zfill(4).encode(), deadline_seconds=20))

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(call, number)
    assert sorted(answer[::-1] for answer in answers) == [str(n).zfill(4).encode() for n in range(50)]


async def test_messages_larger_than_grpcs_default_pass(channel):
    big = bytes(6_000_000)
    assert len(await channel.unary(UNARY, big, deadline_seconds=30)) == len(big)


async def test_a_conversation(channel):
    async with channel.open_stream(STREAM, [("key", "value")]) as stream:
        for number in range(50):
            await stream.send(str(number).encode())
            assert await stream.receive() == str(number).encode()
        assert stream.headers_received.is_set()
        await stream.send(b"done")
        assert await stream.receive() == b"you are done"
        for _ in range(2):
            with pytest.raises(GrpcStatusError) as caught:
                await stream.receive()
            assert caught.value.status == "OK"
        assert stream.ended.is_set()
        with pytest.raises(GrpcStatusError):
            await stream.send(b"late")


async def test_a_refusal_in_the_middle_goes_to_who_reads_and_who_sends(channel):
    async with channel.open_stream(STREAM) as stream:
        await stream.send(b"x")
        assert await stream.receive() == b"x"
        await stream.send(b"refuse")
        with pytest.raises(GrpcStatusError, match="ABORTED: enough"):
            await stream.receive()
        with pytest.raises(GrpcStatusError, match="ABORTED: enough"):
            await stream.send(b"y")


async def test_errors_leave_the_block_as_they_are(channel):
    async def refused() -> None:
        async with channel.open_stream(STREAM) as stream:
            await stream.send(b"refuse")
            await stream.receive()

    async def failing() -> None:
        async with channel.open_stream(STREAM):
            raise KeyError("mine")

    with pytest.raises(GrpcStatusError, match="ABORTED"):
        await refused()
    with pytest.raises(KeyError, match="mine"):
        await failing()


async def test_a_server_that_sends_too_much_is_held_back(channel, service):
    service[0].sent = 0
    async with channel.open_stream(STREAM) as stream:
        await stream.send(b"flood")
        assert len(await stream.receive()) == 100_000
        # It stands still when nothing more is sent while other calls go there and back.
        before = -1
        while service[0].sent != before:
            before = service[0].sent
            for _ in range(10):
                await channel.unary(UNARY, b"meanwhile", deadline_seconds=60)
        # The flood of 100 MB stands still: HTTP/2's windows and a few messages are all that is on the way.
        assert service[0].sent < 500
    assert await trio.to_thread.run_sync(service[0].ended.wait, 60)


async def test_leaving_the_block_ends_the_call_also_by_cancellation(channel, service):
    for way in ("leave", "cancel"):
        service[0].ended.clear()
        with trio.CancelScope() as scope:
            async with channel.open_stream(STREAM) as stream:
                await stream.send(b"x")
                assert await stream.receive() == b"x"
                if way == "cancel":
                    scope.deadline = trio.current_time() + 0.1
                    await stream.receive()
        assert scope.cancelled_caught == (way == "cancel")
        assert await trio.to_thread.run_sync(service[0].ended.wait, 60)


async def test_a_server_that_is_away_is_a_status_and_no_headers(service):
    async with GrpcChannel("localhost:1", roots=CA.pem, bounds=ControlBounds(xds_connect=1)) as channel:
        with pytest.raises(GrpcStatusError) as caught:
            await channel.unary(UNARY, b"", deadline_seconds=10)
        assert caught.value.status == "UNAVAILABLE"
        async with channel.open_stream(STREAM) as stream:
            with pytest.raises(GrpcStatusError, match="UNAVAILABLE"):
                await stream.receive()
            assert stream.ended.is_set()
            assert not stream.headers_received.is_set()


async def test_a_server_that_accepts_and_says_nothing_is_given_up_after_the_connect_time():
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        bounds = ControlBounds(xds_connect=0.5)
        async with GrpcChannel(f"127.0.0.1:{port}", roots=CA.pem, bounds=bounds) as channel:
            with pytest.raises(GrpcStatusError) as caught:
                await channel.unary(UNARY, b"", deadline_seconds=300)
            assert caught.value.status == "UNAVAILABLE", "not DEADLINE_EXCEEDED: that comes later"


async def test_a_server_of_another_ca_is_not_believed(service):
    _, port, _ = service
    async with GrpcChannel(f"localhost:{port}", roots=IssuingCa(0).pem) as channel:
        with pytest.raises(GrpcStatusError) as caught:
            await channel.unary(UNARY, b"", deadline_seconds=10)
        assert caught.value.status == "UNAVAILABLE"
        assert "CERTIFICATE_VERIFY_FAILED" in caught.value.details


async def test_the_alternative_name_is_taken_only_if_the_real_one_fails(service):
    _, real, other = service
    for port, alternative, works in (
        (real, "istiod.test", True),
        (other, "istiod.test", True),
        (other, "wrong.test", False),
        (other, None, False),
    ):
        channel = GrpcChannel(f"localhost:{port}", roots=CA.pem, alternative_hostname=alternative)
        async with channel:
            for _ in range(2):
                if works:
                    assert await channel.unary(UNARY, b"ab", deadline_seconds=10) == b"ba"
                else:
                    with pytest.raises(GrpcStatusError):
                        await channel.unary(UNARY, b"ab", deadline_seconds=10)


async def test_calls_that_begin_together_settle_the_name_once(service):
    _, _, other = service
    answers = []

    async def call(channel: GrpcChannel) -> None:
        answers.append(await channel.unary(UNARY, b"ab", deadline_seconds=10))

    channel = GrpcChannel(f"localhost:{other}", roots=CA.pem, alternative_hostname="istiod.test")
    async with channel, trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(call, channel)
    assert answers == [b"ba"] * 8


@pytest.mark.parametrize("roots", [b"", b"nothing of use"])
def test_no_roots_are_not_all_roots(roots):
    with pytest.raises(GrpcChannelError, match="no root certificate"):
        GrpcChannel("localhost:1", roots=roots)


@pytest.mark.parametrize("bad", [("authorization", "Bearer secret\n"), ("Upper", "x"), ("key", "ü")])
async def test_metadata_that_no_header_can_carry_is_named_but_not_shown(channel, bad):
    with pytest.raises(GrpcChannelError) as caught:
        await channel.unary(UNARY, b"", metadata=[bad], deadline_seconds=10)
    assert bad[0] in str(caught.value)
    assert "secret" not in str(caught.value)
    with pytest.raises(GrpcChannelError):
        async with channel.open_stream(STREAM, [bad]):
            pass


async def test_a_closed_channel_says_so(service):
    _, port, _ = service
    channel = GrpcChannel(f"localhost:{port}", roots=CA.pem)
    await channel.aclose()
    await channel.aclose()
    with pytest.raises(GrpcChannelError, match="was closed"):
        await channel.unary(UNARY, b"", deadline_seconds=10)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_closing_does_not_hold_the_loop_and_happens_when_cancelled_too(monkeypatch, cancelled: bool):
    # grpcio's close blocks until its threads have let go of the channel.
    channel = GrpcChannel("localhost:1", roots=CA.pem)
    close, free, closed = channel._channel.close, threading.Event(), threading.Event()

    def close_when_free() -> None:
        free.wait(20)
        close()
        closed.set()

    monkeypatch.setattr(channel._channel, "close", close_when_free)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.aclose)
            await trio.testing.wait_all_tasks_blocked()
            if cancelled:
                nursery.cancel_scope.cancel()
            free.set()
    assert closed.is_set()


async def test_a_close_without_end_is_given_up(monkeypatch):
    channel = GrpcChannel("localhost:1", roots=CA.pem, bounds=ControlBounds(grpc_close=0.01))
    close, free = channel._channel.close, threading.Event()
    monkeypatch.setattr(channel._channel, "close", lambda: free.wait(20) and close())
    with trio.fail_after(10), capture_logs("warn") as logs:
        await channel.aclose()
    free.set()
    said = "the connection to localhost:1 does not close, and is left to its thread"
    assert [record.message for record in logs] == [said]


async def test_no_thread_is_left_behind(service):
    _, port, _ = service

    def ours() -> set[threading.Thread]:
        # The server's own threads, and trio's idle ones, which wait a while for more work, do not count.
        return {
            thread
            for thread in threading.enumerate()
            if not thread.name.startswith(("Trio thread", "ThreadPoolExecutor"))
        }

    before = ours()
    for _ in range(3):
        async with GrpcChannel(f"localhost:{port}", roots=CA.pem, alternative_hostname="x.test") as channel:
            await channel.unary(UNARY, b"x", deadline_seconds=10)
            async with channel.open_stream(STREAM) as stream:
                await stream.send(b"x")
                await stream.receive()
    with trio.fail_after(10):
        for thread in ours() - before:
            await trio.to_thread.run_sync(thread.join, abandon_on_cancel=True)


async def test_sending_waits_when_nothing_is_taken(service):
    # A server that does not read: HTTP/2's window fills, then the queue, then the sender waits.
    _, port, _ = service
    channel = GrpcChannel(f"localhost:{port}", roots=CA.pem)
    async with channel, channel.open_stream(STREAM) as stream:
        await stream.send(b"flood")
        sent = 0
        with trio.move_on_after(1) as scope:
            for _ in range(10_000):
                await stream.send(bytes(1_000_000))
                sent += 1
        assert scope.cancelled_caught
        assert sent < 60
