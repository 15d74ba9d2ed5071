"""A stream by itself: no TLS, no tunnel, and a clock that jumps. Its peer is a sans-IO server."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from ztunnel.bounds import DEFAULTS
from ztunnel.hbone import (
    ConnectReceived,
    DataReceived,
    ErrorCode,
    Event,
    HboneClient,
    HboneServer,
    HboneSettings,
    StreamEnded,
    StreamReset,
    WindowBudget,
    WindowOpened,
)
from ztunnel.loop.watch import Watch
from ztunnel.tunnel.carrier import StreamClosedError
from ztunnel.tunnel.tunnel_stream import TunnelStream

SMALL = HboneSettings(stream_window=100_000, connection_window=200_000)


class Link:
    """Carries one stream between two sans-IO ends; what the tunnel's reader does is done by `flush`."""

    def __init__(self, budget: WindowBudget | None = None) -> None:
        self.bounds = DEFAULTS.tunnel
        self.hbone = HboneClient(SMALL, budget)
        self.peer = HboneServer(SMALL)
        self.blocked = False
        self.failure: str | None = None
        self.forgotten: list[int] = []
        self.heard: list[object] = []
        self.stream: TunnelStream | None = None
        number = self.hbone.connect("10.0.0.1:80", [])
        self.stream = TunnelStream(self, number)
        self.flush()
        assert self.peer.accept(number)
        self.flush()

    def flush(self) -> None:
        while True:
            there = b"".join(self.hbone.take_output())
            back = b"".join(self.peer.take_output())
            if not there and not back:
                return
            for event in self.peer.receive(there):
                if not isinstance(event, ConnectReceived):
                    self.heard.append(bytes(event.data) if isinstance(event, DataReceived) else event)
                if isinstance(event, DataReceived):
                    self.peer.acknowledge(1, len(event.data))
            self._tell(self.hbone.receive(back))

    def _tell(self, events: list[Event]) -> None:
        stream = self.stream
        assert stream is not None
        deliver = False
        for event in events:
            match event:
                case DataReceived():
                    deliver |= stream.data_received(event)
                case StreamEnded() | StreamReset():
                    deliver |= stream.ended(event)
                case WindowOpened():
                    stream.writable()
        if deliver:
            stream.deliver()

    def send(self, data: bytes) -> int:
        sent = self.peer.send_data(1, data)
        self.flush()
        return sent

    def forget(self, stream: TunnelStream) -> None:
        self.forgotten.append(stream.id)

    def lose(self) -> None:
        self.failure = "cut"
        self.hbone.receive_eof()
        assert self.stream is not None
        self.stream.tunnel_lost()


@pytest.fixture
def link():
    return Link()


@pytest.fixture
def stream(link):
    assert link.stream is not None
    return link.stream


