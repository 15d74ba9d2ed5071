"""Leaving a gRPC stream early, with messages that nobody took."""

import threading
from concurrent import futures

import grpc
import pytest
import trio

from ztunnel.grpc.bridge import GrpcChannel


class _Chatter(grpc.GenericRpcHandler):
    """Answers a stream's first message with many."""

    def service(self, details):
        del details
        return grpc.stream_stream_rpc_method_handler(self._talk)

    def _talk(self, requests, context):
        gone = threading.Event()
        context.add_callback(gone.set)
        next(iter(requests))
        yield from (b"one", b"two", b"three")
        gone.wait(30)


@pytest.fixture
def chatter():
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((_Chatter(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(0).wait()


async def test_a_stream_is_left_at_once_although_a_message_waits_to_be_taken(chatter):
    with trio.fail_after(10):
        async with GrpcChannel(f"127.0.0.1:{chatter}", roots=None) as channel:
            async with channel.open_stream("/a/b") as stream:
                await stream.send(b"go")
                assert await stream.receive() == b"one"
                with trio.fail_after(10):
                    while not stream._messages.statistics().tasks_waiting_send:  # noqa: ASYNC110  # a thread's
                        await trio.sleep(0.01)
            assert stream.ended.is_set()
