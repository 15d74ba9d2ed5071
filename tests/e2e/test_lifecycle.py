"""How a ztunnel ends: by SIGTERM, gracefully; by force at its deadline; never because of one connection."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass

import pytest
import trio

from tests.support.census import open_descriptors
from tests.support.mesh import Mesh
from tests.support.pod import MeshPod, eventually
from tests.support.raw_hbone import raw_client
from tests.support.raw_tls import KeyPair, TlsChoices
from tests.support.traffic import ended_by, read_exactly, refused_by, serve


@dataclass
class Pair:
    """A client and a server, each with a ztunnel, and a pod outside."""

    mesh: Mesh
    client: MeshPod
    server: MeshPod
    outside: MeshPod


@pytest.fixture
def pair(fresh_mesh: Mesh) -> Pair:
    """Their drains have so much time that what ends sooner has not waited for the deadline."""
    return make_pair(fresh_mesh, "120s")


@pytest.fixture
def hasty_pair(fresh_mesh: Mesh) -> Pair:
    return make_pair(fresh_mesh, "3s")


def make_pair(fresh_mesh: Mesh, deadline: str) -> Pair:
    fresh_mesh.environment["CONNECTION_TERMINATION_DEADLINE"] = deadline
    client = fresh_mesh.node("a").pod("client")
    server = fresh_mesh.node("b").pod("server")
    outside = fresh_mesh.node("b").pod("outside", captured=False, registered=False)
    fresh_mesh.start()
    return Pair(fresh_mesh, client, server, outside)


async def ended(pod: MeshPod, timeout: float) -> int:
    """The exit status of a pod's ztunnel, waited for without holding up the test's own tasks."""
    process = pod.ztunnel.process
    await eventually(lambda: process.returncode is not None, "ended", timeout)
    assert process.returncode is not None
    return process.returncode


async def refused(pod: MeshPod, address: str, port: int) -> bool:
    try:
        stream = await pod.connect(address, port)
    except ConnectionRefusedError:
        return True
    await stream.aclose()
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_without_connections_it_ends_at_once(pair: Pair, number: signal.Signals) -> None:
    pair.server.ztunnel.process.signal(number)
    assert await ended(pair.server, 60) == 0
    messages = [line["message"] for line in pair.server.log()]
    assert any(f"received signal {number.name}, starting shutdown" in message for message in messages)
    assert "shutdown complete" in messages
    assert "drain duration expired with pending connections, forcefully shutting down" not in messages


@pytest.mark.parametrize("drained", ["client", "server"])
async def test_open_connections_go_on_and_new_ones_are_refused(pair: Pair, drained: str) -> None:
    pod = pair.client if drained == "client" else pair.server
    async with serve(pair.server, 8080) as application:
        async with await pair.client.connect(pair.server.ipv4, 8080) as stream:
            await stream.send_all(b"x")
            await read_exactly(stream, 1)
            pod.ztunnel.process.signal(signal.SIGTERM)
            await trio.sleep(0.5)
            assert pod.ztunnel.process.returncode is None
            await stream.send_all(b"still here")
            assert await read_exactly(stream, 10) == b"still here"
            if drained == "client":
                assert await refused(pair.client, pair.server.ipv4, 8080)
            else:
                assert await refused(pair.outside, pair.server.ipv4, 8080)
                assert await refused(pair.outside, pair.server.ipv4, 15008)
            with pytest.raises(ConnectionRefusedError):
                pod.ztunnel.http("GET", 15021, "/healthz/ready")
            await stream.send_eof()
            assert await ended_by(stream) == "end"
        # With its last connection over it need not wait for the deadline.
        assert await ended(pod, 60) == 0
    assert application.failures == []


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("drained", ["client", "server"])
async def test_at_the_deadline_it_ends_by_force_also_after_a_second_signal(
    hasty_pair: Pair, drained: str, again: bool
) -> None:
    pair = hasty_pair
    pod = pair.client if drained == "client" else pair.server
    started = time.monotonic()
    async with serve(pair.server, 8080), await pair.client.connect(pair.server.ipv4, 8080) as stream:
        await stream.send_all(b"x")
        await read_exactly(stream, 1)
        pod.ztunnel.process.signal(signal.SIGTERM)
        if again:
            await trio.sleep(0.5)
            pod.ztunnel.process.signal(signal.SIGTERM)
        assert await ended(pod, 10) == 0
        assert await ended_by(stream) == "reset"
    if not again:
        assert time.monotonic() - started > 2.9
    warned = pod.log(level="warn")
    assert any("drain duration expired with pending connections" in line["message"] for line in warned)
    (entry,) = pod.access_log()
    assert (entry["level"], entry["error"]) == ("error", "connection closed due to connection drain")


async def test_hbone_clients_are_told_by_goaway(pair: Pair) -> None:
    own = KeyPair.load(pair.mesh.root).issue("spiffe://cluster.local/ns/default/sa/outside")
    async with (
        serve(pair.server, 8080),
        raw_client(pair.outside, pair.server.ipv4, TlsChoices(own)) as client,
    ):
        stream = await client.connect(f"{pair.server.ipv4}:8080")
        await client.exchange(stream, b"before")
        pair.server.ztunnel.process.signal(signal.SIGTERM)
        await client.until(lambda: client.goaway == [0])
        assert await client.exchange(stream, b"after") == b"after"
        await client.send(stream, b"", end=True)
        await client.until(lambda: stream.ended)
        assert await ended(pair.server, 60) == 0


async def test_quitquitquit_is_the_same_drain(pair: Pair) -> None:
    assert pair.server.ztunnel.http("POST", 15000, "/quitquitquit") == (200, "shutdown now\n")
    assert await ended(pair.server, 60) == 0


async def test_ztunnel_starts_again_where_it_was(pair: Pair) -> None:
    async with serve(pair.server, 8080):
        for _ in range(2):
            async with await pair.client.connect(pair.server.ipv4, 8080) as stream:
                await stream.send_all(b"x")
                assert await read_exactly(stream, 1) == b"x"
            pair.server.ztunnel.process.signal(signal.SIGTERM)
            assert await ended(pair.server, 60) == 0
            pair.mesh.deployment.restart(pair.mesh, pair.server)


BUG = """
import ztunnel.proxy.inbound as inbound

