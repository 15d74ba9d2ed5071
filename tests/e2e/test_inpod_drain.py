"""How a node's ztunnel ends: what it still serves, for how long, what it says, and what its peers see."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator

import pytest
import trio

from tests.support.pod import MeshPod, eventually
from tests.support.raw_hbone import RawHbone, answer_all, connect_headers, raw_client, raw_server
from tests.support.raw_tls import KeyPair, TlsChoices
from tests.support.traffic import ended_by, read_exactly, serve
from tests.support.two_nodes import TwoNodes, ended
from ztunnel.demo.dedicated import Ztunnel

DEADLINE = 4
REFUSED_STREAM = 7


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    with TwoNodes.open({"CONNECTION_TERMINATION_DEADLINE": f"{DEADLINE}s"}) as opened:
        yield opened


@pytest.fixture
def own_nodes() -> Iterator[TwoNodes]:
    """Nodes of one test, which leaves a ztunnel that shares its ports with no successor."""
    with TwoNodes.open({"CONNECTION_TERMINATION_DEADLINE": f"{DEADLINE}s"}) as opened:
        yield opened


async def echoes(stream: trio.SocketStream, data: bytes = b"hello") -> None:
    await stream.send_all(data)
    assert await read_exactly(stream, len(data)) == data


async def refuses(pod: MeshPod, port: int) -> bool:
    with pod.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


def shown(ztunnel: Ztunnel, name: str) -> dict[str, float]:
    """A metric's values by pod name."""
    return {
        sample.labels.get("pod_name", ""): sample.value for sample in ztunnel.metrics() if sample.name == name
    }


async def test_long_lived_connections_live_until_the_deadline_while_the_old_one_tells_of_them(nodes):
    client, server = nodes.client, nodes.server
    async with (
        serve(server, 8080),
        serve(nodes.neighbour, 8080),
        await client.connect(server.ipv4, 8080) as first,
        await client.connect(server.ipv6, 8080) as second,
        await nodes.neighbour.connect(server.ipv4, 8080) as third,
    ):
        for stream in (first, second, third):
            await echoes(stream)
        old, new = await nodes.node(client).upgrade()
        began = time.monotonic()
        # Those before live on with the old one, those after are the new one's, and can be told apart.
        await eventually(
            lambda: shown(old, "ztunnel_drain_connections") == {"client": 2, "neighbour": 1}, "told"
        )
        assert set(shown(old, "ztunnel_drain_oldest_connection_seconds")) == {"client", "neighbour"}
        assert 0 < shown(old, "ztunnel_drain_remaining_seconds")[""] <= DEADLINE
        assert shown(new, "ztunnel_drain_connections") == {}
        for port in (15000, 15021):
            with pytest.raises(ConnectionRefusedError):
                old.http("GET", port, "/")
        async with await client.connect(server.ipv4, 8080) as fresh:
            await echoes(fresh)
            await first.aclose()
            await eventually(lambda: shown(old, "ztunnel_drain_connections")["client"] == 1, "told")
            await eventually(lambda: old.log_lines("default/client: 1, oldest"), "logged")
            while time.monotonic() < began + DEADLINE - 1:
                await echoes(second)
                await echoes(third)
                await trio.sleep(0.1)
            await ended(old, DEADLINE + 5)
            for stream in (second, third):
                assert await ended_by(stream) == "reset"
            await echoes(fresh)
    lines = old.log_lines("draining")
    assert 2 <= len([line for line in lines if '"left"' in line]) <= DEADLINE + 1
    assert re.search(
        r'"connections":3.*"pods":2.*default/client: 2, oldest \d+s; default/neighbour: 1', lines[0]
    )
    assert len(old.log_lines("connection closed due to connection drain")) == 2
    assert old.log_lines("drain duration expired with pending connections, forcefully shutting down")


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "quitquitquit"])
async def test_a_ztunnel_without_connections_ends_within_moments(nodes, how):
    node = nodes.node(nodes.client)
    old = node.current
    node.start()
    if how == "quitquitquit":
        assert old.http("POST", 15000, "/quitquitquit") == (200, "shutdown now\n")
    else:
        old.process.signal(signal.Signals[how])
    await ended(old, DEADLINE - 1)
    if how == "quitquitquit":
        assert old.log_lines("received explicit shutdown signal")
    else:
        assert old.log_lines(f"received signal {how}, starting shutdown")
    for component in ("inbound", "inbound passthrough", "outbound"):
        assert old.log_lines(f'"component":"{component}"')
    assert len(old.log_lines('"shutdown complete"')) == 3 * 2
    assert len(old.log_lines('"listener drained"')) >= 3 * 2


