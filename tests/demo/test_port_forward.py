"""The port by which a browser outside of the pods reaches a dashboard."""

from __future__ import annotations

from functools import partial

import trio

from tests.support.closed_port import closed_port
from ztunnel.demo.port_forward import serve


async def shout(stream: trio.SocketStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send_all(data.upper())


async def test_bytes_pass_in_both_directions_until_either_side_ends():
    async with trio.open_nursery() as nursery:
        [inside] = await nursery.start(partial(trio.serve_tcp, shout, 0, host="127.0.0.1"))
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(serve, listener, inside.socket.getsockname()[1])
        with trio.fail_after(30):
            async with await trio.open_tcp_stream(*listener.socket.getsockname()) as stream:
                await stream.send_all(b"word")
                assert await stream.receive_some() == b"WORD"
                await stream.send_eof()
                assert await stream.receive_some() == b""
        nursery.cancel_scope.cancel()


async def test_where_nobody_listens_the_connection_ends_and_the_next_one_is_served():
    with closed_port() as port:
        async with trio.open_nursery() as nursery:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(serve, listener, port)
            with trio.fail_after(30):
                for _ in range(2):
                    async with await trio.open_tcp_stream(*listener.socket.getsockname()) as stream:
                        assert await stream.receive_some() == b""
            nursery.cancel_scope.cancel()