_connect = inbound.connect


async def connect(*args, **kwargs):
    if any(getattr(argument, "port", None) == 6666 for argument in (*args, *kwargs.values())):
        raise RuntimeError("a bug on purpose")
    return await _connect(*args, **kwargs)


inbound.connect = connect
"""


@pytest.fixture
def buggy(fresh_mesh: Mesh) -> Pair:
    """A server whose ztunnel has a bug in the task of connections to port 6666."""
    patches = fresh_mesh.machine.directory / "patches"
    patches.mkdir()
    (patches / "sitecustomize.py").write_text(BUG)
    client = fresh_mesh.node("a").pod("client")
    server = fresh_mesh.node("b").pod("server", environment={"PYTHONPATH": str(patches)})
    outside = fresh_mesh.node("b").pod("outside", captured=False, registered=False)
    fresh_mesh.start()
    return Pair(fresh_mesh, client, server, outside)


async def test_a_crash_of_one_connection_is_logged_and_ends_that_one_alone(buggy: Pair) -> None:
    client, server = buggy.client, buggy.server
    async with serve(server, 8080), await client.connect(server.ipv4, 8080) as neighbour:
        await neighbour.send_all(b"x")
        await read_exactly(neighbour, 1)
        for _ in range(3):
            assert await refused_by(client, server.ipv4, 6666, say=b"x") == "reset"
        await neighbour.send_all(b"still here")
        assert await read_exactly(neighbour, 10) == b"still here"
        assert server.ztunnel.process.returncode is None
        await eventually(lambda: server.ztunnel.log_lines("a bug on purpose"), "a line about it")
        async with await client.connect(server.ipv4, 8080) as fresh:
            await fresh.send_all(b"x")
            assert await read_exactly(fresh, 1) == b"x"


FATAL_BUG = """
import ztunnel.proxy.pod as pod


async def accept_forever(*args, **kwargs):
    import trio

    await trio.sleep(1)
    raise RuntimeError("a bug on purpose")


pod.accept_forever = accept_forever
"""


async def test_a_ztunnel_whose_proxy_has_crashed_does_not_live_on_without_listeners(fresh_mesh: Mesh) -> None:
    patches = fresh_mesh.machine.directory / "patches"
    patches.mkdir()
    (patches / "sitecustomize.py").write_text(FATAL_BUG)
    pod = fresh_mesh.node("a").pod("crashing", environment={"PYTHONPATH": str(patches)})
    fresh_mesh.start()
    assert await ended(pod, 10) == 1
    assert "a bug on purpose" in pod.ztunnel.process.output()
    assert "Error: The proxy has ended by itself; the log says why." in pod.ztunnel.process.output()


async def test_closed_connections_leave_no_descriptor(pair: Pair) -> None:
    async def use() -> None:
        async with await pair.client.connect(pair.server.ipv4, 8080) as stream:
            await stream.send_all(b"x")
            await read_exactly(stream, 1)

    def descriptors() -> list[int]:
        pods = (pair.client, pair.server)
        return [len(open_descriptors(pod.ztunnel.process.pid)) for pod in pods]

    async with serve(pair.server, 8080):
        await use()
        await trio.sleep(0.3)
        before = descriptors()
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(use)
        for pod in (pair.client, pair.server):
            await pod.logged(count=51)
        await eventually(lambda: descriptors() == before, f"back to {before} descriptors")


def wait_said(pod: MeshPod, text: str) -> None:
    """Wait until a pod's ztunnel has logged a text."""
    pod.ztunnel.process.wait_until(
        lambda: bool(pod.ztunnel.log_lines(text)), what=f"saying {text!r}", timeout=30
    )


def test_a_workload_that_the_local_file_does_not_have_is_warned_of(fresh_mesh: Mesh) -> None:
    """It waits for its workload then, which a typing error would make it do for ever without a word."""
    node = fresh_mesh.node("a")
    misspelt = node.pod("client", environment={"PROXY_WORKLOAD_INFO": "default/clint/client"})
    elsewhere = node.pod("server", environment={"NODE_NAME": "another"})
    fresh_mesh.start()
    for pod, text in ((misspelt, "the local file has no such workload"), (elsewhere, "so it is not ours")):
        wait_said(pod, text)
    [line] = misspelt.ztunnel.log_lines("the local file has no such workload")
    assert "PROXY_WORKLOAD_INFO=default/clint/client" in line
    assert "did you mean default/client/client?" in line
    [line] = elsewhere.ztunnel.log_lines("so it is not ours")
    assert "the local file has it on node 'a', and NODE_NAME is 'another'" in line
