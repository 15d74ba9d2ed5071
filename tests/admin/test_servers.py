from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address

import pytest
import trio

from tests.support.logs import capture_logs
from ztunnel.admin.readiness import Readiness
from ztunnel.admin.servers import ListenError, loopback_has_ipv6, open_listeners, serve
from ztunnel.config.model import Localhost
from ztunnel.model.address import SocketAddress

V4 = SocketAddress(IPv4Address("127.0.0.1"), 0)
needs_ipv6 = pytest.mark.skipif(not loopback_has_ipv6(), reason="IPv6 is disabled on lo of this machine")


async def get(host: str, port: int) -> bytes:
    stream = await trio.open_tcp_stream(host, port)
    async with stream:
        await stream.send_all(b"GET /healthz/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        got = b""
        while piece := await stream.receive_some(1000):
            got += piece
        return got


async def test_a_server_serves_until_it_is_stopped(nursery):
    stop = trio.Event()
    with capture_logs() as records:
        (address,) = await nursery.start(serve, "readiness", V4, Readiness().handle, stop)
        assert b"200 " in await get("127.0.0.1", address.port)
        stop.set()
        await trio.testing.wait_all_tasks_blocked(0.01)
        with pytest.raises(OSError, match="all attempts"):
            await get("127.0.0.1", address.port)
    assert [(record.message, record.fields["address"]) for record in records] == [
        ("listener established", address),
        ("listener drained", address),
    ]


async def test_open_listeners_may_be_given(nursery):
    listeners = open_listeners("metrics", V4)
    (address,) = await nursery.start(serve, "metrics", listeners, Readiness().handle, trio.Event())
    assert b"200 " in await get("127.0.0.1", address.port)
    nursery.cancel_scope.cancel()


async def test_cancelled_it_leaves_no_socket_open():
    listeners = open_listeners("metrics", V4)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, "metrics", listeners, Readiness().handle, trio.Event())
        nursery.cancel_scope.cancel()
    assert listeners[0].socket.fileno() == -1


@needs_ipv6
async def test_localhost_is_both_families_on_one_port(nursery):
    stop = trio.Event()
    v4, v6 = await nursery.start(serve, "admin", Localhost(ipv6=True, port=0), Readiness().handle, stop)
    assert v4.port == v6.port
    assert b"200 " in await get("::1", v6.port)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("ipv6", "has_ipv6"), [(True, False), (False, True)])
async def test_localhost_without_ipv6_is_one_listener(ipv6, has_ipv6):
    (listener,) = open_listeners("admin", Localhost(ipv6, 0), has_ipv6=lambda: has_ipv6)
    assert listener.socket.getsockname()[0] == "127.0.0.1"
    await listener.aclose()


@needs_ipv6
async def test_the_wildcard_takes_ipv4_too(nursery):
    where = SocketAddress(IPv6Address("::"), 0)
    (address,) = await nursery.start(serve, "metrics", where, Readiness().handle, trio.Event())
    assert str(address).startswith("[::]:")
    assert b"200 " in await get("127.0.0.1", address.port)
    nursery.cancel_scope.cancel()


async def test_accepted_connections_have_no_delay(nursery):
    (listener,) = open_listeners("admin", V4)
    port = listener.socket.getsockname()[1]
    async with await trio.open_tcp_stream("127.0.0.1", port), await listener.accept() as accepted:
        assert accepted.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    await listener.aclose()


async def test_an_address_in_use_is_a_clear_error():
    (listener,) = open_listeners("admin", V4)
    port = listener.socket.getsockname()[1]
    with pytest.raises(
        ListenError, match=rf"^cannot listen on 127\.0\.0\.1:{port} for admin: Address already in use$"
    ):
        open_listeners("admin", Localhost(ipv6=True, port=port))
    await listener.aclose()
