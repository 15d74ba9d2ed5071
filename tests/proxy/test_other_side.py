"""Every wait of a connection ends within seconds when the other side's socket or stream is reset.

docs/waits.md lists them; a test here for each that is a relay's or comes before one. The other side is the
one that is not waited for.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace

import pytest
import trio

from tests.support.data_plane import CONFIG, echo, running_plane, server, via_socks
from tests.support.logs import capture_logs
from tests.support.traffic import reset
from tests.support.tunnels import outcome, plain_pair, tunnel_pair
from ztunnel.bounds import DEFAULTS
from ztunnel.messages import Topic
from ztunnel.proxy.relay import relay_plain, relay_stream
from ztunnel.sockets.hangup import Hangups
from ztunnel.sockets.splice import PipePool

SOON = 20  # seconds, on a busy machine; these waits used to last until their peer chose otherwise


def ignore(count: int) -> None:
    del count


async def until(condition: Callable[[], object]) -> None:
    while True:
        if condition():
            return
        await trio.sleep(0.02)


def gave_up(records) -> list[object]:
    """The access log lines that say so."""
    text = "client disconnected before the connection was established"
    return [record for record in records if record.fields.get("error") == text]


async def fill(stream: trio.SocketStream) -> None:
    """Send until nobody takes anything any more."""
    with trio.move_on_after(1):
        while True:
            await stream.send_all(bytes(1 << 20))


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


@pytest.mark.parametrize("outbound", [True, False])
@pytest.mark.parametrize("state", ["no window", "half-closed", "idle"])
async def test_a_relay_to_a_stream(state: str, outbound: bool) -> None:
    async with tunnel_pair() as pair, trio.open_nursery() as nursery:
        ours, theirs = await pair.open()
        near, far = (ours, theirs) if outbound else (theirs, ours)
        side, application = plain_pair()
        over = trio.Event()

        async def run():
            with side, hangups.watch(side) as hangup:
                end = await relay_stream(
                    side,
                    near,
                    sent_to_stream=ignore,
                    received_from_stream=ignore,
                    outbound=outbound,
                    hangup=hangup,
                )
                assert end.error is None
            over.set()

        with Hangups(0.05) as hangups:
            nursery.start_soon(hangups.run)
            nursery.start_soon(run)
            if state == "no window":
                await fill(application)
                assert near.send_window == 0
            elif state == "half-closed":
                await application.send_eof()
                assert await far.receive_some(1) == b""
            reset(application)
            with trio.fail_after(SOON):
                await over.wait()
                await until(lambda: far.dead)
            assert far.reset_by_peer
            far.close()
            nursery.cancel_scope.cancel()


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


@asynccontextmanager
async def nobody_accepts(ip: str = "127.0.0.1"):
    """An address where a dial gets no answer: the listener's queue is full."""
    with socket.create_server((ip, 0), backlog=0) as full:
        filling = []
        try:
            for _ in range(8):
                sock = socket.socket()
                sock.setblocking(False)
                filling.append(sock)
                sock.connect_ex(full.getsockname())
            await trio.sleep(0.1)
            yield full.getsockname()[1]
        finally:
            for sock in filling:
                sock.close()


async def until_open(control, count: int) -> None:
    """Wait until so many connections are open."""
    with trio.fail_after(SOON):
        while True:
            if len(await control.ask(Topic.CONNECTIONS, state="open")) == count:
                return
            await trio.sleep(0.05)


async def until_none_is_open(control) -> None:
    await until_open(control, 0)


PATIENT = replace(DEFAULTS, connection=replace(DEFAULTS.connection, dial_timeout=300.0))
"""With these bounds a wait lasts for minutes, unless the other side's end ends it."""


async def test_a_dial_of_the_application_and_the_answer_to_connect():
    """The client's ztunnel waits for an answer, the server's for the application."""
    async with nobody_accepts() as port, running_plane(bounds=PATIENT) as control:
        with capture_logs() as records:
            stream = await via_socks(port)
            await until_open(control, 2)
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
