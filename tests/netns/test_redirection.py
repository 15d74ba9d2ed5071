"""Sockets of a pod under the CNI's own rules: what was meant, who is seen, and what is let through."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import asynccontextmanager, closing
from ipaddress import ip_address
from random import Random

import pytest
import trio

from tests.support.logs import capture_logs
from tests.support.namespaces import made_socket, namespace_of, needs_namespaces
from ztunnel.demo.machine import Machine
from ztunnel.demo.network import Network, Pod, set_kernel_setting
from ztunnel.demo.redirection import RedirectionOptions
from ztunnel.model.address import SocketAddress
from ztunnel.netns.namespace import Namespace
from ztunnel.sockets.addresses import DestinationOrigin, from_sockaddr, local_address, original_destination
from ztunnel.sockets.dial import connect
from ztunnel.sockets.factories import NamespaceSockets, SpareSockets
from ztunnel.sockets.keepalive import Keepalive
from ztunnel.sockets.listen import Listener, SocketOptions, listen
from ztunnel.sockets.source import ClientSources

pytestmark = needs_namespaces
MARK = 1337
OPTIONS = SocketOptions(mark=MARK, keepalive=Keepalive(time=77))


class Captured:
    """A captured pod, and beside it an ordinary one and one for which IPv6 is off, on one node."""

    def __init__(self, pod: Pod, other: Pod, without_ipv6: Pod) -> None:
        self.pod = pod
        self.other = other
        self.without_ipv6 = without_ipv6


@pytest.fixture(scope="module")
def captured() -> Iterator[Captured]:
    with Machine.open() as machine:
        network = Network(machine)
        node = network.node("a")
        pod, other, without_ipv6 = node.pod("captured"), node.pod("other"), node.pod("old")
        network.redirect(pod, RedirectionOptions(dns=True))
        set_kernel_setting(without_ipv6.namespace, "net/ipv6/conf/all/disable_ipv6", "1")
        yield Captured(pod, other, without_ipv6)


@asynccontextmanager
async def sockets_of(pod: Pod):
    with Namespace.duplicate(pod.namespace.descriptor) as namespace:
        factory = NamespaceSockets(namespace, spares=SpareSockets())
        try:
            yield factory
        finally:
            factory.close()


async def pod_listener(factory: NamespaceSockets, port: int, *, transparent: bool | None = None) -> Listener:
    address = SocketAddress(ip_address("::"), port)
    return await listen(address, factory=factory, options=OPTIONS, reuse_port=True, transparent=transparent)


async def dial(pod: Pod, address: str, port: int, source: str | None = None) -> socket.socket:
    """As an application would: a socket without a mark."""
    sock = made_socket(pod.namespace, socket.AF_INET6 if ":" in address else socket.AF_INET)
    if source is not None:
        sock.bind((source, 0))
    await trio.to_thread.run_sync(sock.connect, (address, port))
    return sock


async def accept(sock: socket.socket) -> socket.socket:
    with trio.fail_after(5):
        sock.settimeout(0)
        await trio.lowlevel.wait_readable(sock)
    return sock.accept()[0]


@pytest.mark.parametrize(
    ("version", "origin"),
    [(4, DestinationOrigin.SO_ORIGINAL_DST), (6, DestinationOrigin.IP6T_SO_ORIGINAL_DST)],
)
async def test_what_a_redirected_application_meant_is_known(captured, version, origin):
    target = {4: "10.99.0.1", 6: "fd99::1"}[version]
    async with sockets_of(captured.pod) as factory:
        with (await pod_listener(factory, 15001)).sock as listener:
            assert namespace_of(listener) == captured.pod.namespace.inode
            with await dial(captured.pod, target, 8080) as application, await accept(listener) as accepted:
                assert original_destination(accepted) == (
                    SocketAddress(ip_address(target), 8080),
                    origin,
                    None,
                )
                assert from_sockaddr(accepted.getpeername()) == SocketAddress(
                    ip_address(captured.pod.addresses[version == 6]), application.getsockname()[1]
                )


async def test_what_comes_in_goes_to_15006_and_hbone_goes_straight_to_15008(captured):
    async with sockets_of(captured.pod) as factory:
        with (
            (await pod_listener(factory, 15006)).sock as plaintext,
            (await pod_listener(factory, 15008)).sock as hbone,
        ):
            for address in captured.pod.addresses:
                with await dial(captured.other, address, 8080), await accept(plaintext) as accepted:
                    assert original_destination(accepted).address == SocketAddress(ip_address(address), 8080)
                with await dial(captured.other, address, 15008), await accept(hbone) as accepted:
                    assert local_address(accepted) == SocketAddress(ip_address(address), 15008)


async def test_accepted_connections_have_the_listeners_options(captured):
    async with sockets_of(captured.pod) as factory:
        listener = await pod_listener(factory, 15001, transparent=True)
        assert listener.transparent
        with (
            listener.sock,
            await dial(captured.pod, "10.99.0.1", 80),
            await accept(listener.sock) as accepted,
        ):
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == MARK
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77


async def test_a_marked_dial_is_not_redirected_and_an_unmarked_one_is(captured):
    async with sockets_of(captured.pod) as factory:
        with (
            (await pod_listener(factory, 15001)).sock as outbound,
            made_socket(captured.other.namespace, socket.AF_INET) as server,
        ):
            server.bind((captured.other.ipv4, 7001))
            server.listen()
            target = SocketAddress(ip_address(captured.other.ipv4), 7001)
            with await connect(target, factory=factory, mark=MARK) as sock, await accept(server) as accepted:
                assert local_address(sock).ip == ip_address(captured.pod.ipv4), "the pod's own address"
                assert from_sockaddr(accepted.getpeername()) == local_address(sock)
            with await connect(target, factory=factory), await accept(outbound) as accepted:
                assert original_destination(accepted).address == target


@pytest.mark.parametrize("version", [4, 6])
async def test_the_application_sees_the_client_and_can_answer(captured, version):
    """The last hop: from the client's address, which is not ours, to the application in the pod."""
    address = captured.pod.addresses[version == 6]
    client = ip_address(captured.other.addresses[version == 6])
    family = socket.AF_INET6 if version == 6 else socket.AF_INET
    async with sockets_of(captured.pod) as factory:
        with made_socket(captured.pod.namespace, family) as server:
            server.bind((address, 7002))
            server.listen()
            with (
                capture_logs() as records,
                closing(ClientSources(factory, Random(1))) as sources,
                await connect(
                    SocketAddress(ip_address(address), 7002),
                    factory=factory,
                    client=client,
                    sources=sources,
                    mark=MARK,
                ) as sock,
                await accept(server) as accepted,
            ):
                assert from_sockaddr(accepted.getpeername()).ip == client
                accepted.send(b"answer")
                with trio.fail_after(5):
                    await trio.lowlevel.wait_readable(sock)
                assert sock.recv(100) == b"answer"
            assert records == []


