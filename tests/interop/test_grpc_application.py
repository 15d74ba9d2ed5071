"""A gRPC application through the mesh: grpcio's own client and server, in pods of two nodes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
import trio

from tests.support.namespaces import needs_namespaces
from tests.support.pod import MeshPod
from tests.support.processes import said
from tests.support.two_nodes import TwoNodes
from ztunnel.demo.dedicated import INHERITED
from ztunnel.demo.processes import Process

pytestmark = needs_namespaces

# A program that hangs says after a while where; see `said`.
WATCHED = """
import faulthandler
faulthandler.dump_traceback_later(45, repeat=True)
"""

SERVER = """
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc


def talk(requests, context):
    for request in requests:
        yield request[::-1]


def endless(request, context):
    # Its end is the client's to say: it cancels.
    cancelled = threading.Event()
    context.add_callback(cancelled.set)
    yield b"first"
    if cancelled.wait(60):
        print("the call was cancelled", flush=True)


def large(request, context):
    return request * 2


handlers = {
    "Talk": grpc.stream_stream_rpc_method_handler(talk),
    "Endless": grpc.unary_stream_rpc_method_handler(endless),
    "Large": grpc.unary_unary_rpc_method_handler(large),
}
server = grpc.server(ThreadPoolExecutor(8))
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("mesh.Test", handlers)])
assert server.add_insecure_port("0.0.0.0:50051") == 50051
server.start()
print("serving", flush=True)
server.wait_for_termination()
"""

CLIENT = """
import queue
import sys

import grpc

with grpc.insecure_channel(sys.argv[1] + ":50051") as channel:
    grpc.channel_ready_future(channel).result(60)

    said = queue.Queue()
    answers = channel.stream_stream("/mesh.Test/Talk")(iter(said.get, None), timeout=120)
    for number in range(500):  # one waits for the other: nothing may be held back on the way
        word = b"%d " % number * 50
        said.put(word)
        assert next(answers) == word[::-1]
    said.put(None)
    assert list(answers) == []
    assert answers.code() is grpc.StatusCode.OK

    data = bytes(range(256)) * 8000
    assert channel.unary_unary("/mesh.Test/Large")(data, timeout=120) == data * 2

    call = channel.unary_stream("/mesh.Test/Endless")(b"", timeout=120)
    assert next(call) == b"first"
    call.cancel()
    assert call.code() is grpc.StatusCode.CANCELLED
    # The channel is as good as before.
    assert channel.unary_unary("/mesh.Test/Large")(b"ab", timeout=120) == b"abab"

    try:
        channel.unary_unary("/mesh.Test/Missing")(b"", timeout=120)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED, error
    else:
        raise AssertionError("a method that is not there has answered")
print("content")
"""


@pytest.fixture
def nodes() -> Iterator[TwoNodes]:
    with TwoNodes.open() as mesh:
        yield mesh


async def test_grpc(nodes: TwoNodes) -> None:
    """Streaming both ways in turn, a message of 4 MB, a call that is cancelled, a status in the trailers."""
    machine = nodes.mesh.machine
    environment = {key: value for key, value in os.environ.items() if key in INHERITED}
    environment |= {"GRPC_ENABLE_FORK_SUPPORT": "0", "no_proxy": "*"}

    def spawn(pod: MeshPod, name: str, program: str, *arguments: str) -> Process:
        command = [sys.executable, "-P", "-c", WATCHED + program, *arguments]
        return machine.spawn(name, command, env=environment, namespace=pod.pod.namespace)

    server = spawn(nodes.server, "grpc-server", SERVER)
    try:
        await said(server, "serving", 180)
        client = spawn(nodes.client, "grpc-client", CLIENT, nodes.server.ipv4)
        try:
            await said(client, "content", 300)
            assert await trio.to_thread.run_sync(client.wait, 60) == 0, client.output()[-4000:]
        finally:
            client.stop(grace=10)
        await said(server, "the call was cancelled", 60)
    finally:
        server.stop(grace=10)
    opened = await nodes.server.logged(direction="inbound", timeout=30)
    assert any(
        str(entry.get("dst.hbone_addr", "")).endswith(":50051")
        and "/sa/client" in entry.get("src.identity", "")
        for entry in opened
    ), opened
