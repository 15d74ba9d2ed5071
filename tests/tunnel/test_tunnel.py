"""How tunnels end: what their streams had sent before arrives, and nobody waits for ever for a dead peer."""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from tests.support.logs import capture_logs
from tests.support.tunnels import TunnelPair, outcome, plain_pair, tunnel_pair
from ztunnel.bounds import TunnelBounds
from ztunnel.hbone import DataReceived, ErrorCode, work
from ztunnel.loop.watch import Watch
from ztunnel.observe.filter import Level
from ztunnel.proxy.relay import relay_stream
from ztunnel.tls.scratch import CHUNK
from ztunnel.tls.socket_and_stream_tls import SocketTls
from ztunnel.tunnel.rest import SMALL_READ
from ztunnel.tunnel.server_tunnel import ServerStream

PAYLOAD = bytes(range(256)) * 4 * 1024 * 2


def tcp_wire() -> tuple[socket.socket, socket.socket]:
    """A TCP connection that holds little, so that a peer that does not read is felt soon."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
        left = socket.socket()
        left.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
        left.connect(listener.getsockname())
        right, _ = listener.accept()
    return left, right


class Gate:
    """Keeps a tunnel's reader from reading until it is opened."""

    def __init__(self, pair: TunnelPair, monkeypatch: pytest.MonkeyPatch) -> None:
        tls = pair.client.tls
        receive, wait, at_rest = tls.try_receive, tls.wait_receivable, tls.at_rest
        self._open = trio.Event()
        self.something_came = trio.Event()

        def try_receive(max_bytes: int = 131_072) -> bytes | None:
            return receive(max_bytes) if self._open.is_set() else None

        async def wait_receivable(handler: Callable[[], bool] | None = None) -> None:
            # The reader waited before this gate was there, so that what came has woken it.
            self.something_came.set()
            await self._open.wait()
            await wait(handler)

        monkeypatch.setattr(tls, "try_receive", try_receive)
        monkeypatch.setattr(tls, "wait_receivable", wait_receivable)
        monkeypatch.setattr(tls, "at_rest", lambda: self._open.is_set() and at_rest())

    def open(self) -> None:
        self._open.set()


@pytest.mark.parametrize("wire", ["unix", "tcp"])
async def test_what_a_stream_sent_arrives_although_its_tunnel_ends_with_it(autojump_clock, monkeypatch, wire):
    async with tunnel_pair(wire=tcp_wire() if wire == "tcp" else None) as pair:
        ours, theirs = await pair.open()
        ours.send_end()
        pair.client.start_drain()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert pair.server.hbone.peer_is_draining
        assert theirs.end_received
        gate = Gate(pair, monkeypatch)
        theirs.send(PAYLOAD)
        assert pair.server.blocked or wire == "tcp"
        theirs.send_end()
        # The last stream of a tunnel that gets no more: this end of it goes now.
        theirs.close()
        await trio.sleep(0.02)
        # What comes to a closed socket is answered by a reset.
        pair.client.hbone.ping(b"12345678")
        pair.client.flush()
        await trio.sleep(0.02)
        gate.open()
        received = bytearray()
        with trio.fail_after(10):
            while piece := await ours.receive_some(1_000_000):
                received += piece
        assert bytes(received) == PAYLOAD
        ours.close()
        with trio.fail_after(2):
            await pair.server.ended.wait()


async def test_a_peer_that_neither_reads_nor_ends_is_given_up(autojump_clock, monkeypatch):
    async with tunnel_pair(bounds=TunnelBounds(linger=0.2)) as pair:
        ours, theirs = await pair.open()
        Gate(pair, monkeypatch)
        theirs.send(PAYLOAD)
        assert pair.server.blocked
        pair.server.stop()
        with trio.fail_after(5):
            await pair.server.ended.wait()
        assert theirs.lost
        ours.close()


async def test_a_peer_that_has_everything_and_does_not_close_is_not_waited_for(autojump_clock, monkeypatch):
    async with tunnel_pair(wire=tcp_wire()) as pair:
        gate = Gate(pair, monkeypatch)
        began = trio.current_time()
        pair.server.stop()
        await pair.server.ended.wait()
        assert trio.current_time() - began < 3
        gate.open()


async def test_what_had_arrived_is_read_when_the_wire_takes_nothing_any_more(monkeypatch):
    async with tunnel_pair(wire=tcp_wire()) as pair:
        ours, theirs = await pair.open()
        gate = Gate(pair, monkeypatch)
        theirs.send(b"last words")
        theirs.send_end()
        with trio.fail_after(10):
            await gate.something_came.wait()

        def broken(data: object) -> int:
            raise BrokenPipeError(32, "Broken pipe")

        monkeypatch.setattr(pair.client.tls, "try_send", broken)
        ours.send(b"into the void")
        gate.open()
        with trio.fail_after(5):
            assert await ours.receive_some(100) == b"last words"
            assert await ours.receive_some(100) == b""
        ours.close()
        assert not pair.client.can_open