@pytest.fixture
def sockets():
    """Our socket and the application's."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


async def test_what_came_is_read_and_then_the_end(link, stream):
    link.send(b"hello")
    assert bytes(await stream.receive_some(2)) == b"he"
    link.peer.end_stream(1)
    link.flush()
    assert bytes(await stream.receive_some(100)) == b"llo"
    assert await stream.receive_some(100) == b""
    assert (stream.end_received, stream.end_sent, stream.dead) == (True, False, False)


async def test_a_half_close_is_sent_once(link, stream):
    stream.send(b"x")
    stream.send_end()
    stream.send_end()
    assert link.heard == [b"x", StreamEnded(1)]
    stream.close()
    assert link.heard[2:] == [StreamReset(1, ErrorCode.CANCEL)]
    assert link.forgotten == [1]


async def test_what_came_before_a_reset_is_read_first(link, stream):
    link.send(b"last words")
    link.peer.reset(1, ErrorCode.CONNECT_ERROR)
    link.flush()
    assert bytes(await stream.receive_some(100)) == b"last words"
    with pytest.raises(StreamClosedError) as raised:
        await stream.receive_some(100)
    assert raised.value.code == ErrorCode.CONNECT_ERROR
    assert (stream.dead, stream.lost, stream.reset_by_peer) == (True, False, True)
    stream.reset(ErrorCode.CANCEL)
    assert stream.reset_code == ErrorCode.CONNECT_ERROR


async def test_a_lost_tunnel_is_told_with_its_reason(link, stream):
    link.send(b"last words")
    link.lose()
    assert bytes(await stream.receive_some(100)) == b"last words"
    with pytest.raises(StreamClosedError, match="cut") as raised:
        await stream.wait_room()
    assert raised.value.code is None
    assert (stream.dead, stream.lost, stream.reset_code) == (True, True, None)
    stream.send_end()
    stream.close()
    assert not stream.end_sent


async def test_the_end_of_a_stream_that_both_sides_ended_is_no_loss(link, stream):
    stream.send_end()
    link.peer.end_stream(1)
    link.flush()
    link.lose()
    assert not stream.lost
    assert await stream.receive_some(10) == b""


async def test_waiting_for_room_ends_with_room_a_reset_and_the_tunnel(link, stream, autojump_clock):
    async def until(happens) -> object:
        outcome: list[object] = []

        async def wait() -> None:
            try:
                outcome.append(await stream.wait_room())
            except StreamClosedError as error:
                outcome.append(error.code)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert outcome == []
            happens()
        return outcome[0]

    def unblock() -> None:
        link.blocked = False
        stream.writable()

    def reset() -> None:
        link.peer.reset(1, ErrorCode.CANCEL)
        link.blocked = False
        link.flush()

    link.blocked = True
    assert await until(unblock) == SMALL.stream_window
    link.blocked = True
    assert await until(reset) == ErrorCode.CANCEL


async def test_an_attached_socket_gets_what_comes_and_its_window_back(link, stream, sockets, autojump_clock):
    ours, theirs = sockets
    counted: list[int] = []
    async with trio.open_nursery() as nursery:
        stream.attach(Watch(ours), counted.append)
        stream.wait_in(nursery)
        for _ in range(5):
            assert link.send(bytes(60_000)) == 60_000
            assert len(theirs.recv(100_000)) == 60_000
        link.peer.end_stream(1)
        link.flush()
        await stream.wait_download()
    assert sum(counted) == 300_000
    assert theirs.recv(1) == b""


async def test_a_full_socket_holds_one_stream_window_at_most(link, stream, sockets, autojump_clock):
    ours, theirs = sockets
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    async with trio.open_nursery() as nursery:
        stream.attach(Watch(ours), lambda _: None)
        stream.wait_in(nursery)
        total = 0
        while sent := link.send(bytes(50_000)):
            total += sent
        held = sum(len(piece) for piece in stream._inbox)
        assert 0 < held <= SMALL.stream_window
        received = 0
        while received < total:
            with trio.fail_after(60):
                await trio.lowlevel.wait_readable(theirs)
            received += len(theirs.recv(1 << 20))
        stream.close()
        nursery.cancel_scope.cancel()
    assert received == total


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("end", ["reset", "lost"])
async def test_an_application_that_reads_nothing_is_left_a_while_after_the_end(
    link, stream, sockets, autojump_clock, end, whole
):
    ours, _ = sockets
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    async with trio.open_nursery() as nursery:
        stream.attach(Watch(ours), lambda _: None)
        stream.wait_in(nursery)
        while link.send(bytes(50_000)):
            pass
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        if whole:
            link.peer.end_stream(1)
            link.flush()
        if end == "reset":
            link.peer.reset(1, ErrorCode.CANCEL)
            link.flush()
        else:
            link.lose()
        await stream.wait_download()
        bounds = DEFAULTS.tunnel
        left = bounds.stalled_application if whole else bounds.stalled_after_reset
        assert trio.current_time() - began == pytest.approx(left)
    assert not stream._inbox


async def test_an_application_that_still_writes_has_its_time_again(link, stream, sockets, autojump_clock):
    ours, _ = sockets
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    left = DEFAULTS.tunnel.stalled_after_reset
    async with trio.open_nursery() as nursery:
        stream.attach(Watch(ours), lambda _: None)
        stream.wait_in(nursery)
        while link.send(bytes(50_000)):
            pass
        link.lose()
        began = trio.current_time()
        for _ in range(3):
            await trio.sleep(left * 0.9)
            stream.bound_stall()
        await stream.wait_download()
        assert trio.current_time() - began == pytest.approx(left * 3.7)


async def test_an_application_that_is_gone_resets_the_stream(link, stream, sockets):
    ours, theirs = sockets
    async with trio.open_nursery() as nursery:
        stream.attach(Watch(ours), lambda _: None)
        stream.wait_in(nursery)
        theirs.close()
        link.send(b"too late")
        await stream.wait_download()
    assert stream.sink_error is not None
    assert link.heard == [StreamReset(1, ErrorCode.CONNECT_ERROR)]
    assert not stream.data_received(DataReceived(1, memoryview(b"later")))


@pytest.mark.parametrize("end", ["reset", "lost"])
async def test_what_the_dead_hold_goes_at_once_when_it_is_too_much(sockets, autojump_clock, end):
    budget = WindowBudget(10_000)
    link = Link(budget)
    stream = link.stream
    assert stream is not None
    ours, _ = sockets
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    async with trio.open_nursery() as nursery:
        stream.attach(Watch(ours), lambda _: None)
        stream.wait_in(nursery)
        while link.send(bytes(50_000)):
            pass
        await trio.testing.wait_all_tasks_blocked()
        assert link.hbone.held > 10_000
        began = trio.current_time()
        if end == "reset":
            link.peer.reset(1, ErrorCode.CANCEL)
            link.flush()
        else:
            link.lose()
        await stream.wait_download()
        assert trio.current_time() == began
    assert (link.hbone.held, budget.lent) == (0, 0)
    assert not stream._inbox


async def test_a_full_socket_ends_the_wait_of_a_relay_without_a_nursery(
    link, stream, sockets, autojump_clock
):
    ours, theirs = sockets
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    total = 0
    with trio.fail_after(60):
        stream.attach(Watch(ours), lambda _: None)
        while sent := link.send(bytes(50_000)):
            total += sent
        await stream.wait_download()
    assert stream.interrupted
    assert not stream.download_done
    received = 0
    async with trio.open_nursery() as nursery:
        stream.wait_in(nursery)
        while received < total:
            with trio.fail_after(60):
                await trio.lowlevel.wait_readable(theirs)
            received += len(theirs.recv(1 << 20))
        stream.close()
        nursery.cancel_scope.cancel()
    assert received == total


async def test_a_stream_that_died_while_its_socket_was_full_is_left_a_while(
    link, stream, sockets, autojump_clock
):
    ours, _ = sockets
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    stream.attach(Watch(ours), lambda _: None)
    while link.send(bytes(50_000)):
        pass
    link.lose()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        stream.wait_in(nursery)
        await stream.wait_download()
    assert trio.current_time() - began == pytest.approx(DEFAULTS.tunnel.stalled_after_reset)
    assert not stream._inbox