async def test_a_pod_without_ipv6_works_by_ipv4_and_harms_no_other(captured):
    async with sockets_of(captured.without_ipv6) as without, sockets_of(captured.pod) as with_ipv6:
        assert not await without.ipv6_on_loopback()
        assert await with_ipv6.ipv6_on_loopback()
        with (await pod_listener(without, 15008)).sock as listener:
            target = SocketAddress(ip_address(captured.without_ipv6.ipv4), 15008)
            with await connect(target, factory=with_ipv6, mark=MARK), await accept(listener) as accepted:
                assert from_sockaddr(accepted.getpeername()).ip == ip_address(captured.pod.ipv4)
        with pytest.raises(OSError, match=r"unreachable|Cannot assign"):
            await connect(SocketAddress(ip_address("fd99::1"), 80), factory=without, mark=MARK)
        with (await pod_listener(with_ipv6, 15008)).sock as listener:
            assert captured.pod.ipv6 is not None
            target = SocketAddress(ip_address(captured.pod.ipv6), 15008)
            with await connect(target, factory=with_ipv6, mark=MARK), await accept(listener):
                pass


async def test_two_processes_may_serve_a_pod_at_once(captured):
    async with sockets_of(captured.pod) as old, sockets_of(captured.pod) as new:
        with (await pod_listener(old, 15008)).sock, (await pod_listener(new, 15008)).sock:
            pass