@pytest.mark.parametrize("end", ["client", "server"])
async def test_a_peer_that_answers_no_ping_is_left(autojump_clock, monkeypatch, end):
    bounds = TunnelBounds(ping_interval=0.05, ping_timeout=0.1, linger=0.1)
    with capture_logs("debug") as lines:
        async with tunnel_pair(bounds=bounds) as pair:
            mine = pair.client if end == "client" else pair.server
            other = pair.server if end == "client" else pair.client
            monkeypatch.setattr(other.hbone, "receive", lambda data, work_limit: [])
            with trio.fail_after(5):
                await mine.ended.wait()
    assert mine.failure == "HBONE ping timeout"
    if end == "client":
        assert "HBONE ping timeout/error" in [line.message for line in lines if line.level is Level.WARN]


class FullSocket(socket.socket):
    """The socket of an application that does not read."""

    def send(self, *_: object) -> int:
        raise BlockingIOError


@pytest.mark.parametrize("turns", range(8))
async def test_data_for_a_connection_that_is_just_being_cancelled_leaves_the_tunnel_alone(turns):
    async with tunnel_pair() as pair:
        ours, _ = await pair.open()
        plain, application = plain_pair()
        near = FullSocket(fileno=plain.detach())
        scope = trio.CancelScope()
        done = trio.Event()

        async def relay() -> None:
            with near, scope:
                await relay_stream(
                    near,
                    ours,
                    sent_to_stream=lambda _: None,
                    received_from_stream=lambda _: None,
                    outbound=True,
                )
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            for _ in range(turns):
                await trio.lowlevel.checkpoint()
            # What the tunnel's reader does.
            if ours.data_received(DataReceived(ours.id, memoryview(b"late"))):
                ours.deliver()
            await done.wait()
        await application.aclose()
        ours, theirs = await pair.open()
        ours.send(b"still usable")
        with trio.fail_after(5):
            assert await theirs.receive_some(100) == b"still usable"


@pytest.mark.parametrize("end", ["reset", "lost"])
async def test_an_application_that_takes_nothing_is_not_waited_for_once_its_stream_is_dead(
    autojump_clock, monkeypatch, end
):
    async with tunnel_pair(bounds=TunnelBounds(stalled_after_reset=0.2)) as pair:
        ours, theirs = await pair.open()
        plain, application = plain_pair()
        near = FullSocket(fileno=plain.detach())
        # Never writable, as the socket of an application that does not read.
        blocked = trio.Event()
        monkeypatch.setattr(Watch, "writable", lambda _: blocked.wait())
        over = trio.Event()

        async def relay() -> None:
            with near:
                await relay_stream(
                    near,
                    ours,
                    sent_to_stream=lambda _: None,
                    received_from_stream=lambda _: None,
                    outbound=True,
                )
            over.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay)
            theirs.send(b"never read")
            await trio.testing.wait_all_tasks_blocked(0.05)
            if end == "reset":
                theirs.reset(ErrorCode.CANCEL)
            else:
                pair.cut()
            with trio.fail_after(5):
                await over.wait()
        assert await outcome(application) == (b"", "reset")
        await application.aclose()
        theirs.close()


async def test_a_tunnel_that_ends_resets_what_was_open_at_once():
    async with tunnel_pair() as pair:
        ours, _ = await pair.open()
        near, application = plain_pair()

        async def relay() -> None:
            with near:
                await relay_stream(
                    near,
                    ours,
                    sent_to_stream=lambda _: None,
                    received_from_stream=lambda _: None,
                    outbound=True,
                )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay)
            await trio.testing.wait_all_tasks_blocked()
            pair.client.stop()
            assert await outcome(application) == (b"", "reset")
        await application.aclose()


async def test_a_request_that_is_reset_with_the_same_bytes_is_passed_over():
    async with tunnel_pair() as pair:
        client = pair.client
        with trio.fail_after(5):
            number = client.hbone.connect("10.0.0.1:80", [])
            client.hbone.send_data(number, b"early")
            client.hbone.reset(number, ErrorCode.CANCEL)
            client.flush()
            ours, theirs = await pair.open()
        assert theirs.id == ours.id > number
        assert list(pair.server.streams) == [ours.id]
        assert pair.server.hbone.held == 0


async def test_a_peer_that_says_much_and_carries_little_has_to_pause(monkeypatch):
    """What it says is read in small pieces, and between them there is rest; nothing is lost."""
    async with tunnel_pair() as pair:
        ours, theirs = await pair.open()
        rests: list[float] = []
        sleep = trio.sleep

        async def counted(seconds: float) -> None:
            rests.append(seconds)
            await sleep(seconds)

        monkeypatch.setattr(trio, "sleep", counted)
        sizes: list[int] = []
        receive = pair.server.tls.try_receive

        def try_receive(max_bytes: int = CHUNK) -> Any:
            data = receive(max_bytes)
            if data:
                sizes.append(max_bytes)
            return data

        monkeypatch.setattr(pair.server.tls, "try_receive", try_receive)
        for _ in range(10_000):
            pair.client.hbone._writer.window_update(0, 1)
        pair.client.flush()
        ours.send(b"after all that")
        with trio.fail_after(30):
            assert await theirs.receive_some(100) == b"after all that"
        before = 10_000 * 13 // SMALL_READ
        assert len([rest for rest in rests if rest < 1]) >= before // 2
        assert max(sizes) == SMALL_READ


