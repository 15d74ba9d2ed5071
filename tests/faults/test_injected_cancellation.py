"""Cancelled after every step, and failing at every call: DNS, the CNI client, the admin server, gRPC."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent import futures
from pathlib import Path

import dns.message
import grpc
import h11
import pytest
import trio

from tests.support.cni_agent import SNAPSHOT_SENT, add_packet
from tests.support.cni_node import INFO, Node, node, some_file
from tests.support.dns_pod import Pod, frame, read_frames, running_pod
from tests.support.fake_resolver import answer_with, fake_resolver
from tests.support.injection import Turn, at_call, at_step, settled, steady
from tests.support.logs import capture_logs
from tests.support.serving import serving
from ztunnel.admin.http import Response
from ztunnel.grpc.bridge import GrpcChannel
from ztunnel.grpc.status import GrpcStatusError

MOST = 1000
ELSEWHERE = "elsewhere.example."


async def cancelled_everywhere(scenario: Callable[[], Awaitable[None]], *, every: int = 1) -> int:
    """Run a scenario, cancelled after its first step, its second and so on; nothing is left of any run.

    every: how many steps lie between two places. Returns how many places there were.
    """
    await scenario()
    base = await steady()
    for places, number in enumerate(range(1, MOST, every)):
        turn = Turn(number)
        with trio.CancelScope() as scope, at_step(turn, lambda name: name != "<init>", scope.cancel):
            await scenario()
        left = await settled(base)
        assert left == base, f"{turn.place}: {left - base} too much, {base - left} too little"
        if not turn.reached:
            return places
    raise AssertionError("the scenario has no end")


async def ask_by_udp(pod: Pod, query: bytes) -> None:
    assert await pod.udp(query, timeout=20)


async def ask_by_tcp(pod: Pod, query: bytes) -> None:
    async with await pod.connect() as stream:
        await stream.send_all(frame(query))
        assert await read_frames(stream, 1)


@pytest.mark.parametrize("ask", [ask_by_udp, ask_by_tcp])
async def test_dns_is_cancelled_at_any_step(ask: Callable[[Pod, bytes], Awaitable[None]]) -> None:
    """The pod's proxy and its resolver with a query of each kind: forwarded, of the mesh, unknown."""
    answer = answer_with(f"{ELSEWHERE} 5 IN A 9.9.9.9")
    async with fake_resolver(answer) as resolver:

        async def scenario() -> None:
            async with running_pod(resolver.port, timeout=5) as pod:
                for name in (
                    ELSEWHERE,
                    "productpage.ns1.svc.cluster.local.",
                    "nobody.ns1.svc.cluster.local.",
                ):
                    await ask(pod, dns.message.make_query(name, "A").to_wire())

        assert await cancelled_everywhere(scenario) > 20


async def test_the_cni_client_is_cancelled_at_any_step(tmp_path: Path) -> None:
    """With a pod that comes, the snapshot's end, and a pod that goes; `node` counts the descriptors too."""
    directories = (tmp_path / str(number) for number in range(MOST))

    async def take(it: Node) -> None:
        connection = await it.agent.accept()
        with some_file() as file:
            await connection.receive()
            assert await connection.ask(add_packet("uid", INFO), file) == ""
            assert await connection.ask(SNAPSHOT_SENT) == ""

    async def scenario() -> None:
        directory = next(directories)
        directory.mkdir()
        async with node(directory) as it:
            await take(it)

    assert await cancelled_everywhere(scenario) > 10


@pytest.mark.parametrize("number", [errno.ECONNRESET, errno.ENOMEM, errno.ETIMEDOUT])
async def test_the_admin_server_survives_any_system_call(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs one connection at most: the next request is answered, and nothing is left."""
    places: set[str] = set()

    async def handler(_: object) -> Response:
        await trio.lowlevel.checkpoint()
        return Response(200, b"x" * 300_000, "text/plain")

    async with serving(handler) as served:
        assert (await served.ask("GET", "/")).status == 200
        base = await steady()
        for at in range(1, MOST):
            turn = Turn(at)
            with capture_logs("error") as records, at_call(turn, number, monkeypatch, ("ztunnel.admin",)):
                try:
                    with trio.fail_after(30):
                        await served.ask("POST", "/", body=b"y" * 5000)
                except (trio.BrokenResourceError, h11.RemoteProtocolError, AssertionError, OSError):
                    pass
            with trio.fail_after(30):
                assert (await served.ask("GET", "/")).status == 200, turn.place
            left = await settled(base)
            assert left == base, f"{turn.place}: {left - base}"
            assert not [one for one in records if "exc_info" in one.fields], turn.place
            if not turn.reached:
                break
            places.add(turn.place)
    assert {place.partition(": ")[2] for place in places} >= {"accept", "recv", "send", "setsockopt"}


class Echo(grpc.GenericRpcHandler):
    """Answers what it is told, in a unary call and on a stream."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        if details.method == "/a/unary":
            return grpc.unary_unary_rpc_method_handler(lambda request, _: bytes(request))
        return grpc.stream_stream_rpc_method_handler(lambda requests, _: iter(requests))


@pytest.fixture
def echo_port():
    server = grpc.server(futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(0).wait()


async def talk(port: int) -> None:
    """A unary call and a stream, both as xDS and the CA client use them."""
    async with GrpcChannel(f"127.0.0.1:{port}", roots=None) as channel:
        assert await channel.unary("/a/unary", b"word", deadline_seconds=20) == b"word"
        async with channel.open_stream("/a/stream") as stream:
            for word in (b"one", b"two" * 1000):
                await stream.send(word)
                assert await stream.receive() == word


async def test_grpc_calls_are_cancelled_at_any_step(echo_port: int) -> None:
    """No task, no descriptor and no thread of a stream is left."""
    assert await cancelled_everywhere(lambda: talk(echo_port)) > 5
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if "gRPC stream" in name], names


class Cut:
    """A relay on a thread: connections to it go on to a port, and are reset after so many bytes."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.after = 1 << 30
        self.passed = 0
        threading.Thread(target=self._accept, name="cutting relay", daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._to))
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, target), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                left = self.after - self.passed
                self.passed += len(data)
                target.sendall(data[: max(left, 0)])
                if len(data) > left:
                    break
        except OSError:
            pass
        for sock in (source, target):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()


async def test_a_connection_to_the_control_plane_may_break_at_any_byte(echo_port: int) -> None:
    """Each call ends with a status, in time, and the next one over a new connection works."""
    relay = Cut(echo_port)
    try:
        await talk(relay.port)
        whole = relay.passed
        base = await steady()
        for after in range(0, whole, max(1, whole // 60)):
            relay.after, relay.passed = after, 0
            status = "OK"
            with trio.fail_after(60):
                try:
                    await talk(relay.port)
                except GrpcStatusError as error:
                    status = error.status
            assert status in {"UNAVAILABLE", "CANCELLED", "INTERNAL", "OK"}, after
            relay.after = 1 << 30
            with trio.fail_after(60):
                await talk(relay.port)
            left = await settled(base)
            assert left == base, f"cut after {after} bytes: {left - base}"
    finally:
        relay.close()
    assert whole > 500
