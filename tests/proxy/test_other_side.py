"""Every wait of a connection ends within seconds when the other side's socket or stream is reset.

docs/waits.md lists them; a test here for each that is a relay's or comes before one. The other side is the
one that is not waited for.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from functools import partial

import pytest
import trio

from tests.support.data_plane import CONFIG, echo, running_plane, server, via_socks
from tests.support.logs import capture_logs
from tests.support.other_side import (
    PATIENT,
    SOON,
    fill,
    gave_up,
    nobody_accepts,
    until,
    until_none_is_open,
    until_open,
    until_waiting_for,
)
from tests.support.traffic import reset
from tests.support.tunnels import TunnelPair, outcome, plain_pair, tunnel_pair
from ztunnel.hbone import ErrorCode
from ztunnel.proxy.phase import Phase
from ztunnel.proxy.relay import relay_plain, relay_stream
from ztunnel.sockets.hangup import Hangups
from ztunnel.sockets.splice import PipePool
from ztunnel.tunnel.tunnel_stream import TunnelStream


def ignore(count: int) -> None:
    del count


@asynccontextmanager
async def plainly():
    client_side, client = plain_pair()
    server_side, server_end = plain_pair()
    over = trio.Event()

    async def run():
        with (
            PipePool() as pipes,
            client_side,
            server_side,
            hangups.watch(client_side) as one,
            hangups.watch(server_side) as other,
        ):
            end = await relay_plain(
                client_side,
                server_side,
                pipes=pipes,
                received=ignore,
                sent=ignore,
                hangups=(one, other),
                hangup_grace=0.1,
            )
            assert end.error is None, "an application's reset is no error of ours"
        over.set()

    with Hangups(0.05) as hangups:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hangups.run)
            nursery.start_soon(run)
            yield client, server_end, over
            with trio.fail_after(SOON):
                await over.wait()
            nursery.cancel_scope.cancel()
        assert len(hangups) == 0


@pytest.mark.parametrize("who", ["client", "server"])
@pytest.mark.parametrize("state", ["the other takes nothing", "it has half-closed", "idle"])
async def test_plaintext(who: str, state: str) -> None:
    async with plainly() as (client, server_end, over):
        one, other = (client, server_end) if who == "client" else (server_end, client)
        if state == "the other takes nothing":
            await fill(one)
        elif state == "it has half-closed":
            await one.send_eof()
            assert await outcome(other) == (b"", "end")
        assert not over.is_set()
        reset(one)
        with trio.fail_after(SOON):
            await over.wait()
        if state == "it has half-closed":
            await trio.lowlevel.wait_writable(other.socket)
            with pytest.raises(trio.BrokenResourceError):
                await other.send_all(b"x")
        else:
            assert (await outcome(other))[1] == "reset"
        await other.aclose()


class Relaying:
    """A relay between a stream and an application: both ends of each, and when it is over."""

    def __init__(self, pair: TunnelPair, near: TunnelStream, far: TunnelStream) -> None:
        self.pair = pair
        self.near = near
        self.far = far
        self.side, self.application = plain_pair()
        self.over = trio.Event()
        self.error: str | None = None

    async def run(self, hangups: Hangups, *, outbound: bool) -> None:
        with self.side, hangups.watch(self.side) as hangup:
            end = await relay_stream(
                self.side,
                self.near,
                sent_to_stream=ignore,
                received_from_stream=ignore,
                outbound=outbound,
                hangup=hangup,
            )
        self.error = end.error
        self.over.set()

    async def reach(self, state: str) -> None:
        if state == "no window":
            with trio.fail_after(3 * SOON):
                while self.near.send_window:
                    await fill(self.application)
        elif state == "half-closed":
            await self.application.send_eof()
            assert await self.far.receive_some(1) == b""
        elif state == "takes nothing":
            while window := self.far.send_window:
                self.far.send(bytes(min(window, 65_536)))
                await trio.lowlevel.checkpoint()
        assert not self.over.is_set()


@asynccontextmanager
async def relaying(*, outbound: bool) -> AsyncIterator[Relaying]:
    async with tunnel_pair() as pair, trio.open_nursery() as nursery:
        ours, theirs = await pair.open()
        one = Relaying(pair, *((ours, theirs) if outbound else (theirs, ours)))
        with Hangups(0.05) as hangups:
            nursery.start_soon(hangups.run)
            nursery.start_soon(partial(one.run, hangups, outbound=outbound))
            yield one
            with trio.fail_after(SOON):
                await one.over.wait()
            one.far.close()
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("outbound", [True, False])
@pytest.mark.parametrize("state", ["no window", "half-closed", "idle", "takes nothing"])
async def test_a_relay_to_a_stream(state: str, outbound: bool) -> None:
    async with relaying(outbound=outbound) as one:
        await one.reach(state)
        reset(one.application)
        with trio.fail_after(SOON):
            await one.over.wait()
            await until(lambda: one.far.dead)
        assert one.far.reset_by_peer
        assert one.error is None


@pytest.mark.parametrize("outbound", [True, False])
@pytest.mark.parametrize("how", ["reset", "tunnel lost"])
@pytest.mark.parametrize("state", ["no window", "half-closed", "idle"])
async def test_a_relay_whose_stream_dies(state: str, how: str, outbound: bool) -> None:
    async with relaying(outbound=outbound) as one:
        await one.reach(state)
        if how == "reset":
            one.far.reset(ErrorCode.CONNECT_ERROR)
        else:
            one.pair.cut()
        with trio.fail_after(SOON):
            await one.over.wait()
        if state != "no window":
            # Where it has not written all, its own bytes in our socket make it a reset anyway.
            assert await outcome(one.application) == (b"", "reset")
        await trio.aclose_forcefully(one.application)


async def test_a_client_that_is_answered_before_it_has_written_gets_its_answer() -> None:
    """It writes ten megabytes and only then reads; the server has answered the first byte, and is gone."""
    async with tunnel_pair() as pair, trio.open_nursery() as nursery:
        ours, theirs = await pair.open()
        side, application = plain_pair()
        # So that the answer does not fit into the sockets, and waits for the client to read.
        side.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        application.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        answer = bytes(1_000_000)

        async def run():
            with side:
                await relay_stream(
                    side, ours, sent_to_stream=ignore, received_from_stream=ignore, outbound=True
                )

        nursery.start_soon(run)
        async with application:
            await application.send_all(b"?")
            assert await theirs.receive_some(1) == b"?"
            theirs.send(answer)
            theirs.send_end()
            theirs.reset(0)
            with trio.fail_after(SOON):
                await application.send_all(bytes(10_000_000))
                assert await outcome(application) == (answer, "reset")
        theirs.close()


async def test_a_dial_of_the_application_and_the_answer_to_connect():
    """The client's ztunnel waits for an answer, the server's for the application."""
    async with nobody_accepts() as port, running_plane(bounds=PATIENT) as control:
        with capture_logs() as records:
            stream = await via_socks(port)
            await until_waiting_for(control, Phase.APPLICATION)
            reset(stream)
            await until_none_is_open(control)
        found = [
            record for record in records if "client disconnected before" in str(record.fields.get("error"))
        ]
        assert len(found) == 2


async def test_a_dial_of_a_destination_outside_the_mesh():
    async with nobody_accepts("127.0.0.2") as port, running_plane(bounds=PATIENT) as control:
        stream = await via_socks(port, "127.0.0.2")
        await until_open(control, 1)
        reset(stream)
        await until_none_is_open(control)


async def test_a_client_that_waits_when_its_pod_ends_sees_a_reset():
    """An end in order would look like an empty answer."""
    async with nobody_accepts("127.0.0.2") as port:
        async with running_plane(bounds=PATIENT) as control:
            waiting = [await via_socks(port, "127.0.0.2") for _ in range(2)]
            await until_open(control, 2)
        for stream in waiting:
            with trio.fail_after(SOON):
                assert await outcome(stream) == (b"", "reset")
            await stream.aclose()


async def test_the_wait_for_a_certificate():
    async with server(echo) as port, running_plane() as control:
        control.issue = False
        stream = await via_socks(port)
        await until_open(control, 1)
        reset(stream)
        await until_none_is_open(control)


async def test_the_wait_for_the_pods_own_workload():
    config = replace(CONFIG, workload_wait=300.0)
    async with server(echo) as port, running_plane(config) as control:
        await control.apply(removed=["cluster1//Pod/default/local"])
        with capture_logs() as records:
            stream = await via_socks(port)
            reset(stream)
            with trio.fail_after(SOON):
                await until(lambda: gave_up(records))


async def test_a_half_close_ends_no_wait(autojump_clock):
    """A client that has sent its request and half-closed still gets its answer, however long it takes."""
    async with running_plane() as control:
        listener = socket.socket()
        with closing(listener):
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            stream = await via_socks(listener.getsockname()[1])
            await stream.send_all(b"request")
            await stream.send_eof()
            await trio.sleep(2.5)
            listener.setblocking(False)
            await trio.lowlevel.wait_readable(listener)
            far = trio.SocketStream(trio.socket.from_stdlib_socket(listener.accept()[0]))
            async with far:
                assert await outcome(far) == (b"request", "end")
                await far.send_all(b"answer")
            assert await outcome(stream) == (b"answer", "end")
            await stream.aclose()
        await until_none_is_open(control)


async def test_a_wait_of_plaintext():
    """15006: here for the pod's workload; the dial of the application is inside the same watch."""
    config = replace(CONFIG, workload_wait=300.0)
    async with running_plane(config) as control:
        await control.apply(removed=["cluster1//Pod/default/local"])
        with capture_logs() as records:
            stream = await trio.open_tcp_stream("127.0.0.1", 15006)
            reset(stream)
            with trio.fail_after(SOON):
                await until(lambda: gave_up(records))
