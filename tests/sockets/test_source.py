"""Applications see their clients' addresses, and the ports shown never meet those that clients use."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from ipaddress import ip_address, ip_network
from random import Random
from typing import Self

import pytest
import trio

from tests.support.logs import capture_logs
from tests.support.namespaces import made_socket, needs_namespaces, open_descriptors
from ztunnel.bounds import DEFAULTS, ConnectionBounds
from ztunnel.demo.machine import Machine
from ztunnel.demo.network import Network, Pod
from ztunnel.demo.redirection import RedirectionOptions
from ztunnel.model.address import SocketAddress
from ztunnel.netns.namespace import Namespace
from ztunnel.sockets.addresses import from_sockaddr
from ztunnel.sockets.dial import connect
from ztunnel.sockets.factories import NamespaceSockets, SpareSockets
from ztunnel.sockets.source import ClientSources

pytestmark = needs_namespaces
MARK = 1337
DEFAULT_RANGE_END = 60999
"""Of Linux' ip_local_port_range."""
HIDDEN = {4: ip_network("127.64.0.0/10"), 6: ip_network("100::/64")}


class Pods:
    def __init__(self, network: Network) -> None:
        node = network.node("a")
        self.iptables, self.nftables, self.bare = node.pod("iptables"), node.pod("nftables"), node.pod("bare")
        network.redirect(self.iptables, RedirectionOptions(dns=True))
        network.redirect(self.nftables, RedirectionOptions(), backend="nftables")


@pytest.fixture(scope="module")
def pods() -> Iterator[Pods]:
    with Machine.open() as machine:
        yield Pods(Network(machine))


@asynccontextmanager
async def sockets_of(pod: Pod) -> AsyncIterator[NamespaceSockets]:
    with (
        Namespace.duplicate(pod.namespace.descriptor) as namespace,
        closing(NamespaceSockets(namespace, spares=SpareSockets())) as factory,
    ):
        yield factory


class Application:
    """A server in a pod, and connections to it that show a client's address."""

    def __init__(
        self,
        pod: Pod,
        factory: NamespaceSockets,
        version: int,
        *,
        random: int = 1,
        bounds: ConnectionBounds = DEFAULTS.connection,
    ) -> None:
        self.version = version
        self.server = made_socket(pod.namespace, socket.AF_INET6 if version == 6 else socket.AF_INET)
        self.server.bind((pod.addresses[version == 6], 0))
        self.server.listen(1024)
        self.address = SocketAddress(ip_address(pod.addresses[version == 6]), self.server.getsockname()[1])
        self.client = ip_address({4: "192.0.2.7", 6: "2001:db8::7"}[version])
        self.factory = factory
        self.sources = ClientSources(factory, Random(random), bounds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.close()
        self.sources.close()

    async def dial(self) -> tuple[socket.socket, socket.socket]:
        """Our end and the application's, after a byte each way."""
        near = await connect(
            self.address, factory=self.factory, client=self.client, sources=self.sources, mark=MARK, timeout=5
        )
        far, _ = self.server.accept()
        far.settimeout(5)
        near.send(b"a")
        assert far.recv(9) == b"a"
        far.send(b"b")
        with trio.fail_after(5):
            await trio.lowlevel.wait_readable(near)
        assert near.recv(9) == b"b"
        return near, far


def codes(records) -> list[str]:
    return [record.fields["code"] for record in records if "code" in record.fields]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("rules", ["iptables", "nftables"])
async def test_the_client_is_shown_by_translation(pods: Pods, rules: str, version: int):
    async with sockets_of(getattr(pods, rules)) as factory:
        with Application(getattr(pods, rules), factory, version) as application, capture_logs() as records:
            ports = set()
            for _ in range(20):
                near, far = await application.dial()
                with near, far:
                    assert from_sockaddr(far.getpeername()).ip == application.client
                    address, port = near.getsockname()[:2]
                    assert ip_address(address) in HIDDEN[version]
                    # The kernel would give it to none of the pod's own connections.
                    assert port > DEFAULT_RANGE_END
                    ports.add(from_sockaddr(far.getpeername()).port)
            assert len(ports) == 20
            assert records == []


@pytest.mark.parametrize("version", [4, 6])
async def test_every_port_can_be_the_clients_own(pods: Pods, version: int):
    """A client that uses the very ports that its applications are shown meets none of our connections."""
    async with sockets_of(pods.iptables) as factory:
        with Application(pods.iptables, factory, version) as application:
            for _ in range(50):
                near, far = await application.dial()
                port = from_sockaddr(far.getpeername()).port
                with near, far:
                    # From that very port: it is redirected, and not taken for ours.
                    client = made_socket(pods.bare.namespace, near.family)
                    with client, redirected(pods.iptables, near.family) as listener:
                        client.setsockopt(socket.IPPROTO_IP, 19, 1)
                        client.bind((pods.bare.addresses[version == 6], port))
                        client.connect((str(application.address.ip), application.address.port))
                        listener.accept()[0].close()
                    near.send(b"x")
                    assert far.recv(9) == b"x"


def redirected(pod: Pod, family: int) -> socket.socket:
    listener = made_socket(pod.namespace, family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 15006))
    listener.listen()
    return listener