async def test_many_requests_at_once_are_begun_in_their_order():
    async with tunnel_pair() as pair:
        with trio.fail_after(30):
            streams = [pair.client.open(f"10.0.0.1:{number}", []) for number in range(1, 61)]
            accepted = [await pair.accepted() for _ in streams]
            assert [stream.id for stream in accepted] == [stream.id for stream in streams]
            for stream in accepted:
                stream.accept()
            for stream in streams:
                assert (await stream.wait_response()).status == 200
        # None is left behind, and the next one is begun at once.
        await pair.open()
        assert len(pair.server.streams) == 61


async def test_requests_that_the_same_bytes_reset_or_whose_tunnel_has_ended_are_not_begun():
    # All that comes at once is read at once.
    async with tunnel_pair(bounds=TunnelBounds(first_work=100_000)) as pair:
        tunnel = pair.server
        begun: list[int] = []
        tunnel._on_connect = lambda stream, _: begun.append(stream.id)
        streams = [pair.client.open("10.0.0.1:1", []) for _ in range(40)]
        for stream in streams[30:]:
            stream.reset(ErrorCode.CANCEL)
        with trio.fail_after(30):
            while len(begun) < 30:  # noqa: ASYNC110 - nothing tells when a request has been begun
                await trio.sleep(0.01)
            await trio.testing.wait_all_tasks_blocked(0.05)
        assert begun == [stream.id for stream in streams[:30]]
        # The first one finds the tunnel at its end, and so do those that came with it.

        def on_connect(stream: ServerStream, _: object) -> None:
            begun.append(stream.id)
            tunnel.stop()

        tunnel._on_connect = on_connect
        later = [pair.client.open("10.0.0.1:1", []) for _ in range(5)]
        with trio.fail_after(30):
            await tunnel.ended.wait()
        assert begun[30:] == [later[0].id]


async def test_of_many_requests_those_are_not_begun_whose_peer_has_closed_the_tunnel():
    async with tunnel_pair(wire=tcp_wire()) as pair:
        begun: list[int] = []
        pair.server._on_connect = lambda stream, _: begun.append(stream.id)
        streams = [pair.client.open("10.0.0.1:1", []) for _ in range(60)]
        assert isinstance(pair.client.tls, SocketTls)
        pair.client.tls.socket.shutdown(socket.SHUT_WR)
        with trio.fail_after(30):
            await pair.server.ended.wait()
        # What the first turn took was begun before anything was known of the end.
        assert begun == [stream.id for stream in streams[: len(begun)]]
        assert 0 < len(begun) <= pair.server.bounds.first_work // work.REQUEST + 1
        assert not pair.server.streams.keys() - set(begun)


async def test_who_sends_more_than_a_turn_takes_is_known_until_all_is_read():
    async with tunnel_pair() as pair:
        tunnel = pair.server
        many: list[bool] = []
        tunnel._on_connect = lambda *_: many.append(tunnel.many)
        for _ in range(9):
            pair.client.open("10.0.0.1:1", [])
        with trio.fail_after(30):
            while len(many) < 9:  # noqa: ASYNC110 - nothing tells when a request has been begun
                await trio.sleep(0.01)
            await trio.testing.wait_all_tasks_blocked(0.05)
        assert many[0] is False
        assert many[-1] is True
        assert tunnel.many is False


@pytest.mark.parametrize("broken", [False, True], ids=["ended", "broken"])
async def test_streams_of_a_tunnel_that_is_gone_are_lost_a_few_at_a_time(broken: bool):
    async with tunnel_pair() as pair:
        passes = 0
        lost: dict[int, int] = {}

        def note(number: int) -> None:
            lost.setdefault(number, passes)

        for _ in range(40):
            _, stream = await pair.open()
            stream.on_death = partial(note, stream.id)

        async def count() -> None:
            nonlocal passes
            while True:
                await trio.lowlevel.checkpoint()
                passes += 1

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(count)
                while not passes:
                    await trio.lowlevel.checkpoint()
                if broken:
                    pair.server.tls.try_receive = broken_transport
                    pair.client.hbone.ping(b"12345678")
                    pair.client.flush()
                else:
                    pair.server.stop()
                await pair.server.ended.wait()
                nursery.cancel_scope.cancel()
        assert len(lost) == 40
        # Trio runs the tasks of a pass in any order, so two passes may have one number.
        assert max(Counter(lost.values()).values()) <= 2 * pair.server.bounds.turn_losses


def broken_transport(_: int) -> bytes | None:
    raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
