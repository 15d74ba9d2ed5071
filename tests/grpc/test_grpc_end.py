"""That tests know when grpcio has ended: its threads stay in the network namespace that they began in."""

from __future__ import annotations

from concurrent import futures

import grpc

from tests.support.grpc_end import grpc_threads, wait_for_the_end_of_grpc
from tests.support.namespaces import needs_namespaces
from tests.support.own_namespace import enter_network_namespace


class Echo(grpc.GenericRpcHandler):
    """Answers what it is told."""

    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        return grpc.unary_unary_rpc_method_handler(lambda request, _: bytes(request))


def talk() -> list[str]:
    """Ask a server of our own; gives grpcio's threads meanwhile."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((Echo(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/a/b", request_serializer=bytes, response_deserializer=bytes)
        assert call(b"word", timeout=30) == b"word"
        names = grpc_threads()
    server.stop(0).wait()
    return names


def test_its_threads_are_seen_and_their_end_is():
    assert talk() != []
    wait_for_the_end_of_grpc()
    assert grpc_threads() == []


@needs_namespaces
def test_it_works_behind_a_namespace_in_which_it_was_used():
    with enter_network_namespace():
        talk()
    talk()