async def test_the_ring_of_ports_goes_on_where_connections_have_ended(pods: Pods):
    """Ports in use are passed over, and entries of ended connections are no obstacle."""
    bounds = ConnectionBounds(source_ports=8)
    async with sockets_of(pods.iptables) as factory:
        with Application(pods.iptables, factory, 4, bounds=bounds) as application:
            kept = [await application.dial() for _ in range(3)]
            in_use = {from_sockaddr(far.getpeername()).port for _, far in kept}
            others = []
            for _ in range(40):
                near, far = await application.dial()
                others.append(from_sockaddr(far.getpeername()).port)
                near.close()
                assert far.recv(1) == b""
                far.close()
            assert len(in_use) == 3
            assert len(set(others)) == 5
            assert not in_use & set(others)
            for near, far in kept:
                near.close()
                far.close()


async def test_without_a_free_port_the_plain_way_is_taken_and_it_is_said(pods: Pods):
    bounds = ConnectionBounds(source_ports=4)
    async with sockets_of(pods.iptables) as factory:
        with Application(pods.iptables, factory, 4, bounds=bounds) as application, capture_logs() as records:
            made = [await application.dial() for _ in range(5)]
            assert {str(from_sockaddr(far.getpeername()).ip) for _, far in made} == {"192.0.2.7"}
            assert codes(records) == ["ZT-NET-015"]
            for near, far in made:
                near.close()
                far.close()


async def test_a_namespace_without_rules_is_found_out_once(pods: Pods, autojump_clock):
    """Nothing is translated there. The application sees the client all the same; its answers have no way."""
    async with sockets_of(pods.bare) as factory:
        with Application(pods.bare, factory, 4) as application, capture_logs() as records:
            sources = application.sources
            for _ in range(3):
                sock = await factory.stream(socket.AF_INET)
                with sock:
                    await sources.prepare(sock, application.address, application.client)
                    host, port = sock.getsockname()
                    assert host == "192.0.2.7"
                    assert 16384 <= port < 32768
            assert codes(records) == ["ZT-NET-015"]
            await trio.sleep(61)
            with await factory.stream(socket.AF_INET) as sock:
                await sources.prepare(sock, application.address, application.client)
            assert codes(records) == ["ZT-NET-015"] * 2


async def test_many_first_connections_share_one_trial(pods: Pods):
    async with sockets_of(pods.nftables) as factory:
        made = []

        class Counting(ClientSources):
            async def _tried(self, *arguments):
                made.append(arguments)
                return await super()._tried(*arguments)

        sources = Counting(factory, Random(3))
        with closing(sources), Application(pods.nftables, factory, 4) as application:

            async def one() -> None:
                with await factory.stream(socket.AF_INET) as sock:
                    await sources.prepare(sock, application.address, application.client)

            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(one)
        assert len(made) == 1


@pytest.mark.parametrize("refused", [errno.EPERM, errno.ENOMEM, errno.EPROTONOSUPPORT])
async def test_a_kernel_without_the_interface_is_no_obstacle(pods: Pods, monkeypatch, refused: int):
    async with sockets_of(pods.iptables) as factory:

        async def conntrack() -> socket.socket:
            raise OSError(refused, os.strerror(refused))

        monkeypatch.setattr(factory, "conntrack", conntrack)
        with Application(pods.iptables, factory, 4) as application, capture_logs() as records:
            near, far = await application.dial()
            with near, far:
                assert from_sockaddr(far.getpeername()).ip == application.client
            assert codes(records) == ["ZT-NET-015"]


async def test_nothing_is_left_open(pods: Pods):
    async with sockets_of(pods.iptables) as factory:
        factory._spares = None
        before = open_descriptors()
        with Application(pods.iptables, factory, 4) as application:
            for sock in await application.dial():
                sock.close()
        # Late visits of the tests before may still close theirs.
        assert open_descriptors() <= before
