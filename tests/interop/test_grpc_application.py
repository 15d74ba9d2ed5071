"""A gRPC application through the mesh: grpcio's own client and server, in pods of two nodes."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.support.pod import eventually
from tests.support.two_nodes import TwoNodes

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
    environment = {"PATH": "/usr/bin:/bin", "GRPC_ENABLE_FORK_SUPPORT": "0"}
    spawn = machine.spawn
    server = spawn(
        "grpc-server",
        [sys.executable, "-c", SERVER],
        env=environment,
        namespace=nodes.server.pod.namespace,
    )
    client = None
    try:
        await eventually(lambda: "serving" in server.output(), "serving", 60)
        client = spawn(
            "grpc-client",
            [sys.executable, "-c", CLIENT, nodes.server.ipv4],
            env=environment,
            namespace=nodes.client.pod.namespace,
        )
        running = client
        await eventually(lambda: running.returncode is not None, "at its end", 240)
        assert client.returncode == 0, client.output()[-4000:]
        assert "content" in client.output()
        await eventually(
            lambda: "the call was cancelled" in server.output(), "told of the cancelled call", 60
        )
    finally:
        for process in (client, server):
            if process is not None:
                process.stop(grace=10)
    opened = await nodes.server.logged(direction="inbound", timeout=30)
    assert any(
        str(entry.get("dst.hbone_addr", "")).endswith(":50051")
        and "/sa/client" in entry.get("src.identity", "")
        for entry in opened
    ), opened
