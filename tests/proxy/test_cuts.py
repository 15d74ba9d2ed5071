"""What is cut before both its ends were seen ends with a reset at both applications, never in order.

Each way in which ztunnel itself ends a connection, on each path, in each direction. An end in order would
make a truncated answer or upload look complete.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from tests.proxy.test_relay import ignore
from tests.support.data_plane import UID, Control, deny_port, running_plane, server, via_socks, worker_process
from tests.support.other_side import SOON, until_none_is_open
from tests.support.tunnels import outcome, plain_pair, tunnel_pair
from ztunnel.messages import Drain, PodRemoved
from ztunnel.proxy.relay import relay_plain, relay_stream
from ztunnel.sockets.splice import PipePool

PATHS = {"HBONE, out and in": "127.0.0.1", "plain TCP, out": "127.0.0.2"}
"""The destination's address on each path; the first is the pod itself."""
STATES = ("both are silent", "both have sent", "the client has half-closed", "the server has half-closed")

Cut = Callable[[Control], Awaitable[None]]


async def drain(control: Control) -> None:
    await control.to_plane.send(Drain(0.1))


async def removal(control: Control) -> None:
    await control.to_plane.send(PodRemoved(UID))


@asynccontextmanager
async def both_ends(ip: str) -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream, int]]:
    """An established connection through ztunnel: the client's socket, the server's, and the port."""
    arrived, arrivals = trio.open_memory_channel[trio.SocketStream](1)

    async def keep(stream: trio.SocketStream) -> None:
        await arrived.send(stream)
        await trio.sleep_forever()

    async with server(keep, ip) as port:
        client = await via_socks(port, ip)
        await client.send_all(b"hello")
        far = await arrivals.receive()
        assert await far.receive_some(5) == b"hello"
        async with client, far:
            yield client, far, port


async def bring(state: str, client: trio.SocketStream, far: trio.SocketStream) -> None:
    """Bring a connection into one of STATES."""
    if state == "both have sent":
        for one, other in ((client, far), (far, client)):
            await one.send_all(b"a part")
            assert await other.receive_some(100) == b"a part"
    elif state != "both are silent":
        one, other = (client, far) if state == "the client has half-closed" else (far, client)
        await one.send_eof()
        assert await other.receive_some(1) == b""


async def were_reset(state: str, client: trio.SocketStream, far: trio.SocketStream) -> None:
    """Holds both to have seen a reset. Whoever saw the right end before sees it when it sends on."""
    ended = {"the client has half-closed": far, "the server has half-closed": client}.get(state)
    with trio.fail_after(SOON):
        for stream in (client, far):
            if stream is not ended:
                assert await outcome(stream) == (b"", "reset")
        if ended is not None:
            with pytest.raises(trio.BrokenResourceError):
                await send_on(ended)


async def send_on(stream: trio.SocketStream) -> None:
    while True:
        await stream.send_all(b"more")
        await trio.sleep(0.01)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("cut", [drain, removal])
async def test_a_drain_and_the_removal_of_a_pod(cut: Cut, path: str, state: str) -> None:
    async with running_plane() as control, both_ends(PATHS[path]) as (client, far, _):
        await bring(state, client, far)
        await cut(control)
        await were_reset(state, client, far)


@pytest.mark.parametrize("state", STATES)
async def test_a_change_of_policy(state: str) -> None:
    async with running_plane() as control, both_ends("127.0.0.1") as (client, far, port):
        await bring(state, client, far)
        await control.policies(deny_port(port))
        await were_reset(state, client, far)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("path", PATHS)
async def test_the_death_of_the_process(path: str, state: str) -> None:
    """The kernel closes its sockets, and they are such as end with a reset."""
    async with worker_process() as (_, process), both_ends(PATHS[path]) as (client, far, _):
        await bring(state, client, far)
        process.kill()
        await were_reset(state, client, far)


@pytest.mark.parametrize("state", STATES)
async def test_a_cancelled_relay_between_sockets(state: str) -> None:
    """Plaintext that arrives for a pod, and what leaves the mesh."""
    client_side, client = plain_pair()
    server_side, far = plain_pair()
    with PipePool() as pipes:
        async with client, far, trio.open_nursery() as nursery:

            async def relay() -> None:
                with client_side, server_side:
                    await relay_plain(client_side, server_side, pipes=pipes, received=ignore, sent=ignore)

            nursery.start_soon(relay)
            await bring(state, client, far)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()
                await were_reset(state, client, far)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("which", ["client's", "server's"])
async def test_a_cancelled_relay_to_a_stream(which: str, state: str) -> None:
    """Each end by itself: the other one learns of it by RST_STREAM."""
    async with tunnel_pair() as pair, trio.open_nursery() as nursery:
        ours, theirs = await pair.open()
        client_side, client = plain_pair()
        server_side, far = plain_pair()
        scopes = {"client's": trio.CancelScope(), "server's": trio.CancelScope()}

        async def relay(name, sock, stream):
            with scopes[name], sock:
                await relay_stream(
                    sock,
                    stream,
                    sent_to_stream=ignore,
                    received_from_stream=ignore,
                    outbound=stream is ours,
                )

        async with client, far:
            nursery.start_soon(relay, "client's", client_side, ours)
            nursery.start_soon(relay, "server's", server_side, theirs)
            await bring(state, client, far)
            scopes[which].cancel()
            await were_reset(state, client, far)
        cut, told = (ours, theirs) if which == "client's" else (theirs, ours)
        assert not cut.reset_by_peer
        assert told.reset_by_peer


async def test_whole_connections_end_in_order_when_a_drain_cuts_what_is_left() -> None:
    """What both ends had finished is not spoiled by a reset, however late its bytes are read."""
    answer = bytes(300_000)

    async def answering(stream: trio.SocketStream) -> None:
        assert await stream.receive_some(1) == b"?"
        await stream.send_all(answer)

    async with server(answering) as port, running_plane() as control:
        client = await via_socks(port)
        await client.send_all(b"?")
        await client.send_eof()
        await trio.lowlevel.wait_readable(client.socket)
        await until_none_is_open(control)
        await control.to_plane.send(Drain(60.0))
        await control.drained()
        assert await outcome(client) == (answer, "end")
        await client.aclose()