async def test_a_second_interrupt_ends_it_at_once(nodes):
    client, server = nodes.client, nodes.server
    async with serve(server, 8080), await client.connect(server.ipv4, 8080) as stream:
        await echoes(stream)
        node = nodes.node(client)
        old = node.current
        node.start()
        old.process.signal(signal.SIGINT)
        await eventually(lambda: old.log_lines("starting shutdown"), "draining")
        old.process.signal(signal.SIGTERM)
        await eventually(lambda: old.log_lines("a shutdown is under way"), "told of the second signal")
        await echoes(stream)
        old.process.signal(signal.SIGINT)
        await ended(old, DEADLINE / 2)
        assert await ended_by(stream) == "reset"


async def test_the_grace_period_of_the_pod_sets_the_deadline(nodes):
    client, server = nodes.client, nodes.server
    node = nodes.node(client)
    old = node.current
    node.start(CONNECTION_TERMINATION_DEADLINE=None, TERMINATION_GRACE_PERIOD_SECONDS="2")
    old.process.signal(signal.SIGTERM)
    async with serve(server, 8080), await client.connect(server.ipv4, 8080) as stream:
        await echoes(stream)
        old, _ = await node.upgrade()
        await eventually(lambda: shown(old, "ztunnel_drain_remaining_seconds"), "draining")
        assert shown(old, "ztunnel_drain_remaining_seconds")[""] <= 1
        await ended(old, DEADLINE - 1)
        assert await ended_by(stream) == "reset"


async def test_a_stream_that_races_with_the_goaway_is_refused_for_another_try(nodes):
    root, server = KeyPair.load(nodes.mesh.root), nodes.server
    own = root.issue("spiffe://cluster.local/ns/default/sa/outside")
    async with (
        serve(server, 8080),
        raw_client(nodes.outside, server.ipv4, TlsChoices(own)) as client,
    ):
        stream = await client.connect(f"{server.ipv4}:8080")
        assert await client.exchange(stream, b"before") == b"before"
        old, _ = await nodes.node(server).upgrade()
        await eventually(lambda: old.log_lines("listener drained"), "draining")
        await eventually(lambda: shown(old, "ztunnel_drain_remaining_seconds"), "draining")
        # Nothing of what the server said meanwhile has been read here.
        assert client.goaway == []
        late = await client.request(connect_headers(f"{server.ipv4}:8080"))
        assert late.reset == REFUSED_STREAM
        assert set(client.goaway) == {0}
        assert await client.exchange(stream, b"after") == b"after"
        await client.send(stream, b"", end=True)
        await client.until(lambda: stream.ended)
        await ended(old, 2)


async def test_our_client_tries_a_refused_stream_on_another_tunnel(nodes):
    played = nodes.mesh.node("b").pod("played", captured=False)
    await nodes.mesh.update()
    own = KeyPair.load(nodes.mesh.root).issue(played.identity)

    async def draining_first(connection: RawHbone) -> None:
        if server.connections.index(connection) == 0:
            await connection.until(lambda: connection.streams)
            [number] = connection.streams
            connection.h2.reset_stream(number, REFUSED_STREAM)
            await connection.flush()
            connection.h2.close_connection(last_stream_id=0)
            await connection.flush()
        else:
            await answer_all(connection)

    async with (
        raw_server(played, TlsChoices(own), draining_first) as server,
        await nodes.client.connect(played.ipv4, 8080) as stream,
    ):
        await echoes(stream)
        assert len(server.connections) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_before_the_first_sync_ends_it(nodes, number):
    node = nodes.node(nodes.server)
    waiting = node.launch({"XDS_ADDRESS": "https://127.0.0.1:1", "XDS_ROOT_CA": os.devnull})
    node.ztunnels.remove(waiting)

    def pending() -> bool:
        try:
            return "state manager" in waiting.http("GET", 15021, "/healthz/ready")[1]
        except OSError:
            return False

    await eventually(pending, "waiting for its first sync", 20)
    waiting.process.signal(number)
    await ended(waiting, 3)


async def test_without_port_reuse_a_successor_gets_the_ports_when_they_are_free(own_nodes):
    client, server = own_nodes.client, own_nodes.server
    node = own_nodes.node(client)
    old = node.current
    new = node.launch({"INPOD_PORT_REUSE": "false"})
    text = "failure to start proxy : Bind([::]:15008, Address already in use (os error 98))"
    await eventually(lambda: len(new.log_lines(text)) >= 2, "refused", 20)
    assert new.http("GET", 15021, "/healthz/ready") == (500, "not ready, pending: workload proxy manager\n")
    assert {sample.name: sample.value for sample in new.metrics()}[
        "workload_manager_pending_proxy_count"
    ] == 2
    async with serve(server, 8080):
        async with await client.connect(server.ipv4, 8080) as stream:
            await echoes(stream)
        old.process.signal(signal.SIGTERM)
        await ended(old, DEADLINE - 1)
        await eventually(new.ready, "ready", 8)
        async with await client.connect(server.ipv4, 8080) as stream:
            await echoes(stream)
